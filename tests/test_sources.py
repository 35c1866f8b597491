"""Which code a trial ran: a plug-in with its helper modules, and what happens when it is edited."""

import sys

import pytest

from milbench import plugins, sources, suites
from milbench.trials.run import run_trial
from milbench.trials.store import Store
from tests import ROOT

HELPED = """
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent))
from torch import nn
from milbench import Aggregator, Prediction, register
import {helper}
from {helper}.deep import SIGN
sys.path.pop(0)

@register("helped", label="Helped")
class Helped(Aggregator):
    def __init__(self, in_dim: int, n_out: int, *, weights: str = "") -> None:
        super().__init__(in_dim, n_out)
        self.head = nn.Linear(in_dim, n_out)

    def forward(self, bag):
        return Prediction(self.head(SIGN * bag.features.mean(0)))
"""


def plugin(folder, helper, *, sign="1.0", stray=""):
    """A plug-in file whose helper package has a module that reads a third one."""
    (folder / helper).mkdir(parents=True)
    (folder / helper / "__init__.py").write_text("")
    (folder / helper / "deep.py").write_text("from .deeper import SIGN\n")
    (folder / helper / "deeper.py").write_text(f"SIGN = {sign}\n")
    (folder / "unused.py").write_text(stray)
    path = folder / "helped.py"
    path.write_text(HELPED.format(helper=helper))
    return path


@pytest.fixture(autouse=True)
def forget_modules(tmp_path):
    yield
    forget(tmp_path)


def forget(folder):
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]


def known(path):
    """The implementation of a plug-in that nothing has loaded before."""
    with plugins.restored():
        plugins.discover([path])
        found = plugins.resolve("helped").implementation
    forget(path.parent)
    return found


def test_helpers_are_part_of_the_identity_and_folders_are_not(tmp_path):
    first = known(plugin(tmp_path / "one", "parts"))
    assert first.startswith("helped@sha256:")
    assert known(plugin(tmp_path / "elsewhere", "parts", stray="X = 1")) == first, "the same code in another folder"
    assert known(plugin(tmp_path / "two", "parts", sign="2.0")) != first, "a helper of a helper"


def test_of_one_file_the_identity_is_its_bytes(tmp_path):
    path = tmp_path / "alone.py"
    path.write_text("import json\nimport torch\nfrom milbench import Aggregator\n")
    assert list(sources.of_file(path).files) == [path]
    import hashlib

    assert sources.of_file(path).digest == hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def test_neither_milbench_nor_what_is_installed_below_is_a_helper(tmp_path):
    installed = tmp_path / "venv" / "lib" / "site-packages"
    installed.mkdir(parents=True)
    (installed / "library.py").write_text("")
    (tmp_path / "mine.py").write_text("import library\nfrom milbench import Aggregator\nimport lazily\n")
    (tmp_path / "lazily.py").write_text("")
    sys.path.insert(0, str(installed))
    __import__("library")
    sys.path.pop(0)
    assert {path.name for path in sources.of_file(tmp_path / "mine.py").files} == {"mine.py", "lazily.py"}
    beside = sources.of_file(ROOT / "tests" / "builders" / "results.py")
    assert {path.name for path in beside.files} == {"results.py"}


def test_a_package_is_known_by_all_its_files(tmp_path, monkeypatch):
    package = tmp_path / "whole_package"
    (package / "sub").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "sub" / "model.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    __import__("whole_package")
    source = sources.of_module("whole_package")
    assert sorted(path.name for path in source.files) == ["__init__.py", "model.py"]
    assert source.changed() is None
    (package / "sub" / "model.py").write_text("X = 1")
    assert source.changed() == package / "sub" / "model.py"
    assert sources.of_module("whole_package").digest != source.digest


SUITE = """
title = "One trial"
[grid]
dataset = ["musk1"]
encoder = ["hand-crafted"]
split = ["kfold5"]
fold = [0]
seed = [0]
standardise = true
aggregator = ["helped"]
[recipe]
name = "paper"
max_epochs = 1
[table]
name = "one"
metrics = ["macro_auc"]
reference = "helped"
"""


@pytest.mark.parametrize("what", ["main", "helper", "weights"])
def test_a_trial_whose_code_changed_since_it_was_planned_is_refused(tmp_path, what):
    path = plugin(tmp_path / "code", f"helper_of_{what}")
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"first")
    (tmp_path / "one.toml").write_text(SUITE)
    plugins.discover([path])
    _, (job,) = suites.expand(suites.load(str(tmp_path / "one.toml")), aggregators=[f"helped[weights={weights}]"])
    store = Store(tmp_path / "results")
    edited = {"main": path, "helper": path.parent / f"helper_of_{what}" / "deeper.py", "weights": weights}[what]
    before = edited.read_bytes()
    edited.write_bytes(before.replace(b"1.0", b"9.0").replace(b"Prediction(", b"Prediction( ").replace(b"first", b"other"))
    assert run_trial(job.spec, store, job.labels) == "failed"
    assert "the code of helped changed since it was planned" in store.read(job.spec.trial_id).reason
    edited.write_bytes(before)
    assert run_trial(job.spec, store, job.labels) == "ok"


def test_a_trial_planned_with_other_code_is_refused(tmp_path):
    """The worker imported the plug-in after an edit: its file is what it imported, and not what was planned."""
    path = plugin(tmp_path / "code", "planned_with")
    (tmp_path / "one.toml").write_text(SUITE)
    plugins.discover([path])
    _, (job,) = suites.expand(suites.load(str(tmp_path / "one.toml")))
    planned = job.spec.model_copy(update={"implementation": "helped@sha256:0123456789abcdef"})
    store = Store(tmp_path / "results")
    assert run_trial(planned, store, job.labels) == "failed"
    assert "helped@sha256:0123456789abcdef, here is helped@sha256:" in store.read(planned.trial_id).reason
    assert not (store.folder(planned.trial_id) / "predictions.csv").exists()
