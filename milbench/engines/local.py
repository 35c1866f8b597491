"""Trials on this machine, each in a worker process, so that a crash costs one trial and never the run."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing import resource_tracker
from typing import Any

from milbench import claims, interrupt
from milbench.engines.base import Done, Epoch, Event, Run, Started
from milbench.engines.sharing import FALLS, Shared
from milbench.engines.worker import UNREACHABLE, Setup, record, work
from milbench.errors import MilbenchError, Unwritable
from milbench.trials.plan import Job
from milbench.trials.store import Status, Store
from milbench.words import duration

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

    Runs on the same results folder, on this machine or others, share the trials: each is claimed before it is started.

    A worker that dies is replaced, and its trial begun once more: alone where the system killed the worker or memory ran out, for
    it may have been too much only together with others. Then it is recorded as `oom`, or as `failed`. The store decides:
    a trial with a result is done, however its worker ended, and a trial that no worker had started is started again.

    Args:
        run: what to do.
        on_event: called in this process: for every job `Started`, perhaps `Epoch`, then `Done`; `Done` alone where another run
            gave the result.

    Raises:
        Unwritable: results cannot be written; jobs without a result stay without one.
        MilbenchError: the system starts no more processes.
        KeyboardInterrupt: or whatever else the signal raises that asked to stop (SIGINT, SIGTERM, SIGHUP). Workers are killed,
            finished trials are kept, unfinished ones leave nothing behind. A second signal ends this process at once.
    """
    settings = run.settings.absolute()  # the current folder of a worker may be another, and a plug-in may change it
    store = Store(settings.results)
    plugins = [str(file.absolute()) for file in run.plugins]
    setup = Setup(settings, store.writer, plugins, list(run.backends), run.trial, memory_share=1 / run.per_gpu)
    store.sweep()
    claims.sweep(store.claims)
    with interrupt.noted() as stop_asked:
        _Supervisor(run, store, setup, on_event).run(stop_asked)


class _Worker:
    """A process that runs one job at a time, as its supervisor sees it.

    Neither the end of its pipe nor its sentinel says that it is dead: a plug-in can close every descriptor, and a child process
    of the worker can hold them open after it. Only the exit code does.
    """

    def __init__(self, context: multiprocessing.context.SpawnContext, gpu: int | None) -> None:
        self.gpu = gpu  # the only one that it sees
        self.job: Job | None = None
        self.started = False  # the worker reported that it started the job at hand
        self.since = 0.0  # when
        self.overdue = False  # its job takes longer than a trial may
        self.robbed = False  # its job is another run's by now
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
        self._jobs = Shared(run, store, on_event)
        self._pool: list[_Worker] = []
        self._refused: Counter[str] = Counter()  # trial -> new workers that ended before they could start it
        self._fell: set[str] = set()  # trials that took a worker down once, or ran out of memory beside others
        self._context = multiprocessing.get_context("spawn")  # fork does not go together with CUDA or with threads

    def run(self, stop_asked: Callable[[], bool]) -> None:
        """Until every job has a result, or `stop_asked` says that a signal came."""
        resource_tracker.ensure_running()  # unblocks signals where it starts; held_back() needs them blocked
        finished = False
        try:
            while (self._jobs.waiting or self._busy()) and not stop_asked():
                self._send_jobs(stop_asked)
                ready = multiprocessing.connection.wait([worker.pipe for worker in self._pool], TICK)
                for worker in [worker for worker in self._pool if worker.pipe in ready]:
                    self._receive(worker)
                self._end_overdue()
                for worker in [worker for worker in self._pool if worker.unreachable or not worker.alive]:
                    self._remove(worker)
            finished = not stop_asked()
        finally:
            self._end_workers(at_once=not finished)
            self._jobs.leave()

    def _busy(self) -> int:
        return sum(worker.job is not None for worker in self._pool)

    def _send_jobs(self, stop_asked: Callable[[], bool]) -> None:
        """A job for every worker that has none, and for those that may still be started."""
        while not stop_asked() and self._busy() < self._run.workers and (job := self._jobs.next(self._busy())):
            if self._jobs.hopeless(job):
                if job.trial_id not in self._fell:
                    self._on_event(Started(job.trial_id))
                self._conclude(job, "failed", f"begun {FALLS} times, and each time whoever ran it ended before it did", 0.0)
                continue
            idle = next((worker for worker in self._pool if worker.job is None), None)
            worker = idle or self._started_worker()
            worker.job, worker.started, worker.since = job, False, time.monotonic()
            worker.send((job, self._run.keeps(job)))

    def _started_worker(self) -> _Worker:
        """A new worker, on the GPU with the fewest."""
        used = Counter(worker.gpu for worker in self._pool)
        gpu = min(self._run.gpus, key=lambda number: used[number]) if self._run.gpus else None
        worker = _Worker(self._context, gpu)
        self._pool.append(worker)
        worker.send(self._setup._replace(gpu=gpu))
        return worker

    def _receive(self, worker: _Worker) -> None:
        for message in worker.receive():
            job = worker.job
            match message:
                case {"said": "broken", "reason": str(reason)}:
                    worker.broken = reason
                case {"said": "unwritable", "reason": str(reason)}:
                    if job is not None and not self._jobs.owns(job):
                        worker.robbed = True  # whoever took the trial over has removed what it had written of it
                        continue
                    raise Unwritable(reason)
                case {"trial": trial} if job is None or trial != job.trial_id:
                    pass
                case {"said": "started", "trial": trial} if job is not None and not worker.started:
                    worker.started = worker.proven = True
                    worker.since = time.monotonic()
                    self._jobs.begin(job)
                    if trial not in self._fell:
                        self._on_event(Started(trial))
                case {"said": "epoch", "trial": trial, "epoch": int(epoch), "row": dict(row)}:
                    self._on_event(Epoch(trial, epoch, row))
                case {"said": "done"} if job is not None:
                    self._finish(worker, job, "failed", f"it was reported as finished, but no result is in {self._store.trials}")

    def _end_overdue(self) -> None:
        """Kill workers whose trial takes too long, or was taken over by another run since this one had been halted."""
        lost, limit = self._jobs.beat(), self._run.trial_timeout
        for worker in self._pool:
            if worker.job is None:
                continue
            worker.robbed = worker.robbed or worker.job.trial_id in lost
            worker.overdue = bool(limit and worker.started and time.monotonic() - worker.since > limit)
            if worker.robbed or worker.overdue:
                worker.kill()

    def _remove(self, worker: _Worker) -> None:
        """A dead worker has left a result, a trial that killed it, or a job that it had not started."""
        self._receive(worker)
        code = worker.end(GRACE)
        self._pool.remove(worker)
        if (job := worker.job) is None:
            return
        trial_id = job.trial_id
        if worker.robbed:
            self._jobs.lose(job)
        elif worker.overdue:
            limit = duration(self._run.trial_timeout or 0)
            self._finish(worker, job, "failed", f"it ran longer than the {limit} of --trial-timeout")
        elif worker.started and (trial_id in self._fell or self._jobs.news(job)):
            status: Status = "oom" if code == -signal.SIGKILL else "failed"
            self._finish(worker, job, status, f"twice the worker process {_how_it_ended(code)}")
        elif worker.started:
            self._fell.add(trial_id)
            self._jobs.put_back(job, "alone" if code == -signal.SIGKILL else "last")
        else:
            self._blame(worker, job, worker.broken or f"the last one {_how_it_ended(code)}")

    def _blame(self, worker: _Worker, job: Job, why: str) -> None:
        """A worker ended before it could start the job."""
        trial_id = job.trial_id
        self._refused[trial_id] += not worker.proven
        if self._refused[trial_id] < TRIES:
            self._jobs.put_back(job, "first")
            return
        if trial_id not in self._fell:
            self._on_event(Started(trial_id))
        self._finish(worker, job, "failed", f"{TRIES} workers in a row could not start it: {why}")

    def _finish(self, worker: _Worker, job: Job, status: Status, reason: str) -> None:
        """The worker is done with its job."""
        worker.job = None
        self._conclude(job, status, reason, time.monotonic() - worker.since)

    def _conclude(self, job: Job, status: Status, reason: str, seconds: float) -> None:
        """The job has the result that is in the store; where nothing new is there, `status` is recorded.

        A trial that ran out of memory beside others is run again alone.
        """
        trial_id = job.trial_id
        if not self._jobs.news(job):
            record(job, self._store, status, reason)
        result = self._store.raw(trial_id) or {"status": status, "reason": reason}
        if result["status"] == "oom" and trial_id not in self._fell and self._run.workers > 1:
            self._fell.add(trial_id)
            self._jobs.put_back(job, "alone")
            return
        self._jobs.finish(job, seconds)
        self._on_event(Done(trial_id, result["status"], result.get("reason")))

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
