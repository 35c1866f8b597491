"""Workers on a Ray cluster: tasks that each run one worker loop, on any node that sees the results folder.

Ray finds a place for each (`num_gpus` may be a fraction) and begins it again elsewhere when its process or node is lost; the
claims see to it that no finished trial is run again.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from milbench import claims
from milbench.engines.base import Done, Event, Run, Started
from milbench.engines.local import run_local
from milbench.engines.sharing import POLL, Shared
from milbench.errors import MilbenchError
from milbench.trials.store import Store

RETRIES = 3  # times that Ray begins a worker again whose process or node is lost


def run_ray(run: Run, on_event: Callable[[Event], None] = lambda event: None) -> None:
    """Run the jobs in `run.workers` tasks; returns when all have a result.

    Args:
        run: what to do. `address` names the cluster; Ray starts one on this machine unless given.
        on_event: called in this process with `Started` and `Done` when a result has come.

    Raises:
        MilbenchError: Ray is not installed or not reached, or no worker gets on with the trials.
    """
    ray = _ray()
    settings = run.settings.absolute()
    jobs = Shared(replace(run, settings=settings), Store(settings.results), lambda event: _tell(event, on_event))
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, run.address)
    try:
        task = ray.remote(max_retries=RETRIES, num_cpus=_threads(run), num_gpus=1 / run.per_gpu if _on_gpu(run) else 0)(_loop)
        alone = replace(
            run,
            settings=settings,
            plugins=[file.absolute() for file in run.plugins],
            workers=1,
            gpus=None,
            wait=False,
            trial=run.trial,
        )
        _see_through(ray, lambda: [task.remote(alone) for _ in range(run.workers)], jobs)
    finally:
        if ours:
            ray.shutdown()


def _loop(run: Run) -> None:
    """One worker, in a task of Ray's."""
    run_local(run)


def _see_through(ray: Any, start: Callable[[], list[Any]], jobs: Shared) -> None:
    """Start workers until every job has a result: those of a node that was lost are free again after a while."""
    idle = 0.0
    while jobs.open:
        before, tasks, failed = jobs.open, start(), None
        while tasks:
            done, tasks = ray.wait(tasks, timeout=POLL)
            jobs.look()
            for one in done:
                try:
                    ray.get(one)
                except Exception as error:  # of Ray or of the worker; the other workers go on
                    failed = error
        jobs.look()
        idle = 0.0 if jobs.open < before else idle + 1
        if failed and idle:
            raise MilbenchError(f"--engine ray: workers end without a result: {failed}") from failed
        if idle > claims.MISSED:
            raise MilbenchError(f"--engine ray: {jobs.open} trials get no result; another run may have claimed them")
        if jobs.open:
            time.sleep(claims.BEAT if idle else 0)


def _tell(event: Event, on_event: Callable[[Event], None]) -> None:
    if isinstance(event, Done):
        on_event(Started(event.trial_id))
        on_event(replace(event, elsewhere=False))


def _connect(ray: Any, address: str | None) -> None:
    try:
        ray.init(address=address, log_to_driver=False, include_dashboard=False if address is None else None, namespace="milbench")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise MilbenchError(f"--address {address}: no Ray cluster is reached there: {error}") from error


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MilbenchError("--engine ray: Ray is not installed; pip install 'milbench[ray]'") from error
    return ray


def _threads(run: Run) -> int:
    return max((job.spec.threads for job in run.jobs), default=1)


def _on_gpu(run: Run) -> bool:
    return any(job.spec.device == "cuda" for job in run.jobs)
