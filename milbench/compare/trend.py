"""How well a method does on small and on large bags: the outcome of every test case against the logarithm of its instances."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from milbench import stats
from milbench.reading import Run
from milbench.stats.metrics import concordance_by_case

Array = NDArray[np.float64]
RESAMPLES = 1000
FEWEST = 8  # cases below which no trend is fitted
BINS = 5  # groups of equally many cases along the size of the bag


class Point(NamedTuple):
    """Of a trend: at n instances, the mean and the ends of its error bar or band."""

    n: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Trend(stats.Rounded):
    """Outcome against log2 of the instances.

    Args:
        slope, low, high: change per doubling, with its 95 % interval.
        bins: groups of cases of like size, with the standard error of their mean.
        line: the fit, with its 95 % band.
        cases, patients: how many.
    """

    slope: float
    low: float
    high: float
    bins: list[Point]
    line: list[Point]
    cases: int
    patients: int


def trend(runs: Sequence[Run], seed: str) -> Trend | None:
    """The trend of one method's runs; None for too few cases, or cases of one size.

    A case counts with its share of correct predictions over the runs, or of pairs in the right order in survival. Intervals and
    bars are over patients, whose slides stay together.

    Args:
        runs: finished trials, whose predictions hold the instances of each case.
        seed: text that fixes the resamples.
    """
    x, y, patients = _by_case(runs)
    if len(x) < FEWEST or np.ptp(x) == 0:
        return None
    at = np.linspace(x.min(), x.max(), 21)
    slope, line = _lines(x, y, np.ones((1, len(x))), at)
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8]))
    g = patients.count
    drawn = rng.multinomial(g, np.full(g, 1 / g), size=RESAMPLES).astype(float)
    slopes, lines = _lines(x, y, patients.to_slides(drawn), at)
    low, high = np.nanquantile(slopes, [0.025, 0.975])
    bands = np.nanquantile(lines, [0.025, 0.975], axis=0)  # (2, points)
    bins = []
    for part in np.array_split(x.argsort(kind="stable"), min(BINS, len(x) // 4)):
        mean, error = y[part].mean(), _standard_error(y[part], patients.of_slide[part])
        bins.append(_point(2 ** x[part].mean(), mean, mean - error, mean + error))
    points = [_point(2**a, *values) for a, *values in zip(at, line[0], *bands, strict=True)]
    return Trend(float(slope[0]), float(low), float(high), bins, points, len(x), g)


def _by_case(runs: Sequence[Run]) -> tuple[Array, Array, stats.Patients]:
    """log2 of the instances, mean outcome over the runs (cases,), and patients of the cases that have an outcome."""
    outcomes, sizes, patients = defaultdict(list), {}, {}
    for run in runs:
        p = run.predictions
        right = concordance_by_case(p["time"], p["event"], p["risk"]) if "risk" in p else _right(p["score"], p["target"])
        for slide, case, n, value in zip(p["slide"], p.get("case", p["slide"]), p["instances"], right, strict=True):
            if not np.isnan(value):
                outcomes[slide].append(float(value))
                sizes[slide], patients[slide] = float(n), case or slide
    y = np.array([np.mean(values) for values in outcomes.values()])
    return np.log2([sizes[slide] for slide in outcomes]), y, stats.Patients.of(np.zeros(len(y)), list(patients.values()))


def _standard_error(y: Array, patient: NDArray[np.intp]) -> float:
    """Of the mean of y (n,), by the sums over patients: that of independent cases if each is of another. NaN of one patient."""
    away = np.bincount(np.unique(patient, return_inverse=True)[1], y - y.mean())
    g = len(away)
    return math.sqrt(g / (g - 1) * (away**2).sum()) / len(y) if g > 1 else math.nan


def _right(score: Array, target: NDArray[np.int64]) -> Array:
    """Whether each case is predicted right (n,); NaN where its scores are missing."""
    return np.where(np.isnan(score).any(1), np.nan, score.argmax(1) == target)


def _lines(x: Array, y: Array, counts: Array, at: Array) -> tuple[Array, Array]:
    """Least-squares slopes (B,), and the lines' values (B, points), with each case counted counts (B, n) times."""
    total = counts.sum(1)
    mean_x, mean_y = counts @ x / total, counts @ y / total
    away = x - mean_x[:, None]  # (B, n)
    with np.errstate(invalid="ignore"):
        slope = (counts * away * (y - mean_y[:, None])).sum(1) / (counts * away**2).sum(1)
    return slope, mean_y[:, None] + slope[:, None] * (at - mean_x[:, None])


def _point(n: float, *values: float) -> Point:
    return Point(stats.rounded(n), *(stats.rounded(value, step=stats.STEP) for value in values))
