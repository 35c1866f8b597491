"""From the measured steps of a rehearsal to hours, memory and disk of the real run."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milbench import plugins
from milbench.aggregator import Aggregator
from milbench.config import Settings
from milbench.datasets import Dataset
from milbench.rehearsal.stand_in import dataset_of, sizes_of
from milbench.trials.plan import Job
from milbench.trials.spec import TrialSpec
from milbench.trials.store import Store


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
        exponent: of the time in the instances between the measured sizes; None where both sizes are the same.
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

    def add(self, trial: "_Trial") -> None:
        """Count a trial in."""
        self.trials += 1
        least, most = trial.seconds()
        self.hours = (self.hours[0] + least / 3600, self.hours[1] + most / 3600)
        if trial.seconds_per_step[1] >= self.seconds_per_step[1]:
            self.seconds_per_step = trial.seconds_per_step
            self.exponent = None if math.isnan(trial.exponent) else trial.exponent
        self.peak_bytes = max(self.peak_bytes, trial.peak_bytes())


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
        chosen: from :func:`milbench.rehearsal.distinct`.
        store: the rehearsal's.
        scale: of the rehearsal.
        settings: where datasets are; what the environment says unless given.
    """
    rehearsed = {job.trial_id for job in chosen.values()}
    results = {trial_id: store.raw(trial_id) or {} for trial_id in rehearsed}
    rows: dict[str, Need] = {}
    features: dict[tuple[object, ...], float] = {}
    first_seed = min(job.spec.seed for job in jobs)
    skipped = not_measured = 0
    result_bytes = 0.0
    for job in jobs:
        s, data = job.spec, dataset_of(job, scale, settings)
        bytes_each = 2 if s.feature_dtype == "float16" else 4
        features[job.cell.column[:4]] = float(sum(sizes_of(data).values()) * data.in_dim * bytes_each)
        result = results[chosen[s.trial_id].trial_id]
        if result.get("status") == "skipped":
            skipped += 1
        elif result.get("status") != "ok":
            not_measured += 1
        else:
            trial = _Trial(s, data, result["cost"])
            rows.setdefault(s.aggregator, Need(s.aggregator)).add(trial)
            result_bytes += trial.result_bytes(keeps_model=s.seed == first_seed)
    return Needs(
        trials=len(jobs),
        rehearsed=len(rehearsed),
        skipped=skipped,
        not_measured=not_measured,
        rows=list(rows.values()),
        feature_bytes=sum(features.values()),
        result_bytes=result_bytes,
        scale=scale,
    )


class _Trial:
    """What one trial needs, from the measured steps of its model.

    Args:
        spec: the trial.
        data: its stand-in dataset, with the real sizes.
        cost: of the rehearsed trial.
    """

    def __init__(self, spec: TrialSpec, data: Dataset, cost: Mapping[str, Any]) -> None:
        self._spec, self._data, self._cost = spec, data, cost
        self._sizes = sizes_of(data)
        self._entry = plugins.resolve(spec.aggregator).entry
        fold = data.folds(spec.split)[spec.fold]
        self._train, self._val, self._test = (np.array([self._sizes[id] for id in ids], dtype=np.float64) for ids in fold)
        *self._steps, self.exponent = Cost.between(cost["rehearsal"]["train"], self._entry.complexity)
        self._epochs = _epochs(spec) if self._entry.cls.fit is Aggregator.fit else (1, 1)

    @property
    def seconds_per_step(self) -> tuple[float, float]:
        """(least, most) of a step on an average training bag."""
        least, most = (float(step.seconds(self._train.mean())) for step in self._steps)
        return least, most

    def seconds(self) -> tuple[float, float]:
        """(least, most) of the trial."""
        *predictions, _ = Cost.between(self._cost["rehearsal"]["predict"], self._entry.complexity)
        train, val, test = self._train, self._val, self._test
        share = (self._spec.recipe.epoch_bags or len(train)) / len(train)  # of the training bags that an epoch shows
        once = self._cost["rehearsal"]["prepare_seconds"]
        least, most = (
            once + epochs * (share * step.seconds(train).sum() + of.seconds(val).sum()) + of.seconds(np.r_[val, test]).sum()
            for epochs, step, of in zip(self._epochs, self._steps, predictions, strict=True)
        )
        return float(least), float(most)

    def peak_bytes(self) -> float:
        """Of memory, at the largest real bag."""
        return _peak(self._cost["rehearsal"]["peak"], max(self._sizes.values()))

    def result_bytes(self, *, keeps_model: bool) -> float:
        """Of trial.json, the learning curve, the predictions and the weights."""
        n_out = len(self._data.classes) or 1
        text = 8_000 + self._epochs[1] * 120 + len(self._test) * (70 + 13 * n_out)
        return text + 4 * self._cost["parameters"] * keeps_model


def _epochs(spec: TrialSpec) -> tuple[int, int]:
    """The fewest and the most epochs that training takes."""
    r = spec.recipe
    if r.select == "last" or r.patience is None:
        return r.max_epochs, r.max_epochs
    return min(r.max_epochs, max(r.min_epochs, r.select_after + 1 + r.patience)), r.max_epochs


def _peak(points: Sequence[Sequence[float]], n: float) -> float:
    """Bytes at n instances: a straight line through the two measured sizes."""
    (n1, p1), (n2, p2) = points
    slope = max(0.0, (p2 - p1) / (n2 - n1)) if n2 > n1 else 0.0
    return p2 + slope * max(0.0, n - n2)
