"""Does what was measured here reach what a paper prints?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from milbench import stats
from milbench.compare.pairing import Pairing, finished, resamples
from milbench.metrics import Column, Metric
from milbench.papers import Printed
from milbench.reading import Run

COVER = 1.96  # standard errors either side of a printed mean


@dataclass(frozen=True)
class Reach:
    """A measured mean beside a printed one.

    Args:
        mean, low, high: measured, over folds and repetitions, with its 95 % bootstrap interval over cases.
        verdict: "within" where that interval overlaps the printed mean ± 1.96 standard errors.
    """

    mean: float
    low: float
    high: float
    verdict: Literal["within", "outside", "undefined"]


def reach(runs: Sequence[Run], column: Column, metric: Metric, number: Printed) -> Reach:
    """Compare the finished runs of a method in a column with the number printed for them."""
    interval = Pairing.of([finished(runs)]).bootstrap(metric, seed=resamples(column, metric))
    return Reach(interval.difference, interval.low, interval.high, _verdict(interval.low, interval.high, number))


def _verdict(low: float, high: float, number: Printed) -> Literal["within", "outside", "undefined"]:
    """Whether our interval and that of the printed mean overlap; undefined where either is not known."""
    ends = (low, high, number.mean - COVER * number.sd, number.mean + COVER * number.sd)
    if np.isnan(ends).any():
        return "undefined"
    low, high, least, most = (stats.rounded(end, step=stats.STEP) for end in ends)
    return "within" if low <= most and high >= least else "outside"
