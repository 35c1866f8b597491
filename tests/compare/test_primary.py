"""The primary test of two sides on stored runs: which trainings count, what is computed once, and what a reader must know."""

import math

import numpy as np
import pytest

from milbench import MilbenchError, reading, stats
from milbench.compare.pairing import Shared
from milbench.compare.primary import contrast, trainings
from milbench.metrics import METRICS, Metric
from tests.builders.results import made_up_suite

AUC = METRICS["macro_auc"]

pytestmark = pytest.mark.usefixtures("unflushed")


@pytest.fixture
def of(tmp_path):
    """The runs of each of three methods on two folds and two seeds; a training of each of two has no result."""
    skip = {("abmil", 0, 1): "failed", ("mean", 1, 0): "pending"}
    store, plan = made_up_suite(tmp_path, {"abmil": 1.0, "mean": 2.0, "max": 1.5}, folds=2, seeds=2, skip=skip)
    runs = reading.read(store, plan)
    return lambda method: [run for run in runs if run.cell.aggregator == method]


def places(side):
    return {
        fold: [[(run.cell.aggregator, run.cell.seed) for run in training] for training in of_fold]
        for fold, of_fold in side.items()
    }


def test_every_finished_training_counts(of):
    assert places(trainings(of("abmil"))) == {0: [[("abmil", 0)]], 1: [[("abmil", 0)], [("abmil", 1)]]}
    found = contrast(trainings(of("mean")), trainings(of("abmil")), AUC)
    assert found.folds == (0, 1) and found.test.trainings == (3, 3)
    assert sum(found.tally) == 2 * 1 + 1 * 2


def test_a_sum_is_one_training_of_each_seed_that_all_members_have(of):
    both = trainings(of("abmil"), of("mean"))
    assert places(both) == {0: [[("abmil", 0), ("mean", 0)]], 1: [[("abmil", 1), ("mean", 1)]]}
    found = contrast(both, trainings(of("max")), AUC)
    value = {
        (run.cell.aggregator, run.cell.fold, run.cell.seed): run
        for name in ("abmil", "mean", "max")
        for run in of(name)
        if run.status == "ok"
    }
    expected = []
    for fold, seed in ((0, 0), (1, 1)):
        sums = sum(value[name, fold, seed].metric("macro_auc") for name in ("abmil", "mean"))
        expected.append(sums - np.mean([value["max", fold, s].metric("macro_auc") for s in (0, 1)]))
    assert found.test.difference == pytest.approx(np.mean(expected))
    folds = []
    for fold, seed in ((0, 0), (1, 1)):
        predictions = value["max", fold, 0].predictions
        a, b = (AUC.of(value[name, fold, seed].predictions) for name in ("abmil", "mean"))
        others = [AUC.of(value["max", fold, s].predictions) for s in (0, 1)]
        folds.append(stats.Fold([lambda w, a=a, b=b: a(w) + b(w)], others, predictions["target"]))
    assert found.test == stats.primary(folds), "the slides of both members leave together"


def test_sides_without_a_common_fold_are_not_compared(of):
    a, b = trainings(of("mean")), trainings(of("abmil"))
    assert contrast({0: a[0]}, {1: b[1]}, AUC) is None
    assert contrast(a, {}, AUC) is None


def test_a_run_is_computed_once_for_all_its_comparisons(of):
    computed = []

    class Counted(Metric):
        def __call__(self, predictions, counts=None):
            computed.append(np.shape(counts))
            return super().__call__(predictions, counts)

    metric, shared = Counted("macro_auc", "AUC"), Shared()
    base = trainings(of("abmil"))
    for method in ("mean", "max"):
        contrast(trainings(of(method)), base, metric, shared)
    runs = 3 + 3 + 4
    assert sorted(computed) == sorted([(1, 30), (31, 30)] * runs), "on all slides, and without each of 30"


def test_numbers_of_a_row(of):
    found = contrast(trainings(of("mean")), trainings(of("max")), METRICS["macro_f1"])
    row = found.as_row()
    assert (row["difference"], row["p"], row["why"]) == (found.test.difference, found.test.p, found.test.why)
    assert math.isnan(row["p_holm"]) and row["patients_known"] is False
    assert row["mean_a"] - row["mean_b"] == pytest.approx(row["difference"])
    assert sum(found.shares.values()) == pytest.approx(1) or not found.shares


def test_runs_that_test_other_slides_meet_nowhere(of):
    run = trainings(of("max"))[0][1][0]
    run.__dict__["predictions"] = {**run.predictions, "slide": run.predictions["slide"][::-1]}
    with pytest.raises(MilbenchError, match="test other slides"):
        contrast({0: [(run,)]}, trainings(of("mean")), AUC)
