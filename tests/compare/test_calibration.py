"""A method against itself: which groups meet, what is counted, and the page that says it."""

import csv

import numpy as np
import pytest

from milbench import MilbenchError, reading, stats
from milbench.api.calibrations import calibration
from milbench.compare import calibration as calibrations
from milbench.compare.calibration import calibrate, of_sheet, of_suite
from milbench.compare.methods import Method
from milbench.metrics import METRICS
from milbench.papers.sheets import Sheet, predictions
from tests.builders.command import milbench
from tests.builders.results import made_up_suite


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch, unflushed):
    monkeypatch.setattr(calibrations, "REPLICATES", 100)
    monkeypatch.setattr(calibrations, "SIZES", (2, 1))


@pytest.fixture
def store(tmp_path):
    return made_up_suite(tmp_path, {"abmil": 1.0, "mean": 1.0}, folds=1, seeds=6, n=24)[0]


def test_groups_of_a_suite_meet_by_every_test(store):
    (trainings,) = of_suite(Method.find(store, "abmil", "made-up"), None)
    assert (trainings.seeds, trainings.data, trainings.method) == (list(range(6)), "Toy", "ABMIL")
    found = calibrate(trainings, METRICS["macro_f1"], 2)
    assert {"primary", "these models", "paired-bootstrap", "permutation", "mcnemar", "wilcoxon", "anova", "welch"} == set(
        found.tests
    )
    assert {(each.groups, each.pairs) for each in found.tests.values() if each} == {(3, 3)}
    runs = [run for run in reading.read(store, reading.leaves(store, "made-up")[0]) if run.cell.aggregator == "abmil"]
    metric = [lambda w, r=r: METRICS["macro_f1"](r.predictions, w) for r in runs]
    target = runs[0].predictions["target"]
    p = [stats.primary([stats.Fold(metric[a : a + 2], metric[b : b + 2], target)]).p for a, b in ((0, 2), (0, 4), (2, 4))]
    assert found.tests["primary"].share == pytest.approx(np.mean(np.array(p) < 0.05))


def test_one_against_one_on_one_split_has_no_primary_test(store):
    (trainings,) = of_suite(Method.find(store, "abmil", "made-up"), 4)
    found = calibrate(trainings, METRICS["macro_auc"], 1)
    assert found.tests["primary"] is None
    assert found.tests["paired-bootstrap"].pairs == 6
    assert "anova" not in found.tests


def test_too_few_trainings_are_told(store):
    method = Method.find(store, "abmil", "made-up")
    with pytest.raises(MilbenchError, match="6 seeds finished every fold, 40 were asked for"):
        of_suite(method, 40)
    with pytest.raises(MilbenchError, match="three groups of seeds or more, 6 trainings by 5 make 1"):
        calibrate(of_suite(method, None)[0], METRICS["macro_auc"], 5)
    with pytest.raises(MilbenchError, match="--suite NAME that was run with many seeds, or --predictions FILE"):
        calibration(results=store.root)


def write_sheet(path, trainings=6, n=18, folds=2):
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["model", "fold", "case", "target", "p0", "p1"])
        for training in range(trainings):
            for fold in range(folds):
                for case in range(n):
                    p = float(np.clip(0.5 + 0.3 * (case % 2 - 0.5) + 0.2 * rng.normal(), 0, 1))
                    out.writerow([f"seed {training}", fold, f"{fold}-{case}", case % 2, 1 - p, p])
    return path


def test_models_of_a_file_are_trainings(tmp_path):
    sheet = Sheet.read(write_sheet(tmp_path / "lung-tiles.csv"))
    (trainings,) = of_sheet(sheet, predictions(sheet), 5)
    assert (trainings.data, len(trainings.seeds), len(trainings.folds)) == ("lung tiles", 5, 2)
    found = calibrate(trainings, METRICS["macro_auc"], 1)
    assert found.tests["primary"].pairs == 10, "two folds allow a p-value"
    assert found.tests["delong"].pairs == 10
    assert found.tests["nadeau-bengio"] is None, "how many cases trained is not in the file"
    sheet.rows[:] = sheet.rows[:-18]
    with pytest.raises(MilbenchError, match="seed 5 lacks one of the 2 folds"):
        of_sheet(sheet, predictions(sheet), None)


def test_the_command_writes_a_page(store, tmp_path, monkeypatch):
    sheet = write_sheet(tmp_path / "other.csv", folds=1)
    told = milbench(
        "analyze", "calibration", "--suite", "made-up", "--predictions", sheet, "--seeds", 6, "--results", store.root,
        "--reports", tmp_path / "reports",
    )  # fmt: skip
    assert "primary test: other patients, other trainings" in told
    folder = tmp_path / "reports" / "calibration"
    for name in ("report.md", "report.html", "tables/calibration.csv", "figures/calibration.png", "figures/calibration.csv"):
        assert (folder / name).is_file(), name
    with (folder / "tables" / "calibration.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["data"] for row in rows} == {"Toy", "other"}
    assert {row["test"] for row in rows} >= {"primary", "paired-bootstrap", "permutation", "delong", "mcnemar", "wilcoxon"}
    assert all(float(row["se"]) > 0 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["macro_auc", "macro_f1"])
def test_the_primary_test_keeps_its_level_on_real_bags(shared, tmp_path, metric):
    """40 trainings of AB-MIL on lung tiles, five against five."""
    with np.load(shared / "cases" / "statistics" / "aa_lung_abmil.npz") as file:
        target, score = file["target"], file["score"]
    cases = [f"tile {i:02d}" for i in range(len(target))]
    runs = {
        (0, seed): type("Case", (), {"identity": seed, "predictions": {"slide": np.array(cases), "target": target, "score": p}})()
        for seed, p in enumerate(score)
    }
    found = calibrate(calibrations.Trainings("lung tiles", "", runs, ()), METRICS[metric], 5)
    assert found.tests["primary"].share <= 0.07
    assert found.tests["paired-bootstrap"].share > 0.15
