"""`milbench data add` and `data check`: every mistake has its own message, stops with an error and leaves nothing behind."""

import json
import re

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from milbench import MilbenchError, datasets
from milbench.cli import main
from milbench.errors import NotHere
from tests.builders import folders
from tests.builders.command import milbench


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    """The data folder of the test."""
    monkeypatch.setenv("MILBENCH_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


def arguments(root, **other):
    """What adds the cohort in `root`, with other values or without those that are None."""
    given = {"name": "mine", "--features": root / "features", "--encoder": "enc", "--labels": root / "labels.csv", "--splits": root / "labels.csv", **other}  # fmt: skip
    name = given.pop("name")
    return ["data", "add", name, *(word for option, value in given.items() if value is not None for word in (option, value))]


def test_there_are_enough_mistakes_and_each_has_words_of_its_own():
    assert len(folders.BROKEN) >= 25
    assert len({says for _, says in folders.BROKEN.values()}) == len(folders.BROKEN)


@pytest.mark.parametrize("name", folders.BROKEN)
def test_a_mistake_is_told_and_nothing_is_written(name, tmp_path, data):
    breaks, says = folders.BROKEN[name]
    other = breaks(folders.cohort(tmp_path / "in")) or {}
    done = CliRunner().invoke(main, [str(word) for word in arguments(tmp_path / "in", **other)])
    assert done.exit_code in (1, 2), done.output
    told = [line for line in done.output.splitlines() if line.startswith(("ERROR", "milbench:"))]
    assert re.search(says, "\n".join(told)), done.output
    others = [key for key, (_, words) in folders.BROKEN.items() if key != name and re.search(words, "\n".join(told))]
    assert not others, "the message of another mistake fits as well"
    assert not data.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert not (tmp_path / "in" / "trapped").exists(), "code of a pickle was run"


def add(root, **other):
    return milbench(*arguments(root, **other))


def findings(*words, code=0):
    """kind -> finding, of `data check --json`."""
    told = milbench("data", "check", "mine", "--json", *words, code=code)
    found = json.loads(told[told.index("{") :])  # a slow machine tells of its progress first
    assert found["errors"] == sum(one["severity"] == "error" for one in found["findings"])
    return {one["kind"]: one for one in found["findings"]}


def test_what_was_understood_is_told(tmp_path, data):
    told = add(folders.cohort(tmp_path / "in"))
    for line in (
        "mine (mine): subtyping of slides",
        "../in/labels.csv (slide = slide_id, case = case_id, label = label): 12 slides of 12 cases",
        "0 normal: 6 · 1 tumour: 6",
        "enc: 12 slides, 6 wide, float32, 186 patches, patches 448 px apart (../in/features/h5_files, h5)",
        "official: column split of slide_id",
        "fold 0: 6/3/3 (train/val/test)   normal 3/1/2 · tumour 3/2/1",
        "mine: 0 errors, 1 warning",
        f"Written: {data / 'mine.toml'}",
    ):
        assert line in told
    found = json.loads(milbench("data", "check", "mine", "--json"))
    assert (found["samples"], found["cases"], found["classes"]) == (12, 12, {"normal": 6, "tumour": 6})
    assert found["features"] == [
        {
            "encoder": "enc", "magnification": None, "patch_size": None, "slides": 12, "width": 6, "patches": 186,
            "dtypes": ["float32"], "steps": [448.0],
        }
    ]  # fmt: skip
    assert found["splits"][2] == {
        "split": "official", "fold": 0, "part": "test", "samples": 3, "cases": 3, "classes": {"normal": 2, "tumour": 1},
    }  # fmt: skip


def test_odd_things_are_warnings_and_reach_the_notes_of_a_table(tmp_path):
    root = folders.cohort(tmp_path / "in", n=24)
    change = folders.change
    change(root / "labels.csv", "P23,", "P0,")  # in training and test
    change(root / "labels.csv", "S-12,tumour,val", "S-12,tumour,")
    place = root / "features" / "h5_files"
    x, xy = folders.vectors(5, 30), folders.positions(30)
    folders.h5(place / "S-05.h5", features=x, coords=np.concatenate([xy[:28], xy[:2]]))
    folders.h5(place / "S-06.h5", features=x[:25], coords=np.random.default_rng(0).integers(0, 9999, (25, 2)))
    folders.h5(place / "S-07.h5", features=x, coords=folders.positions(30, 224))
    folders.h5(place / "S-09.h5", features=folders.vectors(8, 18), coords=folders.positions(18))
    for slide, n in (("S-05", 30), ("S-06", 25), ("S-07", 30), ("S-09", 18)):
        attributes = {"patch_size": 224, "patch_level": 1, "downsample": (2.0, 2.0)}
        folders.h5(root / "features" / "patches" / f"{slide}.h5", coords=(folders.positions(n), attributes))
    add(root, **{"--encoder": "uni"})
    found = findings()
    assert {kind: one["ids"] for kind, one in found.items() if one["severity"] == "warning"} == {
        "patients": ["P0"],
        "unused": ["S-12"],
        "encoder-width": [],
        "copies": ["S-08 = S-09"],
        "duplicates": ["S-05 (2)"],
        "off-lattice": ["S-06"],
        "stride": ["S-07"],
    }
    assert found["patients"]["what"].startswith("1 patient with slides in two parts, 1 of them in training and test")
    assert found["encoder-width"]["what"] == "features are 6 wide, those of uni are 1024"
    assert found["stride"]["what"] == "1 slide whose patches lie 224 px apart, not 448 as their files or the manifest say"
    data = datasets.load("mine", "uni")
    assert len(data.notes) == 7
    assert any("S-08 = S-09" in note for note in data.notes)
    assert not any(str(tmp_path) in note for note in data.notes), "a report does not show folders of this machine"


def test_notes_say_what_was_assumed(tmp_path):
    root = folders.cohort(tmp_path / "in", patches=False)
    folders.h5(root / "features" / "h5_files" / "S-01.h5", features=folders.vectors(1, 11)[None], coords=folders.positions(11))
    folders.h5(
        root / "features" / "h5_files" / "S-02.h5",
        features=folders.vectors(2, 12).astype(np.float64),
        coords=folders.positions(12),
    )
    folders.h5(root / "features" / "h5_files" / "other.h5", features=folders.vectors(99, 12), coords=folders.positions(12))
    add(root)
    found = findings()
    assert found["lattice"]["what"] == "no file says how far patches lie apart; taken from their positions: 448 px in 12"
    assert {kind: found[kind]["ids"] for kind in ("squeezed", "dtype", "unlisted")} == {
        "squeezed": ["S-01"], "dtype": ["S-02"], "unlisted": ["other"],
    }  # fmt: skip
    assert {one["severity"] for kind, one in found.items() if kind != "no-cases"} == {"note"}


def test_only_deep_reads_every_feature(tmp_path):
    root = folders.cohort(tmp_path / "in", sizes=[100] * 12)
    path = root / "features" / "h5_files" / "S-03.h5"
    add(root)
    assert "nan" not in findings()
    with h5py.File(path, "r+") as file:
        file["features"][3, 1] = np.inf  # not among the rows that identify a file
        other = root / "features" / "h5_files" / "S-04.h5"
    with h5py.File(other, "r+") as file:
        file["features"][:] = 1.0
    assert "nan" not in findings()
    found = findings("--deep", code=1)
    assert found["nan"]["ids"] == ["S-03 (1 of 100 patches)"]
    assert found["constant"]["ids"] == ["S-04"]


def test_what_was_seen_is_remembered_until_a_file_changes(tmp_path, data, monkeypatch):
    from milbench.datasets.files import seen
    from milbench.datasets.files.formats import inspect

    monkeypatch.setattr(seen, "too_young", lambda state, at: False)
    root = folders.cohort(tmp_path / "in")
    add(root)
    assert sorted(path.name for path in data.iterdir()) == [".seen", "mine.toml"]
    before = datasets.load("mine", "enc").fingerprint
    looked = []
    monkeypatch.setattr(seen, "inspect", lambda path, *more, **how: looked.append(path.name) or inspect(path, *more, **how))
    assert datasets.load("mine", "enc").fingerprint == before
    assert looked == []
    with h5py.File(root / "features" / "h5_files" / "S-03.h5", "r+") as file:
        file["features"][0, 0] += 1
    assert datasets.load("mine", "enc").fingerprint != before
    assert looked == ["S-03.h5"]


def test_a_run_stops_before_the_first_epoch(tmp_path, data):
    root = folders.cohort(tmp_path / "in")
    add(root)
    (tmp_path / "mine.toml").write_text(
        'title = "Mine"\n[grid]\ndataset = ["mine"]\nencoder = ["enc"]\nsplit = ["official"]\nseed = [0]\naggregator = ["mean"]\n'
        '[table]\nname = "mine"\nmetrics = ["macro_auc"]\n'
    )
    folders.BROKEN["nan"][0](root)
    folders.BROKEN["another_width"][0](root)
    (root / "features" / "h5_files" / "S-05.h5").unlink()
    told = milbench("run", "--suite", "mine.toml", code=2)
    assert "milbench: dataset mine has 2 errors; the first: enc: 1 of 12 slides without" in told
    assert "See all with: milbench data check mine" in told
    assert not (tmp_path / "results").exists()
    assert "ERROR" in milbench("data", "check", "mine", code=1)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("task =", "taks =", r"mine\.toml: taks: extra inputs are not permitted"),
        ("[splits]", "[splits", r"mine\.toml: not TOML"),
        ('unit = "slide"', 'unit = "pixel"', r"mine\.toml: unit: input should be 'slide' or 'case'"),
        ('task = "subtyping"', 'task = "survival"', "survival is predicted for cases"),
        ('task = "subtyping"', 'task = "subtyping"\npublished = "brax"', "published is one of bracs, tcga-brca, .* not brax"),
    ],
)
def test_a_manifest_edited_wrongly_names_file_and_key(tmp_path, data, old, new, says):
    add(folders.cohort(tmp_path / "in"))
    folders.change(data / "mine.toml", old, new)
    assert re.search(says, milbench("data", "check", "mine", code=2))
    assert re.search(says, milbench("ls", "datasets", code=2))


@pytest.mark.parametrize(
    ("gone", "kind"),
    [("features", "folder"), ("labels.csv", "labels"), ("features/patches", "folder"), ("survival.csv", "split")],
)
def test_what_was_there_when_it_was_added_and_is_gone(tmp_path, gone, kind):
    root = folders.cohort(tmp_path / "in")
    add(root, **{"--splits": root / "survival.csv"})
    (root / gone).rename(tmp_path / "elsewhere")
    found = findings(code=1)
    assert found[kind]["severity"] == "error"
    with pytest.raises(MilbenchError, match="dataset mine has 1 error; the first"):
        datasets.load("mine", "enc")


def test_names_that_are_not_here():
    told = milbench("data", "check", "mine", code=2)
    assert "there are no datasets in" in told and "milbench data add mine" in told
    with pytest.raises(
        NotHere,
        match="milbench data add bracs --encoder uni --magnification 20 --patch-size 224 --features DIR --labels CSV --splits",
    ):
        datasets.load("bracs", "uni", 20, 224)
    with pytest.raises(MilbenchError, match="unknown dataset 'brcs'; did you mean bracs") as caught:
        datasets.load("brcs", "uni")
    assert not isinstance(caught.value, NotHere)


def test_other_features_of_a_dataset_that_is_here(tmp_path):
    add(folders.cohort(tmp_path / "in"), **{"--magnification": 20})
    says = r"no features of uni 20x 224 px \(it has enc 20x\); add them with: milbench data add mine --encoder uni --magnification 20 --patch-size 224 --features DIR$"
    with pytest.raises(NotHere, match=says):
        datasets.load("mine", "uni", 20, 224)
    with pytest.raises(NotHere, match="no features of enc "):
        datasets.load("mine", "enc", 40)
    assert "unknown dataset in" in milbench("data", "check", "mien", code=2)


def test_counts_are_held_against_the_published_ones(shared):
    root = shared / "data"
    bracs, brca, survival = root / "bracs", root / "tcga_brca_subtyping", root / "tcga_survival"
    official = bracs / "bracs_official_merged.csv"
    told = milbench("data", "add", "bracs", "--labels", official, "--splits", official)
    assert "0 benign (N, PB, UDH): 265 · 1 atypical (FEA, ADH): 89 · 2 malignant (DCIS, IC): 193" in told
    assert "395/65/87 (train/val/test)   benign 203/30/32 · atypical 52/14/23 · malignant 140/21/32" in told
    twin = "official-grouped has none of these; 10 slides of unknown patients may leak there, too"
    assert f"1 patient with slides in two parts, 0 of them in training and test ({twin}): 67" in told
    assert "as published" not in told
    told = milbench("data", "add", "mamba", "--published", "bracs", "--labels", bracs / "mambamil_BRACS.csv", "--splits", bracs / "mambamil_splits_0.csv")  # fmt: skip
    for line in ("547 slides, here 545", "265 benign, here 263", "official differs in 1 fold: fold 0 395/65/87, here 394/64/87"):
        assert f"bracs as published: {line}" in told
    told = milbench("data", "add", "tcga-brca", "--labels", brca / "acmil_brca_hipt.csv", "--splits", brca / "10foldcv")
    assert "0 IDC: 831 · 1 ILC: 210" in told
    assert "11 to 25 patients of each fold with slides in two parts, 4 to 15 of them in training and test" in told
    assert "as published" not in told
    for cohort, cases in (("brca", 956), ("coadread", 340), ("stad", 349)):
        folds, labels = survival / "hipt_5foldcv" / f"tcga_{cohort}", survival / f"tcga_cdr_{cohort}_hipt_cases.csv"
        told = milbench("data", "add", f"tcga-{cohort}-survival", "--labels", labels, "--splits", folds)
        assert f"event = OS): {cases} cases" in told
        assert "as published" not in told
        assert "split     hipt5: 5 files" in told and "its validation part is tested" in told


def test_a_table_that_lacks_cases_of_the_folds_needs_a_decision(shared, tmp_path):
    root = shared / "data" / "tcga_survival"
    words = ["data", "add", "tcga-brca-survival", "--labels", root / "mambamil_BRCA_processed.csv", "--splits", root / "hipt_5foldcv" / "tcga_brca"]  # fmt: skip
    told = milbench(*words, code=1)
    assert "24 ids not in the label table: TCGA-AC-A7VC" in told
    have = {line.split(",")[1] for line in (root / "mambamil_BRCA_processed.csv").read_text().splitlines()[1:]}
    want = {line.split(",")[0] for line in (root / "tcga_cdr_brca_hipt_cases.csv").read_text().splitlines()[1:]}
    (tmp_path / "leave.txt").write_text("\n".join(sorted(want - have)))
    told = milbench(*words, "--exclude", tmp_path / "leave.txt")
    assert "24 slides or cases left out by choice" in told
    assert "hipt5 differs in 5 folds: fold 0 764/0/192, here 746/0/186" in told
