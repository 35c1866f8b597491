"""Tests over runs: folds or seeds are the sample. A handful of runs allows little, and each test says how little."""

import math
from collections.abc import Sequence

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from milbench.errors import MilbenchError
from milbench.stats.outcome import Outcome
from milbench.stats.rounding import TINY, rounded


def _finite(values: ArrayLike, what: str) -> NDArray[np.float64]:
    numbers = np.asarray(values, dtype=np.float64)
    if np.isnan(numbers).any():
        raise MilbenchError(
            f"{what}: {int(np.isnan(numbers).sum())} of {numbers.size} values are missing; leave incomplete pairs out"
        )
    return numbers


def nadeau_bengio(differences: ArrayLike, train: ArrayLike, test: ArrayLike) -> Outcome:
    """Student's t over folds with the variance corrected for training sets that overlap.

    Folds share most of their training cases, so their differences are not independent and the plain t finds too much.
    The variance of their mean is taken as (1/J + n_test / n_train) s^2 instead of s^2 / J. The n count what is drawn as one:
    patients, where slides of one patient are not shared out over folds.

    Args:
        differences: (J,) method - reference on each fold, averaged over seeds.
        train, test: (J,) patients that each fold trains on and tests.

    Returns:
        Mean difference. p is NaN when all folds differ by the same amount, but 1 when that is 0.

    Raises:
        MilbenchError: one fold only, since then the runs are seeds on one split, and no correction makes those a sample of
            training sets; or values are missing.

    Source: Nadeau and Bengio, Inference for the generalization error, Machine Learning 2003, section 4.
    """
    d = _finite(differences, "Nadeau-Bengio test")
    train, test = np.asarray(train, dtype=np.float64), np.asarray(test, dtype=np.float64)
    folds = len(d)
    if folds < 2:
        raise MilbenchError(
            "the corrected resampled t-test needs two folds or more: seeds on one split share training and test cases, so their "
            "spread says nothing of other data, and 1/J + n_test/n_train does not apply"
        )
    if not len(train) == len(test) == folds or min(train.min(), test.min()) < 1:
        raise MilbenchError(f"the corrected resampled t-test needs the training and test size of each of the {folds} folds")
    mean, sd, factor = float(d.mean()), float(d.std(ddof=1)), 1 / folds + float((test / train).mean())
    note = f"{folds} folds, variance times 1/J + n_test/n_train = {factor:.3f}; differences of folds taken as normal"
    name = "Nadeau-Bengio corrected t"
    if sd < TINY:
        p = 1.0 if abs(mean) < TINY else math.nan
        note = note if p == 1 else "not computed (all folds differ by the same amount, so the spread is unknown)"
        return Outcome(name, mean, math.nan, math.nan, folds, note, 0.0, p, over="folds")
    se = sd * math.sqrt(factor)
    half = float(scipy.stats.t.ppf(0.975, folds - 1)) * se
    p = float(2 * scipy.stats.t.sf(abs(mean) / se, folds - 1))
    return Outcome(name, mean, mean - half, mean + half, folds, note, 0.0, p, over="folds")


def wilcoxon(differences: ArrayLike) -> Outcome:
    """Wilcoxon's signed-rank test, exact: every choice of signs is as likely.

    Equal differences share their mean rank and zeros are left out, as Wilcoxon did; the smallest p-value is that of m pairs
    left which all favour one method: 2 / 2^m (5 pairs: 0.0625, so five runs never reach 0.05).

    Args:
        differences: (n,) method - reference of each pair.

    Returns:
        Median of the differences, without an interval; p is 1 when all are 0.

    Raises:
        MilbenchError: there is no pair, or one is missing.
    """
    raw = _finite(differences, "Wilcoxon test")
    d = rounded(raw, step=TINY)  # equal differences share a rank
    if not len(d):
        raise MilbenchError("Wilcoxon test: there is no pair")
    name, left = "Wilcoxon signed rank (exact)", d[d != 0]
    if not len(left):
        return Outcome(name, 0.0, math.nan, math.nan, len(d), "all differences are 0", 1.0, 1.0, over="runs")
    # scipy's exact table knows no equal differences, so the distribution is built up here, rank by rank in halves.
    ranks = np.rint(2 * scipy.stats.rankdata(np.abs(left))).astype(int)
    chance = np.ones(1)  # of each sum of the positive ranks
    for rank in ranks:
        chance = (np.pad(chance, (0, rank)) + np.pad(chance, (rank, 0))) / 2
    off_centre = np.abs(2 * np.arange(len(chance)) - ranks.sum())
    p = chance[off_centre >= off_centre[ranks[left > 0].sum()]].sum()
    note = "pairs taken as independent and symmetric about their median"
    note += f"; {len(d) - len(left)} zeros left out" if len(left) < len(d) else ""
    smallest = min(1.0, 2 / 2 ** len(left))
    return Outcome(name, float(np.median(raw)), math.nan, math.nan, len(d), note, smallest, min(1.0, float(p)), over="runs")


def anova(groups: Sequence[ArrayLike]) -> Outcome:
    """One-way analysis of variance over the runs of several methods, UNPAIRED: it ignores that methods share folds and seeds.

    Pairing removes what the runs share, so this test mostly finds less than a paired one; it is here because the field
    prints it.

    Args:
        groups: of each method, the values of its runs.

    Returns:
        Eta squared, the share of the variance between methods. p is NaN when no method's runs vary.

    Raises:
        MilbenchError: fewer than two methods, a method without a run, one run each, or missing values.
    """
    values = [_finite(group, "ANOVA") for group in groups]
    n = sum(map(len, values))
    if len(values) < 2 or min(map(len, values)) < 1 or n <= len(values):
        raise MilbenchError(
            f"ANOVA needs two methods with runs or more, and more runs than methods; got runs {[len(v) for v in values]}"
        )
    grand = np.concatenate(values).mean()
    between = sum(len(v) * (v.mean() - grand) ** 2 for v in values)
    within = sum(((v - v.mean()) ** 2).sum() for v in values)
    note = f"unpaired; runs taken as independent, normal and of one variance; F({len(values) - 1}, {n - len(values)})"
    name = "one-way ANOVA, unpaired"
    if within < TINY**2:
        note = "not computed (no method's runs vary)"
        return Outcome(name, math.nan, math.nan, math.nan, n, note, 0.0, math.nan, over="runs")
    p = float(scipy.stats.f_oneway(*values).pvalue)
    return Outcome(name, float(between / (between + within)), math.nan, math.nan, n, note, 0.0, p, over="runs")
