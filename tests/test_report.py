"""The report against stored files, and what it says when results are missing."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import finished, made_up_suite, predictions_file, sign

from milbench import MilbenchError, stats
from milbench.report import build, write
from milbench.report.tables import METRICS

GOLDEN = Path(__file__).parent / "golden" / "report"
METHODS = {"mean": 2.5, "abmil": 1.0, "dsmil": 0.9, "odd_name & 100% #1": 0.5}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Nothing here has to survive a power cut, and only the stored files need every resample."""
    monkeypatch.setattr("milbench.trials.store.flush", lambda path: None)
    monkeypatch.setattr("milbench.report.tables.REPLICATES", 500)


def main_table(store, name="made-up"):
    return build(store, name).sections[0].table


def column(table, label):
    at = [head for _, head in table.headers].index(label)
    return {row.label: row.entries[at] for row in table.rows}


def test_against_stored_files(tmp_path, monkeypatch):
    """Every form of a small report, byte for byte. MILBENCH_WRITE_GOLDEN=1 writes them anew; then read the difference."""
    monkeypatch.setattr("milbench.report.tables.REPLICATES", 10_000)
    skip = {("dsmil", 1, 0): "failed", ("mean", 0, 0): "pending"}
    store, _ = made_up_suite(tmp_path, METHODS, seeds=2, skip=skip, title="Names with _ & % #")
    paths = write(build(store, "made-up"), tmp_path / "report", ["latex", "md", "csv"])  # pages of HTML are read, not compared
    if os.environ.get("MILBENCH_WRITE_GOLDEN"):
        shutil.rmtree(GOLDEN, ignore_errors=True)
        shutil.copytree(tmp_path / "report", GOLDEN)
    names = sorted(str(path.relative_to(tmp_path / "report")) for path in paths)
    assert names == sorted(str(path.relative_to(GOLDEN)) for path in GOLDEN.rglob("*") if path.is_file())
    for name in names:
        assert (tmp_path / "report" / name).read_text() == (GOLDEN / name).read_text(), name


def test_numbers_are_the_mean_and_sample_deviation_of_the_runs(tmp_path):
    store, plan = made_up_suite(tmp_path, METHODS, seeds=2)
    table = main_table(store)
    for row in table.tidy:
        own = [cell for cell in plan.cells if cell.aggregator == row["aggregator"]]
        values = [store.read(cell.trial_id).metrics["test"][row["metric"]] for cell in own]
        assert row["runs"] == row["expected_runs"] == 6
        assert row["mean"] == pytest.approx(np.mean(values))
        assert row["sd"] == pytest.approx(np.std(values, ddof=1))
        assert (
            column(table, METRICS[row["metric"]][0])[row["label"]].text == f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
        )
    assert any("over 3 folds x 2 seeds, 30 tested in each" in note for note in table.notes)
    assert "(n = 90 slides)" in table.title


def test_best_and_second_and_daggers(tmp_path):
    store, _ = made_up_suite(tmp_path, METHODS)
    entries = column(main_table(store), "macro-AUC")
    means = {label: float(entry.text.split()[0]) for label, entry in entries.items()}
    ranked = sorted(means, key=means.get, reverse=True)
    assert [entries[label].style for label in ranked[:3]] == ["best", "second", None]
    paired = {row["aggregator"]: row for row in build(store, "made-up").sections[0].paired.tidy if row["metric"] == "macro_auc"}
    assert set(paired) == set(METHODS) - {"abmil"}
    np.testing.assert_allclose(
        [paired[m]["p_holm"] for m in ("mean", "dsmil", "odd_name & 100% #1")],
        stats.holm([paired[m]["p"] for m in ("mean", "dsmil", "odd_name & 100% #1")]),
    )
    for label, entry in entries.items():
        assert entry.dagger == (label != "ABMIL" and paired[label.lower()]["p_holm"] < 0.05)
    assert entries["MEAN"].dagger, "a method with 2.5 times the noise is found out"
    assert paired["mean"]["difference"] == pytest.approx(means["MEAN"] - means["ABMIL"], abs=1e-3)


def test_a_partial_row_is_marked_and_not_ranked(tmp_path):
    store, _ = made_up_suite(tmp_path, METHODS, skip={("odd_name & 100% #1", 0, 0): "pending", ("mean", 0, 0): "oom"})
    report = build(store, "made-up")
    entries = column(report.sections[0].table, "macro-AUC")
    assert entries["ODD_NAME & 100% #1"].style is None
    assert report.sections[0].table.partial == "2 of 12 trials have no result (1 out of memory, 1 not run)"
    notes = " ".join(report.sections[0].table.notes)
    assert f"({entries['ODD_NAME & 100% #1'].mark}) not run; over 2 of 3 runs, not ranked" in notes
    assert f"({entries['MEAN'].mark}) out of memory: because of oom; over 2 of 3 runs, not ranked" in notes


def test_what_did_not_run_is_a_dash_with_the_reason(tmp_path):
    skip = {("dsmil", fold, 0): "skipped" for fold in range(3)}
    store, _ = made_up_suite(tmp_path, METHODS, skip=skip)
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
    store, _ = made_up_suite(tmp_path, METHODS, folds=1)
    table = main_table(store)
    assert "±" not in column(table, "macro-AUC")["ABMIL"].text
    assert any(note.startswith("One run, no spread") for note in table.notes)


def test_an_undefined_metric_is_a_dash_with_a_note(tmp_path):
    store, plan = made_up_suite(tmp_path, METHODS)
    cell = next(c for c in plan.cells if c.aggregator == "mean")
    shutil.rmtree(store.folder(cell.trial_id))
    result = finished(store.read(next(c for c in plan.cells if c.aggregator == "abmil").trial_id).spec)
    trial = result.spec.model_copy(update={"aggregator": "mean", "fold": cell.fold, "seed": cell.seed})
    assert trial.trial_id == cell.trial_id
    target, score = np.zeros(30, int), np.full((30, 3), 1 / 3)
    slides = [f"f{cell.fold}-{i:03d}" for i in range(30)]
    store.write(finished(trial, {"macro_auc": None, "macro_f1": 1 / 3}), predictions_file(slides, target, score))
    table = main_table(store)
    assert column(table, "macro-AUC")["MEAN"].text == "–"
    assert any("lacks a class, so the metric is undefined" in note for note in table.notes)


def test_trials_that_test_other_slides_are_never_paired(tmp_path):
    store, plan = made_up_suite(tmp_path, METHODS)
    cell = next(c for c in plan.cells if c.aggregator == "mean")
    path = store.folder(cell.trial_id) / "predictions.csv"
    path.write_text(path.read_text().replace("f0-000,f0-000", "f9-000,f9-000"))
    sign(store, cell.trial_id)
    with pytest.raises(MilbenchError, match="test other slides, they cannot be paired"):
        build(store, "made-up")


def test_missing_predictions_are_named(tmp_path):
    store, plan = made_up_suite(tmp_path, METHODS)
    (store.folder(plan.cells[0].trial_id) / "predictions.csv").unlink()
    with pytest.raises(MilbenchError, match=r"predictions\.csv is missing; remove the folder"):
        build(store, "made-up")


def test_another_schema_is_refused(tmp_path):
    store, plan = made_up_suite(tmp_path, METHODS)
    path = store.folder(plan.cells[0].trial_id) / "trial.json"
    path.write_text(path.read_text().replace('"schema": 2', '"schema": 3', 1))
    with pytest.raises(MilbenchError, match="result schema 3, this milbench reads 2"):
        build(store, "made-up")


def test_unknown_metric_in_a_table_is_named(tmp_path):
    table = {"name": "x", "columns": ["metric"], "metrics": ["auc"], "groups": [], "reference": "abmil"}
    store, plan = made_up_suite(tmp_path, METHODS)
    path = store.root / "suites" / "made-up.json"
    path.write_text(plan.model_copy(update={"definition": {**plan.definition, "table": table}}).model_dump_json())
    with pytest.raises(MilbenchError, match=r"table\.metrics: 'auc' cannot be printed; use macro_auc"):
        build(store, "made-up")


def test_groups_are_separated_by_rules(tmp_path):
    layout = {"name": "x", "columns": ["metric"], "metrics": ["macro_auc"], "groups": [["mean", "mean"], ["abmil", "dsmil"]]}
    grid = {"aggregator": ["mean", "abmil", "dsmil"]}
    store, _ = made_up_suite(tmp_path, METHODS, table={**layout, "reference": "abmil"}, grid=grid)
    assert [row.rule for row in main_table(store).rows] == [False, True, False, True], "rows of one's own stand below a rule"
