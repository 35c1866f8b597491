"""Every method against every other, and the places that methods take."""

import numpy as np
import pytest

from milbench import reading, stats
from milbench.compare.everyone import everyone
from milbench.compare.primary import contrast, trainings
from milbench.metrics import METRICS
from milbench.report import everyone as page
from tests.builders.results import made_up_suite

METHODS = {"mean": 1.6, "abmil": 0.2, "dsmil": 1.0, "max": 1.0}


@pytest.fixture
def suite(tmp_path, unflushed):
    store, plan = made_up_suite(tmp_path, METHODS, folds=2, seeds=3, n=24, skip={("max", 1, s): "failed" for s in range(3)})
    return plan, reading.read(store, plan)


def of(runs, name):
    return trainings([run for run in runs if run.cell.aggregator == name])


def test_every_pair_is_the_primary_test_with_one_correction(suite):
    (found,) = everyone(*suite, METRICS["macro_auc"])
    assert len(found.pairs) == 6
    assert next(iter(found.labels.items())) == ("abmil", "ABMIL")
    corrected = stats.holm([pair.test.p for pair in found.pairs])
    for pair, p_holm in zip(found.pairs, corrected, strict=True):
        expected = contrast(of(suite[1], pair.a), of(suite[1], pair.b), METRICS["macro_auc"])
        assert (pair.test, pair.tally, pair.chance) == (expected.test, expected.tally, expected.chance)
        assert pair.p_holm == p_holm
    with_max = [pair for pair in found.pairs if "max" in (pair.a, pair.b)]
    assert {pair.folds for pair in with_max} == {(0,)}, "on the folds that both have"


def test_who_is_told_apart_adds_up(suite):
    (found,) = everyone(*suite, METRICS["macro_auc"])
    told = {name: found.told_apart(name) for name in found.labels}
    assert all(sum(counts) == 3 for counts in told.values())
    assert sum(counts[0] for counts in told.values()) == sum(counts[2] for counts in told.values()) > 0
    assert told["abmil"][0] >= 1 and told["abmil"][2] == 0


def test_places_are_those_of_complete_methods(suite):
    (found,) = everyone(*suite, METRICS["macro_auc"])
    assert set(found.ranked) == {"mean", "abmil", "dsmil"} and found.ranked[0] == "abmil"
    np.testing.assert_allclose(found.places.sum(0), 1)
    np.testing.assert_allclose(found.places.sum(1), 1)
    assert found.places[0, 0] > 0.9
    assert found.between("abmil") == (1, 1)


def test_methods_that_were_seen_once_have_no_places(tmp_path, unflushed):
    store, plan = made_up_suite(tmp_path, METHODS, folds=1, n=24)
    assert everyone(plan, reading.read(store, plan), METRICS["macro_auc"]) == []
    store, plan = made_up_suite(tmp_path, METHODS, folds=1, seeds=2, n=24)
    assert everyone(plan, reading.read(store, plan), METRICS["macro_auc"])


def test_two_methods_are_no_crowd(suite):
    plan, runs = suite
    assert everyone(plan, [run for run in runs if run.cell.aggregator in ("mean", "abmil")], METRICS["macro_auc"]) == []


def test_a_lower_error_is_better(suite):
    brier = METRICS["brier"]
    (found,) = everyone(*suite, brier)
    assert found.ranked[0] == "abmil" and found.places[0, 0] > 0.9
    first = found.pairs[0]
    assert first.gain > 0 > first.test.difference and first.tally[0] > first.tally[2]


def test_the_page_holds_every_number(suite, tmp_path):
    (table,), (matrix, places) = page.build(*suite)
    (found,) = everyone(*suite, METRICS["macro_auc"])
    assert [row.label for row in table.rows] == list(found.labels.values())
    by_label = {row.label: [entry.text for entry in row.entries] for row in table.rows}
    assert by_label["ABMIL"][:3] == [str(count) for count in found.told_apart("abmil")]
    assert by_label["MAX"][3:] == ["–", "–"], "it lacks a fold"
    assert [(row["a"], row["b"], row["p_holm"]) for row in matrix.rows] == [(p.a, p.b, p.p_holm) for p in found.pairs]
    assert len(places.rows) == 9
    words = {text.get_text() for text in matrix.draw().axes[0].texts}
    pair = found.pairs[0]
    assert any(word.startswith(f"{100 * pair.test.difference:+.1f}\n{pair.tally[0]}/") for word in words)
    assert f"{100 * (1 - pair.chance.chance):.0f}" in words
    for figure in (matrix, places):
        first, second = figure.save(tmp_path / "a"), figure.save(tmp_path / "b")
        assert first.png.read_bytes() == second.png.read_bytes()
