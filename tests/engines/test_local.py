"""The local engine: same bytes however many workers, and no trial takes its siblings down."""

import os
import signal
import subprocess
import sys
from functools import partial

import pytest

from milbench import plugins, suites
from milbench.config import Settings
from milbench.engines import Done, Epoch, Run, Started, run_local
from milbench.trials.store import Store

SUITE = """
title = "Two folds of MUSK1"
[grid]
dataset = ["musk1"]
encoder = ["hand-crafted"]
split = ["kfold5"]
fold = [0, 1]
seed = [0]
standardise = true
aggregator = ["mean", "abmil", "clam-sb"]
[recipe]
name = "paper"
max_epochs = 2
[table]
name = "two"
metrics = ["macro_auc"]
"""

TROUBLE = """
import os, signal, sys
from pathlib import Path
import torch
from torch import nn
from milbench import Aggregator, Prediction, register

class Plain(Aggregator):
    def __init__(self, in_dim: int, n_out: int) -> None:
        super().__init__(in_dim, n_out)
        self.head = nn.Linear(in_dim, n_out)

    def forward(self, bag):
        return Prediction(self.head(bag.features.mean(0)))

@register("raises", label="Raises")
class Raises(Plain):
    def forward(self, bag):
        raise ValueError("no such luck")

@register("killed", label="Killed")
class Killed(Plain):
    def forward(self, bag):
        os.kill(os.getpid(), signal.SIGKILL)

@register("crashes", label="Crashes")
class Crashes(Plain):
    def forward(self, bag):
        os.kill(os.getpid(), signal.SIGSEGV)

@register("hungry", label="Hungry")
class Hungry(Plain):
    def forward(self, bag):
        torch.empty(1 << 60)

@register("leaves", label="Leaves")
class Leaves(Plain):
    def forward(self, bag):
        raise SystemExit(0)

@register("interrupts", label="Interrupts")
class Interrupts(Plain):
    def forward(self, bag):
        raise KeyboardInterrupt

@register("ends", label="Ends")
class Ends(Plain):
    def forward(self, bag):
        os._exit(0)

@register("closes", label="Closes")
class Closes(Plain):
    def forward(self, bag):
        os.closerange(3, 4096)
        return super().forward(bag)

@register("leaves-a-child", label="Leaves a child")
class LeavesAChild(Plain):
    def forward(self, bag):
        if os.fork() == 0:
            Path("child").write_text(str(os.getpid()))
            os.execvp("sleep", ["sleep", "300"])
        while not Path("child").exists():
            pass
        os.kill(os.getpid(), signal.SIGKILL)

@register("wanders", label="Wanders")
class Wanders(Plain):
    def forward(self, bag):
        os.chdir("/")
        sys.stdout.write("x" * 1_000_000)
        return super().forward(bag)

@register("needs-coords", label="Needs coords")
class NeedsCoords(Plain):
    needs_coords = True

@register("slow", label="Slow")
class Slow(Plain):
    def forward(self, bag):
        import time
        time.sleep(0.2)
        return super().forward(bag)
"""


@pytest.fixture
def suite_file(tmp_path):
    path = tmp_path / "two.toml"
    path.write_text(SUITE)
    return path


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "trouble.py"
    path.write_text(TROUBLE)
    return path


def predictions(store, jobs):
    return {job.spec.trial_id: (store.folder(job.spec.trial_id) / "predictions.csv").read_bytes() for job in jobs}


def test_same_bytes_with_one_worker_and_with_two(tmp_path, suite_file):
    _, jobs = suites.expand(suites.load(str(suite_file)))
    one, two, events = Store(tmp_path / "1"), Store(tmp_path / "2"), []
    run_local(Run(jobs, Settings(results=one.root)), events.append)
    run_local(Run(jobs[::-1], Settings(results=two.root), workers=2, kept_seeds=frozenset({0})))
    assert predictions(one, jobs) == predictions(two, jobs)
    assert len(set(predictions(one, jobs).values())) == 6, "and they are not all the same file"
    for job in jobs:
        a, b = (store.read(job.spec.trial_id) for store in (one, two))
        assert (a.metrics, a.curve, a.selected, a.spec) == (b.metrics, b.curve, b.selected, b.spec)
        assert not (one.folder(job.spec.trial_id) / "model.safetensors").exists()
        assert (two.folder(job.spec.trial_id) / "model.safetensors").exists()
    counts = [sum(isinstance(event, kind) for event in events) for kind in (Started, Epoch, Done)]
    assert counts == [6, 12, 6]


def test_stored_weights_give_the_stored_predictions(tmp_path, suite_file):
    import safetensors.torch
    import torch

    from milbench import datasets
    from milbench.training import Standardiser, fold_bags

    _, jobs = suites.expand(suites.load(str(suite_file)), aggregators=["abmil"], folds=[0])
    store = Store(tmp_path)
    run_local(Run(jobs, Settings(results=tmp_path), kept_seeds=frozenset({0})))
    (job,) = jobs
    data = datasets.load("musk1", "hand-crafted")
    model = plugins.resolve("abmil").build(data.in_dim, 2).eval()
    model.load_state_dict(safetensors.torch.load_file(store.folder(job.spec.trial_id) / "model.safetensors"))
    fold = data.folds("kfold5")[0]
    *_, test = fold_bags(data, fold, standardiser=Standardiser.of_fold(data, fold))
    rows = (store.folder(job.spec.trial_id) / "predictions.csv").read_text().splitlines()[1:]
    for bag, row in zip(test, rows, strict=True):
        with torch.no_grad():
            expected = model(bag).logits.softmax(0).tolist()
        slide, _, _, instances, _, *scores = row.split(",")
        assert (slide, int(instances)) == (bag.slide_id, len(bag))
        assert [float(p) for p in scores] == pytest.approx(expected, rel=1e-5)


def test_trouble_is_recorded_and_siblings_go_on(tmp_path, suite_file, plugin):
    plugins.discover([plugin])
    names = ["raises", "killed", "mean", "crashes", "hungry", "needs-coords", "abmil"]
    _, jobs = suites.expand(suites.load(str(suite_file)), aggregators=names, folds=[0])
    store, events = Store(tmp_path / "r"), []
    run_local(Run(jobs, Settings(results=store.root), workers=2, plugins=[plugin]), events.append)
    found = {job.spec.aggregator: store.read(job.spec.trial_id) for job in jobs}
    assert {name: result.status for name, result in found.items()} == {
        "raises": "failed", "killed": "oom", "crashes": "failed", "hungry": "oom", "needs-coords": "skipped", "mean": "ok", "abmil": "ok",
    }  # fmt: skip
    assert "no such luck" in found["raises"].traceback
    assert found["raises"].reason == "ValueError: no such luck"
    assert "SIGKILL, most likely because memory ran out" in found["killed"].reason
    assert "SIGSEGV; an aggregator that writes into bag.features" in found["crashes"].reason
    assert found["needs-coords"].reason == "Needs coords needs coordinates, dataset musk1 has none"
    assert {event.trial_id for event in events if isinstance(event, Done)} == {job.spec.trial_id for job in jobs}
    assert all(result.labels["aggregator"] and result.provenance["python"] for result in found.values())


def test_whatever_a_plugin_does_to_its_process(tmp_path, suite_file, plugin, monkeypatch):
    """Exits, closed descriptors, another folder, a child that outlives it: one trial each, and the run comes to its end."""
    monkeypatch.chdir(tmp_path)
    plugins.discover([plugin])
    names = ["leaves", "interrupts", "closes", "wanders", "leaves-a-child", "mean", "ends", "abmil"]
    _, jobs = suites.expand(suites.load(str(suite_file)), aggregators=names, folds=[0])
    store = Store("r")
    try:
        run_local(Run(jobs, Settings(results=store.root), workers=2, plugins=[plugin]))
    finally:
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)
    found = {job.spec.aggregator: store.read(job.spec.trial_id) for job in jobs}
    assert {name: result.status for name, result in found.items()} == {
        "leaves": "failed", "interrupts": "failed", "closes": "failed", "wanders": "ok", "leaves-a-child": "oom",
        "mean": "ok", "ends": "failed", "abmil": "ok",
    }  # fmt: skip
    assert [found[name].reason for name in ("leaves", "interrupts", "ends")] == [
        "SystemExit: 0", "KeyboardInterrupt", "the worker process ended with exit code 0",
    ]  # fmt: skip
    assert "raise SystemExit(0)" in found["leaves"].traceback
    assert "closes files which it did not open" in found["closes"].reason


FULL = """
import errno, os
from milbench import Aggregator, register
from milbench.trials import store

flush = store.flush

def full(path):
    if path.name == store.MODEL:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    flush(path)

store.flush = full


@register("full", label="Full")
class Full(Aggregator):
    '''Every plug-in registers an aggregator.'''
"""


def test_a_full_disk_stops_the_run_with_one_line(tmp_path, suite_file):
    """What is finished stays, the rest is pending and not failed; with room the same command goes on."""
    (tmp_path / "full.py").write_text(FULL)
    command = [
        sys.executable,
        "-m",
        "milbench",
        "run",
        "--suite",
        suite_file.name,
        "--aggregators",
        "mean,abmil",
        "--workers",
        "1",
    ]
    run = partial(subprocess.run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run([*command, "--folds", "0", "--aggregators", "mean", "--keep-models", "none"]).returncode == 0
    done = run([*command, "--plugin", "full.py"])
    assert done.returncode == 2
    assert done.stderr == (
        f"milbench: {tmp_path}/results/trials: a result cannot be written: No space left on device; "
        "make room or allow writing, then run the same command again: finished trials are kept\n"
    )
    assert len(list((tmp_path / "results" / "trials").iterdir())) == 1
    dry = run([*command, "--dry-run"])
    assert "4 trials: 1 done, 3 to run." in dry.stdout


def test_a_stolen_dataset_is_noticed(tmp_path, suite_file):
    """A trial planned on other data must not run under the old name."""
    _, jobs = suites.expand(suites.load(str(suite_file)), aggregators=["mean"], folds=[0])
    job = jobs[0]
    changed = type(job)(job.spec.model_copy(update={"fingerprint": "sha256:other"}), job.labels, job.cell)
    store = Store(tmp_path)
    run_local(Run([changed], Settings(results=tmp_path)))
    assert "changed since this trial was planned" in store.read(changed.spec.trial_id).reason
