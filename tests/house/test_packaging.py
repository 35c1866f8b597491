"""The house itself: packaging, printed numbers, and what must not be in it."""

import csv
import subprocess
import sys
import tomllib
import venv
from importlib.resources import files
from pathlib import Path

import pytest

from milbench import papers
from tests import ROOT


def test_every_package_is_shipped():
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "milbench").rglob("__init__.py")}
    published = {f"milbench_published.{name}" for name in papers.names()}
    assert set(setup["packages"]) == found | {"milbench_registry", "milbench_published"} | published


def test_printed_numbers_travel_and_are_complete():
    text = (files("milbench_published") / "longmil_neurips2024" / "numbers.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == 268
    row = next(
        r
        for r in rows
        if r["table"] == "table1" and r["aggregator"] == "longmil" and r["encoder"] == "vits-lunit" and r["metric"] == "macro_auc"
    )
    assert (row["mean"], row["sd"]) == ("0.888", "0.019")


def test_printed_numbers_are_as_printed(shared):
    with (shared / "paper" / "tables.csv").open() as file:
        printed = [(r["table"], r["method"], r["encoder"], r["mean"], r["std"]) for r in csv.DictReader(file)]
    with (ROOT / "results" / "published" / "longmil_neurips2024" / "numbers.csv").open() as file:
        ours = [(r["table"], r["method"], r["encoder"], r["mean"], r["sd"]) for r in csv.DictReader(file)]
    assert ours == printed


def test_docstrings_of_aggregators_name_their_source():
    from milbench import plugins

    for entry in plugins.entries():
        assert "Source:" in (entry.cls.__doc__ or ""), entry.where
        assert "Checkpoints:" in (entry.cls.__doc__ or ""), f"{entry.where}: which public weights load?"
        for task, recipe in entry.cls.official_recipe.items():
            assert recipe.get("source"), f"{entry.where}: where the official recipe for {task} comes from"
            assert "not_followed" in recipe, f"{entry.where}: what of it is not followed, or nothing"


@pytest.mark.slow
def test_the_wheel_works_alone(tmp_path):
    """Build, install beside this environment's dependencies, run from an empty folder."""
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "env", with_pip=True, system_site_packages=False)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True)
    paths = [path for path in sys.path if path.endswith("site-packages")]  # the dependencies, without our editable install
    (next((tmp_path / "env" / "lib").glob("python*/site-packages")) / "dependencies.pth").write_text("\n".join(paths) + "\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    milbench = tmp_path / "env" / "bin" / "milbench"
    where = subprocess.run(
        [python, "-c", "import milbench; print(milbench.__file__)"], cwd=empty, check=True, capture_output=True, text=True
    )
    assert str(tmp_path) in where.stdout
    few = ["--suite", "quickstart", "--aggregators", "abmil,mean", "--folds", "0", "--epochs", "1"]
    assert (
        "2 trials, 2 ok." in subprocess.run([milbench, "run", *few], cwd=empty, check=True, capture_output=True, text=True).stdout
    )
    subprocess.run([milbench, "report"], cwd=empty, check=True, capture_output=True)
    assert (empty / "reports" / "quickstart" / "report.md").is_file()
    code = (
        "from importlib.resources import files; "
        "print(all((files('milbench_published') / 'longmil_neurips2024' / f).is_file() for f in ('numbers.csv', 'claims.toml')))"
    )
    assert "True" in subprocess.run([python, "-c", code], cwd=empty, check=True, capture_output=True, text=True).stdout


def test_the_readme_says_what_the_kept_reports_say():
    text = " ".join((ROOT / "README.md").read_text().split())

    def column(suite, table, name):
        with (ROOT / "reports" / suite / "tables" / f"{table}.csv").open() as file:
            return [row[name] for row in csv.DictReader(file) if row[name]]

    def cells(suite):
        words, why = (column(suite, f"{suite}-capability", name) for name in ("verdict", "why"))
        return words.count("undecided"), len(words), why.count("the training loss did not fall")

    agreed = column("spatial", "spatial-capability", "agreed")
    assert f"Of {len(agreed)} predictions {agreed.count('as expected')} came true" in text
    undecided, all_cells, not_learnt = cells("spatial")
    assert f"{undecided} of {all_cells} cells are undecided. In {not_learnt} of them the training loss did not fall" in text
    agreed = column("modern-spatial", "modern-spatial-capability", "agreed")
    assert f"{agreed.count('as expected')} of {len(agreed)} predictions that can be judged came true" in text
    undecided, all_cells, not_learnt = cells("modern-spatial")
    assert f"{undecided} of {all_cells} are undecided, in {not_learnt} the training loss did not fall" in text
    within = column("classic", "classic-printed", "within")
    assert f"Of {len(within)} printed accuracies {within.count('1')} are within" in text
    lines = (ROOT / "reports" / "quickstart" / "report.md").read_text().splitlines()
    assert next(line for line in lines if line.startswith("| AB-MIL |")) in text, "the table of the quickstart"


@pytest.mark.slow
def test_quickstart_end_to_end(tmp_path):
    """The whole suite as the README runs it: every trial ends well, and the table holds every method."""
    milbench = Path(sys.executable).parent / "milbench"
    subprocess.run([milbench, "run", "--suite", "quickstart"], cwd=tmp_path, check=True, capture_output=True)
    told = subprocess.run(
        [milbench, "report", "--suite", "quickstart"], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout
    assert "n = 58 slides" in told
    with (tmp_path / "reports" / "quickstart" / "tables" / "quickstart.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["aggregator"], row["runs"]) for row in rows} == {
        (name, "5") for name in ("mean", "max", "abmil", "dsmil", "clam-sb", "transmil[landmarks=32]")
    }
    assert all(float(row["mean"]) > 0.6 for row in rows if row["metric"] == "macro_auc"), "every method learns something"
