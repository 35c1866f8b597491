"""Where runs meet: which are paired, on which cases, and that every comparison takes the same resamples."""

import numpy as np
import pytest

from milbench import MilbenchError, reading, stats
from milbench.compare import Pairing, finished, pairing, with_reference
from milbench.compare.pairing import Shared, filled, resamples
from milbench.metrics import METRICS, SELECTS, Column, Metric
from milbench.tasks import Subtyping, Survival
from tests.builders.results import made_up_suite


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch, unflushed):
    monkeypatch.setattr(pairing, "REPLICATES", 200)


@pytest.fixture
def runs(tmp_path):
    """Two methods on two folds and two seeds; one run of each has no result."""
    store, plan = made_up_suite(
        tmp_path, {"abmil": 1.0, "mean": 2.0}, folds=2, seeds=2, skip={("abmil", 0, 1): "failed", ("mean", 1, 0): "pending"}
    )
    return reading.read(store, plan)


def of(runs, method):
    return finished([run for run in runs if run.cell.aggregator == method])


def test_runs_of_one_fold_and_seed_meet(runs):
    sides = Pairing.of([of(runs, "mean")], [of(runs, "abmil")])
    met = [(pair.method[0].cell, pair.reference[0].cell) for pair in sides.pairs]
    assert [(mine.fold, mine.seed, mine.aggregator) for mine, _ in met] == [(0, 0, "mean"), (1, 1, "mean")]
    assert [(other.fold, other.seed, other.aggregator) for _, other in met] == [(0, 0, "abmil"), (1, 1, "abmil")]
    assert Pairing.of([of(runs, "mean")], [{}]).folds == ()


def test_a_fold_knows_its_cases_strata_and_patients(runs):
    (fold, _) = Pairing.of([of(runs, "mean")], [of(runs, "abmil")]).folds
    predictions = fold.pairs[0].method[0].predictions
    np.testing.assert_array_equal(fold.cases, predictions["slide"])
    np.testing.assert_array_equal(fold.strata, predictions["target"])
    assert fold.patients is None, "each slide carries its own name"
    assert fold.scores().method.shape == (1, *predictions["score"].shape)


def test_sides_that_test_other_cases_are_refused(runs):
    fold, _ = Pairing.of([of(runs, "mean")], [of(runs, "abmil")]).folds
    run = fold.pairs[0].reference[0]
    run.__dict__["predictions"] = {**run.predictions, "slide": run.predictions["slide"][::-1]}
    with pytest.raises(MilbenchError, match=f"and {run.cell.trial_id} test other slides, they cannot be paired"):
        Pairing((fold,)).bootstrap(METRICS["macro_auc"], seed="")


def test_the_bootstrap_is_that_of_the_statistics(runs):
    metric, sides = METRICS["macro_f1"], Pairing.of([of(runs, "mean")], [of(runs, "abmil")])
    folds = [
        (fold.strata, [tuple(filled(side[0], metric) for side in (pair.method, pair.reference)) for pair in fold.pairs])
        for fold in sides.folds
    ]
    expected = stats.paired_bootstrap(folds, replicates=200, seed="x")
    shared = Shared()
    assert sides.bootstrap(metric, seed="x") == sides.bootstrap(metric, seed="x", method=shared, reference=shared) == expected


def test_sums_and_a_constant_in_place_of_a_reference(runs):
    metric = METRICS["macro_auc"]
    values = {run.cell.aggregator: run for run in runs if (run.cell.fold, run.cell.seed) == (0, 0)}
    mean, abmil = ({(0, 0): values[name]} for name in ("mean", "abmil"))
    twice = Pairing.of([mean, mean], [abmil]).bootstrap(metric, seed="")
    assert twice.difference == pytest.approx(2 * values["mean"].metric("macro_auc") - values["abmil"].metric("macro_auc"))
    alone = stats.primary([fold.against(metric, 0.5) for fold in Pairing.of([mean]).folds])
    assert alone.difference == pytest.approx(values["mean"].metric("macro_auc") - 0.5)


def test_what_is_shared_is_computed_once(runs):
    computed = []

    class Counted(Metric):
        def __call__(self, predictions, counts=None):
            computed.append(1)
            return super().__call__(predictions, counts)

    shared, run = Shared(), next(iter(of(runs, "mean").values()))
    counts = np.ones((3, len(run.predictions["slide"])))
    for _ in range(2):
        shared(run, Counted("accuracy", "accuracy"))(counts)
    assert len(computed) == 1


def test_a_lower_brier_score_wins(tmp_path):
    store, plan = made_up_suite(tmp_path, {"abmil": 1.0, "mean": 2.0}, folds=2)
    compared = with_reference(plan, reading.read(store, plan))
    c = compared.about(METRICS["macro_auc"])[0]
    brier = c.__class__(**{**vars(c), "metric": METRICS["brier"]})
    assert brier.tally == c.tally[::-1]


def test_resamples_are_named_by_plain_values():
    """The text fixes the random numbers: it must never change with the class that holds a column."""
    column = Column("toy", "uni", 20, None, "official")
    assert resamples(column, METRICS["macro_auc"]) == "('toy', 'uni', 20, None, 'official')|macro_auc"


def test_the_list_of_metrics_agrees_with_the_tasks():
    assert {task.name: task.metric for task in (Subtyping, Survival)} == SELECTS
    assert METRICS["brier"].head == "Brier ↓"
    data = {"target": np.array([0, 1, 1]), "score": np.array([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2]])}
    for name in ("macro_auc", "macro_f1", "balanced_accuracy", "accuracy", "brier"):
        assert float(METRICS[name](data)) == float(getattr(stats, name)(data["target"], data["score"]))
