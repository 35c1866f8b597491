"""The primary test: does the difference hold for other patients and for other trainings?

Model of one fold: value(method i, training j) = mean_i + training_ij + patients_i + (training x patients)_ij. Trainings are the
readers of a reader study. They are nested in methods: seed 3 of one method and seed 3 of the other share no more than any two
seeds do. Patients are crossed with methods and trainings: everybody is measured on the same ones.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

from milbench.errors import MilbenchError
from milbench.stats.paired import Metric
from milbench.stats.patients import Patients
from milbench.stats.rounding import TINY, Rounded

Array = NDArray[np.float64]

LEVEL = 0.975  # both tails of a 95 % interval
POWER = 0.8  # chance to show a difference that is called detectable
MOST = 10_000  # trainings a side, or patients, beyond which nobody plans

ONE_TRAINING = "a side has one training on one split: how much trainings differ is unknown"
NO_SPREAD = "the difference is the same whatever varies, so its spread is unknown"


@dataclass(frozen=True)
class Fold:
    """The runs of two methods on the same slides of one test fold.

    Args:
        method, reference: the metric of each run as a function of slide weights (B, n) -> (B,). Seeds need not pair, and their
            numbers may differ.
        stratum: (n,) class, or event for survival.
        patient: (n,) patient of each slide; None where it is not known, and then each slide is taken as a patient.

    Raises:
        MilbenchError: a side without runs, no slide, or a slide without its patient.
    """

    method: Sequence[Metric]
    reference: Sequence[Metric]
    stratum: ArrayLike
    patient: ArrayLike | None = None

    def __post_init__(self) -> None:
        slides = np.size(self.stratum)
        if not len(self.method) or not len(self.reference) or not slides:
            raise MilbenchError(
                f"nothing to compare: {len(self.method)} and {len(self.reference)} runs on {slides} slides; a fold needs slides, "
                "and a run of either method"
            )
        Patients.of(self.stratum, self.patient)


@dataclass(frozen=True)
class Interval(Rounded):
    """A 95 % interval of Student's t around the difference, the variance and degrees of freedom it rests on, and its p-value."""

    low: float
    high: float
    variance: float
    df: float
    p: float


@dataclass(frozen=True)
class Split(Rounded):
    """Where the variance of the difference comes from; NaN where a side has one training.

    Args:
        patients: which patients are tested, alike for all trainings of a method.
        trainings: which seed, alike for all patients.
        interaction: which training does well on which patient.
    """

    patients: float
    trainings: float
    interaction: float


@dataclass(frozen=True)
class Components:
    """What one fold tells, not rounded.

    Args:
        difference: mean of the method's runs minus mean of the reference's.
        trainings: how many, of the method and of the reference.
        mean_squares: variance of the values over trainings divided by their number, of the method and of the reference.
        fixed: variance of the difference over patients, for these very models; `patients` + `interaction`.
        patients: its part that all trainings share; as an estimate it may be negative. NaN where a side has one training.
        interaction: its part that differs from training to training.
        df_trainings, df_patients: degrees of freedom of the mean squares, and of what patients bring.
        complete: the metric has a value for every run, whichever patient is left out.
        patient_count: how many patients.
    """

    difference: float
    trainings: tuple[int, int]
    mean_squares: tuple[float, float]
    fixed: float
    patients: float
    interaction: float
    df_trainings: tuple[float, float]
    df_patients: float
    complete: bool
    patient_count: int


@dataclass(frozen=True)
class Primary(Rounded):
    """A method against the reference, for other patients and other trainings. The effect first, the p-value last.

    Args:
        difference: mean over folds of mean(method) - mean(reference).
        low, high: its 95 % interval.
        variance, df: what the interval rests on.
        rule: which variance that is: "trainings and patients", "patients" or "folds"; "" where there is none.
        fixed: the interval for other patients but these models.
        split: where the variance comes from.
        tolerated_sd: with one training a side on one split, the standard deviation between trainings (of either method, in the
            metric's unit) up to which the difference would be significant; 0 where it is not even so for these models.
        trainings: how many a side, summed over folds.
        patients: how many, summed over folds.
        patients_known: False where slides were taken as patients, which makes every interval too narrow if patients have several.
        why: why there is no p-value; "" where there is one.
        folds: what each fold tells, for :func:`planned`.
        p: two-sided.
    """

    difference: float
    low: float
    high: float
    variance: float
    df: float
    rule: str
    fixed: Interval
    split: Split
    tolerated_sd: float
    trainings: tuple[int, int]
    patients: int
    patients_known: bool
    why: str
    folds: tuple[Components, ...] = field(repr=False)
    p: float


def primary(folds: Sequence[Fold]) -> Primary:
    """The Obuchowski-Rockette-Hillis analysis with trainings as readers and patients as cases.

    On each of K folds, with J trainings of method A, L of B and w = (1/J, ..., -1/L, ...):

    - S, (J + L, J + L): covariance of the values by the jackknife over patients, see :func:`jackknife`.
    - fixed = w' S w: variance over patients, for these models.
    - C = off(A) + off(B) - 2 mean(AB) of S, where off is the mean covariance of two trainings: what all trainings share.
    - T = S_A^2/J + S_B^2/L with the variances of the values over trainings: trainings, and trainings x patients.

    The variance of the mean difference is the largest of

    - within = sum of T + max(C, 0), divided by K^2 ("trainings and patients"), where every side has two trainings or more;
    - fixed, summed alike ("patients"), in the same case: more trainings can only add to it;
    - the variance of the K differences divided by K ("folds"), with K - 1 degrees of freedom.

    Sums have Satterthwaite's degrees of freedom, (sum)^2 / sum(term^2 / df): J - 1 and L - 1 for the terms of T (Hillis), the
    patients' own for C. One training a side on one split has no p-value; `tolerated_sd` says what it allows.

    Args:
        folds: one or more, taken as independent.

    Raises:
        MilbenchError: there is no fold.

    Source: Obuchowski and Rockette, Communications in Statistics 1995; Hillis, Statistics in Medicine 2007 (degrees of freedom)
    and 2014 (readers nested in methods); Obuchowski, Biometrics 1997 (slides clustered in patients).
    """
    if not folds:
        raise MilbenchError("nothing to compare: there is no fold")
    parts = tuple(map(components, folds))
    difference = float(np.mean([part.difference for part in parts]))
    nan = math.nan
    trainings = sum(part.trainings[0] for part in parts), sum(part.trainings[1] for part in parts)
    patients, known = sum(part.patient_count for part in parts), all(fold.patient is not None for fold in folds)
    result = Primary(
        difference, nan, nan, nan, nan, "", Interval(nan, nan, nan, nan, nan), Split(nan, nan, nan), nan, trainings, patients,
        known, _incomplete(parts), parts, nan,
    )  # fmt: skip
    if result.why:
        return result
    fixed = _interval(difference, *_fixed(parts))
    estimates = _estimates(parts, _between(parts))
    result = replace(result, fixed=fixed, split=_split(parts))
    if not estimates:
        return replace(result, tolerated_sd=_tolerated_sd(difference, fixed, result.trainings), why=ONE_TRAINING)
    variance, df, rule = max(estimates, key=lambda estimate: estimate[0])
    interval = _interval(difference, variance, df)
    why = NO_SPREAD if math.isnan(interval.p) else ""
    return replace(result, low=interval.low, high=interval.high, variance=variance, df=df, rule=rule, why=why, p=interval.p)


def components(fold: Fold) -> Components:
    """What one fold tells: see :func:`primary` for the symbols."""
    weights, strata, df_patients = leave_one_patient_out(fold.stratum, fold.patient)
    values, left_out = _values([*fold.method, *fold.reference], weights)
    J, L = len(fold.method), len(fold.reference)
    a, b = values[:J], values[J:]
    w = np.concatenate([np.full(J, 1 / J), np.full(L, -1 / L)])
    S = jackknife(left_out, strata)
    C = interaction = math.nan
    squares = (math.nan, math.nan)
    if min(J, L) > 1:
        A, B = S[:J, :J], S[J:, J:]
        off_a, off_b = (float(M.sum() - np.trace(M)) / (len(M) * (len(M) - 1)) for M in (A, B))
        C = off_a + off_b - 2 * float(S[:J, J:].mean())
        interaction = (float(np.trace(A)) / J - off_a) / J + (float(np.trace(B)) / L - off_b) / L
        squares = float(a.var(ddof=1)) / J, float(b.var(ddof=1)) / L
    return Components(
        float(a.mean() - b.mean()), (J, L), squares, max(float(w @ S @ w), 0.0), C, interaction, (J - 1.0, L - 1.0), df_patients,
        not (np.isnan(values).any() or np.isnan(left_out).any()), len(weights),
    )  # fmt: skip


def leave_one_patient_out(stratum: ArrayLike, patient: ArrayLike | None = None) -> tuple[Array, NDArray[np.intp], float]:
    """All slides of a patient leave together.

    Args:
        stratum: (n,) class, or event.
        patient: (n,); None where each slide is a patient.

    Returns:
        weights (g, n) that leave each of g patients out; stratum (g,) of each patient: the classes, where each patient has one
        and each class two patients or more, else one stratum of all; and the degrees of freedom of what g patients of m
        slides each bring: max(1, (sum m)^2 / sum m^2 - strata), g - strata where all have equally many.
    """
    patients = Patients.of(stratum, patient)
    strata = patients.stratum if np.bincount(patients.stratum).min() > 1 else np.zeros_like(patients.stratum)
    weights = (patients.of_slide != np.arange(patients.count)[:, None]).astype(np.float64)
    slides = np.bincount(patients.of_slide).astype(np.float64)
    df = slides.sum() ** 2 / (slides**2).sum() - len(np.unique(strata))
    return weights, strata, max(1.0, float(df))


def jackknife(left_out: Array, strata: NDArray) -> Array:
    """Covariance over patients of r values, by leaving out one patient at a time inside strata.

    sum over strata h of (g_h - 1)/g_h times the sum over its g_h patients p of (x_p - mean_h)(x_p - mean_h)'

    Args:
        left_out: (g, r), the r values without each patient.
        strata: (g,).

    Returns:
        (r, r).
    """
    total = np.zeros((left_out.shape[1],) * 2)
    for value in np.unique(strata):
        x = left_out[strata == value]
        x = x - x.mean(0)
        total += (len(x) - 1) / len(x) * x.T @ x
    return total


def _values(runs: Sequence[Metric], weights: Array) -> tuple[Array, Array]:
    """Each of r runs on all slides (r,), and without each patient (g, r)."""
    counts = np.concatenate([np.ones((1, weights.shape[1])), weights])
    values = np.stack([run(counts) for run in runs], axis=1)  # (1 + g, r)
    return values[0], values[1:]


def _incomplete(parts: Sequence[Components]) -> str:
    """Why the folds allow no interval at all; "" where they do."""
    if any(math.isnan(part.difference) for part in parts):
        return "the metric of a run is undefined"
    if any(part.patient_count == 1 for part in parts):
        return "a fold has one patient: how much patients differ is unknown"
    if not all(part.complete for part in parts):
        return "the metric is undefined when one patient is left out"
    return ""


def satterthwaite(terms: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Sum of independent estimates of variance, each with its degrees of freedom, and the degrees of freedom of that sum."""
    total, low = sum(value for value, _ in terms), sum(value * value / df for value, df in terms)
    return total, total**2 / low if low > 0 else math.inf


def _fixed(parts: Sequence[Components]) -> tuple[float, float]:
    """Variance over patients of the mean difference of these models, and its degrees of freedom."""
    return satterthwaite([(part.fixed / len(parts) ** 2, part.df_patients) for part in parts])


def _within(parts: Sequence[Components]) -> tuple[float, float]:
    """Variance over trainings and patients, and its degrees of freedom."""
    terms = [(max(part.patients, 0.0), part.df_patients) for part in parts]
    terms += [term for part in parts for term in zip(part.mean_squares, part.df_trainings, strict=True)]
    return satterthwaite([(value / len(parts) ** 2, df) for value, df in terms])


def _between(parts: Sequence[Components]) -> float:
    """Variance of the mean of the folds' differences; NaN for one fold."""
    return float(np.var([part.difference for part in parts], ddof=1)) / len(parts) if len(parts) > 1 else math.nan


def _estimates(parts: Sequence[Components], between: float) -> list[tuple[float, float, str]]:
    """Every (variance, degrees of freedom, rule) that the folds allow; none for one training a side on one split."""
    estimates = []
    if min(min(part.trainings) for part in parts) > 1:
        estimates = [(*_within(parts), "trainings and patients"), (*_fixed(parts), "patients")]
    if len(parts) > 1:
        estimates.append((between, len(parts) - 1.0, "folds"))
    return estimates


def _split(parts: Sequence[Components]) -> Split:
    """Patients | trainings | interaction, of which the last two share the mean squares. No part is negative."""
    K = len(parts)
    squares = sum(sum(part.mean_squares) for part in parts) / K**2
    interaction = min(max(sum(part.interaction for part in parts) / K**2, 0.0), squares)
    return Split(sum(max(part.patients, 0.0) for part in parts) / K**2, squares - interaction, interaction)


def _interval(difference: float, variance: float, df: float) -> Interval:
    """Student's interval; where nothing varies p is 1 for no difference, else undefined."""
    se = math.sqrt(max(variance, 0.0))
    if not se >= TINY:
        ends = (0.0, 0.0, 1.0) if abs(difference) < TINY else (math.nan, math.nan, math.nan)
        return Interval(ends[0], ends[1], variance, df, ends[2])
    half = float(stdtrit(df, LEVEL)) * se
    return Interval(difference - half, difference + half, variance, df, float(2 * stdtr(df, -abs(difference) / se)))


def _tolerated_sd(difference: float, fixed: Interval, trainings: tuple[int, int]) -> float:
    """The sd between trainings up to which a difference is significant: where fixed + sd^2 (1/J + 1/L) = (difference / t)^2."""
    if not fixed.p < 1:
        return math.nan if math.isnan(fixed.p) else 0.0
    margin = (abs(difference) / stdtrit(fixed.df, LEVEL)) ** 2 - fixed.variance
    return math.sqrt(max(margin, 0.0) / sum(1 / count for count in trainings))


@dataclass(frozen=True)
class Precision(Rounded):
    """What more trainings or patients would bring.

    Args:
        half_width: of the 95 % interval.
        detectable: the true difference that would be significant with a chance of 80 %.
    """

    half_width: float
    detectable: float


def planned(result: Primary, *, seeds: float = 1.0, patients: float = 1.0) -> Precision:
    """Half-width and detectable difference with other numbers of trainings and patients.

    Each part of the variance shrinks with what it comes from: trainings / seeds, interaction / (seeds patients), patients /
    patients; then the rule of :func:`primary` is applied anew. By how much folds differ beyond that stays, since neither more
    seeds nor more patients explain it. The detectable difference is (t_.975 + t_.80) standard errors, which is within 4 % of
    the noncentral t from 3 degrees of freedom on.

    Args:
        result: a comparison.
        seeds: that many times the trainings.
        patients: that many times the patients in each test fold.

    Returns:
        Both numbers; NaN where a side has one training, since then the parts are not known.

    Raises:
        MilbenchError: a factor is not positive.
    """
    if not min(seeds, patients) > 0:
        raise MilbenchError(f"a plan needs positive multiples of trainings and patients, got {seeds} and {patients}")
    split = result.split
    if math.isnan(split.trainings) or math.isnan(result.p):
        return Precision(math.nan, math.nan)
    squares = split.trainings + split.interaction
    kept = (split.trainings / seeds + split.interaction / (seeds * patients)) / squares if squares > 0 else 1.0
    parts = [_scaled(part, kept, seeds, patients) for part in result.folds]
    excess = max(_between(result.folds) - _within(result.folds)[0], 0.0)  # NaN for one fold
    variance, df, _ = max(_estimates(parts, _within(parts)[0] + excess), key=lambda estimate: estimate[0])
    se = math.sqrt(variance)
    reach = float(stdtrit(df, LEVEL))
    return Precision(reach * se, (reach + float(stdtrit(df, POWER))) * se)


def _scaled(part: Components, kept: float, seeds: float, patients: float) -> Components:
    """A fold with multiples of its trainings and patients, of whose mean squares a share is kept."""
    C, interaction = part.patients / patients, part.interaction / (seeds * patients)
    return replace(
        part,
        mean_squares=(part.mean_squares[0] * kept, part.mean_squares[1] * kept),
        fixed=max(C + interaction, 0.0),
        patients=C,
        interaction=interaction,
        df_trainings=(part.trainings[0] * seeds - 1, part.trainings[1] * seeds - 1),
        df_patients=part.df_patients * patients,
    )


@dataclass(frozen=True)
class Needed(Rounded):
    """How many more trainings of either method, or patients in each test fold, would make a difference detectable.

    0 where there are enough, infinite where no number is, NaN where the parts of the variance are not known.
    """

    trainings: float
    patients: float


def needed(result: Primary, difference: float) -> Needed:
    """The inverse of :func:`planned`: what it takes to show a true difference of this size with a chance of 80 %.

    Args:
        result: a comparison.
        difference: in the metric's unit; its sign does not matter.
    """
    if math.isnan(planned(result).detectable):
        return Needed(math.nan, math.nan)
    trainings = min(min(part.trainings) for part in result.folds)
    patients = min(part.patient_count for part in result.folds)
    return Needed(
        _more(lambda count: planned(result, seeds=count / trainings).detectable <= abs(difference), trainings),
        _more(lambda count: planned(result, patients=count / patients).detectable <= abs(difference), patients),
    )


def _more(enough: Callable[[int], bool], start: int) -> float:
    """How many more than `start` are enough, by halving what is left of 10,000 times as many."""
    if enough(start):
        return 0.0
    few, many = start, start * MOST
    if not enough(many):
        return math.inf
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if enough(middle) else (middle, many)
    return float(many - start)
