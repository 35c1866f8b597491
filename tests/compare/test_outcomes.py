"""The other tests on stored runs: patients stay together, and each outcome says what it takes as one."""

import csv

import numpy as np
import pytest

from milbench import reading, stats
from milbench.compare import Pairing, finished, pairing
from milbench.compare.outcomes import MOST, most, outcomes
from milbench.metrics import METRICS
from tests.builders.results import made_up_suite


@pytest.fixture
def sides(tmp_path, monkeypatch, unflushed):
    """Two methods on two folds; each patient has three slides, next to each other."""
    monkeypatch.setattr(pairing, "REPLICATES", 200)
    store, plan = made_up_suite(tmp_path, {"abmil": 0.3, "mean": 3.0}, folds=2, seeds=2, n=45)
    runs = reading.read(store, plan)
    for run in runs:
        slides = run.predictions["slide"]
        run.__dict__["predictions"] = {**run.predictions, "case": np.array([f"{s[:2]}-p{int(s[3:]) // 3}" for s in slides])}
    return Pairing.of(*([finished([run for run in runs if run.cell.aggregator == name])] for name in ("abmil", "mean")))


def test_each_outcome_says_what_it_takes_as_one(sides):
    found = outcomes(sides, METRICS["macro_f1"], seed="x") | {
        "auc": outcomes(sides, METRICS["macro_auc"], seed="x")["permutation"]
    }
    assert {name: (test.over, test.n) for name, test in found.items()} == {
        "paired-bootstrap": ("patients", 30), "permutation": ("patients", 30), "mcnemar": ("patients", 30), "auc": ("patients", 30),
        "wilcoxon": ("runs", 2), "nadeau-bengio": ("folds", 2),
    }  # fmt: skip
    for fold in sides.folds:
        for run in fold.runs:
            del run.predictions["case"]
    bare = outcomes(sides, METRICS["macro_f1"], seed="x")
    assert (bare["paired-bootstrap"].over, bare["paired-bootstrap"].n) == ("slides", 90)
    assert bare["mcnemar"].p < found["mcnemar"].p, "slides of a patient are fewer when they count as one"


def test_the_bootstrap_draws_the_pairings_patients(sides):
    metric = METRICS["macro_f1"]
    found = outcomes(sides, metric, seed="x")["paired-bootstrap"]
    folds = [
        (fold.strata, [(metric.of(pair.method[0].predictions), metric.of(pair.reference[0].predictions)) for pair in fold.pairs])
        for fold in sides.folds
    ]
    patients = [[name.split("-")[1] for name in fold.patients] for fold in sides.folds]
    expected = stats.paired_bootstrap(folds, patients=patients, replicates=200, most=400, seed="x")
    assert (found.effect, found.low, found.high, found.p) == (expected.difference, expected.low, expected.high, expected.p)


def test_a_large_family_draws_enough(sides):
    alone, many = (outcomes(sides, METRICS["macro_f1"], seed="x", family=family)["paired-bootstrap"] for family in (1, 30))
    assert (alone.p, many.p) == (pytest.approx(2 / 401), pytest.approx(2 / 12_001))
    assert many.p == many.smallest
    assert most(100_000) == MOST
    assert all(2 / (most(m) + 1) * m < 0.0051 for m in range(1, 251)), "after Holm's correction"


def test_nadeau_bengio_counts_patients(sides):
    run = sides.pairs[0].method[0]
    path = run.store.root / "splits" / "toy-one-1.csv"
    path.parent.mkdir()
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["fold", "part", "id", "case"])
        for fold in (0, 1):
            out.writerows([fold, "train", f"t{i}", f"p{i // 4}"] for i in range(80))
            out.writerows([fold, "test", f"f{fold}-{i:03d}", f"q{i // 3}"] for i in range(45))
    assert reading.split_sizes(run) == {0: (20, 15), 1: (20, 15)}
    found = outcomes(sides, METRICS["macro_auc"], seed="x")["nadeau-bengio"]
    d = [
        np.mean([pair.method[0].metric("macro_auc") - pair.reference[0].metric("macro_auc") for pair in fold.pairs])
        for fold in sides.folds
    ]
    assert found.p == stats.nadeau_bengio(d, [20, 20], [15, 15]).p
