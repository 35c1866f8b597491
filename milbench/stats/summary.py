"""What printed numbers alone allow: a comparison from means and standard deviations, and the power of a comparison."""

import math
from dataclasses import dataclass

import scipy

from milbench.errors import MilbenchError
from milbench.stats.rounding import Rounded, rounded


@dataclass(frozen=True)
class Welch(Rounded):
    """Welch's t-test; the effect first, the p-value last. The interval is the 95 % one."""

    difference: float
    low: float
    high: float
    p: float


def welch_error(sd1: float, n1: int, sd2: float, n2: int) -> tuple[float, float]:
    """Standard error of the difference of two means, and its degrees of freedom after Welch and Satterthwaite.

    Raises:
        MilbenchError: a group has fewer than two runs, or a negative standard deviation.

    >>> welch_error(3.0, 9, 4.0, 16)[0]
    1.4142135623730951
    """
    if min(n1, n2) < 2 or min(sd1, sd2) < 0:
        raise MilbenchError(
            f"Welch's test needs two runs or more and sd >= 0 on each side, got n = {n1}, {n2}; sd = {sd1}, {sd2}"
        )
    v1, v2 = sd1**2 / n1, sd2**2 / n2
    if v1 + v2 == 0:
        return 0.0, math.nan
    return math.sqrt(v1 + v2), (v1 + v2) ** 2 / (v1**2 / (n1 - 1) + v2**2 / (n2 - 1))


def welch_from_summary(mean1: float, sd1: float, n1: int, mean2: float, sd2: float, n2: int) -> Welch:
    """Welch's unpaired t-test of two printed means: all that a table without its runs allows.

    It takes the runs of both methods as independent. Runs on the same folds or cases are not: pairing would mostly find more,
    so a p-value above 0.05 here says that the table does not show a difference, not that there is none.

    Args:
        mean1, sd1, n1: the method's mean, sample standard deviation (ddof = 1) and number of runs.
        mean2, sd2, n2: the other's.

    Returns:
        mean1 - mean2 with its 95 % interval and two-sided p; interval and p are NaN where both deviations are 0.

    Raises:
        MilbenchError: a group has fewer than two runs, or a negative standard deviation.
    """
    difference = mean1 - mean2
    se, df = welch_error(sd1, n1, sd2, n2)
    if se == 0:
        return Welch(difference, math.nan, math.nan, math.nan)
    half = float(scipy.stats.t.ppf(0.975, df)) * se
    return Welch(difference, difference - half, difference + half, float(2 * scipy.stats.t.sf(abs(difference) / se, df)))


def power(difference: float, se: float, alpha: float = 0.05, df: float | None = None) -> float:
    """Chance that a two-sided test finds a true difference of this size.

    Without `df` the estimate is taken as normal around the true difference with standard deviation `se`: right for a bootstrap
    over cases, whose standard error it takes ((high - low) / 3.92 where only the interval is known). With `df` the test is
    Student's and the power comes from the noncentral t: right for a handful of runs, where the normal promises too much.

    Args:
        difference: the true difference to be found, for example a published one.
        se: standard error of the estimated difference.
        alpha: level of the test.
        df: degrees of freedom of a t-test.

    Returns:
        Between alpha (no difference) and 1; NaN where `se` is not a positive number.
    """
    if not se > 0:
        return math.nan
    shift = abs(difference) / se
    if df is None:
        limit = scipy.stats.norm.isf(alpha / 2)
        return rounded(scipy.stats.norm.sf(limit - shift) + scipy.stats.norm.cdf(-limit - shift))
    limit = scipy.stats.t.isf(alpha / 2, df)
    return rounded(scipy.stats.nct.sf(limit, df, shift) + scipy.stats.nct.cdf(-limit, df, shift))
