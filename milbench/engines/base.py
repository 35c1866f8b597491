"""What every engine takes, a :class:`Run`, and the events that it reports while it works."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from milbench.config import Settings
from milbench.trials.plan import Job
from milbench.trials.store import Status


@dataclass(frozen=True)
class Run:
    """What an engine is asked to do. Plain data that can be sent to another process.

    Args:
        jobs: trials without a result.
        settings: where datasets are, and the folder that results go to.
        workers: processes at a time. Their number changes no result: each trial seeds itself and has the threads of its spec.
        plugins: files that register aggregators, loaded in each worker.
        backends: forced backends of operations, as `milbench run --backend` takes them.
        kept_seeds: trials of these seeds store their weights.
        gpus: numbers of the GPUs; a worker sees one of them. None: all workers see all.
        per_gpu: workers that share a GPU; each may take its share of the memory.
        trial_timeout: seconds after which a trial is ended and recorded as failed.
        seconds: after so many no trial is started that would not end in time.
        wait: whether trials that other runs have claimed are waited for.
        address: of a cluster, for engines that have one.
        lasted: seconds that a trial of a method took, as far as it is known.
        trial: takes the place of :func:`milbench.trials.run.run_trial`; a worker must be able to import it.
        before: failed results that are to be replaced: trial id -> which file it was. What is there when the engine begins,
            unless given: a worker that comes later must not take this run's own failures for old ones.
    """

    jobs: Sequence[Job]
    settings: Settings
    workers: int = 1
    plugins: Sequence[Path] = ()
    backends: Sequence[str] = ()
    kept_seeds: frozenset[int] = frozenset()
    gpus: Sequence[int] | None = None
    per_gpu: int = 1
    trial_timeout: float | None = None
    seconds: float | None = None
    wait: bool = True
    address: str | None = None
    lasted: Mapping[str, float] = field(default_factory=dict)
    trial: Callable[..., Status] | None = None
    before: Mapping[str, object] | None = None

    def keeps(self, job: Job) -> bool:
        """Whether the job's weights are stored."""
        return job.spec.seed in self.kept_seeds


@dataclass(frozen=True)
class Started:
    """A worker took a trial."""

    trial_id: str


@dataclass(frozen=True)
class Epoch:
    """A trial finished an epoch. `row` is its row of the learning curve."""

    trial_id: str
    epoch: int
    row: dict[str, float | None]


@dataclass(frozen=True)
class Done:
    """A trial has a result; `elsewhere` says that another run gave it one."""

    trial_id: str
    status: Status
    reason: str | None = None
    elsewhere: bool = False


Event = Started | Epoch | Done


class Engine(Protocol):
    """Where trials run. It returns when every job has a result, given by this run or by another on the same folder."""

    def __call__(self, run: Run, on_event: Callable[[Event], None]) -> None:
        """Run the jobs.

        Args:
            run: what to do.
            on_event: called in this process, for every job with `Started`, perhaps `Epoch`, then `Done`; with `Done` alone where
                another run gave the result.
        """
