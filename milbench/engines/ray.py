"""Workers on a Ray cluster: tasks that each run one worker loop, on any node that sees the results folder.

Ray finds a place for each (`num_gpus` may be a fraction). The claims share the trials and the store says what is done: this
process only looks at both, and begins a worker again whose process or node was lost.
"""

import logging
import os
import platform
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from milbench import claims, interrupt
from milbench.engines.base import Event, Run
from milbench.engines.local import run_local
from milbench.engines.sharing import POLL, Shared
from milbench.errors import MilbenchError
from milbench.trials.store import Store

LOSSES = 3  # workers that may be lost, one after the other, while no trial gets a result
PATIENCE = 60.0  # seconds without a node that has what a worker needs
ANSWER = 10.0  # seconds until a cluster answers
PARTING = 10.0  # seconds for workers to give back what they have
SHARE = 20  # at most one part in so many of the time is spent on looking


def run_ray(run: Run, on_event: Callable[[Event], None] = lambda event: None) -> None:
    """Run the jobs in `run.workers` tasks; returns when all have a result.

    Args:
        run: what to do. `address` names the cluster; Ray starts one on this machine unless given.
        on_event: called in this process: for every job `Started` when it is seen that a worker has it, then `Done`.

    Raises:
        MilbenchError: Ray is not installed or not reached, no node has what a worker needs or sees the results folder, or
            workers are lost one after the other. Finished trials are kept.
        KeyboardInterrupt: or whatever else the signal raises that asked to stop. Workers give back what they have not finished.
    """
    ray = _ray()
    run = replace(run, settings=run.settings.absolute(), plugins=[file.absolute() for file in run.plugins])
    store = Store(run.settings.results)
    jobs, here = Shared(run, store, on_event), store.claims / f".ray-{uuid.uuid4().hex}"
    with interrupt.noted() as stop_asked, _connected(ray, run.address):
        workers = _Workers(ray, replace(run, workers=1, gpus=None, wait=False, before=jobs.before), run.workers, here)
        try:
            with claims.held(here):
                workers.see_through(jobs, stop_asked)
        finally:
            workers.end()


def _loop(run: Run, here: Path) -> None:
    """One worker, in a task of Ray's. It ends when the one that asked for it gives up its claim.

    Raises:
        MilbenchError: this node does not see what the one that asked for it has written.
    """
    if claims.holder(here) is None:
        raise MilbenchError(
            f"node {platform.node()} does not see {run.settings.results}: results and data must be on a disk that every node sees"
        )
    done = threading.Event()

    def watch() -> None:
        while not done.wait(POLL):
            if claims.holder(here) is None:
                os.kill(os.getpid(), signal.SIGTERM)  # Ray's own way to cancel needs a SIGINT, which nodes often ignore
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        run_local(run)
    finally:
        done.set()


class _Workers:
    """The tasks, of which up to `count` run at a time. Ray itself begins none again: results are looked at before."""

    def __init__(self, ray: Any, run: Run, count: int, here: Path) -> None:
        on_gpu = any(job.spec.device == "cuda" for job in run.jobs)
        self._needs = {"CPU": max(job.spec.threads for job in run.jobs), "GPU": 1 / run.per_gpu if on_gpu else 0}
        task = ray.remote(max_retries=0, num_cpus=self._needs["CPU"], num_gpus=self._needs["GPU"])(_loop)
        sent = ray.put(run)
        self._begin: Callable[[], Any] = lambda: task.remote(sent, here)
        self._ray, self._count, self._running = ray, count, list[Any]()
        self._lost = 0  # since the last result
        self._roomy = time.monotonic()  # when there was room for a worker

    def see_through(self, jobs: Shared, stop_asked: Callable[[], bool]) -> None:
        """Until every job has a result, or `stop_asked` says that a signal came.

        A worker that ends well has found nothing that nobody has; another is begun when there is something again.
        """
        (left, taken), pause = jobs.look(), POLL
        while left and not stop_asked():
            without = max(0, len(self._running) - taken)  # have no job yet
            self._running += [self._begin() for _ in range(min(self._count - len(self._running), left - taken - without))]
            ended, before, at = self._ended(pause), left, time.monotonic()
            left, taken = jobs.look()
            pause = max(POLL, SHARE * (time.monotonic() - at))
            self._lost = 0 if left < before else self._lost
            for error in ended:
                self._judge(error)
            self._check_room()

    def _ended(self, seconds: float) -> list[Exception | None]:
        """How those workers ended that do within so many seconds: with an error, or well."""
        if not self._running:
            time.sleep(seconds)
            return []
        done, self._running = self._ray.wait(self._running, num_returns=len(self._running), timeout=seconds)
        return [self._error(task) for task in done]

    def _error(self, task: Any) -> Exception | None:
        try:
            self._ray.get(task)
        except Exception as error:  # Ray's, for a process or node that is lost, or the worker's own in one of Ray's
            return error
        return None

    def _judge(self, error: Exception | None) -> None:
        """A worker ended so; others go on in its place.

        Raises:
            MilbenchError: it could not do its work, or too many are lost.
        """
        cause = getattr(error, "cause", None)
        if isinstance(cause, MilbenchError):
            raise type(cause)(f"--engine ray: {cause}") from error
        self._lost += error is not None
        if self._lost > LOSSES:
            raise MilbenchError(
                f"--engine ray: {self._lost} workers were lost one after the other; the last: {cause or error}"
            ) from error

    def _check_room(self) -> None:
        """Make sure that there is a node on which a worker could be, were nothing else there.

        Raises:
            MilbenchError: there has been none for a while.
        """
        nodes = [{what: node["Resources"].get(what, 0) for what in self._needs} for node in self._ray.nodes() if node["Alive"]]
        if any(all(node[what] >= count for what, count in self._needs.items()) for node in nodes):
            self._roomy = time.monotonic()
        if time.monotonic() - self._roomy > PATIENCE:
            needs = " and ".join(f"{count:g} {what}" for what, count in self._needs.items())
            raise MilbenchError(f"--engine ray: no node of the cluster has the {needs} that a worker needs; there are: {nodes}")

    def end(self) -> None:
        """Wait a moment until those that run have given back what they have; those that wait for a place are not begun."""
        for task in self._running:
            self._ray.cancel(task)
        if self._running:
            self._ray.wait(self._running, num_returns=len(self._running), timeout=PARTING)


@contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    """Within this context there is a cluster; one that was there before stays. Signals are ours to handle, not Ray's.

    Raises:
        MilbenchError: none is reached.
    """
    if ray.is_initialized():
        yield
        return
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "namespace": "milbench"}
    handlers = {number: signal.getsignal(number) for number in interrupt.SIGNALS}
    try:
        if host and port.isdecimal():  # Ray itself would try for a quarter of an hour
            socket.create_connection((host, int(port)), timeout=ANSWER).close()
        ray.init(address=address, include_dashboard=False if address is None else None, **quiet)
    except (OSError, ValueError, RuntimeError, OverflowError) as error:
        raise MilbenchError(f"--address {address}: no Ray cluster is reached there: {error}") from error
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    try:
        yield
    finally:
        ray.shutdown()


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MilbenchError("--engine ray: Ray is not installed; pip install 'milbench[ray]'") from error
    return ray
