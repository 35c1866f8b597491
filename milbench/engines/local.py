"""Trials on this machine, each in a worker process, so that a crash costs one trial and never the run."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import time
from collections import Counter, deque
from collections.abc import Callable
from multiprocessing import resource_tracker
from typing import Any

from milbench import interrupt
from milbench.engines.base import Done, Epoch, Event, Run, Started
from milbench.engines.worker import UNREACHABLE, Setup, record, work
from milbench.errors import MilbenchError, Unwritable
from milbench.trials.plan import Job
from milbench.trials.store import Status, Store

TICK = 0.2  # seconds, at most, until a signal or a dead worker is noticed
GRACE = 2.0  # seconds for a worker that has nothing left to do, or whose pipe is closed, to end by itself
TRIES = 3  # workers that may end, one after the other, before one of them could start a job
LONGEST = 1 << 20  # bytes of a message; what is longer cannot be one

# The most likely cause of a signal. Packed features are mapped into memory for reading only.
_CAUSES = {
    "SIGKILL": ", most likely because memory ran out",
    "SIGSEGV": "; an aggregator that writes into bag.features does that: test yours with milbench check aggregator",
}


def run_local(run: Run, on_event: Callable[[Event], None] = lambda event: None) -> None:
    """Run the jobs in `run.workers` processes; returns when all have a result.

    A worker that dies is replaced; its trial is recorded as `oom` when the system killed it, else as `failed`. The store decides:
    a trial with a result is done, however its worker ended, and a trial that no worker had started is started again.

    Args:
        run: what to do.
        on_event: called in this process: for every job `Started`, perhaps `Epoch`, then `Done`.

    Raises:
        Unwritable: results cannot be written; jobs without a result stay without one.
        MilbenchError: the system starts no more processes.
        KeyboardInterrupt: or whatever else the signal raises that asked to stop (SIGINT, SIGTERM, SIGHUP). Workers are killed,
            finished trials are kept, unfinished ones leave nothing behind. A second signal ends this process at once.
    """
    settings = run.settings.absolute()  # the current folder of a worker may be another, and a plug-in may change it
    store = Store(settings.results)
    plugins = [str(file.absolute()) for file in run.plugins]
    setup = Setup(settings, store.writer, plugins, list(run.backends), run.trial)
    store.sweep()
    with interrupt.noted() as stop_asked:
        _Supervisor(run, store, setup, on_event).run(stop_asked)


class _Worker:
    """A process that runs one job at a time, as its supervisor sees it.

    Neither the end of its pipe nor its sentinel says that it is dead: a plug-in can close every descriptor, and a child process
    of the worker can hold them open after it. Only the exit code does.
    """

    def __init__(self, context: multiprocessing.context.SpawnContext) -> None:
        self.job: Job | None = None
        self.before: object = None  # the result that the job had when it was sent
        self.started = False  # the worker reported that it started the job at hand
        self.proven = False  # it started a job, this one or another
        self.broken = ""  # why it could not prepare
        self.unreachable = False  # nothing comes out of its pipe any more
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

    def send(self, message: object) -> None:
        """Send something; whether it arrives shows in what comes back."""
        try:
            self.pipe.send(message)
        except OSError:
            self.unreachable = True

    def receive(self) -> list[dict[str, Any]]:
        """The messages that have arrived, without waiting; lines that are no messages are left out."""
        text = b""
        try:
            while len(text) < LONGEST and self.pipe.poll():
                part = os.read(self.pipe.fileno(), 1 << 16)
                self.unreachable = self.unreachable or not part
                text += part
                if not part:
                    break
        except OSError:
            self.unreachable = True
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
        """Kill it without waiting for its end."""
        self._process.kill()

    def _wait(self, seconds: float) -> int | None:
        # Not join(): that waits for the sentinel first, and then without limit.
        until = time.monotonic() + seconds
        while self.alive and time.monotonic() < until:
            time.sleep(0.002)
        return self._process.exitcode


def _message(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


class _Supervisor:
    """Sends jobs to workers, receives their messages, and replaces workers that die."""

    def __init__(self, run: Run, store: Store, setup: Setup, on_event: Callable[[Event], None]) -> None:
        self._run, self._store, self._setup, self._on_event = run, store, setup, on_event
        self._queue = deque(run.jobs)
        self._pool: list[_Worker] = []
        self._refused: Counter[str] = Counter()  # trial -> new workers that ended before they could start it
        self._context = multiprocessing.get_context("spawn")  # fork does not go together with CUDA or with threads

    def run(self, stop_asked: Callable[[], bool]) -> None:
        """Until every job has a result, or `stop_asked` says that a signal came."""
        resource_tracker.ensure_running()  # unblocks signals where it starts; held_back() needs them blocked
        finished = False
        try:
            while (self._queue or self._busy()) and not stop_asked():
                self._start_workers(stop_asked)
                self._send_jobs()
                ready = multiprocessing.connection.wait([worker.pipe for worker in self._pool], TICK)
                for worker in [worker for worker in self._pool if worker.pipe in ready]:
                    self._receive(worker)
                for worker in [worker for worker in self._pool if worker.unreachable or not worker.alive]:
                    self._remove(worker)
            finished = not stop_asked()
        finally:
            self._end_workers(at_once=not finished)

    def _busy(self) -> int:
        return sum(worker.job is not None for worker in self._pool)

    def _start_workers(self, stop_asked: Callable[[], bool]) -> None:
        """As many workers as there are jobs for."""
        while len(self._pool) < min(self._run.workers, len(self._queue) + self._busy()) and not stop_asked():
            self._pool.append(_Worker(self._context))
            self._pool[-1].send(self._setup)

    def _send_jobs(self) -> None:
        """A job for every worker that has none."""
        for worker in self._pool:
            if worker.job is None and self._queue:
                worker.job = job = self._queue.popleft()
                worker.before, worker.started = self._version(job), False
                worker.send((job, self._run.keeps(job)))

    def _receive(self, worker: _Worker) -> None:
        for message in worker.receive():
            job = worker.job
            match message:
                case {"said": "broken", "reason": str(reason)}:
                    worker.broken = reason
                case {"said": "unwritable", "reason": str(reason)}:
                    raise Unwritable(reason)
                case {"trial": trial} if job is None or trial != job.spec.trial_id:
                    pass
                case {"said": "started", "trial": trial} if not worker.started:
                    worker.started = worker.proven = True
                    self._on_event(Started(trial))
                case {"said": "epoch", "trial": trial, "epoch": int(epoch), "row": dict(row)}:
                    self._on_event(Epoch(trial, epoch, row))
                case {"said": "done"} if job is not None:
                    self._finish(worker, job, "failed", f"it was reported as finished, but no result is in {self._store.trials}")

    def _remove(self, worker: _Worker) -> None:
        """A dead worker has left a result, a trial that killed it, or a job that it had not started."""
        self._receive(worker)
        code = worker.end(GRACE)
        self._pool.remove(worker)
        if (job := worker.job) is None:
            return
        if worker.started:
            status: Status = "oom" if code == -signal.SIGKILL else "failed"
            self._finish(worker, job, status, f"the worker process {_how_it_ended(code)}")
            return
        self._refused[job.spec.trial_id] += not worker.proven
        if self._refused[job.spec.trial_id] < TRIES:
            self._queue.appendleft(job)
            return
        self._on_event(Started(job.spec.trial_id))
        why = worker.broken or f"the last one {_how_it_ended(code)}"
        self._finish(worker, job, "failed", f"{TRIES} workers in a row could not start it: {why}")

    def _finish(self, worker: _Worker, job: Job, status: Status, reason: str) -> None:
        """The job has the result that is in the store; where nothing new is there, `status` is recorded."""
        worker.job = None
        trial_id = job.spec.trial_id
        if self._version(job) in (None, worker.before) and self._store.status(trial_id) not in ("ok", "skipped"):
            record(job, self._store, status, reason)
        result = self._store.raw(trial_id) or {"status": status, "reason": reason}
        self._on_event(Done(trial_id, result["status"], result.get("reason")))

    def _version(self, job: Job) -> tuple[int, int] | None:
        """Tells a new result of a trial from the failed one of an earlier run."""
        try:
            file = (self._store.folder(job.spec.trial_id) / "trial.json").stat()
        except FileNotFoundError:
            return None
        return file.st_ino, file.st_mtime_ns

    def _end_workers(self, *, at_once: bool) -> None:
        for worker in self._pool:
            if at_once:
                worker.kill()
            else:
                worker.pipe.close()
        until = time.monotonic() + GRACE
        for worker in self._pool:
            worker.end(max(0.0, until - time.monotonic()))
        self._store.abandon()


def _how_it_ended(code: int | None) -> str:
    """How a process ended, in words."""
    if code in (None, UNREACHABLE):
        return "lost its pipe to milbench; a plug-in that closes files which it did not open does that"
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"ended with {name}{_CAUSES.get(name, '')}"
