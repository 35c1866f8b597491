"""The local engine: same bytes however many workers, and no trial takes its siblings down."""

import contextlib
import os
import signal
from pathlib import Path

import pytest

from milbench import plugins, suites
from milbench.api import runs
from milbench.config import Settings
from milbench.engines import Done, Epoch, Run, Started, run_local
from milbench.trials import store as trial_store
from milbench.trials.run import run_trial
from milbench.trials.store import Store
from tests.builders.command import milbench
from tests.builders.engine import run_here

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
"""


@pytest.fixture
def suite_file(tmp_path):
    return written(tmp_path)


def written(folder):
    path = folder / "two.toml"
    path.write_text(SUITE)
    return path


def predictions(store, jobs):
    return {job.spec.trial_id: (store.folder(job.spec.trial_id) / "predictions.csv").read_bytes() for job in jobs}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The suite in this process, and in another order with two workers, which keep the weights: jobs, both stores, their events."""
    folder = tmp_path_factory.mktemp("ran")
    _, jobs = suites.expand(suites.load(str(written(folder))))
    one, two, events = Store(folder / "1"), Store(folder / "2"), []
    run_here(Run(jobs, Settings(results=one.root)), lambda event: None)
    run_local(Run(jobs[::-1], Settings(results=two.root), workers=2, kept_seeds=frozenset({0})), events.append)
    return jobs, one, two, events


def test_same_bytes_in_one_process_and_with_two_workers(ran):
    jobs, one, two, events = ran
    assert predictions(one, jobs) == predictions(two, jobs)
    assert len(set(predictions(one, jobs).values())) == 6, "and they are not all the same file"
    for job in jobs:
        a, b = (store.read(job.spec.trial_id) for store in (one, two))
        assert (a.metrics, a.curve, a.selected, a.spec) == (b.metrics, b.curve, b.selected, b.spec)
        assert not (one.folder(job.spec.trial_id) / "model.safetensors").exists()
        assert (two.folder(job.spec.trial_id) / "model.safetensors").exists()
    counts = [sum(isinstance(event, kind) for event in events) for kind in (Started, Epoch, Done)]
    assert counts == [6, 12, 6]


def test_stored_weights_give_the_stored_predictions(ran):
    import safetensors.torch
    import torch

    from milbench import datasets
    from milbench.training import Standardiser, fold_bags

    jobs, _, store, _ = ran
    (job,) = (job for job in jobs if (job.spec.aggregator, job.spec.fold) == ("abmil", 0))
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


NAMES = [
    "raises", "killed", "mean", "crashes", "hungry", "needs-coords", "leaves", "interrupts", "closes", "wanders", "leaves-a-child",
    "ends", "abmil",
]  # fmt: skip


@pytest.fixture(scope="module")
def troubled(tmp_path_factory):
    """Every trouble in one run of two workers: jobs, aggregator -> result, and events."""
    folder, events = tmp_path_factory.mktemp("troubled"), []
    plugin, store = folder / "trouble.py", Store("r")
    plugin.write_text(TROUBLE)
    with contextlib.chdir(folder), plugins.restored():
        plugins.discover([plugin])
        _, jobs = suites.expand(suites.load(str(written(folder))), aggregators=NAMES, folds=[0])
        try:
            run_local(Run(jobs, Settings(results=store.root), workers=2, plugins=[plugin]), events.append)
        finally:
            os.kill(int(Path("child").read_text()), signal.SIGKILL)
        return jobs, {job.spec.aggregator: store.read(job.spec.trial_id) for job in jobs}, events


@pytest.mark.slow
def test_trouble_is_recorded_and_siblings_go_on(troubled):
    """Whatever a plug-in does to its process costs one trial, and the run comes to its end."""
    jobs, found, events = troubled
    assert {name: result.status for name, result in found.items()} == {
        "raises": "failed", "killed": "oom", "crashes": "failed", "hungry": "oom", "needs-coords": "skipped", "mean": "ok", "abmil": "ok",
        "leaves": "failed", "interrupts": "failed", "closes": "failed", "wanders": "ok", "leaves-a-child": "oom", "ends": "failed",
    }  # fmt: skip
    assert {event.trial_id for event in events if isinstance(event, Done)} == {job.spec.trial_id for job in jobs}
    assert all(result.labels["aggregator"] and result.provenance["python"] for result in found.values())


@pytest.mark.slow
def test_the_reason_of_a_trouble_is_told(troubled):
    """Errors, signals, exits, closed descriptors, a child that outlives its worker."""
    _, found, _ = troubled
    assert "no such luck" in found["raises"].traceback
    assert found["raises"].reason == "ValueError: no such luck"
    assert "SIGKILL, most likely because memory ran out" in found["killed"].reason
    assert "SIGSEGV; an aggregator that writes into bag.features" in found["crashes"].reason
    assert found["needs-coords"].reason == "Needs coords needs coordinates, dataset musk1 has none"
    assert [found[name].reason for name in ("leaves", "interrupts", "ends")] == [
        "SystemExit: 0", "KeyboardInterrupt", "twice the worker process ended with exit code 0",
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


@pytest.mark.slow
def test_a_full_disk_stops_the_run_with_one_line(tmp_path, suite_file, monkeypatch):
    """What is finished stays, the rest is pending and not failed; with room the same command goes on."""
    (tmp_path / "full.py").write_text(FULL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trial_store, "flush", trial_store.flush)  # which the plug-in changes here, too
    command = ["run", "--suite", suite_file.name, "--workers", 1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(runs.ENGINES, "local", run_here)
        milbench(*command, "--folds", "0", "--aggregators", "mean", "--keep-models", "none")
    command += ["--aggregators", "mean,abmil"]
    told = milbench(*command, "--plugin", "full.py", "--quiet", code=2)
    assert told == (
        f"milbench: {tmp_path}/results/trials: a result cannot be written: No space left on device; "
        "make room or allow writing, then run the same command again: finished trials are kept\n"
    )
    assert len(list((tmp_path / "results" / "trials").iterdir())) == 1
    assert "4 trials: 1 done, 3 to run." in milbench(*command, "--dry-run")


def test_a_stolen_dataset_is_noticed(tmp_path, suite_file):
    """A trial planned on other data must not run under the old name."""
    _, (job,) = suites.expand(suites.load(str(suite_file)), aggregators=["mean"], folds=[0])
    changed, store = job.spec.model_copy(update={"fingerprint": "sha256:other"}), Store(tmp_path)
    assert run_trial(changed, store, job.labels) == "failed"
    assert "changed since this trial was planned" in store.read(changed.trial_id).reason
