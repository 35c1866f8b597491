"""Trials on this machine, each in a worker process, so that a crash costs one trial and never the run."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milbench import interrupt
from milbench.config import Settings
from milbench.engines.base import Done, Epoch, Event, Started
from milbench.engines.worker import UNHEARD, Setup, record, work
from milbench.errors import MilbenchError, Unwritable
from milbench.trials.store import Status, Store

if TYPE_CHECKING:
    from milbench.suites import Job

TICK = 0.2  # seconds, at most, until a signal or a silent death is noticed
GRACE = 2.0  # seconds for a worker that has nothing left to do, or whose pipe is closed, to end by itself
TRIES = 3  # new workers that may end, one after the other, before one of them could take a job
LONGEST = 1 << 20  # bytes of a message; more is no message

# What usually ends a process so. Packed features are mapped into memory for reading only.
_USUAL = {
    "SIGKILL": ", most likely for want of memory",
    "SIGSEGV": "; an aggregator of your own that writes into bag.features ends so: milbench check aggregator tells",
}


def run_local(
    jobs: Sequence[Job],
    store: Store,
    *,
    settings: Settings | None = None,
    workers: int = 1,
    plugins: Sequence[Path] = (),
    backends: Sequence[str] = (),
    keep_model: Callable[[Job], bool] = lambda job: False,
    trial: Callable[..., Status] | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
) -> None:
    """Run `jobs` in `workers` processes; returns when all have a result.

    The number of workers changes no number: each trial seeds itself and uses the threads of its spec.
    A worker that dies is replaced; its trial is recorded as `oom` when the system killed it, else as `failed`. What counts is
    the store: a trial whose result is there is done, however its worker ended, and one that no worker had begun is begun again.

    Args:
        jobs: what to run.
        store: where results go.
        settings: where datasets are; what the environment says unless given.
        workers: processes at a time.
        plugins: files that register aggregators, loaded in each worker.
        backends: forced backends of operations, as `milbench run --backend` takes them.
        keep_model: which trials keep their weights.
        trial: instead of :func:`milbench.trials.run.run_trial`, with its arguments; must be importable in a worker.
        on_event: progress, called in this process: for every job `Started`, perhaps `Epoch`, then `Done`.

    Raises:
        Unwritable: results cannot be written; jobs without a result stay without one.
        MilbenchError: the system starts no more processes.
        KeyboardInterrupt: or what else the signal does that asked to stop (SIGINT, SIGTERM, SIGHUP). Workers are killed, finished
            trials are kept, unfinished ones leave nothing behind. A second signal ends this process at once.
    """
    store = Store(store.root.absolute())  # the current folder of a worker may be another, and a plug-in may change it
    where = (settings or Settings.from_environment()).absolute()
    files = [str(Path(file).absolute()) for file in plugins]
    setup = Setup(store.root, store.writer, where, files, list(backends), trial)
    store.sweep()
    with interrupt.noted() as asked:
        _Supervisor(jobs, store, setup, workers, keep_model, on_event).run(asked)


class _Worker:
    """A process that runs one job at a time, seen from outside.

    Neither the end of its pipe nor its sentinel says that it is dead: a plug-in can close every descriptor, and a child of its
    own can hold them open after it. Only the exit code does.
    """

    def __init__(self, context: multiprocessing.context.SpawnContext) -> None:
        self.job: Job | None = None
        self.before: object = None  # the result that the job had when it was given
        self.acknowledged = False  # the job at hand
        self.proven = False  # it acknowledged a job, this one or another
        self.complaint = ""  # why it could not begin
        self.silent = False  # nothing can be heard of it any more
        self._rest = b""
        try:
            self.pipe, theirs = context.Pipe()
            with theirs, interrupt.held_back():
                self._process = context.Process(target=work, args=(theirs, os.getpid()), daemon=True)
                self._process.start()
        except OSError as error:
            raise MilbenchError(f"cannot start a worker: {error.strerror or error}; try fewer --workers") from error

    @property
    def alive(self) -> bool:
        return self._process.exitcode is None

    def tell(self, what: object) -> None:
        """Send something; whether it arrives shows in what comes back."""
        try:
            self.pipe.send(what)
        except OSError:
            self.silent = True

    def hear(self) -> list[dict[str, Any]]:
        """Messages that have come in since; waits for nothing, and passes over what is none."""
        text = b""
        try:
            while len(text) < LONGEST and self.pipe.poll():
                part = os.read(self.pipe.fileno(), 1 << 16)
                self.silent = self.silent or not part
                text += part
                if not part:
                    break
        except OSError:
            self.silent = True
        *lines, rest = (self._rest + text).split(b"\n")
        self._rest = rest[-LONGEST:]
        return [message for line in lines if (message := _message(line))]

    def end(self, grace: float) -> int | None:
        """Close the pipe, on which it ends by itself; returns its exit code, or None where it took more than `grace` seconds."""
        self.pipe.close()
        code = self._wait(grace)
        if code is None:
            self._process.kill()
            self._wait(1.0)
        if not self.alive:
            self._process.close()
        return code

    def kill(self) -> None:
        """Without waiting for it."""
        self._process.kill()

    def _wait(self, seconds: float) -> int | None:
        # Not join(): that waits for the sentinel first, and then without limit.
        until = time.monotonic() + seconds
        while self.alive and time.monotonic() < until:
            time.sleep(0.002)
        return self._process.exitcode


def _message(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


class _Supervisor:
    """Hands out jobs, listens, and replaces whoever dies."""

    def __init__(
        self,
        jobs: Sequence[Job],
        store: Store,
        setup: Setup,
        workers: int,
        keep_model: Callable[[Job], bool],
        on_event: Callable[[Event], None],
    ) -> None:
        self.queue, self.store, self.setup, self.workers = deque(jobs), store, setup, workers
        self.keep_model, self.tell = keep_model, on_event
        self.pool: list[_Worker] = []
        self.refused: Counter[str] = Counter()  # trial -> new workers that ended before they could take it
        self.context = multiprocessing.get_context("spawn")  # fork does not go together with CUDA or with threads

    def run(self, asked: Callable[[], bool]) -> None:
        """Until every job has a result, or `asked` says that it is enough."""
        resource_tracker.ensure_running()  # unblocks signals where it starts; held_back() needs them blocked
        finished = False
        try:
            while (self.queue or self._busy()) and not asked():
                self._hire(asked)
                ready = multiprocessing.connection.wait([worker.pipe for worker in self.pool], TICK)
                for worker in [worker for worker in self.pool if worker.pipe in ready]:
                    self._listen(worker)
                for worker in [worker for worker in self.pool if worker.silent or not worker.alive]:
                    self._bury(worker)
            finished = not asked()
        finally:
            self._dismiss(at_once=not finished)

    def _busy(self) -> int:
        return sum(worker.job is not None for worker in self.pool)

    def _hire(self, asked: Callable[[], bool]) -> None:
        """As many workers as there is work for, each with a job."""
        while len(self.pool) < min(self.workers, len(self.queue) + self._busy()) and not asked():
            self.pool.append(_Worker(self.context))
            self.pool[-1].tell(self.setup)
        for worker in self.pool:
            if worker.job is None and self.queue:
                worker.job = job = self.queue.popleft()
                worker.before, worker.acknowledged = self._stamp(job), False
                worker.tell((job, self.keep_model(job)))

    def _listen(self, worker: _Worker) -> None:
        for message in worker.hear():
            job = worker.job
            match message:
                case {"said": "broken", "reason": str(reason)}:
                    worker.complaint = reason
                case {"said": "unwritable", "reason": str(reason)}:
                    raise Unwritable(reason)
                case {"trial": trial} if job is None or trial != job.spec.trial_id:
                    pass
                case {"said": "started", "trial": trial} if not worker.acknowledged:
                    worker.acknowledged = worker.proven = True
                    self.tell(Started(trial))
                case {"said": "epoch", "trial": trial, "epoch": int(epoch), "row": dict(row)}:
                    self.tell(Epoch(trial, epoch, row))
                case {"said": "done"} if job is not None:
                    self._finish(worker, job, "failed", f"it was reported as finished, but no result is in {self.store.trials}")

    def _bury(self, worker: _Worker) -> None:
        """See what the dead one left: a result, a trial that killed it, or a job that it had not begun."""
        self._listen(worker)
        code = worker.end(GRACE)
        self.pool.remove(worker)
        if (job := worker.job) is None:
            return
        if worker.acknowledged:
            self._finish(worker, job, "oom" if code == -signal.SIGKILL else "failed", f"the worker process {_how(code)}")
            return
        self.refused[job.spec.trial_id] += not worker.proven
        if self.refused[job.spec.trial_id] < TRIES:
            self.queue.appendleft(job)
            return
        self.tell(Started(job.spec.trial_id))
        why = worker.complaint or f"the last one {_how(code)}"
        self._finish(worker, job, "failed", f"{TRIES} workers in a row could not begin with it: {why}")

    def _finish(self, worker: _Worker, job: Job, status: Status, reason: str) -> None:
        """The job is done as the store says; where it says nothing new, with this status."""
        worker.job = None
        trial_id = job.spec.trial_id
        if self._stamp(job) in (None, worker.before) and self.store.status(trial_id) not in ("ok", "skipped"):
            record(job, self.store, status, reason)
        found = self.store.raw(trial_id) or {"status": status, "reason": reason}
        self.tell(Done(trial_id, found["status"], found.get("reason")))

    def _stamp(self, job: Job) -> tuple[int, int] | None:
        """Tells one result of a trial from another: a failed one may be there from an earlier run."""
        try:
            found = (self.store.folder(job.spec.trial_id) / "trial.json").stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns

    def _dismiss(self, *, at_once: bool) -> None:
        for worker in self.pool:
            if at_once:
                worker.kill()
            else:
                worker.pipe.close()
        until = time.monotonic() + GRACE
        for worker in self.pool:
            worker.end(max(0.0, until - time.monotonic()))
        self.store.abandon()


def _how(code: int | None) -> str:
    """How a process ended, in words."""
    if code in (None, UNHEARD):
        return "lost its pipe to this one; a plug-in that closes files which are not its own does that"
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"ended with {name}{_USUAL.get(name, '')}"
