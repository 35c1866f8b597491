"""The capability matrix: verdicts from numbers, predictions held against them, and the suite files that make them."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from milbench import MilbenchError, reading, stats, suites
from milbench.cli import main
from milbench.compare.capability import Known, Square
from milbench.report import capability
from milbench.report.render import latex
from tests.builders.results import made_up_suite

KNOWN = {"chance": 0.5, "bayes": 1.0, "oracle": 1.0, "examples": [["oA.", "ooo"], ["BA.", "oCo"]]}
METHODS = {"sharp": 0.05, "blurred": 1.2, "blind": 100.0}
EXPECT = {"sharp": ["pass"], "blurred": ["fail"], "blind": ["open"]}


def suite(tmp_path, skip=(), expect=EXPECT, seeds=3, **known):
    grid = {"aggregator": list(METHODS), "dataset": ["toy"]}
    store, plan = made_up_suite(
        tmp_path, METHODS, folds=1, seeds=seeds, n=150, skip=skip, grid=grid, expect=expect, known={"toy": {**KNOWN, **known}}
    )
    return plan, reading.read(store, plan)


def rows(table):
    return {row["aggregator"]: row for row in table.tidy}


def test_verdicts_follow_from_the_numbers(tmp_path):
    plan, runs = suite(tmp_path)
    (matrix, predictions), _ = capability.build(plan, runs)
    told = rows(matrix)
    assert {name: row["verdict"] for name, row in told.items()} == {"sharp": "pass", "blurred": "partial", "blind": "fail"}
    assert {name: row["agreed"] for name, row in told.items()} == {
        "sharp": "as expected",
        "blurred": "surprise",
        "blind": "",
    }
    for name, row in told.items():
        own = [run for run in runs if run.cell.aggregator == name]
        assert row["auc"] == pytest.approx(np.mean([run.metric("macro_auc") for run in own]))
        assert row["low"] <= row["auc"] <= row["high"]
        assert row["runs"] == 3
    assert told["blurred"]["low"] > 0.5
    assert told["blind"]["low"] < 0.5 < told["blind"]["high"]
    texts = {row.label: (row.entries[0].text, row.entries[0].mark, row.entries[1].text) for row in matrix.rows}
    assert texts["Oracle (the rule)"] == ("1.00", "", "–")
    assert texts["SHARP"] == ("pass 1.00", "", "1 of 1")
    assert texts["BLURRED"][0].startswith("partial 0.")
    assert texts["BLURRED"][1:] == ("s", "0 of 1")
    assert [(row.label, row.entries[0].text, row.entries[0].mark) for row in predictions.rows] == [
        ("SHARP", "pass", ""), ("BLURRED", "fail", "s"), ("BLIND", "open", ""),
    ]  # fmt: skip


def test_what_was_never_learnt_is_no_failure(tmp_path):
    plan, runs = suite(tmp_path)
    last = {"sharp": 0.69, "blurred": 0.69, "blind": 0.69}

    def judged():
        curves = {name: [{"epoch": 1, "train_loss": 0.7}, {"epoch": 2, "train_loss": loss}] for name, loss in last.items()}
        seen = [replace(run, result={**run.result, "curve": curves[run.cell.aggregator]}) for run in runs]
        (matrix, _), _ = capability.build(plan, seen)
        assert rows(matrix)["blind"]["loss_ratio"] == pytest.approx(last["blind"] / 0.7)
        return {row.label: (row.entries[0].text.split()[0], row.entries[0].mark) for row in matrix.rows[3:]}

    assert judged() == {"SHARP": ("pass", ""), "BLURRED": ("partial", "s"), "BLIND": ("undecided", "u")}
    last["blind"] = 0.1
    assert judged() == {"SHARP": ("pass", ""), "BLURRED": ("partial", "s"), "BLIND": ("fail", "")}


def against_chance(runs, method):
    """The primary test of a method's trainings against 0.5, put together by hand."""
    own = [run.predictions for run in runs if run.cell.aggregator == method]
    values = [lambda w, p=p: stats.macro_auc(p["target"], p["score"], w) for p in own]
    return stats.primary([stats.Fold(values, [lambda w: np.full(len(w), 0.5)] * 2, own[0]["target"])])


def test_the_interval_is_that_of_the_primary_test(tmp_path):
    plan, runs = suite(tmp_path)
    row, test = rows(capability.build(plan, runs)[0][0])["blurred"], against_chance(runs, "blurred")
    assert (row["low"], row["high"]) == (pytest.approx(0.5 + test.low), pytest.approx(0.5 + test.high))
    assert test.rule == "trainings and patients" and test.df < 150


def test_one_training_is_seen_once(tmp_path):
    """No verdict on the method: the value, and the interval over slides of this very model."""
    plan, runs = suite(tmp_path, seeds=1)
    (matrix, _), figures = capability.build(plan, runs)
    row, test = rows(matrix)["blurred"], against_chance(runs, "blurred")
    assert (row["verdict"], row["agreed"], row["runs"]) == ("seen once", "", 1)
    assert np.isnan(row["p_holm"])
    assert (row["low"], row["high"]) == (pytest.approx(0.5 + test.fixed.low), pytest.approx(0.5 + test.fixed.high))
    entry = next(line.entries[0] for line in matrix.rows if line.label == "BLURRED")
    assert (entry.text, entry.mark) == (f"{row['auc']:.2f} [{row['low']:.2f}, {row['high']:.2f}]", "")
    assert any("seen once" in note for note in matrix.notes)
    assert figures[0].save(tmp_path / "figures").png.stat().st_size > 5000
    two = rows(capability.build(*suite(tmp_path / "two", seeds=2))[0][0])
    assert {(row["verdict"], row["why"]) for row in two.values()} == {("undecided", "2 trainings, 3 are needed")}


@pytest.mark.parametrize(
    ("auc", "low", "high", "p", "oracle", "loss", "verdict"),
    [
        (0.99, 0.98, 1.0, 1e-3, 1.0, 0.1, "pass"),
        (0.80, 0.75, 0.9, 1e-3, 1.0, 0.1, "pass"),
        (0.80, 0.74, 0.9, 1e-3, 1.0, 0.1, "partial"),
        (0.80, 0.74, 0.9, 1e-3, 0.9, 0.1, "pass"),  # the middle follows the oracle
        (0.60, 0.51, 0.7, 0.06, 1.0, 0.1, "fail"),  # not after correction
        (0.60, 0.45, 0.75, 0.2, 1.0, 0.1, "undecided"),  # the interval reaches midway
        (0.60, 0.51, 0.7, 0.06, 1.0, 0.95, "undecided"),  # not learnt
        (0.60, 0.51, 0.7, 0.06, 1.0, np.nan, "fail"),  # a method without epochs has nothing to learn
        (0.20, 0.15, 0.3, 1e-3, 1.0, 0.1, "fail"),  # below chance is no success, however significant
    ],
)
def test_the_rule_at_its_edges(auc, low, high, p, oracle, loss, verdict):
    square = Square(Known(0.5, 1.0, oracle), "open", 3, auc, low, high, p, loss)
    square.judge()
    assert square.verdict == verdict


@pytest.mark.parametrize(
    ("expected", "agrees"),
    [
        ("pass", "pass"),
        ("partial", "partial"),
        ("fail", "fail"),
        ("sees", "partial pass"),
        ("open", "fail partial pass"),
        ("", "fail partial pass"),
    ],
)
def test_predictions_agree_with_their_verdicts_only(expected, agrees):
    for verdict in ("fail", "partial", "pass"):
        square = Square(Known(0.5, 1.0, 1.0), expected, verdict=verdict)
        assert square.surprise == (verdict not in agrees.split())


def test_what_has_no_result_has_no_verdict(tmp_path):
    skip = {(name, 0, seed): why for name, why in (("sharp", "pending"), ("blind", "skipped")) for seed in range(3)}
    plan, runs = suite(tmp_path, skip, expect={"sharp": ["pass"]})
    (matrix, _), figures = capability.build(plan, runs)
    assert {name: (row["verdict"], row["why"], row["agreed"]) for name, row in rows(matrix).items()} == {
        "sharp": ("", "pending", ""), "blurred": ("partial", "", ""), "blind": ("", "skipped", ""),
    }  # fmt: skip
    assert [row.entries[0].text for row in matrix.rows if row.label == "SHARP"] == ["– (pending)"]
    assert "-- (skipped)" in latex.table(matrix)
    assert len(figures) == 2
    nothing = {(name, 0, seed): "pending" for name in METHODS for seed in range(3)}
    plan, runs = suite(tmp_path / "new", nothing)
    assert [figure.name for figure in capability.build(plan, runs)[1]] == ["made-up-examples"]


def test_figures_hold_every_number(tmp_path):
    plan, runs = suite(tmp_path)
    tables, figures = capability.build(plan, runs)
    for figure in figures:
        saved = figure.save(tmp_path / "figures")
        assert saved.png.stat().st_size > 5000
        with saved.csv.open() as file:
            found = list(csv.DictReader(file))
        if figure.name == "made-up-capability":
            assert [float(row["auc"]) for row in found] == [stats.rounded(row["auc"], 6) for row in tables[0].tidy]
        else:
            assert [row["patches"] for row in found] == ["oA.", "ooo", "BA.", "oCo"]


@pytest.mark.parametrize("name", ["spatial", "spatial-small", "spatial-full"])
def test_permutation_invariant_methods_are_predicted_to_fail_where_only_places_tell(name):
    from milbench import plugins
    from milbench.datasets.spatial import dataset as spatial
    from milbench.datasets.spatial.tasks import TASKS

    found = suites.load(name)
    about_space = [TASKS[spatial.NAMES[dataset][0]].spatial for dataset in found.grid.dataset]
    for aggregator, said in found.expect.items():
        variant = plugins.resolve(aggregator)
        blind = not (variant.entry.cls.needs_coords or variant.entry.cls.order_sensitive)
        for word, spatial_task in zip(said, about_space, strict=True):
            assert not (blind and spatial_task) or word == "fail", f"{aggregator} sees no places"
    assert len(found.grid.aggregator) <= 10 or name == "spatial-full"


def test_the_small_suite_is_a_part_of_the_default_one():
    small, default = (suites.expand(suites.load(name)) for name in ("spatial-small", "spatial"))
    assert {job.spec.trial_id for job in small[1]} < {job.spec.trial_id for job in default[1]}
    columns = suites.load("spatial").grid.dataset
    for name, said in small[0].definition["expect"].items():
        whole = default[0].definition["expect"][name]
        assert said == [whole[columns.index(dataset)] for dataset in small[0].definition["grid"]["dataset"]]


def test_a_plan_carries_what_is_known():
    plan, _ = suites.expand(suites.load("spatial-small"))
    known = suites.with_known(plan).definition["known"]
    assert list(known) == plan.definition["grid"]["dataset"]
    assert {value["oracle"] for value in known.values()} == {1.0}
    quick, _ = suites.expand(suites.load("quickstart"))
    assert suites.with_known(quick) is quick


def test_predictions_that_fit_no_grid(tmp_path):
    path = tmp_path / "mine.toml"
    text = """
title = "Mine"
[grid]
dataset = ["musk1"]
encoder = ["hand-crafted"]
split = ["kfold5"]
seed = [0]
aggregator = ["mean"]
[table]
name = "mine"
metrics = ["macro_auc"]
[expect]
"""
    for line, says in (
        ('mean = ["pass", "fail"]', "one outcome for each of the 1 datasets"),
        ('max = ["pass"]', "not max"),
        ('mean = ["certain"]', "'pass', 'partial', 'fail', 'sees' or 'open'"),
    ):
        path.write_text(text + line)
        with pytest.raises(MilbenchError, match=says):
            suites.load(str(path))


def test_sizes_of_a_suite(tmp_path, capsys):
    assert suites.sized("spatial", None) == "spatial"
    assert suites.sized("spatial", "full") == "spatial-full"
    with pytest.raises(MilbenchError, match="suite quickstart has no --small form; suites that have: spatial"):
        suites.sized("quickstart", "small")
    with pytest.raises(SystemExit) as end:
        main(["run", "--suite", "spatial", "--small", "--dry-run", "--results", str(tmp_path)])
    assert end.value.code == 0
    assert "9 trials: 9 to run" in capsys.readouterr().out


def test_an_undefined_auc_has_no_verdict():
    square = Square(Known(0.5, 1.0, 1.0), "pass", runs=1)
    square.judge()
    assert (square.verdict, square.why, square.predicted) == ("", "the AUC is undefined", False)


def test_an_interval_that_ends_midway_passes():
    """0.5 + 0.25 by way of a difference that has lost digits."""
    square = Square(Known(0.1, 1.0, 0.5), "pass", runs=3, auc=0.4, low=stats.rounded(0.1 + 0.2), high=0.5, p=0.001)
    square.judge()
    assert square.verdict == "pass"
