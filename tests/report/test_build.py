"""The report against stored files, and what it says when results are missing."""

import json
import os
import re
import shutil
import warnings

import numpy as np
import pytest

from milbench import MilbenchError, stats
from milbench.metrics import METRICS
from milbench.report import build, write
from tests.builders.reports import GOLDEN, NOISE, golden
from tests.builders.results import finished, made_up_suite, predictions_file, sign


@pytest.fixture(autouse=True)
def quick(monkeypatch, unflushed):
    """Only the stored files need every resample."""
    monkeypatch.setattr("milbench.compare.pairing.REPLICATES", 500)


def main_table(store, name="made-up"):
    return build(store, name).sections[0].table


def column(table, label):
    at = [head for _, head in table.headers].index(label)
    return {row.label: row.entries[at] for row in table.rows}


def test_against_stored_files(tmp_path, monkeypatch):
    """Every form of a small report, byte for byte. MILBENCH_WRITE_GOLDEN=1 writes them anew; then read the difference."""
    monkeypatch.setattr("milbench.compare.pairing.REPLICATES", 10_000)
    made = golden(tmp_path, ["latex", "md", "csv"])  # pages of HTML are read, not compared
    paths = [path for path in made if path.suffix not in (".pdf", ".png")]  # fonts differ between machines
    if os.environ.get("MILBENCH_WRITE_GOLDEN"):
        shutil.rmtree(GOLDEN, ignore_errors=True)
        shutil.copytree(tmp_path / "report", GOLDEN, ignore=shutil.ignore_patterns("*.pdf", "*.png", "*.json"))
    names = sorted(str(path.relative_to(tmp_path / "report")) for path in paths)
    assert names == sorted(str(path.relative_to(GOLDEN)) for path in GOLDEN.rglob("*") if path.is_file())
    for name in names:
        assert (tmp_path / "report" / name).read_text() == (GOLDEN / name).read_text(), name


def test_numbers_are_the_mean_and_sample_deviation_of_the_runs(tmp_path):
    store, plan = made_up_suite(tmp_path, NOISE, seeds=2)
    table = main_table(store)
    for row in table.tidy:
        own = [cell for cell in plan.cells if cell.aggregator == row["aggregator"]]
        values = [store.read(cell.trial_id).metrics["test"][row["metric"]] for cell in own]
        assert row["runs"] == row["expected_runs"] == 6
        assert row["mean"] == pytest.approx(np.mean(values))
        assert row["sd"] == pytest.approx(np.std(values, ddof=1))
        assert (
            column(table, METRICS[row["metric"]].label)[row["label"]].text
            == f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
        )
    assert any("over 3 folds x 2 seeds, 30 tested in each" in note for note in table.notes)
    assert "(n = 90 slides)" in table.title


def test_best_and_second_and_daggers(tmp_path):
    store, _ = made_up_suite(tmp_path, NOISE, seeds=3)
    entries = column(main_table(store), "macro-AUC")
    means = {label: float(entry.text.split()[0]) for label, entry in entries.items()}
    ranked = sorted(means, key=means.get, reverse=True)
    assert [entries[label].style for label in ranked[:3]] == ["best", "second", None]
    section = build(store, "made-up").sections[0]
    paired = {row["aggregator"]: row for row in section.paired.tidy if row["metric"] == "macro_auc"}
    assert set(paired) == set(NOISE) - {"abmil"}
    np.testing.assert_allclose(
        [paired[m]["p_holm"] for m in ("mean", "dsmil", "odd_name & 100% #1")],
        stats.holm([paired[m]["p"] for m in ("mean", "dsmil", "odd_name & 100% #1")]),
    )
    for label, entry in entries.items():
        assert entry.dagger == (label != "ABMIL" and paired[label.lower()]["p_holm"] < 0.05)
    assert entries["ODD_NAME & 100% #1"].dagger and not entries["DSMIL"].dagger, (
        "half the noise is found out, a tenth less is not"
    )
    assert paired["mean"]["difference"] == pytest.approx(means["MEAN"] - means["ABMIL"], abs=1e-3)
    assert any("for other patients and other trainings, at p < 0.05 after Holm's" in note for note in section.table.notes)
    assert "No patients are named: slides are taken as patients" in " ".join(section.table.notes)


def by_hand(store, plan, method, metric):
    """The primary test of a method against AB-MIL, from the files of predictions."""
    runs = {}
    for cell in plan.cells:
        path = store.folder(cell.trial_id) / "predictions.csv"
        if path.exists():
            rows = [line.split(",") for line in path.read_text().splitlines()[1:]]
            score = np.array([[float(v) for v in row[4:]] for row in rows])
            target = np.array([int(row[3]) for row in rows])
            runs.setdefault((cell.aggregator, cell.fold), []).append((target, score))
    return stats.primary([
        stats.Fold(
            *([lambda w, t=t, s=s: getattr(stats, metric)(t, s, w) for t, s in runs[name, fold]] for name in (method, "abmil")),
            runs["abmil", fold][0][0],
        )
        for fold in sorted({cell.fold for cell in plan.cells}) if (method, fold) in runs and ("abmil", fold) in runs
    ])  # fmt: skip


@pytest.mark.parametrize("metric", ["macro_auc", "macro_f1"])
def test_every_finished_training_counts_and_seeds_need_not_pair(tmp_path, metric):
    skip = {("mean", 0, 0): "oom", ("abmil", 0, 1): "failed", ("dsmil", 2, 0): "failed", ("dsmil", 2, 1): "pending"}
    store, plan = made_up_suite(tmp_path, NOISE, seeds=2, skip=skip)
    section = build(store, "made-up").sections[0]
    for row in (row for row in section.paired.tidy if row["metric"] == metric):
        expected = by_hand(store, plan, row["aggregator"], metric)
        numbers = ("difference", "low", "high", "variance", "df", "p")
        assert [row[name] for name in numbers] == [getattr(expected, name) for name in numbers]
        assert (row["these_models_low"], row["variance_patients"]) == (expected.fixed.low, expected.split.patients)
        np.testing.assert_equal(row["half_width"], stats.planned(expected).half_width)
        assert (row["trainings_a"], row["trainings_b"]) == expected.trainings


def test_one_training_a_side_on_one_split_is_seen_once(tmp_path):
    store, plan = made_up_suite(tmp_path, NOISE, folds=1)
    section = build(store, "made-up").sections[0]
    assert not any(entry.dagger for table in section.tables for row in table.rows for entry in row.entries)
    mean, heads = section.paired.rows[1], [head for _, head in section.paired.headers]
    texts = dict(zip(heads, (entry.text for entry in mean.entries), strict=True))
    expected = by_hand(store, plan, "mean", "macro_auc")
    assert (texts["p"], texts["p (Holm)"], texts["95 % interval"]) == ("seen once", "–", "–")
    assert texts["these models"] == f"[{expected.fixed.low:+.3f}, {expected.fixed.high:+.3f}]"
    assert texts["tolerated sd"] == f"{expected.tolerated_sd:.3f}"
    for table in section.tables:
        assert "Seen once: a side has one training on one split, so no † is possible." in table.notes
    assert any(note.startswith("No p-value, so no row is marked (†)") for note in section.table.notes)
    assert not any(table.name.endswith("-planning") for table in section.appendix), "nothing is known of trainings"


def test_rows_that_are_seen_once_are_named(tmp_path):
    store, _ = made_up_suite(tmp_path, NOISE, folds=1, seeds=2, skip={("mean", 0, 1): "failed"})
    section = build(store, "made-up").sections[0]
    said = "MEAN (macro-AUC), MEAN (macro-F1): Seen once: a side has one training on one split, so no † is possible."
    assert said in section.table.notes and said in section.paired.notes
    (planning,) = (table for table in section.appendix if table.name.endswith("-planning"))
    assert {row.label for row in planning.rows if row.entries} == set(map(str.upper, NOISE)) - {"MEAN", "ABMIL"}
    assert planning.notes[-1].startswith("Not known in every column: MEAN, where a side has one training")


def test_planning_says_what_the_statistics_say(tmp_path):
    store, plan = made_up_suite(tmp_path, NOISE, seeds=2)
    section = build(store, "made-up").sections[0]
    (planning,) = (table for table in section.appendix if table.name.endswith("-planning"))
    row = next(row for row in planning.rows if row.label == "DSMIL")
    expected = by_hand(store, plan, "dsmil", "macro_auc")
    split, needed = expected.split, stats.needed(expected, expected.difference)
    total = split.patients + split.trainings + split.interaction
    texts = [entry.text for entry in row.entries]
    assert texts[:3] == [expected.rule, f"{expected.df:.1f}", f"{100 * split.patients / total:.0f} %"]
    assert texts[5:9] == [
        f"{value:.3f}"
        for value in (
            stats.planned(expected).half_width,
            stats.planned(expected, seeds=2).half_width,
            stats.planned(expected, patients=2).half_width,
            stats.planned(expected).detectable,
        )
    ]
    assert texts[9:] == ["∞" if np.isinf(more) else f"{more:,.0f}" for more in (needed.trainings, needed.patients)]


def test_a_partial_row_is_marked_and_not_ranked(tmp_path):
    store, _ = made_up_suite(tmp_path, NOISE, skip={("odd_name & 100% #1", 0, 0): "pending", ("mean", 0, 0): "oom"})
    report = build(store, "made-up")
    entries = column(report.sections[0].table, "macro-AUC")
    assert entries["ODD_NAME & 100% #1"].style is None
    assert report.sections[0].table.partial == "2 of 12 trials have no result (1 out of memory, 1 not run)"
    notes = " ".join(report.sections[0].table.notes)
    assert f"({entries['ODD_NAME & 100% #1'].mark}) not run; over 2 of 3 runs, not ranked" in notes
    assert f"({entries['MEAN'].mark}) out of memory: because of oom; over 2 of 3 runs, not ranked" in notes


def test_what_did_not_run_is_a_dash_with_the_reason(tmp_path):
    skip = {("dsmil", fold, 0): "skipped" for fold in range(3)}
    store, _ = made_up_suite(tmp_path, NOISE, skip=skip)
    table = main_table(store)
    entry = column(table, "macro-F1")["DSMIL"]
    assert entry.text == "–"
    assert f"({entry.mark}) skipped: because of skipped" in table.notes


def test_without_the_reference_there_is_no_comparison_and_it_is_said(tmp_path):
    store, _ = made_up_suite(tmp_path, {"mean": 1.0, "max": 2.0})
    section = build(store, "made-up").sections[0]
    assert section.paired is None
    assert "No paired comparison: the reference abmil has no result beside another method." in section.table.notes


def test_one_run_has_no_spread(tmp_path):
    store, _ = made_up_suite(tmp_path, NOISE, folds=1)
    table = main_table(store)
    assert "±" not in column(table, "macro-AUC")["ABMIL"].text
    assert any(note.startswith("One run, no spread") for note in table.notes)


def test_an_undefined_metric_is_a_dash_with_a_note(tmp_path):
    store, plan = made_up_suite(tmp_path, NOISE)
    target, score = np.zeros(30, int), np.full((30, 3), 1 / 3)  # every method is tested on slides of one class
    for cell in (cell for cell in plan.cells if cell.fold == 0):
        trial = store.read(cell.trial_id).spec
        shutil.rmtree(store.folder(cell.trial_id))
        slides = [f"f0-{i:03d}" for i in range(30)]
        store.write(finished(trial, {"macro_auc": None, "macro_f1": 1 / 3}), predictions_file(slides, target, score))
    table = main_table(store)
    assert column(table, "macro-AUC")["MEAN"].text == "–"
    assert any("lacks a class, so the metric is undefined" in note for note in table.notes)


def test_trials_that_test_other_slides_are_never_paired(tmp_path):
    store, plan = made_up_suite(tmp_path, NOISE)
    cell = next(c for c in plan.cells if c.aggregator == "mean")
    path = store.folder(cell.trial_id) / "predictions.csv"
    path.write_text(path.read_text().replace("f0-000,f0-000", "f9-000,f9-000"))
    sign(store, cell.trial_id)
    with pytest.raises(MilbenchError, match="test other slides, they cannot be paired"):
        build(store, "made-up")


def test_missing_predictions_are_named(tmp_path):
    store, plan = made_up_suite(tmp_path, NOISE)
    (store.folder(plan.cells[0].trial_id) / "predictions.csv").unlink()
    with pytest.raises(MilbenchError, match=r"predictions\.csv is missing; remove the folder"):
        build(store, "made-up")


def test_another_schema_is_refused(tmp_path):
    store, plan = made_up_suite(tmp_path, NOISE)
    path = store.folder(plan.cells[0].trial_id) / "trial.json"
    path.write_text(path.read_text().replace('"schema": 2', '"schema": 3', 1))
    with pytest.raises(MilbenchError, match="result schema 3, this milbench reads 2"):
        build(store, "made-up")


def test_unknown_metric_in_a_table_is_named(tmp_path):
    table = {"name": "x", "columns": ["metric"], "metrics": ["auc"], "groups": [], "reference": "abmil"}
    store, plan = made_up_suite(tmp_path, NOISE)
    path = store.root / "suites" / "made-up.json"
    path.write_text(plan.model_copy(update={"definition": {**plan.definition, "table": table}}).model_dump_json())
    with pytest.raises(MilbenchError, match=r"table\.metrics: 'auc' cannot be printed; use macro_auc"):
        build(store, "made-up")


def test_groups_are_separated_by_rules(tmp_path):
    layout = {"name": "x", "columns": ["metric"], "metrics": ["macro_auc"], "groups": [["mean", "mean"], ["abmil", "dsmil"]]}
    grid = {"aggregator": ["mean", "abmil", "dsmil"]}
    store, _ = made_up_suite(tmp_path, NOISE, table={**layout, "reference": "abmil"}, grid=grid)
    assert [row.rule for row in main_table(store).rows] == [False, True, False, True], "rows of one's own stand below a rule"


@pytest.fixture
def unchecked(monkeypatch):
    """Metrics and predictions may be made up apart from each other."""
    monkeypatch.setattr("milbench.trials.predictions.disagreement", lambda columns, result: "")
    monkeypatch.setattr("milbench.trials.store.Store.verified", lambda self, result, name: self.folder(result["trial_id"]) / name)


def rewrite(store, cell, **test):
    """Other test metrics of a trial."""
    path = store.folder(cell.trial_id) / "trial.json"
    content = json.loads(path.read_text())
    content["metrics"]["test"] |= test
    path.write_text(json.dumps(content))
    sign(store, cell.trial_id)


def test_ties_tie(tmp_path, unchecked):
    """The same fold values in another order have another floating-point mean, and one rational mean two texts."""
    store, plan = made_up_suite(tmp_path, {"mean": 1.0, "abmil": 1.0, "dsmil": 1.0, "max": 1.0}, folds=4)
    auc = {"mean": [0.7, 0.8, 0.9, 0.8], "abmil": [0.9, 0.8, 0.8, 0.7], "dsmil": [0.6] * 4, "max": [0.8, 0.79, 0.81, 0.8002]}
    f1 = {
        "mean": [29 / 36, 17 / 18, 7 / 12, 11 / 12],
        "abmil": [11 / 12, 7 / 12, 17 / 18, 29 / 36],
        "dsmil": [0.8125] * 4,
        "max": [1.0] * 4,
    }
    for cell in plan.cells:
        rewrite(store, cell, macro_auc=auc[cell.aggregator][cell.fold], macro_f1=f1[cell.aggregator][cell.fold])
    table = build(store, "made-up", tests=False).sections[0].table
    shown = {label: (entry.text.split()[0], entry.style) for label, entry in column(table, "macro-AUC").items()}
    best = ("0.800", "best")
    assert shown == {"MEAN": best, "ABMIL": best, "DSMIL": ("0.600", "second"), "MAX": best}, "what prints alike ranks alike"
    shown = {label: (entry.text.split()[0], entry.style) for label, entry in column(table, "macro-F1").items()}
    second = ("0.812", "second")
    assert shown == {"MEAN": second, "ABMIL": second, "DSMIL": second, "MAX": ("1.000", "best")}
    assert {row["mean"] for row in table.tidy if row["metric"] == "macro_f1"} == {0.8125, 1.0}


def test_no_zero_has_a_minus_and_no_number_is_nan(tmp_path, unchecked):
    """Differences of nothing, and a fold that lacks a class: every text of the report."""
    store, plan = made_up_suite(tmp_path, {"mean": 1.5, "abmil": 1.0, "dsmil": 1.0}, folds=2, n=6)
    same = {c.fold: store.folder(c.trial_id) / "predictions.csv" for c in plan.cells if c.aggregator == "abmil"}
    for cell in plan.cells:
        path = store.folder(cell.trial_id) / "predictions.csv"
        if cell.aggregator == "dsmil":
            path.write_text(same[cell.fold].read_text())
            sign(store, cell.trial_id)
            other = next(c for c in plan.cells if (c.aggregator, c.fold) == ("abmil", cell.fold))
            rewrite(store, cell, macro_f1=store.read(other.trial_id).metrics["test"]["macro_f1"] - 1e-16)
        if cell.fold == 1:
            first, *rows = path.read_text().splitlines()
            fields = [row.split(",") for row in rows]
            path.write_text(
                "\n".join([first, *(",".join([*f[:3], "1" if f[3] == "2" else f[3], *f[4:]]) for f in fields)]) + "\n"
            )
            rewrite(store, cell, macro_auc=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        report = build(store, "made-up")
        write(report, tmp_path / "report")
    section = report.sections[0]
    assert "undefined in 1 of 2 runs" in " ".join(section.table.notes)
    for label in ("MEAN", "DSMIL"):
        row = next(row for row in section.paired.rows if row.label == label)
        assert [entry.text for entry in row.entries] == ["–"] * 6, "of macro-AUC, which stands first"
    assert "macro-AUC: No p-value: the metric of a run is undefined." in section.paired.notes
    (anova,) = (table for table in section.appendix if table.name.endswith("anova"))
    assert "Runs left out, in which the metric is undefined: 3 of 6 (macro-AUC)." in anova.notes
    told = {(row["aggregator"], row["metric"]): row for row in section.paired.tidy}
    assert told["mean", "macro_auc"]["why"] == "the metric of a run is undefined"
    equal = told["dsmil", "macro_f1"]
    assert [equal[key] for key in ("difference", "wins", "ties", "losses", "p")] == [0, 0, 2, 0, 1]
    for path in (tmp_path / "report").rglob("*"):
        if path.suffix in (".md", ".tex", ".csv", ".html"):
            found = re.search(r"[-−+]nan|\bnan\b|[-−]0\.0+(?![\d])", re.sub(r"data:[^\"]+", "", path.read_text()))
            assert not found, (path.name, found)


def test_a_missing_prediction_is_told(tmp_path, unchecked):
    store, plan = made_up_suite(tmp_path, NOISE)
    cell = next(c for c in plan.cells if c.aggregator == "mean")
    path = store.folder(cell.trial_id) / "predictions.csv"
    first, second, *rest = path.read_text().splitlines()
    path.write_text("\n".join([first, ",".join([*second.split(",")[:4], "nan", "nan", "nan"]), *rest]) + "\n")
    rewrite(store, cell, macro_auc=None, macro_f1=None)
    report = build(store, "made-up")
    assert column(report.sections[0].table, "macro-F1")["MEAN"].text == "–"
    assert "a prediction is missing (NaN), so the metric is undefined in 1 of 3 runs" in " ".join(report.sections[0].table.notes)
