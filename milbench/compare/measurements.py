"""Costs, ranks and sparsity of methods against each other, from what was profiled and analyzed."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import scipy

from milbench import stats
from milbench.compare.evidence import Estimate
from milbench.reading.measurements import bands, bounds, costs, matrices

FITTED = 4  # largest sizes that an exponent is fitted over
PROFILE, RANK = "run milbench profile aggregators", "run milbench analyze rank --trial on trained models"


def ratio(folder: Path, quantity: str, upper: str, lower: str, n: float) -> float | str:
    """How many times `upper` costs what `lower` does at n patches, or why that is not known.

    Between measured sizes both are interpolated on logarithmic axes; nothing is extrapolated.
    """
    logs = []
    for name in (upper, lower):
        curve = costs(folder, quantity, name)
        if not curve:
            return f"{quantity} of {name} is not measured; {PROFILE}"
        if not min(curve) <= n <= max(curve):
            return f"{quantity} of {name} is measured from {min(curve):,} to {max(curve):,} patches, not at {n:,.0f}"
        logs.append(np.interp(math.log(n), np.log(list(curve)), np.log(list(curve.values()))))
    return float(np.exp(logs[0] - logs[1]))


def exponent(folder: Path, quantity: str, aggregator: str) -> Estimate | str:
    """Slope of log quantity over log n at the largest sizes (1 is linear, 2 quadratic), with its 95 % interval from the fit."""
    curve = costs(folder, quantity, aggregator)
    if len(curve) < 3:
        return f"{quantity} of {aggregator} is measured at {len(curve)} sizes, an exponent needs 3; {PROFILE}"
    n, values = (np.log(list(numbers)[-FITTED:]) for numbers in (curve, curve.values()))
    fit = scipy.stats.linregress(n, values)
    df = len(n) - 2
    half = float(scipy.stats.t.ppf(0.975, df)) * fit.stderr
    sizes = f"{len(n)} sizes to {max(curve):,}"
    return Estimate(fit.slope, fit.slope - half, fit.slope + half, fit.pvalue, fit.stderr, df, sizes)


def mixing(folder: Path, quantity: str, upper: tuple[str, str], lower: tuple[str, str]) -> Estimate | str:
    """Mean difference over slides of a quantity of token-mixing matrices, by a paired t-test.

    Of a slide all heads and models are averaged. Ranks are taken per token; where a rank is known within bounds, those that are
    worse for the claim.

    Args:
        folder: results/analysis.
        quantity: "rank", "effective_rank" or "sparsity".
        upper, lower: method and layer ("first" or "last") that the claim sees above and below.
    """
    sides = []
    for (name, layer), end in ((upper, 0), (lower, 1)):
        slides: dict[str, list[float]] = {}
        for row in matrices(folder, name, layer):
            share = 1.0 if quantity == "sparsity" else float(row["n"])
            slides.setdefault(row["slide"], []).append(bounds(row, quantity)[end] / share)
        if not slides:
            return f"no matrices of a trained {name}; {RANK}"
        sides.append({slide: float(np.mean(values)) for slide, values in slides.items()})
    common = sorted(sides[0].keys() & sides[1].keys())
    if not common:
        return f"{upper[0]} and {lower[0]} were not shown the same slide; {RANK}"
    differences = np.array([sides[0][slide] - sides[1][slide] for slide in common])
    n, mean = f"{len(common)} slide{'s' * (len(common) > 1)}", float(differences.mean())
    se = float(differences.std(ddof=1)) / math.sqrt(len(common)) if len(common) > 1 else math.nan
    if not se > stats.TINY:
        return Estimate.without_interval(math.nan, n, mean)
    df = len(common) - 1
    half = float(scipy.stats.t.ppf(0.975, df)) * se
    return Estimate(mean, mean - half, mean + half, float(2 * scipy.stats.t.sf(abs(mean) / se, df)), se, df, n)


def rank_at_most_width(folder: Path, aggregator: str) -> tuple[int, int, int] | str:
    """Matrices of a trained method: how many have a rank of at most the width of queries and keys, how many more, of how many."""
    rows = matrices(folder, aggregator)
    if not rows:
        return f"no matrices of a trained {aggregator}; {RANK}"
    return _count(((*bounds(row, "rank"), float(row["d"])) for row in rows), lambda low, high, d: (high <= d, low > d))


def bands_reach_bound(folder: Path) -> tuple[int, int, int] | str:
    """1-D bands of n tokens and half-width b: how many have a rank of at least n - b, how many less, of how many."""
    rows = bands(folder)
    if not rows:
        return f"no bands; {RANK}"
    least = ((*bounds(row, "rank"), float(row["n"]) - float(row["b"])) for row in rows)
    return _count(least, lambda low, high, bound: (low >= bound, high < bound))


def _count(
    ranks: Iterable[tuple[float, float, float]], test: Callable[[float, float, float], tuple[bool, bool]]
) -> tuple[int, int, int]:
    """How many hold, how many fail and how many there are; a rank known within bounds may do neither."""
    results = [test(low, high, bound) for low, high, bound in ranks]
    return sum(holds for holds, _ in results), sum(fails for _, fails in results), len(results)
