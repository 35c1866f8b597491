"""A worker: the process that runs one trial after the other and reports to its supervisor.

It can be killed at any moment: a result is in the store or it is not. Before it loads anything heavy it leaves signals to its
supervisor and makes sure that it ends with it.

Messages are lines of JSON with a line break on both sides, so that whatever a plug-in writes into the pipe spoils no message.
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
    from milbench.config import Settings
    from milbench.trials.plan import Job
    from milbench.trials.store import Status, Store

UNREACHABLE = 74  # exit code of a worker that cannot reach its supervisor


class Setup(NamedTuple):
    """The first message to a worker, with what all its trials share.

    Args:
        settings: with absolute paths.
        writer: of the supervisor's store, which removes what a killed worker has not finished.
        plugins, backends, trial: as in :class:`milbench.engines.Run`.
        gpu: the only one that the worker sees; None for all.
        memory_share: how much of its memory the worker may take.
    """

    settings: Settings
    writer: str
    plugins: list[str]
    backends: list[str]
    trial: Callable[..., Status] | None
    gpu: int | None = None
    memory_share: float = 1.0


def work(pipe: Connection, supervisor: int) -> None:
    """Body of a worker: receives a :class:`Setup`, then (job, keep the model) again and again until the pipe closes.

    Args:
        pipe: to the supervisor.
        supervisor: number of its process.
    """
    _end_with(supervisor)
    try:
        store, trial = _prepare(pipe.recv())
    except (EOFError, ConnectionError):
        return
    except BaseException as error:
        _send(pipe, said="broken", reason=_described(error))
        raise SystemExit(1) from error
    while True:
        try:
            job, keep = pipe.recv()
        except (EOFError, ConnectionError):
            return
        _run_job(job, store, partial(trial, keep_model=keep), partial(_send, pipe, trial=job.trial_id))


def _end_with(supervisor: int) -> None:
    """Leave signals to the supervisor, who started this process with all of them blocked, and end when it ends."""
    for number in interrupt.SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, interrupt.SIGNALS)
    # Linux kills us even within a long call into C; elsewhere a thread watches the supervisor, which such a call may hold up.
    kill_me_with_my_parent = 1  # PR_SET_PDEATHSIG
    if sys.platform != "linux" or ctypes.CDLL(None).prctl(kill_me_with_my_parent, int(signal.SIGKILL)):
        threading.Thread(target=_watch, args=(supervisor,), daemon=True).start()
    if os.getppid() != supervisor:
        os._exit(UNREACHABLE)


def _watch(supervisor: int) -> None:
    while os.getppid() == supervisor:
        time.sleep(1)
    os._exit(UNREACHABLE)


def _prepare(setup: Setup) -> tuple[Store, Callable[..., Status]]:
    """The store, and what runs a trial: both are used for every job of this worker."""
    if setup.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(setup.gpu)  # noqa: TID251 - CUDA reads it when torch is first asked for a GPU
    from milbench.trials.run import prepare_process
    from milbench.trials.store import Store

    usual = prepare_process(setup.plugins, setup.backends, setup.memory_share)
    return Store(setup.settings.results, setup.writer), partial(setup.trial or usual, settings=setup.settings)


def _run_job(job: Job, store: Store, trial: Callable[..., Status], send: Callable[..., None]) -> None:
    """Run the trial, and record whatever it raises."""
    from milbench.errors import Unwritable

    send(said="started")
    try:
        try:
            trial(job.spec, store, job.labels, on_epoch=lambda epoch, row: send(said="epoch", epoch=epoch, row=row))
        except Unwritable:
            raise
        except BaseException as error:  # a plug-in's SystemExit or KeyboardInterrupt: signals do not reach this process
            record(job, store, "failed", _described(error), traceback.format_exc())
    except Unwritable as error:
        send(said="unwritable", reason=str(error))
    else:
        sys.stdout.flush()
        send(said="done")


def record(job: Job, store: Store, status: Status, reason: str, trace: str | None = None) -> None:
    """Write the result of a trial that could not write it itself.

    Raises:
        Unwritable: it cannot be written.
    """
    from milbench.machine import provenance
    from milbench.trials.run import failure

    result = failure(job.spec, status, reason, trace)
    result.labels, result.provenance = job.labels, provenance()
    store.write(result)


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _send(pipe: Connection, **message: Any) -> None:
    text = b"\n" + json.dumps(message, default=float).encode() + b"\n"
    try:
        while text:
            text = text[os.write(pipe.fileno(), text) :]
    except OSError:  # the supervisor has ended, or a plug-in closed the pipe: nobody would know of the trial
        os._exit(UNREACHABLE)
