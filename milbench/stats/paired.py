"""Is the difference real? Two methods, the same cases, the same resamples."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Metric = Callable[[Array], Array]  # counts (B, n) -> (B,): a metric with a fold's truth and predictions filled in


@dataclass(frozen=True)
class Comparison:
    """A method against the reference. Effect first, p-value last.

    Args:
        difference: mean over folds and seeds of metric(method) - metric(reference).
        low, high: 95 % percentile interval of the bootstrap.
        wins, ties, losses: over runs (folds x seeds).
        p: two-sided, from the same bootstrap; never below 2 / (replicates + 1).
        runs: how many runs were paired.
    """

    difference: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int
    p: float
    runs: int


def _counts(strata: Array, replicates: int, rng: np.random.Generator) -> Array:
    """How often each case is drawn, with replacement, inside its own stratum. Returns (replicates, n)."""
    counts = np.empty((replicates, len(strata)))
    for value in np.unique(strata):
        members = np.flatnonzero(strata == value)
        counts[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=replicates)
    return counts


def paired_bootstrap(
    folds: Sequence[tuple[ArrayLike, Sequence[tuple[Metric, Metric]]]], *, replicates: int = 10_000, seed: str = ""
) -> Comparison:
    """Class-stratified bootstrap over cases, the same resample for both methods.

    Folds are nested: cases are drawn inside each fold. Seeds are crossed with cases: one draw serves all seeds of a fold.
    The interval says what other test cases would have shown; it does not cover what another training set would.

    Args:
        folds: for each fold its strata (n,) (class, or event for survival) and, for each seed, the metric of the
            method and of the reference as functions of case counts (B, n) -> (B,).
        replicates: number of resamples B.
        seed: text that fixes the resamples.

    Returns:
        The comparison; NaN interval and p-value when the metric is undefined in some run.
    """
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8]))
    observed: list[float] = []
    replicate = np.zeros(replicates)
    runs = sum(len(seeds) for _, seeds in folds)
    for strata, seeds in folds:
        strata = np.asarray(strata)
        counts = _counts(strata, replicates, rng)
        for method, reference in seeds:
            one = np.ones((1, len(strata)))
            observed.append(float(method(one)[0] - reference(one)[0]))
            replicate += (method(counts) - reference(counts)) / runs
    difference = float(np.mean(observed))
    sign = np.sign(np.round(observed, 12))
    if np.isnan(replicate).any():
        low = high = p = float("nan")
    else:
        low, high = (float(q) for q in np.quantile(replicate, [0.025, 0.975]))
        tail = min(int((replicate <= 0).sum()), int((replicate >= 0).sum()))
        p = min(1.0, 2 * (1 + tail) / (replicates + 1))
    return Comparison(difference, low, high, int((sign > 0).sum()), int((sign == 0).sum()), int((sign < 0).sum()), p, runs)


def holm(p_values: ArrayLike) -> Array:
    """Holm's step-down correction (1979): controls the chance of any false claim in the family.

    Args:
        p_values: (m,); NaN stays NaN and does not count.

    Returns:
        (m,) corrected p-values in the same order.
    """
    p = np.asarray(p_values, dtype=np.float64)
    corrected = np.full_like(p, np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(factors * p[order]))
    return corrected
