"""Measured beside printed: the interval of the difference, not two intervals that touch."""

import math

import pytest

from milbench import reading, stats
from milbench.compare.pairing import Pairing, finished
from milbench.compare.reach import reach
from milbench.metrics import METRICS, Column
from milbench.papers import Printed
from tests.builders.results import made_up_suite


@pytest.fixture
def runs(tmp_path, unflushed):
    store, plan = made_up_suite(tmp_path, {"abmil": 1.5}, folds=5, seeds=1, n=18)
    return reading.read(store, plan)


def printed(mean, se):
    fields = dict.fromkeys(Printed.__dataclass_fields__, "")
    column = Column("toy", "none", None, None)
    return Printed(**{**fields, "aggregator": "abmil", "metric": "macro_auc", "mean": mean, "sd": se, "column": column})


def test_the_interval_is_that_of_the_difference(runs):
    metric = METRICS["macro_auc"]
    ours = stats.primary([fold.against(metric, 0.0) for fold in Pairing.of([finished(runs)]).folds])
    half = ours.high - ours.difference
    exact = reach(runs, metric, printed(ours.difference + 0.99 * half, 0.0))
    assert (exact.verdict, exact.difference_high - exact.difference) == ("within", pytest.approx(half))
    assert reach(runs, metric, printed(ours.difference + 1.01 * half, 0.0)).verdict == "outside"
    # Two intervals that just touch do differ: their half-widths add up, those of the difference by squares.
    touching = printed(ours.difference + 1.8 * half, half / 1.96)
    assert touching.mean - 1.96 * touching.sd < ours.high
    assert reach(runs, metric, touching).verdict == "outside"
    assert (exact.mean, exact.low, exact.high) == (ours.difference, ours.low, ours.high)


def test_without_a_spread_there_is_no_verdict(runs):
    metric = METRICS["macro_auc"]
    assert reach(runs, metric, printed(0.5, math.nan)).verdict == "undefined"
    once = [run for run in runs if run.cell.fold == 0]
    assert reach(once, metric, printed(0.5, 0.01)).verdict == "undefined", "one training on one split"
