"""What things cost on this machine: operations, reading features, aggregators as bags grow."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from milbench import plugins
from milbench.api import runs
from milbench.config import Settings
from milbench.errors import MilbenchError
from milbench.files import write_atomically
from milbench.machine import provenance
from milbench.profiling import aggregators as cost
from milbench.profiling import data as reading
from milbench.profiling import harness as around
from milbench.profiling import measure
from milbench.profiling import ops as operations
from milbench.trials.plan import Job
from milbench.trials.run import prepare_process
from milbench.trials.store import Store

Row = cost.Row
Say = Callable[[str], None]


def ops(*, small: bool = False, noisy: bool = False, threads: int | None = None, say: Say = lambda text: None) -> dict[str, Any]:
    """Every operation beside its public alternatives, in one run, and the performance budget held against it.

    Times are medians after a warm-up. On a machine where something else is running, no ratio is given.

    Args:
        small: an eighth of the sizes.
        noisy: give ratios although something else is running.
        threads: CPU threads; all cores unless given.
        say: is called with a line for each measurement.

    Returns:
        rows, budget, noise (what else is running, or None), threads, torch and sgemm, as `milbench profile ops --json` prints it.
    """
    torch.set_num_threads(threads or os.cpu_count() or 1)
    noise = measure.others()
    rate = operations.sgemm_rate()
    measured = []
    for row in operations.rows(small=small):
        measured.append(row)
        say(f"{row.op}, {row.contender}, n = {row.n}")
    noise = noise or measure.others()
    measured = operations.with_ratios(measured)
    quiet = noise is None or noisy
    if not quiet:
        measured = [dataclasses.replace(row, ratio=None) for row in measured]
    report = operations.report(measured, rate, noise)
    return report if quiet and not small else {**report, "budget": []}  # the budget is for full sizes


def data(
    dataset: str | None = None,
    encoder: str | None = None,
    magnification: int | None = None,
    patch_size: int | None = None,
    *,
    synthetic: int | None = None,
    epochs: int = 3,
    noisy: bool = False,
    data: str | Path | None = None,
) -> tuple[list[reading.Row], str | None]:
    """Reading a dataset again: from the packed store, and by opening each of its files. On one thread, as a trial has.

    Args:
        dataset, encoder, magnification, patch_size: features of files of your own; or
        synthetic: so many generated h5 files instead.
        epochs: the median is over so many.
        noisy: give the ratio although something else is running.
        data: folder of the datasets. [default: MILBENCH_DATA, or data]

    Returns:
        The rows, and what else is running (None on a quiet machine).

    Raises:
        MilbenchError: neither a dataset with its encoder nor `synthetic`, or both.
    """
    if (synthetic is None) == (dataset is None) or (dataset is None) != (encoder is None):
        raise MilbenchError("profile data needs --dataset NAME and --encoder NAME, or --synthetic N")
    torch.set_num_threads(1)
    noise = measure.others()
    if synthetic is not None:
        rows = reading.synthetic(synthetic, epochs=epochs)
    else:
        settings = Settings.from_environment(data=data)
        rows = reading.dataset(str(dataset), str(encoder), magnification, patch_size, epochs=epochs, settings=settings)
    noise = noise or measure.others()
    return ([dataclasses.replace(row, ratio=None) for row in rows] if noise and not noisy else rows), noise


def harness(*, small: bool = False, noisy: bool = False) -> tuple[list[around.Cost], str | None]:
    """What milbench costs around the training of a model: per step, per trial, per worker, each held against its bar.

    Args:
        small: a few small trials: for the form of the table, not for its numbers.
        noisy: hold numbers against their bars although something else is running.

    Returns:
        The numbers, and what else is running (None on a quiet machine).
    """
    plugins.discover()
    torch.set_num_threads(1)
    noise = measure.others()
    if small:
        costs = [*around.step(64, slides=2, epochs=1), *around.trials(_timed, _timed_here, tiny=4, large=2, patches=64)]
    else:
        costs = [*around.step(), *around.trials(_timed, _timed_here)]
    noise = noise or measure.others()
    unheld = small or (noise is not None and not noisy)
    return [dataclasses.replace(each, limit=None) for each in costs] if unheld else costs, noise


def _timed(suite: Path, home: Path, workers: int, clock: around.Clock) -> list[float]:
    """Run a suite; the clock starts with the engine, when everything is planned and packed."""
    work = _planned(suite, home, workers)
    clock.start()
    work.start(clock)
    return [_seconds_of(work.store, job) for job in work.jobs]


def _timed_here(suite: Path, home: Path) -> Iterator[float]:
    """Run a suite in this process."""
    work = _planned(suite, home)
    trial = prepare_process([], [])
    for job in work.jobs:
        trial(job.spec, work.store, job.labels, settings=work.settings)
        yield _seconds_of(work.store, job)


def _planned(suite: Path, home: Path, workers: int = 1) -> runs.Work:
    settings = Settings.from_environment(data=suite.parent / "data", results=home / "results")
    return runs.plan(suite, runs.RunOptions(device="cpu", workers=workers, keep_models="none"), settings).prepare()


def _seconds_of(store: Store, job: Job) -> float:
    result = store.read(job.trial_id)
    if result is None or result.status != "ok":
        raise MilbenchError(f"{store.root}: a trial was not measured: {result.reason if result else 'it has no result'}")
    return float(result.cost["seconds"])


@dataclass(frozen=True)
class Costs:
    """Time, memory and arithmetic of aggregators as bags grow.

    Args:
        rows: one for each aggregator and size.
        setting: what they were measured with.
        noises: aggregator -> what else was running while it was measured; empty on a quiet machine.
        machine: provenance.
        paths: efficiency.csv and the figures.
    """

    rows: list[cost.Row]
    setting: cost.Setting
    noises: Mapping[str, str]
    machine: Mapping[str, Any]
    paths: list[Path] = field(default_factory=list)

    @property
    def exponents(self) -> dict[str, dict[str, float]]:
        """Quantity -> aggregator -> exponent of its growth with the size of the bag."""
        quantities = ("train_seconds", "predict_seconds", "peak_bytes", "flops")
        return {quantity: cost.exponents(self.rows, quantity) for quantity in quantities}

    def plain(self) -> dict[str, Any]:
        """Everything as plain data, as `milbench profile aggregators --json` prints it."""
        limit = self.setting.memory if math.isfinite(self.setting.memory) else None
        return {
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "exponents": self.exponents,
            "setting": {**dataclasses.asdict(self.setting), "memory": limit},
            "noise": dict(self.noises),
            **self.machine,
        }


def aggregators(
    names: str | Sequence[str] = (),
    *,
    sizes: Sequence[int] | None = None,
    in_dim: int = 384,
    seconds: float = 10,
    memory: float | None = None,
    device: str = "cpu",
    threads: int | None = None,
    noisy: bool = False,
    results: str | Path | None = None,
    plugin: Iterable[str | Path] = (),
    say: Say = lambda text: None,
) -> Costs:
    """Time, memory and arithmetic of every aggregator as bags grow: efficiency.csv and its figures in RESULTS/analysis.

    Each method and size is measured in a process of its own, one at a time.

    Args:
        names: only these aggregators; every registered one unless given. A text has commas between the names.
        sizes: instances of a bag; 1,024 to 65,536, doubling, unless given.
        in_dim: width of the features.
        seconds: a method stops where a training step takes longer, or would by its growth so far.
        memory: the same, in GiB of one training step; three quarters of what is free unless given.
        device: "cpu" or "cuda".
        threads: CPU threads; all cores unless given.
        noisy: measure although something else is running.
        results: the results folder. [default: MILBENCH_RESULTS, or results]
        plugin: files that register aggregators.
        say: is called with a line for each measurement.

    Raises:
        MilbenchError: an unknown aggregator, no such device, or something else is running.
    """
    files = [str(file) for file in plugin]
    plugins.discover(files)
    listed = plugins.split_list(names) if isinstance(names, str) else names
    wanted = [plugins.resolve(name).name for name in listed] or [entry.name for entry in plugins.entries()]
    if device == "cuda" and not provenance()["gpu"]:
        raise MilbenchError("--device cuda: not available here; leave it out for the CPU")
    if (noise := measure.others()) and not noisy:
        raise MilbenchError(f"nothing was measured: {noise}; try again on a quiet machine, or pass --noisy")
    limit = memory * 2**30 if memory else 0.75 * cost.free_memory() if device == "cpu" else math.inf
    setting = cost.Setting(in_dim, seconds, limit, device, threads or os.cpu_count() or 1, tuple(files))
    rows: list[cost.Row] = []
    noises = {"before": noise} if noise else {}
    for name in wanted:
        for row in cost.profile([name], cost.SIZES if sizes is None else sizes, setting):
            rows.append(row)
            say(f"{row.aggregator}, n = {row.n:,}{': ' + row.stopped if row.stopped else ''}")
        if noise := measure.others():
            noises[name] = noise
    costs = Costs(rows, setting, noises, provenance())
    return dataclasses.replace(costs, paths=_written(costs, Settings.from_environment(results=results).results / "analysis"))


def _written(costs: Costs, folder: Path) -> list[Path]:
    """The table and the figures."""
    said = costs.machine
    hardware = said["gpu"] if costs.setting.device == "cuda" else said["cpu"]
    machine = f"{hardware}, torch {said['torch']}, milbench {said['milbench']}."
    if costs.noises:
        machine += f" NOT A QUIET MACHINE: something else ran beside {', '.join(costs.noises)}."
    write_atomically(folder / "efficiency.csv", cost.table(costs.rows))
    saved = [figure.save(folder) for figure in cost.figures(costs.rows, costs.setting, machine)]
    return [folder / "efficiency.csv", *(path for each in saved for path in (each.pdf, each.png, each.csv))]
