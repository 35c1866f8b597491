"""From folders of features to a table, with the commands that a user types."""

import csv
import gzip
import json
import re
import shutil
from collections import defaultdict, namedtuple

import numpy as np
import pytest

from tests.builders import folders
from tests.builders.command import milbench
from tests.builders.folders import table

Usage = namedtuple("Usage", "total used free")
SUITE = """
title = "{title}"
task = "{task}"
[grid]
dataset = ["{dataset}"]
encoder = ["{encoder}"]
split = {splits}
fold = [0]
seed = [0]
aggregator = {aggregators}
standardise = true
[recipe]
name = "paper"
max_epochs = {epochs}
lr = 1e-3
[table]
name = "{title}"
columns = ["metric"]
metrics = {metrics}
reference = "mean"
"""


pytestmark = pytest.mark.usefixtures("run_here")


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MILBENCH_DATA", raising=False)


def results(folder):
    """(aggregator, split) -> trial.json of every trial."""
    found = [json.loads(path.read_text()) for path in (folder / "results" / "trials").glob("*/trial.json")]
    return {(one["spec"]["aggregator"], one["spec"]["split"]): one for one in found}


def run(cwd, *more, **suite):
    """Write a suite, run it, report it; returns results and the report's text."""
    values = {"task": "subtyping", "aggregators": ["mean", "abmil"], "epochs": 2, "metrics": ["macro_auc"], **suite}
    (cwd / "s.toml").write_text(
        SUITE.format(title="s", **{k: json.dumps(v) if isinstance(v, list) else v for k, v in values.items()})
    )
    milbench("run", "--suite", "s.toml", *more)
    milbench("report", "--suite", "s")
    return results(cwd), (cwd / "reports" / "s" / "report.md").read_text()


def test_made_up_slides(tmp_path, monkeypatch):
    """Adding, checking, running and reporting, with the data folder elsewhere, a run that changes nothing and a change that is seen."""
    root = folders.cohort(tmp_path / "in", n=24, shift=2.0)
    folders.change(root / "labels.csv", "P23,", "P0,")
    data = ("--data", tmp_path / "mine")
    told = milbench(
        "data", "add", "made-up", *data, "--label", "Made up", "--features", root / "features", "--encoder", "enc",
        "--labels", root / "labels.csv", "--splits", root / "labels.csv",
    )  # fmt: skip
    assert "24 slides, 6 wide, float32" in told
    assert "made-up: 0 errors, 1 warning" in milbench("data", "check", "made-up", "--deep", *data)
    assert "Made up" in milbench("ls", "datasets", *data)
    how = dict(
        dataset="made-up",
        encoder="enc",
        splits=["official"],
        aggregators=["mean", "abmil", "longmil"],
        epochs=5,
    )
    found, report = run(tmp_path, *data, **how)
    assert len(found) == 3
    assert {one["status"] for one in found.values()} == {"ok"}
    assert found["abmil", "official"]["metrics"]["test"]["macro_auc"] == 1
    assert "Made up: 24 slides, 12 normal, 12 tumour" in report
    assert "1 patient with slides in two parts, 1 of them in training and test" in report, "a leak is told under the table"
    saved = sorted(path.name.rsplit("-", 1)[0] for path in (tmp_path / "results" / "splits").iterdir())
    assert saved == ["made-up-official"]
    assert "Nothing to run: 3 trials" in milbench("run", "--suite", "s.toml", *data)
    (pack,) = (tmp_path / "mine" / ".packed").glob("*.pack")
    assert re.fullmatch(r"made-up-enc\.[0-9a-f]{8}\.float32\.[0-9a-f]{16}\.pack", pack.name)
    pack.unlink()
    milbench("run", "--suite", "s.toml", *data, "--no-pack", "--results", "direct", "--aggregators", "abmil,mean")
    assert not pack.exists()
    again = list((tmp_path / "direct" / "trials").glob("*/predictions.csv"))
    assert len(again) == 2
    for path in again:
        assert path.read_bytes() == (tmp_path / "results" / "trials" / path.parent.name / path.name).read_bytes()
    folders.change(root / "labels.csv", "S-03,normal", "S-03,tumour")
    assert "3 trials: 3 to run" in milbench("run", "--suite", "s.toml", *data, "--dry-run")


def test_a_disk_too_small_for_the_pack_stops_the_run_before_anything_is_written(tmp_path, monkeypatch):
    root = folders.cohort(tmp_path / "in", n=24)
    labels = ("--labels", root / "labels.csv", "--splits", root / "labels.csv")
    milbench("data", "add", "made-up", "--features", root / "features", "--encoder", "enc", *labels)
    values = dict(title="s", task="subtyping", dataset="made-up", encoder="enc", splits='["official"]', epochs=1)
    (tmp_path / "s.toml").write_text(SUITE.format(**values, aggregators='["mean"]', metrics='["macro_auc"]'))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1, 1, 0))
    told = milbench("run", "--suite", "s.toml", code=2)
    assert re.fullmatch(
        r"milbench: packing made-up-enc needs 0\.1 MB in data/\.packed, where 0\.0 MB are free; set MILBENCH_CACHE to a folder "
        r"with room that can be written to, or read the files directly with --no-pack\n",
        told,
    )
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_lung_tiles(shared, tmp_path):
    """Real tissue in CLAM's layout: trained on a fifth of the slides, as the folder's README advises."""
    source = shared / "data" / "lung_tiles"
    with (source / "labels.csv").open() as file:
        every = list(csv.DictReader(file))
    assert len(every) == len(list((source / "h5_files").glob("*.h5")))
    part = ["train", "val", "test", "test", "test"]
    table(tmp_path / "splits.csv", ["slide_id", "split"], [[row["slide_id"], part[i % 5]] for i, row in enumerate(every)])
    told = milbench(
        "data", "add", "lung", "--features", source, "--encoder", "effnet", "--magnification", 20, "--patch-size", 16,
        "--labels", source / "labels.csv", "--splits", tmp_path / "splits.csv",
    )  # fmt: skip
    for line in (
        "0 adenocarcinoma: 195 · 1 normal: 200 · 2 squamous: 199",
        "effnet 20x 16 px: 594 slides, 112 wide, float16, 116,424 patches, patches 16 px apart",
        "no file says how far patches lie apart; taken from their positions: 16 px in 594",
        "fold 0: 119/119/356 (train/val/test)",
    ):
        assert line in told
    # The rest goes over a fifth of the slides, which is quicker.
    few = every[::5]
    table(
        tmp_path / "few.csv", ["case_id", "slide_id", "label"], [[row["case_id"], row["slide_id"], row["label"]] for row in few]
    )
    table(tmp_path / "few-splits.csv", ["slide_id", "split"], [[row["slide_id"], part[i % 5]] for i, row in enumerate(few)])
    told = milbench(
        "data", "add", "few", "--label", "Lung tiles", "--features", source, "--encoder", "effnet", "--labels", tmp_path / "few.csv",
        "--splits", tmp_path / "few-splits.csv",
    )  # fmt: skip
    assert "475 files of slides that are not in the label table" in told
    found, report = run(
        tmp_path,
        dataset="few",
        encoder="effnet",
        splits=["official"],
        aggregators=["mean", "longmil[blocks=1]"],
        epochs=5,
    )
    assert {one["status"] for one in found.values()} == {"ok"}
    for one in found.values():
        assert one["metrics"]["test"]["macro_auc"] > 0.8
        assert np.sum(one["metrics"]["test"]["confusion"]) == 71
    assert "Lung tiles: 119 slides, 39 adenocarcinoma, 40 normal, 40 squamous" in report


@pytest.mark.slow
def test_nsclc_cells(shared, tmp_path):
    """Real tissue of 50 patients with survival: a case is a patient with its four or five regions, its instances are cells."""
    source = shared / "data" / "nsclc_cells"
    regions = defaultdict(list)
    with gzip.open(source / "cells.csv.gz", "rt") as file:
        for row in csv.DictReader(file):
            regions[row["roi"]].append([float(row[key]) for key in list(row)[2:]])
    (tmp_path / "cells").mkdir()
    for name, cells in regions.items():
        array = np.array(cells)
        np.savez(tmp_path / "cells" / f"{name}.npz", features=array[:, 2:].astype(np.float16), coords=array[:, :2], step=20.0)
    told = milbench(
        "data", "add", "nsclc", "--label", "NSCLC", "--task", "survival", "--features", "cells", "--encoder", "phenotypes",
        "--labels", source / "patients.csv",
    )  # fmt: skip
    for line in (
        "(case = patient_id, time = survival_days, event = event): 50 cases",
        "0 censored: 17 · 1 events: 33",
        "247 slides, 6 wide, float16, 285,412 patches, patches 20 px apart",
        "247 slides whose patches lie on no lattice",
    ):
        assert line in told
    found, report = run(
        tmp_path,
        dataset="nsclc",
        encoder="phenotypes",
        splits=["kfold5"],
        task="survival",
        metrics=["c_index"],
        epochs=1,
        aggregators=["mean[hidden=0]", "abmil[hidden=16]"],
    )
    assert {one["status"] for one in found.values()} == {"ok"}
    test = found["abmil", "kfold5"]["metrics"]["test"]
    assert 5 <= test["events"] <= 8
    assert 0 < test["c_index"] < 1
    assert found["abmil", "kfold5"]["spec"]["unit"] == "case"
    assert "NSCLC: 50 cases, 33 events" in report
    assert "patches lie on no lattice" in report
