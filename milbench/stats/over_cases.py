"""Paired tests over the test cases: what other cases would have shown to these trained models."""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from milbench.errors import MilbenchError
from milbench.stats.metrics import f1_of, predicted
from milbench.stats.outcome import Outcome
from milbench.stats.rounding import TINY, rounded

Array = NDArray[np.float64]
ELEMENTS = 2**18  # signs drawn at a time


@dataclass(frozen=True)
class PairedFold:
    """Predictions of two methods for the same cases.

    Args:
        target: (n,) class indices.
        method, reference: (seeds, n, C) scores, seed by seed from the same training set.

    Raises:
        MilbenchError: the two do not pair, or a score is missing.
    """

    target: NDArray[np.int64]
    method: Array
    reference: Array

    def __post_init__(self) -> None:
        if self.method.shape != self.reference.shape or self.method.ndim != 3 or self.method.shape[1:2] != self.target.shape:
            raise MilbenchError(
                f"predictions do not pair: method {self.method.shape}, reference {self.reference.shape} (seeds, cases, classes) "
                f"for {len(self.target)} cases; both need every case and seed of the fold"
            )
        if not self.method.size or np.isnan(self.method).any() or np.isnan(self.reference).any():
            raise MilbenchError("predictions do not pair: a score is missing (NaN), or there is no case at all")


def _below(x: Array, y: Array) -> Array:
    """For each of x, how many of y are smaller, equal ones counting one half."""
    y = np.sort(y)
    return (np.searchsorted(y, x, "left") + np.searchsorted(y, x, "right")) / 2


def delong(folds: Sequence[PairedFold]) -> Outcome:
    """DeLong's test for two correlated AUCs of two classes, class 1 being the positive.

    The AUC is a mean over positives of their placements among the negatives, and the other way round; so the variance of
    the difference follows from the placements' differences. Placements are averaged over seeds, which makes the effect the
    difference of mean AUCs, the same as in the tables (not the AUC of averaged probabilities). Folds are independent.

    Returns:
        Difference of AUCs, mean over folds and seeds. p is NaN where a fold has fewer than two cases of a class, and where
        the placements do not vary though the AUCs differ.

    Raises:
        MilbenchError: there are more than two classes.

    Source: DeLong, DeLong and Clarke-Pearson, Biometrics 1988, equations 3 to 5.
    """
    name, n = "DeLong", sum(len(fold.target) for fold in folds)
    note = "uses each seed's own probabilities, averaged as AUCs; normal approximation, rough with few cases of a class"
    effect = variance = 0.0
    for fold in folds:
        if fold.method.shape[2] != 2:
            raise MilbenchError(f"DeLong's test needs two classes, there are {fold.method.shape[2]}; use the permutation test")
        positive = fold.target == 1
        few = min(int(positive.sum()), int((~positive).sum()))
        if few < 2:
            reason = "lacks a class" if few == 0 else "has one case of a class, whose spread is unknown"
            return Outcome(name, math.nan, math.nan, math.nan, n, f"not computed (a fold {reason})", 0.0, math.nan)
        among_negatives = np.zeros(int(positive.sum()))
        among_positives = np.zeros(int((~positive).sum()))
        for sign, scores in ((1, fold.method), (-1, fold.reference)):
            for score in scores[:, :, 1]:
                p, q = score[positive], score[~positive]
                among_negatives += sign * _below(p, q) / len(q) / len(scores)
                among_positives += sign * (1 - _below(q, p) / len(p)) / len(scores)
        effect += float(among_negatives.mean()) / len(folds)
        spread = among_negatives.var(ddof=1) / len(among_negatives) + among_positives.var(ddof=1) / len(among_positives)
        variance += float(spread) / len(folds) ** 2
    se = math.sqrt(variance)
    if se < TINY:
        p = 1.0 if abs(effect) < TINY else math.nan
        note = note if p == 1 else "not computed (every case has the same placement, so the spread is unknown)"
        return Outcome(name, effect, math.nan, math.nan, n, note, 0.0, p)
    half = float(norm.ppf(0.975)) * se
    return Outcome(name, effect, effect - half, effect + half, n, note, 0.0, float(2 * norm.sf(abs(effect) / se)))


def _signs(n: int, replicates: int, rng: np.random.Generator) -> Iterator[Array]:
    """Rows of +1 (as it is) and -1 (swapped), block by block: all 2^n of them if that is no more than `replicates`."""
    exact = 2**n <= replicates
    total, size = (2**n if exact else replicates), max(1, ELEMENTS // n)
    for start in range(0, total, size):
        rows = min(size, total - start)
        every = np.arange(start, start + rows)[:, None] >> np.arange(n) & 1  # row r as binary digits
        swapped = every if exact else rng.integers(0, 2, size=(rows, n))
        yield 1 - 2 * swapped.astype(np.float64)


def _auc_swaps(fold: PairedFold) -> Callable[[Array], Array]:
    """The difference of macro-AUCs as a function of signs (B, n) -> (B,).

    Each method's scores are first replaced by their ranks, class by class, so that swapping moves between equal scales.
    The AUC of swapped ranks is a sum over pairs (positive, negative) of one of four comparisons, AA, AB, BA or BB; in the
    difference of the two methods the products of two signs cancel, and every case is left with a coefficient of its own.
    """
    seeds, n, classes = fold.method.shape
    linear = np.zeros(n)
    for a, b in zip(fold.method, fold.reference, strict=True):
        for c in range(classes):
            rank = [rankdata(scores[:, c]) for scores in (a, b)]
            positive = fold.target == c
            for side, own, others in ((1, positive, ~positive), (-1, ~positive, positive)):  # a negative on top counts against
                aa, ab, ba, bb = (_below(x[own], y[others]) for x in rank for y in rank)
                linear[own] += side * (aa - bb + ab - ba) / 2 / (positive.sum() * (~positive).sum())
    return lambda signs: signs @ linear / (seeds * classes)


def _f1_swaps(fold: PairedFold) -> Callable[[Array], Array]:
    """The difference of macro-F1 as a function of signs (B, n) -> (B,)."""
    seeds, _, classes = fold.method.shape
    cells = np.eye(classes**2)

    def difference(signs: Array) -> Array:
        total = np.zeros(len(signs))
        for a, b in zip(fold.method, fold.reference, strict=True):
            at = [cells[fold.target * classes + predicted(scores)] for scores in (a, b)]  # (n, C^2) each
            moved = signs @ (at[0] - at[1]) / 2
            for sign in (1, -1):
                table = (at[0] + at[1]).sum(0) / 2 + sign * moved
                total += sign * f1_of(table.reshape(-1, classes, classes))
        return total / seeds

    return difference


def permutation(folds: Sequence[PairedFold], metric: str, *, replicates: int = 10_000, seed: str = "") -> Outcome:
    """Paired permutation test: if the methods were alike, swapping their predictions of a case would change nothing.

    A case is swapped jointly over its seeds, since they share it. For "macro_auc" ranks within each method are swapped,
    since the methods' scales need not agree; for "macro_f1" the predicted classes. Folds are independent.

    Args:
        folds: predictions of both methods.
        metric: "macro_auc" or "macro_f1".
        replicates: how many random swaps; all 2^n are made when that is no more.
        seed: text that fixes the swaps.

    Returns:
        Difference of the metric, mean over folds and seeds, without an interval. p is NaN where a fold lacks a class and
        the AUC is undefined.

    Raises:
        MilbenchError: another metric.
    """
    if metric not in ("macro_auc", "macro_f1"):
        raise MilbenchError(f"the permutation test knows macro_auc and macro_f1, not {metric}")
    n = sum(len(fold.target) for fold in folds)
    exact = 2**n <= replicates
    smallest = 2 / 2**n if exact else 1 / (replicates + 1)
    note = (
        "uses each seed's own predictions, swapped jointly over seeds; null hypothesis: the methods are exchangeable case by case"
    )
    name = "permutation" + (" (exact)" if exact else "")
    sizes = [len(fold.target) for fold in folds]
    if metric == "macro_auc" and any(len(np.unique(fold.target)) < fold.method.shape[2] for fold in folds):
        return Outcome(name, math.nan, math.nan, math.nan, n, "not computed (a fold lacks a class)", smallest, math.nan)
    parts = [(_auc_swaps if metric == "macro_auc" else _f1_swaps)(fold) for fold in folds]

    def difference(signs: Array) -> Array:
        blocks = np.split(signs, np.cumsum(sizes)[:-1], axis=1)
        return np.mean([part(block) for part, block in zip(parts, blocks, strict=True)], axis=0)

    effect = float(difference(np.ones((1, n)))[0])
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8]))
    extreme = sum(int((np.abs(difference(signs)) >= abs(effect) - TINY).sum()) for signs in _signs(n, replicates, rng))
    p = extreme / 2**n if exact else (extreme + 1) / (replicates + 1)
    return Outcome(name, effect, math.nan, math.nan, n, note, smallest, p)


def mcnemar(folds: Sequence[PairedFold]) -> Outcome:
    """Exact McNemar test of the accuracy: of the cases that one method gets right and the other wrong, is half each?

    Returns:
        Difference of the accuracies of seed-mean probabilities, over the cases of all folds. Its interval is Clopper and
        Pearson's for the share of discordant cases, given their number: it holds 0 exactly when p >= 0.05.
    """
    from statsmodels.stats.contingency_tables import mcnemar as exact_test  # imports pandas, not needed where models train
    from statsmodels.stats.proportion import proportion_confint

    n = sum(len(fold.target) for fold in folds)
    a = np.concatenate([predicted(rounded(fold.method.mean(0))) == fold.target for fold in folds])
    b = np.concatenate([predicted(rounded(fold.reference.mean(0))) == fold.target for fold in folds])
    won, lost = int((a & ~b).sum()), int((b & ~a).sum())
    note = f"uses seed-mean probabilities; {won} cases right by the method alone, {lost} by the reference alone"
    if won + lost == 0:
        return Outcome("McNemar (exact)", 0.0, math.nan, math.nan, n, note, 1.0, 1.0)
    p = float(exact_test([[0, won], [lost, 0]], exact=True).pvalue)
    low, high = ((2 * share - 1) * (won + lost) / n for share in proportion_confint(won, won + lost, alpha=0.05, method="beta"))
    return Outcome("McNemar (exact)", (won - lost) / n, low, high, n, note, min(1.0, 2 * 0.5 ** (won + lost)), min(1.0, p))
