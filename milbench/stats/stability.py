"""What another training would say: who wins, which rank, and whether a test keeps its level where a method meets itself."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from milbench.errors import MilbenchError
from milbench.stats.paired import Metric, resamples, superiority
from milbench.stats.patients import Patients
from milbench.stats.rounding import STEP, TINY, Rounded, rounded

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Outperforming(Rounded):
    """The chance that a new training of the method beats a new training of the reference on these slides, with a 95 % interval.

    Args:
        chance: ties count one half; 0.5 is no difference. Bouthillier et al. call a difference meaningful from 0.75 on.
        low, high: 95 % interval over trainings.
        trainings: how many a side, summed over folds.
    """

    chance: float
    low: float
    high: float
    trainings: tuple[int, int]


def outperforming(method: Sequence[ArrayLike], reference: Sequence[ArrayLike]) -> Outperforming:
    """How probable it is that one method beats the other on a new training.

    The estimate is the share of won pairs of trainings (Mann and Whitney's U over J L), mean over folds. Its interval holds
    every chance q with |estimate - q| <= 1.96 sqrt(V(q) / K), where on a fold of J and L trainings
    V(q) = q (1 - q) / (J L) (1 + N ((1 - q) / (2 - q) + q / (1 + q))), N = (J + L) / 2 - 1. Unlike a percentile bootstrap it
    stays wider than a point where all trainings of one side win.

    Args:
        method, reference: of each of K folds, the values of its trainings; larger is better.

    Returns:
        The chance; NaN with its interval where a value is undefined.

    Raises:
        MilbenchError: there is no fold, or one lacks a training of a side.

    Source: Bouthillier et al., Accounting for variance in machine learning benchmarks, MLSys 2021, section 4; the interval is
    method 5 of Newcombe, Statistics in Medicine 2006 (confidence intervals for an effect size measure, part 2).
    """
    counts = [(np.size(a), np.size(b)) for a, b in zip(method, reference, strict=True)]
    if not counts or min(map(min, counts)) < 1:
        raise MilbenchError(f"nothing to compare: trainings of each fold are {counts}; every fold needs one of either method")
    chance = superiority(method, reference)
    low = high = math.nan
    if not math.isnan(chance):

        def variance(q: float) -> float:
            shape = (1 - q) / (2 - q) + q / (1 + q)
            return sum(q * (1 - q) / (J * L) * (1 + ((J + L) / 2 - 1) * shape) for J, L in counts) / len(counts) ** 2

        def outside(q: float) -> float:
            return (chance - q) ** 2 - float(scipy.special.ndtri(0.975)) ** 2 * variance(q)

        # The estimate itself is left out: where one side always wins it is a solution, too.
        low = 0.0 if chance < TINY else float(scipy.optimize.brentq(outside, 0, chance * (1 - TINY)))
        high = 1.0 if chance > 1 - TINY else float(scipy.optimize.brentq(outside, 1 - (1 - chance) * (1 - TINY), 1))
    return Outperforming(chance, low, high, (sum(J for J, _ in counts), sum(L for _, L in counts)))


@dataclass(frozen=True)
class Ranked:
    """The runs of several methods on the same slides of one test fold.

    Args:
        methods: of each method, the metric of each of its runs as a function of slide weights (B, n) -> (B,).
        stratum: (n,) class, or event for survival.
        patient: (n,) patient of each slide; None where each slide is taken as a patient.
    """

    methods: Sequence[Sequence[Metric]]
    stratum: ArrayLike
    patient: ArrayLike | None = None


def rank_stability(
    folds: Sequence[Ranked], *, larger_is_better: bool = True, replicates: int = 1000, seed: str = ""
) -> NDArray[np.float64]:
    """How often each method is first, second, ... for other patients and other trainings.

    In each replicate whole patients are drawn inside the strata of the paired bootstrap, the same for all methods, and trainings
    inside each method; both m - 1 of m with weight m / (m - 1), so that a handful varies as much as it should. A single
    training stays as it is. Methods are ranked by their mean over folds; equal ones share their ranks evenly. Replicates in
    which a method has no value do not count.

    Args:
        folds: each with the same methods in the same order.
        larger_is_better: False for an error.
        replicates: number of resamples.
        seed: text that fixes the resamples.

    Returns:
        (methods, ranks): shares; rows and columns sum to 1. NaN where no replicate gives every method a value.

    Raises:
        MilbenchError: there is no fold, folds list different numbers of methods, or a method has no run in one.
    """
    sizes = {len(fold.methods) for fold in folds}
    if len(sizes) != 1 or 0 in sizes or any(not len(runs) for fold in folds for runs in fold.methods):
        raise MilbenchError(
            f"ranks need folds that list the same methods with their runs; the folds list {sorted(sizes)} methods"
        )
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8]))
    total = np.zeros((replicates, sizes.pop()))
    for fold in folds:
        patients = Patients.of(fold.stratum, fold.patient)
        counts = patients.to_slides(np.concatenate(list(resamples(patients.stratum, replicates, rng))))  # (B, n)
        for column, runs in enumerate(fold.methods):
            values = np.stack([run(counts) for run in runs], axis=1)  # (B, J)
            drawn = np.concatenate(list(resamples(np.zeros(len(runs)), replicates, rng)))
            total[:, column] += (drawn * values).mean(1) / len(folds)
    return _rank_shares(total[~np.isnan(total).any(1)] * (1 if larger_is_better else -1))


def _rank_shares(values: Array) -> Array:
    """Values (B, k), larger is better -> shares (k methods, k ranks)."""
    k = values.shape[1]
    if not len(values):
        return np.full((k, k), np.nan)
    ahead = (values[:, None, :] > values[:, :, None] + TINY).sum(2)  # (B, k): how many are better
    level = (np.abs(values[:, None, :] - values[:, :, None]) <= TINY).sum(2)  # (B, k): how many are equal, itself included
    rank = np.arange(k)
    shared = (rank >= ahead[..., None]) & (rank < (ahead + level)[..., None])  # (B, k, k)
    return rounded((shared / level[..., None]).mean(0), step=STEP)


@dataclass(frozen=True)
class Calibration(Rounded):
    """How often a test calls a method different from itself.

    Args:
        test: its name.
        share: of the pairs of seed groups, with p below the level: near the level for a test that keeps it.
        se: its Monte-Carlo error: by leaving out a group of seeds at a time, and never below that of independent pairs.
        groups, pairs: how many groups of seeds, and pairs of them.
        undefined: pairs without a p-value; they count as not significant.
    """

    test: str
    share: float
    se: float
    groups: int
    pairs: int
    undefined: int


def calibration(
    runs: int,
    size: int,
    tests: Mapping[str, Callable[[Sequence[int], Sequence[int]], float]],
    *,
    level: float = 0.05,
) -> list[Calibration]:
    """Compares a method with itself: every two disjoint groups of its seeds, by every test.

    Args:
        runs: number of trainings of the method.
        size: trainings a group, taken in order; what does not fill a group is left out.
        tests: by name, the p-value from the indices of two groups of runs.
        level: of the tests.

    Returns:
        One entry for each test, in their order.

    Raises:
        MilbenchError: the trainings do not fill three groups.
    """
    groups = [range(start, start + size) for start in range(0, runs - size + 1, size)] if size > 0 else []
    if len(groups) < 3:
        raise MilbenchError(f"calibration needs three groups of seeds or more, {runs} trainings by {size} make {len(groups)}")
    pairs = list(combinations(range(len(groups)), 2))
    return [_calibrated(name, test, groups, pairs, level) for name, test in tests.items()]


def _calibrated(
    name: str,
    test: Callable[[Sequence[int], Sequence[int]], float],
    groups: Sequence[Sequence[int]],
    pairs: Sequence[tuple[int, int]],
    level: float,
) -> Calibration:
    p = np.array([test(groups[a], groups[b]) for a, b in pairs])
    called = p < level  # NaN is not
    without = np.array([called[[g not in pair for pair in pairs]].mean() for g in range(len(groups))])
    jackknife = math.sqrt((len(groups) - 1) * without.var())
    smoothed = (called.sum() + 1) / (len(pairs) + 2)  # so that 0 of 28 has an error, too
    binomial = math.sqrt(smoothed * (1 - smoothed) / len(pairs))
    undefined = int(np.isnan(p).sum())
    return Calibration(name, float(called.mean()), max(jackknife, binomial), len(groups), len(pairs), undefined)
