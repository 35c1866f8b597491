"""Rehearsal: a suite's whole grid on stand-in bags in minutes, and from it what the real run would need.

Every distinct model meets four training steps and two predictions at two sizes of bag. Slides, splits, widths and recipes are
the real ones where they are here, and as published where they are not; features are noise, so no number means anything.
"""

import ctypes
import gc
import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from milbench import datasets, plugins, process, tasks
from milbench.aggregator import Aggregator
from milbench.bags import Bag
from milbench.config import Settings
from milbench.datasets import ENCODERS, Dataset, Fold, Sample, splits
from milbench.datasets.cohorts import COHORTS, Cohort
from milbench.errors import MilbenchError, NotHere
from milbench.files import write_atomically
from milbench.suites.expand import Job
from milbench.training import Bags, derive_seed
from milbench.trials import plan as plans
from milbench.trials.run import Files, OnEpoch, build_model, peak_memory, reset_peak_memory
from milbench.trials.spec import TrialSpec
from milbench.trials.store import Result, Store

STEPS, PREDICTIONS = 4, 2  # for each distinct model and size of bag
COARSE = 4  # the smaller of the two sizes is this much smaller
SPREAD = 0.5  # of the logarithm of made-up sizes
SMALLEST = 16  # instances of a stand-in bag
UNKNOWN_WIDTH = 1024


def _uniform(*axes: object) -> float:
    return derive_seed("rehearsal", *axes) / 2**63


@cache
def stand_in(
    scale: float,
    name: str,
    encoder: str,
    magnification: int | None = None,
    patch_size: int | None = None,
    dtype: Any = "float32",
    settings: Settings | None = None,
) -> Dataset:
    """The dataset with generated bags `scale` times smaller than its own; `sizes` are the real ones, or made up.

    Raises:
        MilbenchError: an unknown dataset.
        NotHere: a dataset that is not here and of which nothing is published.
    """
    try:
        real = datasets.load(name, encoder, magnification, patch_size, dtype=dtype, settings=settings)
    except NotHere:
        if name not in COHORTS:
            raise
        real = _made_up(name, COHORTS[name], encoder, magnification or 20, patch_size or COHORTS[name].patch_size)
    sizes = dict(real.sizes()) if real.sizes else {s.id: len(real.read(s.id)) for s in real.samples}
    given = {**_splits(COHORTS[name], real.samples, sizes), **real.splits} if name in COHORTS else real.splits

    def read(id: str) -> Bag:
        n = max(SMALLEST, round(sizes[id] / scale))
        generator = torch.Generator().manual_seed(derive_seed("rehearsal", id))
        features = torch.randn(n, real.in_dim, generator=generator)
        step = (patch_size or 256) * 40 / (magnification or 20)
        coords = _tissue(n, generator) * step if real.has_coords else None
        return Bag(features, coords, step if real.has_coords else None, slide_id=id, case_id=id, source="stand-in")

    return replace(real, read=read, splits=given, fingerprint=f"REHEARSAL:{scale:g}:{real.fingerprint}", sizes=lambda: sizes)


def _tissue(n: int, generator: torch.Generator) -> torch.Tensor:
    """(n, 2) cells of a ragged disc, row by row."""
    side = math.ceil(math.sqrt(2 * n)) + 1
    cells = torch.cartesian_prod(torch.arange(side), torch.arange(side))  # (side^2, 2)
    far = (cells - side / 2).norm(dim=1) + side / 4 * torch.rand(len(cells), generator=generator)
    return cells[far.argsort()[:n].sort().values].flip(1).float()


def _unread(id: str) -> Bag:
    raise MilbenchError(f"{id} is made up and has no features")


def _made_up(name: str, cohort: Cohort, encoder: str, magnification: int, patch_size: int) -> Dataset:
    """As many samples as published, with sizes around the average."""
    strata = [c for c, count in enumerate(cohort.counts) for _ in range(count)]
    ids = sorted((f"{name}-{i:04d}" for i in range(len(strata))), key=lambda id: hashlib.sha256(id.encode()).digest())
    samples = tuple(
        Sample(id, id, label=c)
        if cohort.task == "subtyping"
        else Sample(id, id, time=1 + 99 * _uniform(id, "time"), event=c == 1)
        for id, c in zip(ids, strata, strict=True)
    )
    mean = cohort.instances * (magnification / 20) ** 2 * (cohort.patch_size / patch_size) ** 2

    def size(id: str) -> int:
        normal = math.sqrt(-2 * math.log(1 - _uniform(id, 0))) * math.cos(2 * math.pi * _uniform(id, 1))
        return max(SMALLEST, round(mean * math.exp(SPREAD * normal - SPREAD**2 / 2)))

    sizes = {s.id: size(s.id) for s in samples}

    return Dataset(
        name=name,
        label=cohort.label,
        task=cohort.task,
        unit=cohort.unit,
        classes=cohort.classes,
        samples=samples,
        read=_unread,
        in_dim=ENCODERS.get(encoder, UNKNOWN_WIDTH),
        has_coords=True,
        encoder=encoder,
        fingerprint="made up",
        splits={},  # stand_in adds them
        magnification=magnification,
        patch_size=patch_size,
        sizes=lambda: sizes,
    )


def _splits(cohort: Cohort, samples: Sequence[Sample], sizes: Mapping[str, int]) -> dict[str, Callable[[], Sequence[Fold]]]:
    """Stand-ins for the published splits, with parts as large as theirs, and the splits that any dataset has."""
    order = sorted(sizes, key=lambda id: hashlib.sha256(id.encode()).digest())

    def folds(parts: Sequence[Sequence[int]]) -> list[Fold]:
        made = []
        for number, lengths in enumerate(parts):
            turn = number * len(order) // len(parts)
            ids = order[turn:] + order[:turn]
            ends = [round(len(ids) * end / sum(lengths)) for end in accumulate(lengths)]
            made.append(Fold(*(tuple(ids[start:end]) for start, end in pairwise([0, *ends]))))
        return made

    return {
        **{name + twin: partial(folds, parts) for name, parts in cohort.splits.items() for twin in ("", "-grouped")},
        **{f"kfold{k}": partial(splits.k_fold, samples, k) for k in (5, 10)},
        "extrapolation": partial(splits.extrapolation, samples, sizes),
        "extrapolation-mixed": partial(splits.extrapolation, samples, sizes, mixed=True),
    }


def measured(
    spec: TrialSpec, keep_model: bool, on_epoch: OnEpoch, *, scale: float, settings: Settings | None = None
) -> tuple[Result, Files]:
    """The body of a rehearsed trial: a few steps and predictions at two sizes, with their time and memory in the result's cost.

    Args:
        spec: from :func:`milbench.suites.expand` with stand-in datasets.
        keep_model, on_epoch: of no use here.
        scale: real bags are this much larger.
        settings: where datasets are; what the environment says unless given.
    """
    where = (spec.dataset, spec.encoder, spec.magnification, spec.patch_size)
    dataset = stand_in(scale, *where, dtype=spec.feature_dtype, settings=settings)
    fold = dataset.folds(spec.split)[spec.fold]
    task = tasks.for_fold(dataset, fold.train)
    process.seed(derive_seed(*spec.axes, "weights"))
    model = build_model(spec, dataset, task.n_out)
    optimisers = model.optimisers(spec.recipe) if model.trained_by_gradient else []
    found: dict[str, list[list[float]]] = {"train": [], "predict": [], "peak": []}
    prepare_seconds = 0.0
    for smaller in (COARSE * scale, scale):
        data = stand_in(smaller, *where, dtype=spec.feature_dtype, settings=settings)
        train = Bags(data, _typical(data, fold.train, STEPS), device=spec.device)
        held_out = list(Bags(data, _typical(data, fold.val or fold.test, PREDICTIONS), device=spec.device))
        bags = list(train)
        targets = [_to(task.target(sample), spec.device) for sample in train.samples]
        _give_back()
        reset_peak_memory(spec.device)
        timed = partial(_seconds, spec.device)
        prepare_seconds = timed(partial(model.prepare, bags, torch.Generator().manual_seed(0)))
        model.train()
        if model.trained_by_gradient:
            for number, (bag, target) in enumerate(zip(bags, targets, strict=True)):
                if number == 1:  # the first step loads libraries and makes the optimiser's state
                    _give_back()
                    reset_peak_memory(spec.device)
                found["train"].append([len(bag), timed(partial(_step, model, bag, target, task, optimisers))])
        else:
            taken = timed(partial(model.fit, bags, targets)) / len(bags)
            found["train"] += [[len(bag), taken] for bag in bags]
        found["peak"].append([max(map(len, bags)), peak_memory(spec.device) or 0])
        model.eval()
        for bag in held_out:
            found["predict"].append([len(bag), timed(partial(_predict, model, bag, task))])
    cost = {"parameters": sum(p.numel() for p in model.parameters()), "rehearsal": {**found, "prepare_seconds": prepare_seconds}}
    return Result(trial_id=spec.trial_id, spec=spec, status="ok", cost=cost, messages=["REHEARSAL"]), {}


def _typical(dataset: Dataset, ids: Sequence[str], count: int) -> list[str]:
    """The ids whose bags are nearest to the average size; the first again where there are not enough."""
    sizes = dataset.sizes() if dataset.sizes else {}
    mean = sum(sizes[id] for id in ids) / len(ids)
    nearest = sorted(ids, key=lambda id: (abs(sizes[id] - mean), id))[:count]
    return nearest + nearest[:1] * (count - len(nearest))


def _to(target: Any, device: str) -> Any:
    return target.to(device) if isinstance(target, torch.Tensor) else type(target)(*(t.to(device) for t in target))


def _step(model: Any, bag: Bag, target: Any, task: Any, optimisers: Any) -> None:
    loss = float(model.training_step(bag, target, task, optimisers))
    if not math.isfinite(loss):
        raise ArithmeticError(f"the training loss is {loss} on a stand-in bag of {len(bag)} instances")


@torch.no_grad()
def _predict(model: Any, bag: Bag, task: Any) -> None:
    if not torch.isfinite(model.scores(model(bag), task)).all():
        raise ArithmeticError(f"the prediction is not finite on a stand-in bag of {len(bag)} instances")


def _seconds(device: str, call: Callable[[], object]) -> float:
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - started


def _give_back() -> None:
    """Return freed memory to the system, so that it cannot hide what the next size needs."""
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc only; elsewhere the peak is an upper bound
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def distinct(jobs: Sequence[Job], scale: float, settings: Settings | None = None) -> dict[str, Job]:
    """Trial id -> the job that is rehearsed for it: one for each aggregator with its parameters, width, task and size of bag."""
    first: dict[str, Job] = {}
    chosen = {}
    for job in jobs:
        s = job.spec
        data = _dataset(job, scale, settings)
        # The rate of dropout costs nothing, whether there is one does.
        params = {**s.params, **({"dropout": bool(s.params["dropout"])} if "dropout" in s.params else {})}
        key = [s.aggregator, params, s.recipe.optimiser, data.in_dim, data.task, len(data.classes), s.threads, s.device]
        key.append(round(_mean_size(data)))
        chosen[s.trial_id] = first.setdefault(json.dumps(key, sort_keys=True), job)
    return chosen


def _dataset(job: Job, scale: float, settings: Settings | None) -> Dataset:
    s = job.spec
    return stand_in(scale, s.dataset, s.encoder, s.magnification, s.patch_size, dtype=s.feature_dtype, settings=settings)


def _mean_size(dataset: Dataset) -> float:
    sizes = dataset.sizes() if dataset.sizes else {}
    return sum(sizes.values()) / len(sizes)


@dataclass(frozen=True)
class Cost:
    """Seconds of a step over n instances: fixed + linear n + square n^2."""

    fixed: float
    linear: float
    square: float

    def seconds(self, n: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of bags with n instances."""
        return self.fixed + n * (self.linear + self.square * n)

    @classmethod
    def between(cls, points: Sequence[Sequence[float]], complexity: str) -> "tuple[Cost, Cost, float]":
        """What two measured sizes say of larger ones: the least and the most of a step, and the exponent between both sizes.

        Where the time grows faster than the instances and the method declares a square of them, or nothing, it is n (a + b n)
        through both sizes. Otherwise the least is the straight line through both, whose intercept is the fixed cost of a step,
        and the most the line through the origin and the larger size, as if nothing were fixed.

        Args:
            points: (instances, seconds) of the smaller size, then as many of the larger; the first of each, which warms up, is
                left out.
            complexity: as the aggregator declares it.
        """
        half = len(points) // 2
        (n1, t1), (n2, t2) = (
            map(float, np.median(np.array(some[1:] or some), axis=0)) for some in (points[:half], points[half:])
        )
        if n2 <= n1:  # bags as small as stand-ins get
            return cls(t2, 0.0, 0.0), cls(0.0, t2 / n2, 0.0), math.nan
        declared = complexity == "?" or re.search(r"(\bn|/\d+\)|regions)\^2", complexity)
        square = min(max(0.0, (t2 / n2 - t1 / n1) / (n2 - n1)), t2 / n2**2) if declared else 0.0
        slope = min(max(0.0, (t2 - t1) / (n2 - n1)), t2 / n2)
        most = cls(0.0, t2 / n2 - square * n2, square)
        least = most if square else cls(t2 - slope * n2, slope, 0.0)
        return least, most, math.log(t2 / t1) / math.log(n2 / n1)


@dataclass
class Need:
    """What one aggregator's trials would need.

    Args:
        aggregator: its name. trials: how many.
        seconds_per_step: (least, most) of training on an average bag, in the slowest of its columns.
        exponent: of the time in the instances between the measured sizes; None where they are one.
        hours: (least, most) of all its trials on one device: the cheapest step and training that stops as early as it may, the
            dearest step and training that never does.
        peak_bytes: of one trial, at the largest real bag.
    """

    aggregator: str
    trials: int = 0
    seconds_per_step: tuple[float, float] = (0.0, 0.0)
    exponent: float | None = None
    hours: tuple[float, float] = (0.0, 0.0)
    peak_bytes: float = 0.0


@dataclass
class Needs:
    """What the real run would need.

    Args:
        trials: of the whole grid. rehearsed: distinct models that were measured.
        skipped: trials that will not run. not_measured: trials without an estimate, since their rehearsal failed.
        rows: one for each aggregator.
        feature_bytes: of the packed store. result_bytes: of predictions, curves and the models of the first seed.
        scale: real bags are this much larger than the larger measured ones.
    """

    trials: int
    rehearsed: int
    skipped: int
    not_measured: int
    rows: list[Need]
    feature_bytes: float
    result_bytes: float
    scale: float

    @property
    def hours(self) -> tuple[float, float]:
        """(least, most) on one device, one trial after the other."""
        return sum(row.hours[0] for row in self.rows), sum(row.hours[1] for row in self.rows)


def needs(jobs: Sequence[Job], chosen: Mapping[str, Job], store: Store, scale: float, settings: Settings | None = None) -> Needs:
    """Put the measured steps together to all trials of the grid, at the real sizes of their bags.

    Args:
        jobs: every trial of the real run, planned on stand-ins.
        chosen: of :func:`distinct`.
        store: the rehearsal's.
        scale: of the rehearsal.
        settings: where datasets are; what the environment says unless given.
    """
    rows: dict[str, Need] = {}
    results = {job.spec.trial_id: store.raw(job.spec.trial_id) or {} for job in chosen.values()}
    first_seed = min(job.spec.seed for job in jobs)
    states = {"skipped": 0, "not measured": 0}
    result_bytes, features = 0.0, {}
    for job in jobs:
        s, data = job.spec, _dataset(job, scale, settings)
        sizes = data.sizes() if data.sizes else {}
        features[job.cell.column[:4]] = sum(sizes.values()) * data.in_dim * (2 if s.feature_dtype == "float16" else 4)
        result = results[chosen[s.trial_id].spec.trial_id]
        if result.get("status") != "ok":
            states["skipped" if result.get("status") == "skipped" else "not measured"] += 1
            continue
        cost, entry = result["cost"], plugins.resolve(s.aggregator).entry
        fold = data.folds(s.split)[s.fold]
        train, val, test = (np.array([sizes[id] for id in ids], dtype=np.float64) for ids in fold)
        *steps, exponent = Cost.between(cost["rehearsal"]["train"], entry.complexity)
        *predictions, _ = Cost.between(cost["rehearsal"]["predict"], entry.complexity)
        epochs = _epochs(s) if entry.cls.fit is Aggregator.fit else (1, 1)
        share = (s.recipe.epoch_bags or len(train)) / len(train)  # of the training bags that an epoch shows
        once = cost["rehearsal"]["prepare_seconds"]
        seconds = [
            once + count * (share * step.seconds(train).sum() + of.seconds(val).sum()) + of.seconds(np.r_[val, test]).sum()
            for count, step, of in zip(epochs, steps, predictions, strict=True)
        ]
        row = rows.setdefault(s.aggregator, Need(s.aggregator))
        row.trials += 1
        row.hours = (row.hours[0] + float(seconds[0]) / 3600, row.hours[1] + float(seconds[1]) / 3600)
        typical = [float(step.seconds(train.mean())) for step in steps]
        if typical[1] >= row.seconds_per_step[1]:
            row.seconds_per_step, row.exponent = (typical[0], typical[1]), None if math.isnan(exponent) else exponent
        row.peak_bytes = max(row.peak_bytes, _peak(cost["rehearsal"]["peak"], max(sizes.values())))
        n_out = len(data.classes) or 1
        result_bytes += 8_000 + epochs[1] * 120 + len(test) * (70 + 13 * n_out)
        result_bytes += 4 * cost["parameters"] * (s.seed == first_seed)
    tried = len({job.spec.trial_id for job in chosen.values()})
    return Needs(
        len(jobs), tried, states["skipped"], states["not measured"], list(rows.values()), float(sum(features.values())),
        result_bytes, scale,
    )  # fmt: skip


def _epochs(spec: TrialSpec) -> tuple[int, int]:
    """The fewest and the most that training takes."""
    r = spec.recipe
    if r.select == "last" or r.patience is None:
        return r.max_epochs, r.max_epochs
    return min(r.max_epochs, max(r.min_epochs, r.select_after + 1 + r.patience)), r.max_epochs


def _peak(points: Sequence[Sequence[float]], n: float) -> float:
    """Bytes at n instances: a straight line through the two measured sizes."""
    (n1, p1), (n2, p2) = points
    slope = max(0.0, (p2 - p1) / (n2 - n1)) if n2 > n1 else 0.0
    return p2 + slope * max(0.0, n - n2)


def mark(store: Store, scale: float) -> None:
    """Mark the store as a rehearsal's, so that no report takes it for results.

    Raises:
        MilbenchError: results are in it.
    """
    if plans.names(store):
        raise MilbenchError(f"{store.root} holds results; a rehearsal needs a folder of its own")
    text = {"REHEARSAL": "stand-in bags: nothing in this folder is a result", "scale": scale}
    write_atomically(plans.marker(store), json.dumps(text, indent=1) + "\n")
