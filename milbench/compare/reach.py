"""Does what was measured here reach what a paper prints?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.special import stdtrit

from milbench import stats
from milbench.compare.pairing import Pairing, finished
from milbench.metrics import Metric
from milbench.papers import Printed
from milbench.reading import Run


@dataclass(frozen=True)
class Reach(stats.Rounded):
    """A measured mean beside a printed one.

    Args:
        mean, low, high: measured, over folds and repetitions, with the 95 % interval of the primary test against a constant: for
            other patients and other trainings.
        difference, difference_low, difference_high: from the printed mean, with the 95 % interval of the difference.
        verdict: "within" where that interval holds 0.
    """

    mean: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float
    verdict: Literal["within", "outside", "undefined"]


def reach(runs: Sequence[Run], metric: Metric, number: Printed) -> Reach:
    """Compare the finished runs of a method in a column with the number printed for them.

    The variance of the difference is ours plus the square of what is printed behind the ±, which is read as a standard error;
    where nothing is printed there, or ours is not known, the verdict is undefined. Degrees of freedom are Satterthwaite's, the
    printed ones taken as many.
    """
    mean = stats.primary([fold.against(metric, 0.0) for fold in Pairing.of([finished(runs)]).folds])
    difference, ends = mean.difference - number.mean, (math.nan, math.nan)
    if mean.variance > 0:
        variance = mean.variance + number.sd**2
        half = float(stdtrit(mean.df * (variance / mean.variance) ** 2, 0.975)) * math.sqrt(variance)
        ends = difference - half, difference + half
    return Reach(mean.difference, mean.low, mean.high, difference, *ends, _verdict(*ends))


def _verdict(low: float, high: float) -> Literal["within", "outside", "undefined"]:
    """Whether the interval of the difference holds 0, as it is printed."""
    if math.isnan(low):
        return "undefined"
    return "within" if stats.rounded(low, step=stats.STEP) <= 0 <= stats.rounded(high, step=stats.STEP) else "outside"
