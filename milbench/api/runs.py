"""Run a suite: which trials it has, which of them still need a result, and the engine that gives them one."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from milbench import datasets, plugins, suites
from milbench import rehearsal as rehearsals
from milbench.api.results import Results, Trial, not_here
from milbench.config import Settings
from milbench.engines import Done, Engine, Epoch, Event, Run, Started, run_local, run_ray
from milbench.errors import MilbenchError, unknown
from milbench.files import write_atomically
from milbench.ops import backends
from milbench.rehearsal import COARSE, Needs
from milbench.suites import Job, Load, Suite, composed, narrowed, whole, with_includes
from milbench.trials import plan as plans
from milbench.trials.plan import Plan
from milbench.trials.run import run_trial
from milbench.trials.store import Status, Store
from milbench.words import duration

Keep = Literal["none", "first-seed", "all"]
Dtype = Literal["float32", "float16"]
Known = Mapping[str, Any] | None  # a trial's result, as :meth:`Store.known` gives it
__all__ = [
    "COARSE", "Done", "Epoch", "Event", "Needs", "Planned", "Rehearsal", "Rehearsed", "RunOptions", "Started", "Work", "duration",
    "plan", "rehearse", "run",
]  # fmt: skip

ENGINES: Mapping[str, Engine] = {"local": run_local, "ray": run_ray}


def _nothing(_said: object) -> None:
    """What is called where nobody listens."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a suite is run. None leaves a value to the suite.

    Args:
        size: "small" or "full" for the suite's form of that size, where it has one.
        aggregators: only these rows of the suite, by name or label; what is a row of none is added to all. A text has commas
            between the names.
        seeds, folds: instead of the suite's.
        epochs: instead of the recipe's maximum.
        recipe: instead of the suite's: "paper", or "official" for each method's own.
        dtype: of stored features, instead of the suite's.
        device: "cpu", "cuda", "mps", or "auto" for CUDA where there is one.
        backends: use these or fail, as `NAME` or `OPERATION=NAME`.
        workers: trials at a time; all cores on a CPU unless given, else `per_gpu` for each of the GPUs, else 1.
        gpus: numbers of the GPUs; each worker sees one of them.
        per_gpu: workers that share a GPU and its memory.
        threads: CPU threads of one trial; part of its identity.
        engine: where trials run: "local" is this machine, "ray" a Ray cluster.
        keep_models: which weights are stored.
        retry_failed: run failed and out-of-memory trials again.
        failed_before: of these only what failed before this moment, by the clock of the results folder; with `retry_failed`.
        trial_timeout: seconds after which a trial is ended and recorded as failed.
        until: seconds after which no trial is begun that would not end in time.
        wait: whether to wait for trials that other runs on the same results folder have claimed.
        address: of the Ray cluster; one is started on this machine unless given.
        shard: (i, n) for the i-th of n parts of the trials, counted from 1.
        plugin: files that register aggregators.
    """

    size: Literal["small", "full"] | None = None
    aggregators: str | Sequence[str] | None = None
    seeds: Sequence[int] | None = None
    folds: Sequence[int] | None = None
    epochs: int | None = None
    recipe: str | None = None
    dtype: Dtype | None = None
    device: str = "auto"
    backends: Sequence[str] = ()
    workers: int | None = None
    gpus: Sequence[int] | None = None
    per_gpu: int = 1
    threads: int = 1
    engine: str = "local"
    keep_models: Keep = "first-seed"
    retry_failed: bool = False
    failed_before: datetime | None = None
    trial_timeout: float | None = None
    until: float | None = None
    wait: bool = True
    address: str | None = None
    shard: tuple[int, int] = (1, 1)
    plugin: Sequence[str | Path] = ()

    def __post_init__(self) -> None:
        for what in ("seeds", "folds", "gpus"):
            numbers = getattr(self, what)
            if numbers is not None and not all(isinstance(number, int) and 0 <= number < 2**31 for number in numbers):
                raise MilbenchError(f"{what} = {list(numbers)}: must be whole numbers from 0 up, such as [0, 1, 2]")
        for what, least in (("epochs", 1), ("workers", 1), ("threads", 1), ("per_gpu", 1)):
            number = getattr(self, what)
            if number is not None and number < least:
                raise MilbenchError(f"{what} = {number}: must be {least} or more")
        if not 1 <= self.shard[0] <= self.shard[1]:
            raise MilbenchError(f"shard {self.shard[0]}/{self.shard[1]}: write i/n with i from 1 to n, such as 2/8")
        if self.failed_before and not self.retry_failed:
            raise MilbenchError("--failed-before says which failures --retry-failed runs again; give both")
        if self.keep_models not in get_args(Keep):
            raise unknown("value of keep_models", self.keep_models, get_args(Keep))
        if self.engine not in ENGINES:
            raise unknown("engine", self.engine, ENGINES)
        if self.names == []:
            raise MilbenchError(
                f"aggregators {self.aggregators!r}: names no aggregator; write names with commas between them, or leave it out"
            )

    @property
    def names(self) -> list[str] | None:
        """The rows that are asked for, one text each."""
        given = self.aggregators
        return plugins.split_list(given) if isinstance(given, str) else None if given is None else list(given)

    @property
    def again(self) -> set[str]:
        """The states of trials that are to be run."""
        return {"pending", "failed", "oom"} if self.retry_failed else {"pending"}

    def here(self) -> RunOptions:
        """With device and workers decided for this machine, and its backends tried.

        Raises:
            MilbenchError: the device or a backend does not work here.
        """
        device = device_here(self.device)
        self._check_gpus(device)
        backends.force(self.backends)
        backends.check_forced(device)
        usual = max(1, (os.cpu_count() or 1) // self.threads) if device == "cpu" else len(self.gpus or [0]) * self.per_gpu
        return replace(self, device=device, workers=self.workers or usual)

    def _check_gpus(self, device: str) -> None:
        """Make sure that the GPUs are there.

        Raises:
            MilbenchError: they are not, or the trials do not run on CUDA.
        """
        if self.gpus is None and self.per_gpu == 1:
            return
        if device != "cuda":
            raise MilbenchError(f"--gpus and --per-gpu are for --device cuda; these trials run on {device}")
        if absent := [gpu for gpu in self.gpus or () if gpu >= torch.cuda.device_count()]:
            raise MilbenchError(f"--gpus: there is no GPU {absent[0]}; this process sees {torch.cuda.device_count()}, from 0 up")


def device_here(asked: str) -> str:
    """The device, when it works here; "auto" is CUDA where there is one, else the CPU.

    Raises:
        MilbenchError: it does not; the devices that work are listed.
    """
    works = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if asked == "auto":
        return "cuda" if works["cuda"] else "cpu"
    if asked not in works:
        raise unknown("device", asked, ["auto", *works])
    if not works[asked]:
        raise MilbenchError(
            f"--device {asked}: not available here; available: {', '.join(name for name, yes in works.items() if yes)}"
        )
    return asked


@dataclass(frozen=True)
class Work:
    """Trials that wait for an engine, with everything that it must know.

    Args:
        jobs: the trials.
        settings: where their data is, and the folder that results go to.
        options: how they are run.
        already: how many more trials were asked for that have a result.
        kept_seeds: seeds whose weights are stored.
        lasted: the longest that a finished trial of a method took, in seconds.
        trial: what runs one trial, where it is not :func:`milbench.trials.run.run_trial`.
        before: what there was of every trial of the plan, in its order: looking at 100,000 takes seconds.
    """

    jobs: Sequence[Job]
    settings: Settings
    options: RunOptions
    already: int
    kept_seeds: frozenset[int] = frozenset()
    lasted: Mapping[str, float] = field(default_factory=dict)
    trial: Callable[..., Status] | None = None
    before: Sequence[Known] = field(default=(), repr=False)

    @cached_property
    def store(self) -> Store:
        """Where their results go."""
        return Store(self.settings.results)

    @property
    def workers(self) -> int:
        """Processes at a time."""
        return min(self.options.workers or 1, len(self.jobs))

    def now(self, job: Job) -> Trial:
        """One of its trials as it stands now."""
        return Trial.of(job.cell, self.store.raw(job.trial_id))

    def start(self, on_event: Callable[[Event], None] = _nothing) -> None:
        """Run all of them; returns when each has a result.

        Args:
            on_event: is called in this process with `Started`, `Epoch` and `Done` of :mod:`milbench.engines`.
        """
        if self.jobs:
            _need_guard()
            how = self.options
            run = Run(
                self.jobs, self.settings, self.workers, [Path(file).resolve() for file in how.plugin], how.backends,
                self.kept_seeds, how.gpus, how.per_gpu, how.trial_timeout, how.until, how.wait,
                how.address, self.lasted, self.trial,
            )  # fmt: skip
            ENGINES[how.engine](run, on_event)


def _need_guard() -> None:
    """Each worker imports the script that is running: one that starts a run as it is imported would start workers for ever.

    Raises:
        MilbenchError: the script has no line that keeps it from that.
    """
    main = sys.modules["__main__"]
    script = getattr(main, "__file__", None)
    if (
        script
        and main.__spec__ is None
        and Path(script).is_file()
        and "__name__" not in Path(script).read_text("utf-8", "replace")
    ):
        raise MilbenchError(f'{script}: each worker imports it, so start the run below the line: if __name__ == "__main__":')


@dataclass(frozen=True)
class Planned:
    """A suite as it would run here.

    Args:
        suite: as it was asked for.
        options: device and workers are decided.
        settings: where data and results are.
        load: gives the datasets.
        grids: a plan for each suite with a grid of its own; cells whose features are not here say so.
        jobs: every trial whose features are here, each once.
    """

    suite: Suite
    options: RunOptions
    settings: Settings
    load: Load = field(repr=False)
    grids: list[Plan] = field(repr=False)
    jobs: list[Job] = field(repr=False)

    @cached_property
    def store(self) -> Store:
        """Where results go."""
        return Store(self.settings.results)

    @property
    def missing(self) -> list[dict[str, Any]]:
        """What is not here, as :attr:`milbench.api.results.Status.not_here` says it."""
        return not_here(self.grids)

    @property
    def made_by(self) -> list[Suite]:
        """The suites that train nothing: another command makes what they stand for."""
        return [suite for suite in whole(self.suite) if suite.made_by]

    def state(self) -> dict[str, str]:
        """Trial id -> "ok", "failed", "oom", "skipped" or "pending"."""
        return self._states(self._known())

    def _known(self) -> list[Known]:
        """What there is of each job."""
        store = self.store
        return [store.known(job.trial_id) for job in self.jobs]

    def _states(self, known: Sequence[Known]) -> dict[str, str]:
        return {job.trial_id: found["status"] if found else "pending" for job, found in zip(self.jobs, known, strict=True)}

    def _failed_since(self, trial_id: str) -> bool:
        """Whether a trial failed after the moment before which failures are to be run again."""
        at = self.options.failed_before and self.store.put_at(trial_id)
        return bool(at and self.options.failed_before and at > self.options.failed_before)

    def prepare(self, say: Callable[[str], None] = _nothing) -> Work:
        """Pack the features, write the suite's plan and its splits, and return what is to run.

        Args:
            say: is called with a line for each packed file that is written.

        Raises:
            MilbenchError: none of the suite's data is here, the disk is too small, or a bag cannot be read.
        """
        self.need_data()
        store, known = self.store, self._known()
        state = self._states(known)
        part, parts = self.options.shard
        todo = [job for job in self.jobs[part - 1 :: parts] if state[job.trial_id] in self.options.again]
        todo = [job for job in todo if not self._failed_since(job.trial_id)]
        suites.pack(todo, say, self.load)
        for plan in [*self.grids, *composed(self.suite)]:
            plans.merge(store, suites.with_known(plan))
        suites.save_splits(self.jobs, store, self.load)
        seeds = {job.cell.seed for job in self.jobs}
        kept: dict[Keep, set[int]] = {"none": set(), "first-seed": {min(seeds)}, "all": seeds}
        done = [job for job in self.jobs if state[job.trial_id] == "ok"] if self.options.until else []
        already = len(self.jobs[part - 1 :: parts]) - len(todo)
        keep = frozenset(kept[self.options.keep_models])
        return Work(todo, self.settings, self.options, already, keep, _longest(done, store), before=known)

    def need_data(self) -> None:
        """Make sure that there is something to run.

        Raises:
            MilbenchError: none of the suite's data is here.
        """
        if not self.jobs:
            raise MilbenchError(
                f"suite {self.suite.name}: none of its data is here; add features with: milbench data add (--help tells how)"
            )

    def results(self, work: Work) -> Results:
        """Every trial as it stands after that work."""
        known = self._known() if work.jobs else work.before
        trials = tuple(Trial.of(job.cell, found) for job, found in zip(self.jobs, known, strict=True))
        return Results(self.suite.name, self.settings.results, trials, ran=len(work.jobs))


def _longest(jobs: Sequence[Job], store: Store) -> dict[str, float]:
    """Of each method, the seconds of the longest of its finished trials."""
    longest: dict[str, float] = {}
    for job in jobs:
        seconds = (store.known(job.trial_id) or {"cost": {}})["cost"].get("seconds", 0.0)
        longest[job.cell.aggregator] = max(longest.get(job.cell.aggregator, 0.0), seconds)
    return longest


def plan(suite: str | Path | Suite, options: RunOptions, settings: Settings, load: Load | None = None) -> Planned:
    """The trials of a suite, and what of it is not here. Nothing is written.

    Args:
        suite: a built-in suite, a TOML file, or what either says.
        options: how it is run.
        settings: where data and results are.
        load: gives the datasets instead of :func:`milbench.datasets.load`, as a rehearsal does.

    Raises:
        MilbenchError: an unknown suite, aggregator, parameter, dataset, encoder, split, fold, recipe, device or backend, with
            near misses; or the results folder is a rehearsal's.
    """
    plugins.discover(options.plugin)
    options = options.here()
    name = suites.sized(suite.name if isinstance(suite, Suite) else str(suite), options.size)
    asked = suite if isinstance(suite, Suite) else suites.load(name)
    give: Load = load or cache(partial(datasets.load, settings=settings))
    expanded = [
        suites.expand(
            part,
            aggregators=rows,
            seeds=options.seeds,
            folds=options.folds,
            epochs=options.epochs,
            recipe=options.recipe,
            dtype=options.dtype,
            device=options.device,
            threads=options.threads,
            load=give,
            settings=settings,
        )
        for part, rows in narrowed(with_includes(asked), options.names, recipe=options.recipe, epochs=options.epochs)
    ]
    if load is None:
        plans.refuse_rehearsal(Store(settings.results))
    jobs = list({job.trial_id: job for _, some in expanded for job in some}.values())
    return Planned(asked, options, settings, give, [grid for grid, _ in expanded], jobs)


def run(
    suite: str | Path,
    *,
    aggregators: str | Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    folds: Sequence[int] | None = None,
    epochs: int | None = None,
    recipe: str | None = None,
    engine: str = "local",
    device: str = "auto",
    workers: int | None = None,
    threads: int = 1,
    retry_failed: bool = False,
    plugin: Sequence[str | Path] = (),
    results: str | Path | None = None,
    data: str | Path | None = None,
    pack: bool | None = None,
    progress: Callable[[Event], None] | None = None,
    options: RunOptions | None = None,
) -> Results:
    """Run every trial of a suite that has no result yet, in worker processes.

    Interrupt it whenever you like: the same call continues. Finished trials are never run again, whichever suite asked for them.
    In a script, call it below `if __name__ == "__main__":`, since each worker imports the script; in a notebook, just call it.

    Args:
        suite: a built-in suite (`milbench ls suites`) or a TOML file.
        aggregators: only these rows of the suite, by name or label; others are added: `["mean", "transmil[landmarks=32]"]`.
        seeds, folds: instead of the suite's.
        epochs: instead of the recipe's maximum.
        recipe: instead of the suite's: "paper", or "official" for each method's own.
        engine: where trials run: "local" is this machine, "ray" a Ray cluster.
        device: "cpu", "cuda", "mps", or "auto" for CUDA where there is one.
        workers: trials at a time; all cores on a CPU unless given, else 1.
        threads: CPU threads of one trial; part of its identity.
        retry_failed: run failed and out-of-memory trials again.
        plugin: files that register aggregators.
        results: the results folder. [default: MILBENCH_RESULTS, or results]
        data: folder of the datasets that you added. [default: MILBENCH_DATA, or data]
        pack: False reads feature files directly instead of packing them into one.
        progress: is called with an event when a trial starts, after each of its epochs and when it is done; `print` shows them.
        options: everything above that is about how to run, and more, in one object; then give none of them separately.

    Returns:
        What there is now: `.frame()`, `.predictions()`, `.failed`, `.pending`. Trials that fail do not raise.

    Raises:
        MilbenchError: an unknown name, with near misses; none of the data is here; or results cannot be written.

    Examples:
        >>> run("quikstart")
        Traceback (most recent call last):
        ...
        milbench.errors.MilbenchError: unknown suite 'quikstart'; did you mean quickstart?
    """
    alone = RunOptions(
        aggregators=aggregators, seeds=seeds, folds=folds, epochs=epochs, recipe=recipe, engine=engine, device=device,
        workers=workers, threads=threads, retry_failed=retry_failed, plugin=plugin,
    )  # fmt: skip
    if options is not None and alone != RunOptions():
        raise MilbenchError("options holds everything about how to run; give the other arguments inside it")
    settings = Settings.from_environment(data=data, results=results, pack=pack)
    planned = plan(suite, options or alone, settings)
    work = planned.prepare()
    work.start(progress or _nothing)
    return planned.results(work)


@dataclass(frozen=True)
class Rehearsal:
    """A few steps of each distinct model of a suite on stand-in bags, in the folder `rehearsal` of the results.

    Args:
        planned: the suite on stand-ins.
        scale: stand-in bags are this much smaller than real ones.
        settings: with the rehearsal's folder.
        chosen: trial id -> the job that is rehearsed for it.
    """

    planned: Planned
    scale: float
    settings: Settings
    chosen: dict[str, Job] = field(repr=False)

    @classmethod
    def of(cls, suite: str | Path | Suite, options: RunOptions, settings: Settings, scale: float) -> Rehearsal:
        """Plan it; nothing is written.

        Raises:
            MilbenchError: as :func:`plan`.
        """
        planned = plan(suite, options, settings, load=partial(rehearsals.stand_in, scale, settings=settings))
        planned.need_data()
        settings = replace(settings, results=settings.results / "rehearsal")
        return cls(planned, scale, settings, rehearsals.distinct(planned.jobs, scale, settings))

    @property
    def store(self) -> Store:
        """Where measurements go, apart from results."""
        return Store(self.settings.results)

    @property
    def models(self) -> list[Job]:
        """The distinct models, each once."""
        return list({job.trial_id: job for job in self.chosen.values()}.values())

    def prepare(self) -> Work:
        """Mark the folder as a rehearsal's, and return what is to run.

        Raises:
            MilbenchError: the folder holds results.
        """
        store, models = self.store, self.models
        rehearsals.mark(store, self.scale)
        waiting = [job for job in models if store.status(job.trial_id) in self.planned.options.again]
        body = partial(rehearsals.measured, scale=self.scale, settings=self.settings.absolute())
        trial = partial(run_trial, body=body)
        return Work(waiting, self.settings, self.planned.options, len(models) - len(waiting), trial=trial)

    def finish(self) -> Rehearsed:
        """Put the measurements together to the needs of the real run, and write them to `needs-SUITE.json`."""
        store = self.store
        needs = rehearsals.needs(self.planned.jobs, self.chosen, store, self.scale, self.settings)
        path = store.root / f"needs-{self.planned.suite.name}.json"
        head = {"REHEARSAL": "stand-in bags: nothing in this file is a result", "workers": self.planned.options.workers}
        text = {**head, **dataclasses.asdict(needs), "hours": needs.hours}
        write_atomically(path, json.dumps(text, indent=1, allow_nan=False) + "\n")
        trials = [Trial.of(job.cell, store.raw(job.trial_id)) for job in self.models]
        return Rehearsed(needs, path, self.planned.options, [trial for trial in trials if trial.status != "ok"])


@dataclass(frozen=True)
class Rehearsed:
    """What the real run would need.

    Args:
        needs: hours, memory and disk.
        path: the file that holds them.
        options: device, workers and threads.
        not_ok: models that failed or were skipped, with the reason.
    """

    needs: Needs
    path: Path
    options: RunOptions
    not_ok: list[Trial]


def rehearse(
    suite: str | Path,
    *,
    scale: float = 8,
    results: str | Path | None = None,
    data: str | Path | None = None,
    progress: Callable[[Event], None] | None = None,
    options: RunOptions | None = None,
) -> Rehearsed:
    """A few steps of every model on stand-in bags: hours, memory and disk that the real run would need.

    Args:
        suite: a built-in suite or a TOML file; its data need not be here.
        scale: stand-in bags are this much smaller than real ones.
        results: the results folder; measurements go to `rehearsal` in it. [default: MILBENCH_RESULTS, or results]
        data: folder of the datasets that you added. [default: MILBENCH_DATA, or data]
        progress: is called with an event when a model starts and when it is done.
        options: as the real run would have them.

    Raises:
        MilbenchError: an unknown name, with near misses; or the folder holds results.
    """
    rehearsal = Rehearsal.of(suite, options or RunOptions(), Settings.from_environment(data=data, results=results), scale)
    rehearsal.prepare().start(progress or _nothing)
    return rehearsal.finish()
