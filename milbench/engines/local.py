"""Trials on this machine, each in a worker process, so that a crash costs one trial and never the run."""

import multiprocessing
import multiprocessing.connection
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from milbench.config import Settings
from milbench.engines.events import Done, Epoch, Event, Started
from milbench.suites import Job
from milbench.trials.store import Status, Store


@dataclass
class _Worker:
    process: multiprocessing.process.BaseProcess
    pipe: Connection
    job: Job | None = None


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
    A worker that dies is replaced; its trial is recorded as `oom` when the system killed it, else as `failed`.

    Args:
        jobs: what to run.
        store: where results go.
        settings: where datasets are; what the environment says unless given.
        workers: processes at a time.
        plugins: files that register aggregators, loaded in each worker.
        backends: forced backends of operations, as `milbench run --backend` takes them.
        keep_model: which trials keep their weights.
        trial: instead of :func:`milbench.trials.run.run_trial`, with its arguments; must be importable in a worker.
        on_event: progress, called in this process.

    Raises:
        KeyboardInterrupt: workers are stopped, unfinished trials leave nothing behind.
    """
    context = multiprocessing.get_context("spawn")  # fork does not go together with CUDA or with threads
    queue = deque(jobs)
    pool: list[_Worker] = []
    settings = (settings or Settings.from_environment()).absolute()

    def hire() -> _Worker:
        ours, theirs = context.Pipe()
        given = (theirs, store.root.absolute(), settings, [str(p.absolute()) for p in plugins], list(backends), trial)
        process = context.Process(target=_work, args=given, daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def give(worker: _Worker) -> None:
        worker.job = queue.popleft() if queue else None
        if worker.job is not None:
            worker.pipe.send((worker.job, keep_model(worker.job)))
            on_event(Started(worker.job.spec.trial_id))

    store.sweep()
    try:
        for _ in range(min(workers, len(queue))):
            pool.append(hire())
            give(pool[-1])
        while any(worker.job for worker in pool):
            ready = multiprocessing.connection.wait([worker.pipe for worker in pool if worker.job])
            for i, worker in enumerate(pool):
                if worker.pipe not in ready or worker.job is None:
                    continue
                try:
                    event = worker.pipe.recv()
                except (EOFError, ConnectionError):
                    worker.process.join()
                    on_event(_bury(worker.job, worker.process.exitcode, store))
                    worker.pipe.close()
                    pool[i] = hire() if queue else _Worker(worker.process, worker.pipe)
                    give(pool[i])
                    continue
                on_event(event)
                if isinstance(event, Done):
                    give(worker)
    finally:
        for worker in pool:
            worker.process.terminate()
        for worker in pool:
            worker.process.join()


# What usually ends a process so. Packed features are mapped into memory for reading only.
_USUAL = {
    "SIGKILL": ", most likely for want of memory",
    "SIGSEGV": "; an aggregator of your own that writes into bag.features ends so: milbench check aggregator tells",
}


def _bury(job: Job, exit_code: int | None, store: Store) -> Done:
    """Record the trial whose worker died without a word."""
    from milbench.trials.run import failure, provenance

    status: Status = "oom" if exit_code == -signal.SIGKILL else "failed"
    name = signal.Signals(-exit_code).name if exit_code is not None and exit_code < 0 else f"exit code {exit_code}"
    reason = f"the worker process ended with {name}{_USUAL.get(name, '')}"
    result = failure(job.spec, status, reason)
    result.labels, result.provenance = job.labels, provenance()
    store.write(result)
    return Done(job.spec.trial_id, result.status, reason)


def _work(
    pipe: Connection,
    root: Path,
    settings: Settings,
    plugin_files: Sequence[str],
    forced: Sequence[str],
    trial: Callable[..., Status] | None,
) -> None:
    """Body of a worker: take jobs until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # leave through `finally`, so that half a write is removed
    from milbench import plugins
    from milbench.ops import backends
    from milbench.trials.run import run_trial

    plugins.discover(plugin_files)
    backends.force(forced)
    store = Store(root)
    while True:
        try:
            job, keep = pipe.recv()
        except EOFError:
            return
        trial_id = job.spec.trial_id

        def on_epoch(epoch: int, row: dict[str, float | None], trial_id: str = trial_id) -> None:
            try:
                pipe.send(Epoch(trial_id, epoch, row))
            except OSError:
                sys.exit(1)  # the parent is gone: stop, rather than record this as a failure of the trial

        status = (trial or run_trial)(job.spec, store, job.labels, keep_model=keep, on_epoch=on_epoch, settings=settings)
        result = store.raw(trial_id) or {}
        pipe.send(Done(trial_id, status, result.get("reason")))
