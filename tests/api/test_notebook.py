"""The Python API: what a notebook calls, what it returns, and what its errors say."""

import doctest
import importlib
import inspect
import runpy
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

import milbench
from milbench import Bag, MilbenchError
from milbench.api import results as api
from milbench.api.runs import ENGINES, RunOptions
from milbench.trials.store import Store
from tests.builders.engine import run_here
from tests.builders.results import finished, made_up_suite, predictions_file, spec

SUITE = """
title = "Two methods on MUSK1"
[grid]
dataset = ["musk1"]
encoder = ["hand-crafted"]
split = ["kfold10"]
seed = [0]
standardise = true
aggregator = ["mean", "abmil[hidden=8]"]
[table]
name = "small"
metrics = ["macro_auc"]
reference = "mean"
"""


def python(code):
    """What a fresh process prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_is_light_and_names_load_on_first_use():
    heavy = "[m for m in ('torch', 'pandas', 'numpy', 'scipy', 'pydantic', 'rich', 'click') if m in sys.modules]"
    assert python(f"import sys, milbench; print({heavy})") == "[]"
    assert python("import sys, milbench; milbench.load_results, milbench.status; print('torch' in sys.modules)") == "False"


def test_every_public_name_is_there_and_documented():
    assert set(milbench.__all__) <= set(dir(milbench))
    for name in milbench.__all__:
        assert getattr(milbench, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = milbench.nothing


BEFORE = [
    "",
    "import milbench.report",
    "import milbench.report.tables",
    "from milbench.report import build",
    "import milbench.report.tables as tables",
    "milbench.report; import milbench.report.tables",
    "from milbench.api.reports import report",
    "import importlib; importlib.import_module('milbench.report.build')",
]
CALLS = """
import inspect
print(list(inspect.signature(milbench.report).parameters)[0])
try: milbench.report('quickstart', results='nowhere')
except milbench.MilbenchError as error: print(error)
import milbench.report.tables, milbench.report.tables as tables
assert milbench.report.tables is tables
try: milbench.report('quickstart', results='nowhere')
except milbench.MilbenchError as error: print('again')
"""


@pytest.mark.slow
def test_a_function_is_not_hidden_by_the_package_of_its_name():
    """Whatever was imported before: `milbench.report(...)` is the function, and its package's modules can be reached."""
    anew = (
        "import sys\nfor name in [name for name in sys.modules if name.partition('.')[0] == 'milbench']: del sys.modules[name]\n"
    )
    lines = python("".join(f"{anew}import milbench\n{before}\n{CALLS}" for before in BEFORE)).splitlines()
    for before, first, second, third in zip(BEFORE, lines[::3], lines[1::3], lines[2::3], strict=True):
        assert first == "suite", before
        assert second.startswith("nothing was run into nowhere yet"), before
        assert third == "again", before


@pytest.mark.parametrize("name", ["models", "data", "runs", "results", "comparisons", "reports"])
def test_examples_in_docstrings(name):
    module = importlib.import_module(f"milbench.api.{name}")
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0


def test_examples_of_bags():
    assert doctest.testmod(sys.modules["milbench.bags"]).failed == 0


def test_build_takes_a_name_with_parameters_in_brackets_or_as_keywords():
    bag = Bag.from_arrays(np.random.default_rng(0).normal(size=(5, 12)), np.arange(10).reshape(5, 2) * 100, step=100)
    model = milbench.build("abmil[gated=false]", in_dim=12, n_out=3, hidden=8)
    assert model(bag).logits.shape == (3,)
    shapes = [tuple(p.shape) for p in model.parameters()]
    assert shapes == [tuple(p.shape) for p in milbench.build("abmil[hidden=8,gated=false]", 12, 3).parameters()]
    assert milbench.build("longmil", in_dim=12, n_out=2, dim=16)(bag).logits.shape == (2,)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: milbench.build("abmill", 4, 2), "unknown aggregator 'abmill'; did you mean abmil"),
        (lambda: milbench.build("abmil", 4, 2, hiden=3), "unknown parameter of abmil 'hiden'; did you mean hidden?"),
        (lambda: milbench.build("abmil", 4, 2, hidden="wide"), r"abmil: hidden: .* \(got 'wide'\)"),
        (lambda: milbench.build("abmil", 0, 2), "in_dim = 0: must be a whole number from 1 up"),
        (
            lambda: milbench.build("longmil[heads=7]", 4, 2),
            r"longmil\[heads=7\] cannot be built with in_dim = 4, n_out = 2: 7 heads",
        ),
        (lambda: milbench.build("abmil", 4, 2, plugin="nowhere.py"), "nowhere.py: no such file"),
        (lambda: milbench.load_dataset("musk3"), "unknown dataset 'musk3'; did you mean musk"),
        (
            lambda: milbench.load_dataset("bracs", "uni", data="nowhere"),
            "dataset bracs is not here; add it with: milbench data add",
        ),
        (lambda: milbench.load_dataset("bracs", data="nowhere"), "dataset bracs is not here"),
        (lambda: milbench.load_dataset("touching"), "unknown dataset"),
        (lambda: milbench.run("quikstart"), "unknown suite 'quikstart'; did you mean quickstart?"),
        (lambda: milbench.run("quickstart", seeds=[-1]), r"seeds = \[-1\]: must be whole numbers from 0 up"),
        (lambda: milbench.run("quickstart", engine="slrum"), "unknown engine 'slrum'; known: local"),
        (lambda: milbench.run("quickstart", device="gpu"), "unknown device 'gpu'"),
        (lambda: milbench.run("quickstart", aggregators=[]), r"aggregators \[\]: names no aggregator"),
        (lambda: milbench.run("quickstart", workers=0), "workers = 0: must be 1 or more"),
        (lambda: milbench.run("quickstart", seeds=[1], options=RunOptions()), "options holds everything about how to run"),
        (lambda: milbench.load_results("nowhere"), "nothing was run into nowhere yet"),
        (lambda: milbench.status(results="nowhere"), "nothing was run into nowhere yet"),
    ],
)
def test_mistakes_say_what_to_do(call, says):
    with pytest.raises(MilbenchError, match=says):
        call()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([1.0, 2.0],), r"features must be \(n, d\) with n, d >= 1, got \(2,\)"),
        (([["a", "b"]],), r"features must be \(n, d\) numbers, got list"),
        (([[1.0], [1.0, 2.0]],), r"features must be \(n, d\) numbers, got list"),
        (([[float("nan"), 1.0]],), "1 of 1 patches hold NaN or infinite values"),
        (([[True, False]],), r"features must be \(n, d\) real numbers, got torch.bool"),
        ((np.zeros((3, 2)), np.zeros((3, 3))), r"coords must be \(3, 2\) like its features, got \(3, 3\)"),
        ((np.zeros((3, 2)), np.zeros((3, 2))), "coords need the step between neighbouring patches"),
    ],
)
def test_arrays_of_another_shape_are_refused(arguments, says):
    with pytest.raises(MilbenchError, match=rf"slide S1 \(memory\): {says}"):
        Bag.from_arrays(*arguments, slide_id="S1")


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor, list])
def test_a_bag_from_arrays_lists_or_tensors(kind):
    bag = Bag.from_arrays(kind([[1, 2], [3, 4]]), kind([[0, 0], [0, 512]]), step=512, slide_id="S1", slide_index=kind([0, 1]))
    assert bag.features.dtype == torch.float32
    assert bag.features.tolist() == [[1, 2], [3, 4]]
    assert (bag.slide_id, bag.case_id, len(bag)) == ("S1", "S1", 2)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A suite of two methods on two folds, run once for all tests: its folder, its file, its results and the events."""
    folder = tmp_path_factory.mktemp("api")
    path, events = folder / "small.toml", []
    path.write_text(SUITE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENGINES, "local", run_here)
        done = milbench.run(path, folds=[0, 1], epochs=2, results=folder / "results", progress=events.append)
    return folder, path, done, events


def test_run_returns_what_there_is(ran):
    folder, path, done, events = ran
    assert (done.suite, done.results, done.ran) == ("small", folder / "results", 4)
    assert done.counts == {"ok": 4}
    assert done.failed == done.pending == []
    assert [type(event).__name__ for event in events].count("Done") == 4
    again = milbench.run(path, folds=[0, 1], epochs=2, results=folder / "results")
    assert (again.ran, again.counts) == (0, {"ok": 4})
    assert again.frame().equals(done.frame())
    assert repr(done).startswith("Results(suite='small'")


def test_results_as_a_table(ran):
    folder, path, done, _ = ran
    frame = milbench.load_results(folder / "results", path)
    same = [table.sort_values("trial_id", ignore_index=True)[sorted(table)] for table in (frame, done.frame())]
    assert same[0].equals(same[1])
    assert list(frame["aggregator"]) == ["mean", "mean", "abmil[hidden=8]", "abmil[hidden=8]"]
    assert list(frame["fold"]) == [0, 1, 0, 1]
    assert set(frame["status"]) == {"ok"}
    assert frame["macro_auc"].between(0, 1).all()
    assert frame["val_macro_auc"].notna().all()
    assert set(frame["recipe.max_epochs"]) == {2}
    assert frame.loc[2, "params.hidden"] == 8
    assert (frame["seconds"] > 0).all()
    assert frame["trial_id"].str.fullmatch("[0-9a-f]{16}").all()
    assert milbench.load_results(folder / "results").equals(frame), "the whole folder is this suite"


def test_predictions_as_a_table(ran):
    folder, _, done, _ = ran
    frame = done.predictions()
    assert frame.equals(milbench.load_predictions(done))
    stored = milbench.load_predictions(folder / "results", "small")
    assert stored.sort_values(["trial_id", "slide"], ignore_index=True).equals(
        frame.sort_values(["trial_id", "slide"], ignore_index=True)
    )
    sizes = frame.groupby("trial_id").size()
    assert len(sizes) == 4
    assert np.allclose(frame["p0"] + frame["p1"], 1, atol=1e-6)
    assert {"slide", "case", "target", "instances", "aggregator", "fold", "seed"} <= set(frame.columns)
    alone = milbench.load_predictions(done, trial="mean:fold1")
    assert set(alone["aggregator"]) == {"mean"}
    assert set(alone["fold"]) == {1}
    auc = api.find_trial("mean:fold1", results=folder / "results").metrics["accuracy"]
    assert auc == pytest.approx((alone[["p0", "p1"]].to_numpy().argmax(1) == alone["target"]).mean())


def test_status_and_report(ran):
    folder, path, _, _ = ran
    (row,) = milbench.status(path, results=folder / "results").suites
    assert row == {"suite": "small", "trials": 4, "ok": 4, "failed": 0, "oom": 0, "skipped": 0, "pending": 0, "not_here": 0}
    assert list(milbench.status(results=folder / "results").frame()["suite"]) == ["small"]
    written = milbench.report(path, results=folder / "results", reports=folder / "reports", tests=False, formats=["csv", "md"])
    assert written.paths[0] == folder / "reports" / "small" / "report.md"
    assert all(path.stat().st_size for path in written.paths)
    assert written.tables[0].name == "small"


@pytest.mark.slow
def test_a_script_that_each_worker_would_run_again_is_refused(ran, tmp_path):
    _, path, _, _ = ran
    script = tmp_path / "script.py"
    call = f"milbench.run({str(path)!r}, folds=[0], seeds=[7], epochs=1, workers=1, results={str(tmp_path / 'r')!r})"
    script.write_text(f"import milbench\n{call}\n")
    with pytest.raises(MilbenchError, match='start the run below the line: if __name__ == "__main__":'):
        runpy.run_path(str(script), run_name="__main__")
    script.write_text(f"import milbench\nif __name__ == '__main__':\n    print({call}.counts)\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.stdout == "{'ok': 2}\n", done.stderr


def test_options_in_one_object_are_the_same_run(ran):
    folder, path, _, _ = ran
    options = RunOptions(folds=[0], epochs=2, aggregators="mean", keep_models="none")
    done = milbench.run(path, options=options, results=folder / "results")
    assert (done.ran, len(done.trials)) == (0, 1)


@pytest.fixture
def stored(tmp_path):
    store, _ = made_up_suite(tmp_path, {"abmil": 0.5, "max": 1.0}, folds=2, seeds=2, skip={("max", 1, 1): "failed"})
    return store


def test_a_trial_is_found_by_method_fold_and_seed_or_the_start_of_its_id(stored):
    trial = api.find_trial("abmil:fold1:seed0", results=stored.root)
    assert (trial.cell.aggregator, trial.cell.fold, trial.cell.seed, trial.status) == ("abmil", 1, 0, "ok")
    assert trial.name == "abmil:fold1:seed0"
    for text in (trial.trial_id, trial.trial_id[:10], "abmil:seed0:fold1", "ABMIL:fold1:seed0:toy", "abmil:fold1:seed0:none:one"):
        assert api.find_trial(text, results=stored.root).trial_id == trial.trial_id
    failed = api.find_trial("max:fold1:seed1", results=stored.root)
    assert (failed.status, failed.reason) == ("failed", "because of failed")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("abmil:fold1", r"several trials are 'abmil:fold1'; .*abmil:fold1:seed0 \([0-9a-f]{8}\), abmil:fold1:seed1 \("),
        ("abmil:fold7:seed0", r"no trial begins with 'abmil:fold7:seed0', .* There are abmil:fold0:seed0"),
        ("nothing", r"no trial begins with 'nothing'"),
        ("", "several trials begin with ''"),
    ],
)
def test_a_selector_that_means_none_or_several_lists_the_candidates(stored, text, says):
    with pytest.raises(MilbenchError, match=says):
        api.find_trial(text, results=stored.root)


def test_datasets_and_encoders_tell_trials_of_one_method_apart(tmp_path):
    store, rng = Store(tmp_path), np.random.default_rng(0)
    for encoder in ("uni", "owner/model"):
        trial = spec(encoder=encoder, dataset="bracs", magnification=20)
        target = np.array([0, 1])
        save = predictions_file(["a", "b"], target, rng.random((2, 2)))
        store.write(finished(trial, {"macro_auc": 0.5}), save)
    with pytest.raises(MilbenchError, match=r"several trials are 'abmil:fold0:seed0'; .*:bracs:owner/model:one"):
        api.find_trial("abmil:fold0:seed0", results=tmp_path)
    assert api.find_trial("abmil:owner/model:20x", results=tmp_path).cell.encoder == "owner/model"
    assert list(milbench.load_results(tmp_path)["status"]) == ["ok", "ok"], "trials that no suite lists are there, too"


def test_pending_and_failed_trials_are_rows(tmp_path):
    skip = {("max", 0, 0): "pending", ("max", 1, 0): "oom"}
    store, _ = made_up_suite(tmp_path, {"abmil": 0.5, "max": 1.0}, folds=2, skip=skip)
    frame = milbench.load_results(store.root, "made-up").set_index(["aggregator", "fold"])
    assert frame.loc[("max", 0), "status"] == "pending"
    assert pd.isna(frame.loc[("max", 0), "macro_auc"])
    assert frame.loc[("max", 1), "reason"] == "because of oom"
    assert set(milbench.load_predictions(store.root)["aggregator"]) == {"abmil"}


def test_signatures_have_types():
    for name in ("build", "load_dataset", "run", "rehearse", "load_results", "load_predictions", "report", "status"):
        signature = inspect.signature(getattr(milbench, name))
        assert signature.return_annotation is not inspect.Signature.empty, name
        assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values()), name
