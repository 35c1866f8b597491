"""Every method against every other, and which place each would take with other patients and other trainings."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from milbench import reading, stats
from milbench.compare.pairing import Fold, Pair, Shared, Tested, filled
from milbench.compare.primary import Contrast, Trainings, contrast, trainings
from milbench.metrics import Column, Metric
from milbench.reading import Run
from milbench.trials.plan import Plan

FEWEST = 3  # methods: of two the comparison with the reference says all


@dataclass(frozen=True)
class Versus(Contrast):
    """Method a minus method b in a column; `p_holm` is corrected over all pairs of the column."""

    a: str
    b: str

    @property
    def gain(self) -> float:
        """How much better a is than b: the difference, whose sign is turned where lower is better."""
        return self.metric.direction * self.test.difference


@dataclass(frozen=True)
class Everyone:
    """All methods of a column.

    Args:
        column, metric: what is compared.
        labels: method -> how it is printed, in the order of their means, best first.
        pairs: every two of them that share a fold, the better mean first.
        places: (methods, places) how often each method takes each place, of `ranked` methods; empty where fewer than 3 have every
            fold.
        ranked: the methods that have every fold of the column, in the order of the labels.
    """

    column: Column
    metric: Metric
    labels: dict[str, str]
    pairs: tuple[Versus, ...]
    places: NDArray[np.float64]
    ranked: tuple[str, ...]

    def told_apart(self, method: str) -> tuple[int, int, int]:
        """How many others it is better than, is not told apart from, and is worse than."""
        better = worse = same = 0
        for pair in self.pairs:
            if method in (pair.a, pair.b):
                side = pair.better
                better += side == ("a" if pair.a == method else "b")
                worse += side == ("b" if pair.a == method else "a")
                same += side == ""
        return better, same, worse

    def between(self, method: str) -> tuple[int, int]:
        """The places that it takes in the middle 95 % of the resamples."""
        cumulated = np.cumsum(self.places[self.ranked.index(method)])
        first, last = np.searchsorted(cumulated, (0.025 + stats.TINY, 0.975 - stats.TINY))
        return int(first) + 1, int(last) + 1


def everyone(plan: Plan, runs: Sequence[Run], metric: Metric) -> list[Everyone]:
    """Every two methods of each column that has three or more, by the primary test.

    A column with one split whose methods were trained once each is left out: neither places nor chances are known there.

    Raises:
        MilbenchError: runs of one fold test different cases.
    """
    places: dict[Column, dict[str, list[Run]]] = {}
    for run in runs:
        if run.status == "ok":
            places.setdefault(run.column, {}).setdefault(run.cell.aggregator, []).append(run)
    labels = {run.cell.aggregator: run.cell.label for run in reversed(runs)}
    columns = {
        column: {name: trainings(methods[name]) for name in reading.in_order(plan, list(methods))}
        for column, methods in places.items()
        if len(methods) >= FEWEST and any(len(runs) > 1 for runs in methods.values())
    }
    return [_column(column, metric, methods, labels) for column, methods in columns.items()]


def _column(column: Column, metric: Metric, methods: Mapping[str, Trainings], labels: dict[str, str]) -> Everyone:
    order = sorted(methods, key=lambda name: _mean(methods[name], metric))
    shared, pairs = Shared(), []
    for a, b in combinations(order, 2):
        if found := contrast(methods[a], methods[b], metric, shared):
            pairs.append(Versus(**vars(found), a=a, b=b))
    corrected = stats.holm([pair.test.p for pair in pairs]).tolist()
    folds = sorted({fold for of in methods.values() for fold in of})
    ranked = tuple(name for name in order if set(methods[name]) == set(folds))
    places = np.empty((0, 0))
    if len(ranked) >= FEWEST:
        tested = [_ranked([[run for (run,) in methods[name][fold]] for name in ranked], metric) for fold in folds]
        places = stats.rank_stability(tested, larger_is_better=metric.direction > 0, seed=f"{tuple(column)}|{metric.name}")
    with_holm = tuple(replace(pair, p_holm=p) for pair, p in zip(pairs, corrected, strict=True))
    return Everyone(column, metric, {name: labels[name] for name in order}, with_holm, places, ranked)


def _mean(folds: Trainings, metric: Metric) -> float:
    """Of a method, over folds, smaller being better; infinite where it is undefined."""
    values = [np.mean([float(metric(run.predictions)) for (run,) in of]) for of in folds.values()]
    mean = stats.rounded(float(np.mean(values)), step=stats.STEP)
    return math.inf if math.isnan(mean) else -metric.direction * mean


def _ranked(methods: list[list[Tested]], metric: Metric) -> stats.Ranked:
    """The runs of all methods on a fold."""
    tested = Fold((Pair(tuple(run for runs in methods for run in runs), ()),))
    return stats.Ranked([[filled(run, metric) for run in runs] for runs in methods], tested.strata, tested.patients)
