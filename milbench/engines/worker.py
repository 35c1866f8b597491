"""A worker: the process that runs one trial after the other, and tells its supervisor how it goes.

It can be killed at any moment: a result is in the store or it is not. Before it loads anything heavy it leaves signals to its
supervisor and makes sure not to outlive it.

Messages are lines of JSON with a line break on both sides, so that whatever a plug-in writes into the pipe spoils only itself.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NamedTuple

from milbench import interrupt

if TYPE_CHECKING:
    from pathlib import Path

    from milbench.config import Settings
    from milbench.suites import Job
    from milbench.trials.store import Status, Store

UNHEARD = 74  # exit code of a worker that cannot reach its supervisor


class Setup(NamedTuple):
    """What a worker is told first; :func:`milbench.engines.run_local` says what each is."""

    root: Path
    writer: str
    settings: Settings
    plugins: list[str]
    backends: list[str]
    trial: Callable[..., Status] | None


def work(pipe: Connection, supervisor: int) -> None:
    """Body of a worker: receives a :class:`Setup`, then (job, keep the model) again and again until the pipe closes.

    Args:
        pipe: to the supervisor.
        supervisor: number of its process.
    """
    _never_outlive(supervisor)
    try:
        store, trial = _prepare(pipe.recv())
    except (EOFError, ConnectionError):
        return
    except BaseException as error:
        _say(pipe, said="broken", reason=_words(error))
        raise SystemExit(1) from error
    while True:
        try:
            job, keep = pipe.recv()
        except (EOFError, ConnectionError):
            return
        _one(job, store, partial(trial, keep_model=keep), partial(_say, pipe, trial=job.spec.trial_id))


def _never_outlive(supervisor: int) -> None:
    """Leave signals to the supervisor, who started this process with all of them blocked, and end with it."""
    for number in interrupt.SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, interrupt.SIGNALS)
    # Linux kills us even in the midst of a long call into C; elsewhere a thread looks after it, which such a call may hold up.
    kill_me_with_my_parent = 1  # PR_SET_PDEATHSIG
    if sys.platform != "linux" or ctypes.CDLL(None).prctl(kill_me_with_my_parent, int(signal.SIGKILL)):
        threading.Thread(target=_watch, args=(supervisor,), daemon=True).start()
    if os.getppid() != supervisor:
        os._exit(UNHEARD)


def _watch(supervisor: int) -> None:
    while os.getppid() == supervisor:
        time.sleep(1)
    os._exit(UNHEARD)


def _prepare(setup: Setup) -> tuple[Store, Callable[..., Status]]:
    from milbench import plugins
    from milbench.ops import backends
    from milbench.trials.run import run_trial
    from milbench.trials.store import Store

    plugins.discover(setup.plugins)
    backends.force(setup.backends)
    return Store(setup.root, setup.writer), partial(setup.trial or run_trial, settings=setup.settings)


def _one(job: Job, store: Store, trial: Callable[..., Status], say: Callable[..., None]) -> None:
    """Run the trial, whatever it raises."""
    from milbench.errors import Unwritable

    say(said="started")
    try:
        try:
            trial(job.spec, store, job.labels, on_epoch=lambda epoch, row: say(said="epoch", epoch=epoch, row=row))
        except Unwritable:
            raise
        except BaseException as error:  # a plug-in's SystemExit or KeyboardInterrupt: signals do not reach this process
            record(job, store, "failed", _words(error), traceback.format_exc())
    except Unwritable as error:
        say(said="unwritable", reason=str(error))
    else:
        sys.stdout.flush()
        say(said="done")


def record(job: Job, store: Store, status: Status, reason: str, trace: str | None = None) -> None:
    """Write the result of a trial that did not come to write one itself.

    Raises:
        Unwritable: it cannot be written.
    """
    from milbench.trials.run import failure, provenance

    result = failure(job.spec, status, reason, trace)
    result.labels, result.provenance = job.labels, provenance()
    store.write(result)


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _say(pipe: Connection, **message: Any) -> None:
    text = b"\n" + json.dumps(message, default=float).encode() + b"\n"
    try:
        while text:
            text = text[os.write(pipe.fileno(), text) :]
    except OSError:  # the supervisor is gone, or a plug-in closed the pipe: nobody would know of the trial
        os._exit(UNHEARD)
