"""Paired tests over the test cases: what other patients would have shown to these trained models.

The slides of a patient stay together. Where no patient is known each slide is taken as one.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from milbench.errors import MilbenchError
from milbench.stats.metrics import f1_of, predicted
from milbench.stats.outcome import Outcome, Unit
from milbench.stats.patients import Patients
from milbench.stats.rounding import TINY, rounded

Array = NDArray[np.float64]
ELEMENTS = 2**18  # signs drawn at a time


@dataclass(frozen=True)
class PairedFold:
    """Predictions of two methods for the same cases.

    Args:
        target: (n,) class indices.
        method, reference: (seeds, n, C) scores, seed by seed from the same training set.
        patient: (n,) whose slide each case is; None where it is not known.

    Raises:
        MilbenchError: the two do not pair, a score is missing, or a slide lacks its patient.
    """

    target: NDArray[np.int64]
    method: Array
    reference: Array
    patient: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        if self.method.shape != self.reference.shape or self.method.ndim != 3 or self.method.shape[1:2] != self.target.shape:
            raise MilbenchError(
                f"predictions do not pair: method {self.method.shape}, reference {self.reference.shape} (seeds, cases, classes) "
                f"for {len(self.target)} cases; both need every case and seed of the fold"
            )
        if not self.method.size or np.isnan(self.method).any() or np.isnan(self.reference).any():
            raise MilbenchError("predictions do not pair: a score is missing (NaN), or there is no case at all")
        self.patients  # noqa: B018 - a slide without its patient is an error here

    @cached_property
    def patients(self) -> Patients:
        """Whose slides the cases are."""
        return Patients.of(self.target, self.patient)


def _sample(folds: Sequence[PairedFold]) -> tuple[int, Unit]:
    """How many patients there are, and whether they are known in each fold."""
    return sum(fold.patients.count for fold in folds), "patients" if all(fold.patients.known for fold in folds) else "slides"


def _below(x: Array, y: Array) -> Array:
    """For each of x, how many of y are smaller, equal ones counting one half."""
    y = np.sort(y)
    return (np.searchsorted(y, x, "left") + np.searchsorted(y, x, "right")) / 2


def delong(folds: Sequence[PairedFold]) -> Outcome:
    """DeLong's test for two correlated AUCs of two classes, class 1 being the positive, with patients of several slides.

    The AUC is a mean over positives of their placements among the negatives, and the other way round; so the variance of
    the difference follows from the placements' differences. Placements are averaged over seeds, which makes the effect the
    difference of mean AUCs, the same as in the tables (not the AUC of averaged probabilities). Folds are independent.

    Obuchowski sums placements over the slides of a patient and adds the covariance of a patient's positives and negatives. With
    one slide each it is DeLong's variance.

    Returns:
        Difference of AUCs, mean over folds and seeds. p is NaN where a fold has fewer than two patients with slides of a class,
        and where the placements do not vary though the AUCs differ.

    Raises:
        MilbenchError: there are more than two classes.

    Source: DeLong, DeLong and Clarke-Pearson, Biometrics 1988, equations 3 to 5; Obuchowski, Nonparametric analysis of clustered
    ROC curve data, Biometrics 1997, section 3.
    """
    name, (n, over) = "DeLong", _sample(folds)
    note = "uses each seed's own probabilities, averaged as AUCs; normal approximation, rough with few cases of a class"
    effect = variance = 0.0
    for fold in folds:
        if fold.method.shape[2] != 2:
            raise MilbenchError(f"DeLong's test needs two classes, there are {fold.method.shape[2]}; use the permutation test")
        few = min(len(np.unique(fold.patients.of_slide[fold.target == c])) for c in (0, 1))
        if few < 2:
            one = "patient" if over == "patients" else "case"
            why = "lacks a class" if few == 0 else f"has one {one} of a class, whose spread is unknown"
            return Outcome(name, math.nan, math.nan, math.nan, n, f"not computed (a fold {why})", 0.0, math.nan, over=over)
        difference, spread = _obuchowski(fold)
        effect += difference / len(folds)
        variance += spread / len(folds) ** 2
    se = math.sqrt(max(variance, 0.0))
    if se < TINY:
        p = 1.0 if abs(effect) < TINY else math.nan
        note = note if p == 1 else "not computed (every case has the same placement, so the spread is unknown)"
        return Outcome(name, effect, math.nan, math.nan, n, note, 0.0, p, over=over)
    half, p = float(scipy.stats.norm.ppf(0.975)) * se, float(2 * scipy.stats.norm.sf(abs(effect) / se))
    return Outcome(name, effect, effect - half, effect + half, n, note, 0.0, p, over=over)


def _obuchowski(fold: PairedFold) -> tuple[float, float]:
    """Difference of the AUCs on a fold, and its variance over patients."""
    positive = fold.target == 1
    placement = np.zeros(len(positive))  # of each case among the other class, method minus reference
    for sign, scores in ((1, fold.method), (-1, fold.reference)):
        for score in scores[:, :, 1]:
            p, q = score[positive], score[~positive]
            placement[positive] += sign * _below(p, q) / len(q) / len(scores)
            placement[~positive] += sign * (1 - _below(q, p) / len(p)) / len(scores)
    difference = float(placement[positive].mean())
    sides = []  # of each class: the sums of patients that have slides of it, divided by their slides
    variance = 0.0
    for side in (positive, ~positive):
        away = fold.patients.sums(np.where(side, placement - difference, 0.0)) / side.sum()
        patients = len(np.unique(fold.patients.of_slide[side]))
        variance += patients / (patients - 1) * float((away**2).sum())
        sides.append(away)
    g = fold.patients.count
    return difference, variance + 2 * g / (g - 1) * float((sides[0] * sides[1]).sum())


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
    """The difference of macro-AUCs as a function of the signs of patients (B, g) -> (B,).

    Each method's scores are first replaced by their ranks, class by class, so that swapping moves between equal scales.
    The AUC of swapped ranks is a sum over pairs (positive, negative) of one of four comparisons, AA, AB, BA or BB; in the
    difference of the two methods the products of two signs cancel, and every case is left with a coefficient of its own.
    """
    seeds, n, classes = fold.method.shape
    linear = np.zeros(n)
    for a, b in zip(fold.method, fold.reference, strict=True):
        for c in range(classes):
            rank = [scipy.stats.rankdata(scores[:, c]) for scores in (a, b)]
            positive = fold.target == c
            for side, own, others in ((1, positive, ~positive), (-1, ~positive, positive)):  # a negative on top counts against
                aa, ab, ba, bb = (_below(x[own], y[others]) for x in rank for y in rank)
                linear[own] += side * (aa - bb + ab - ba) / 2 / (positive.sum() * (~positive).sum())
    of_patient = fold.patients.sums(linear)  # (g,)
    return lambda signs: signs @ of_patient / (seeds * classes)


def _f1_swaps(fold: PairedFold) -> Callable[[Array], Array]:
    """The difference of macro-F1 as a function of the signs of patients (B, g) -> (B,)."""
    seeds, _, classes = fold.method.shape
    cells = np.eye(classes**2)

    def difference(signs: Array) -> Array:
        total = np.zeros(len(signs))
        for a, b in zip(fold.method, fold.reference, strict=True):
            at = [cells[fold.target * classes + predicted(scores)] for scores in (a, b)]  # (n, C^2) each
            moved = signs @ fold.patients.sums(at[0] - at[1]) / 2
            for sign in (1, -1):
                table = (at[0] + at[1]).sum(0) / 2 + sign * moved
                total += sign * f1_of(table.reshape(-1, classes, classes))
        return total / seeds

    return difference


def permutation(folds: Sequence[PairedFold], metric: str, *, replicates: int = 10_000, seed: str = "") -> Outcome:
    """Paired permutation test: if the methods were alike, swapping their predictions of a patient would change nothing.

    All slides of a patient are swapped at once, and jointly over seeds, since they share them. For "macro_auc" ranks within each
    method are swapped, since the methods' scales need not agree; for "macro_f1" the predicted classes. Folds are independent.

    Args:
        folds: predictions of both methods.
        metric: "macro_auc" or "macro_f1".
        replicates: how many random swaps; all 2^n of n patients are made when that is no more.
        seed: text that fixes the swaps.

    Returns:
        Difference of the metric, mean over folds and seeds, without an interval. p is NaN where a fold lacks a class and
        the AUC is undefined.

    Raises:
        MilbenchError: another metric.
    """
    if metric not in ("macro_auc", "macro_f1"):
        raise MilbenchError(f"the permutation test knows macro_auc and macro_f1, not {metric}")
    n, over = _sample(folds)
    exact = 2**n <= replicates
    smallest = 2 / 2**n if exact else 1 / (replicates + 1)
    each = "patient by patient" if over == "patients" else "case by case"
    note = f"uses each seed's own predictions, swapped jointly over seeds; null hypothesis: the methods are exchangeable {each}"
    name = "permutation" + (" (exact)" if exact else "")
    sizes = [fold.patients.count for fold in folds]
    if metric == "macro_auc" and any(len(np.unique(fold.target)) < fold.method.shape[2] for fold in folds):
        return Outcome(
            name, math.nan, math.nan, math.nan, n, "not computed (a fold lacks a class)", smallest, math.nan, over=over
        )
    parts = [(_auc_swaps if metric == "macro_auc" else _f1_swaps)(fold) for fold in folds]

    def difference(signs: Array) -> Array:
        blocks = np.split(signs, np.cumsum(sizes)[:-1], axis=1)
        return np.mean([part(block) for part, block in zip(parts, blocks, strict=True)], axis=0)

    effect = float(difference(np.ones((1, n)))[0])
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8]))
    extreme = sum(int((np.abs(difference(signs)) >= abs(effect) - TINY).sum()) for signs in _signs(n, replicates, rng))
    p = extreme / 2**n if exact else (extreme + 1) / (replicates + 1)
    return Outcome(name, effect, math.nan, math.nan, n, note, smallest, p, over=over)


def mcnemar(folds: Sequence[PairedFold]) -> Outcome:
    """Exact McNemar test of the accuracy: of the cases that one method gets right and the other wrong, is half each?

    With several slides of a patient, d is the difference of a patient's discordant slides, won minus lost. If the methods are
    alike, d is as likely as -d: the p-value counts every choice of signs that is as far from 0 as what was seen. This is the
    exact form of the test of Yang, Sun and Hardin, whose variance, the sum of d^2, is that of the signs; with one slide each it
    is McNemar's own.

    Returns:
        Difference of the accuracies of seed-mean probabilities, over the cases of all folds. Its interval holds 0 exactly when
        p >= 0.05. It is that of the share of patients who favour the method, given the sizes of all d, by both tails of the exact
        distribution (Clopper and Pearson's, with one slide each).

    Source: McNemar, Psychometrika 1947; Yang, Sun and Hardin, A note on the tests for clustered matched-pair binary data,
    Biometrical Journal 2010.
    """
    patients, over = _sample(folds)
    slides = sum(len(fold.target) for fold in folds)
    ahead, won, lost = [], 0, 0
    for fold in folds:
        a, b = (predicted(rounded(scores.mean(0))) == fold.target for scores in (fold.method, fold.reference))
        won, lost = won + int((a & ~b).sum()), lost + int((b & ~a).sum())
        ahead.append(fold.patients.sums(a.astype(np.float64) - b))
    d = np.concatenate(ahead)
    d = d[d != 0].astype(int)
    name = "McNemar (exact)"
    note = f"uses seed-mean probabilities; {won} cases right by the method alone, {lost} by the reference alone"
    if over == "patients":
        note += f"; {len(d)} of {patients} patients favour one of them"
    if not len(d):
        return Outcome(name, 0.0, math.nan, math.nan, patients, note, 1.0, 1.0, over=over)
    size, most = np.abs(d), int(np.abs(d).sum())
    chance = _sums_of_signs(size, 0.5)
    off_centre = np.abs(np.arange(-most, most + 1))
    p = min(1.0, float(chance[off_centre >= abs(d.sum())].sum()))
    low, high = (float((2 * share - 1) * most / slides) for share in _shares(size, int(d.sum())))
    smallest = min(1.0, 2 * 0.5 ** len(d))
    return Outcome(name, float(d.sum() / slides), low, high, patients, note, smallest, p, over=over)


def _sums_of_signs(size: NDArray[np.int_], share: float) -> Array:
    """Chance of each sum from -most to most of the sizes (g,) where each is positive with chance `share`, else negative."""
    chance = np.zeros(2 * int(size.sum()) + 1)
    chance[0] = 1.0
    for step in size.tolist():
        higher = np.zeros_like(chance)
        higher[2 * step :] = chance[: -2 * step]
        chance = share * higher + (1 - share) * chance
    return chance


def _shares(size: NDArray[np.int_], total: int) -> tuple[float, float]:
    """The shares of positive signs between which the sum `total` is in neither 2.5 % tail."""
    at, solve = int(size.sum()) + total, partial(scipy.optimize.brentq, a=0, b=1, xtol=1e-15)
    low = 0.0 if at == 0 else solve(lambda share: _sums_of_signs(size, share)[at:].sum() - 0.025)
    full = at == 2 * size.sum()
    high = 1.0 if full else solve(lambda share: _sums_of_signs(size, share)[: at + 1].sum() - 0.025)
    return float(low), float(high)
