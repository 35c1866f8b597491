"""What `milbench profile aggregators` and `milbench analyze rank` left in results/analysis, as far as claims rest on it.

Read: `efficiency.csv` (aggregator, n, train_seconds, peak_bytes), `rank*.csv` (aggregator, trial, slide, layer, head, when, n,
d, sparsity, and rank and effective_rank with their bounds `_low` and `_high`) and `bands*.csv` (n, b, rank). Other columns do not
matter; a file that is not there is something that was not run.
"""

import csv
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import stats as scipy

from milbench import stats
from milbench.errors import MilbenchError
from milbench.files import csv_text, unusable
from milbench.plots.figure import own_file
from milbench.report.evidence import Estimate
from milbench.spelling import canonical

FITTED = 4  # largest sizes that an exponent is fitted over
PROFILE, RANK = "run milbench profile aggregators", "run milbench analyze rank --trial on trained models"


def _rows(folder: Path, pattern: str, needed: tuple[str, ...]) -> list[dict[str, str]]:
    rows = []
    again = "make it again, or move it away"
    for path in sorted(folder.glob(pattern)):
        try:
            with own_file(path).open(newline="") as file:
                reader = csv.DictReader(file, restval="")
                some = [{name: csv_text(cell) for name, cell in row.items() if name} for row in reader]
        except OSError as error:
            raise unusable(path, error) from error
        except (ValueError, csv.Error) as error:
            raise MilbenchError(f"{path}: cannot be read ({error!s:.80}); {again}") from error
        if missing := [name for name in needed if name not in (reader.fieldnames or ())]:
            found = ", ".join(reader.fieldnames or ()) or "nothing"
            raise MilbenchError(f"{path}: no column {', '.join(missing)}; it has {found:.200}; {again}")
        for row in some:
            _numbers(row, path, again)
        rows += some
    return rows


_COUNTED = ("n", "d", "b")
_MEASURED = ("train_seconds", "peak_bytes", "sparsity", "rank", "effective_rank")
_NUMBERS = (*_COUNTED, *(f"{name}{end}" for name in _MEASURED for end in ("", "_low", "_high")))


def _numbers(row: dict[str, str], path: Path, again: str) -> None:
    """Refuse a row whose numbers are none."""
    for name in _NUMBERS:
        value = row.get(name, "")
        try:
            wrong = value and not math.isfinite(int(value) if name in _COUNTED else float(value))
        except (ValueError, OverflowError):
            wrong = True
        if wrong:
            raise MilbenchError(f"{path}: {name} cannot be {value!r:.40}; {again}")


def _curve(folder: Path, quantity: str, aggregator: str) -> dict[int, float]:
    """n -> quantity of a method, ascending."""
    rows, wanted = _rows(folder, "efficiency.csv", ("aggregator", "n", quantity)), canonical(aggregator)
    own = [row for row in rows if canonical(row["aggregator"]) == wanted and row[quantity]]
    found = {int(row["n"]): float(row[quantity]) for row in own}
    return {n: found[n] for n in sorted(found) if found[n] > 0}


def ratio(folder: Path, quantity: str, upper: str, lower: str, n: float) -> float | str:
    """How many times `upper` costs what `lower` does at n patches, or why that is not known.

    Between measured sizes both are interpolated on logarithmic axes; nothing is extrapolated.
    """
    costs = []
    for name in (upper, lower):
        curve = _curve(folder, quantity, name)
        if not curve:
            return f"{quantity} of {name} is not measured; {PROFILE}"
        if not min(curve) <= n <= max(curve):
            return f"{quantity} of {name} is measured from {min(curve):,} to {max(curve):,} patches, not at {n:,.0f}"
        costs.append(np.interp(math.log(n), np.log(list(curve)), np.log(list(curve.values()))))
    return float(np.exp(costs[0] - costs[1]))


def exponent(folder: Path, quantity: str, aggregator: str) -> Estimate | str:
    """Slope of log quantity over log n at the largest sizes (1 is linear, 2 quadratic), with its 95 % interval from the fit."""
    curve = _curve(folder, quantity, aggregator)
    if len(curve) < 3:
        return f"{quantity} of {aggregator} is measured at {len(curve)} sizes, an exponent needs 3; {PROFILE}"
    n, values = (np.log(list(some)[-FITTED:]) for some in (curve, curve.values()))
    fit = scipy.linregress(n, values)
    df = len(n) - 2
    half = float(scipy.t.ppf(0.975, df)) * fit.stderr
    sizes = f"{len(n)} sizes to {max(curve):,}"
    return Estimate(fit.slope, fit.slope - half, fit.slope + half, fit.pvalue, fit.stderr, df, sizes)


_ON_MATRICES = ("aggregator", "trial", "slide", "layer", "head", "when", "n", "d", "sparsity", "rank", "effective_rank")


def _matrices(folder: Path, aggregator: str, layer: str) -> list[dict[str, str]]:
    """Rows about the first or last layer of the trained models of a method, each matrix once."""
    rows = _rows(folder, "rank*.csv", _ON_MATRICES)
    own = [row for row in rows if row["aggregator"].split("[")[0] == aggregator and row["when"] == "trained"]
    layers = list(dict.fromkeys(row["layer"] for row in own))
    wanted = layers[:1] if layer == "first" else layers[-1:] if layer == "last" else layers
    keys = ("aggregator", "trial", "slide", "layer", "head")
    return list({tuple(row[key] for key in keys): row for row in own if row["layer"] in wanted}.values())


def _bounds(row: dict[str, str], quantity: str) -> tuple[float, float]:
    """The least and the most that the quantity can be."""
    return float(row.get(f"{quantity}_low") or row[quantity]), float(row.get(f"{quantity}_high") or row[quantity])


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
        for row in _matrices(folder, name, layer):
            share = 1.0 if quantity == "sparsity" else float(row["n"])
            slides.setdefault(row["slide"], []).append(_bounds(row, quantity)[end] / share)
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
        return Estimate(mean, math.nan, math.nan, math.nan, math.nan, None, n)
    df = len(common) - 1
    half = float(scipy.t.ppf(0.975, df)) * se
    return Estimate(mean, mean - half, mean + half, float(2 * scipy.t.sf(abs(mean) / se, df)), se, df, n)


def rank_at_most_width(folder: Path, aggregator: str) -> tuple[int, int, int] | str:
    """Matrices of a trained method: how many have a rank of at most the width of queries and keys, how many more, of how many."""
    rows = _matrices(folder, aggregator, "")
    if not rows:
        return f"no matrices of a trained {aggregator}; {RANK}"
    return _count([(_bounds(row, "rank"), float(row["d"])) for row in rows], lambda low, high, d: (high <= d, low > d))


def bands_reach_bound(folder: Path) -> tuple[int, int, int] | str:
    """1-D bands of n tokens and half-width b: how many have a rank of at least n - b, how many less, of how many."""
    rows = _rows(folder, "bands*.csv", ("n", "b", "rank"))
    if not rows:
        return f"no bands; {RANK}"
    some = [(_bounds(row, "rank"), float(row["n"]) - float(row["b"])) for row in rows]
    return _count(some, lambda low, high, bound: (low >= bound, high < bound))


def _count(
    rows: list[tuple[tuple[float, float], float]], test: Callable[[float, float, float], tuple[bool, bool]]
) -> tuple[int, int, int]:
    told = [test(low, high, bound) for (low, high), bound in rows]
    return sum(holds for holds, _ in told), sum(fails for _, fails in told), len(told)
