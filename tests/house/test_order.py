"""The same trial gives the same bytes whatever ran before it in the process, and whatever a plug-in left behind or was imported."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest

from milbench import plugins, suites
from milbench.config import Settings
from milbench.engines import Run, run_local
from milbench.ops import backends
from milbench.trials.run import run_trial
from milbench.trials.store import Store
from tests.builders import folders
from tests.builders.aggregators import SMALL
from tests.builders.command import milbench

SUITE = """
title = "Order"
[grid]
dataset = ["made-up"]
encoder = ["uni"]
split = ["official"]
seed = [0]
aggregator = ["mean"]
[recipe]
name = "paper"
max_epochs = 2
[table]
name = "order"
metrics = ["macro_auc"]
"""
SENSITIVE = [  # they draw, or compute with an operation that is set up at its first use
    "mamba-random[dim=16]", "longmil[dim=16,dropout=0.1]", "retnet[dim=16,order=random]", "full-attention[dim=16,dropout=0.1]",
    "dtfd-afs",
]  # fmt: skip
LEAVES_THINGS_BEHIND = '''
import logging, os, random, signal, warnings
import numpy as np
import torch
from torch import nn
from milbench import Aggregator, Prediction, register

def spoil():
    """Everything that a line of somebody's file may set."""
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.set_autocast_enabled("cpu", True)
    torch.set_num_threads(2)
    torch.set_deterministic_debug_mode(0)
    torch.autograd.set_detect_anomaly(True)
    torch.set_float32_matmul_precision("medium")
    torch.set_flush_denormal(True)
    torch.backends.mkldnn.enabled = False
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.cuda.enable_flash_sdp(False)
    torch.manual_seed(99), np.random.seed(1), random.seed(1)
    np.seterr(all="raise")
    warnings.simplefilter("error")
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.chdir("/")

@register("spoiler", label="Spoiler")
class Spoiler(Aggregator):
    def __init__(self, in_dim: int, n_out: int) -> None:
        super().__init__(in_dim, n_out)
        self.head = nn.Linear(in_dim, n_out)

    def forward(self, bag):
        logits = self.head(bag.features.mean(0))
        bag.features.zero_()
        if not self.training:
            spoil()
        return Prediction(logits.float())
'''


@pytest.fixture
def jobs_of(tmp_path, monkeypatch):
    """names -> their trials on twelve small slides, and where these are."""
    monkeypatch.chdir(tmp_path)
    root = folders.cohort(tmp_path / "in", shift=1.0)
    where = ("--features", root / "features", "--labels", root / "labels.csv", "--splits", root / "labels.csv")
    milbench("data", "add", "made-up", "--encoder", "uni", "--data", tmp_path / "data", *where)
    (tmp_path / "order.toml").write_text(SUITE)
    settings = Settings(data=tmp_path / "data", pack=False)

    def jobs(names):
        return suites.expand(suites.load("order.toml"), aggregators=names, settings=settings)[1], settings

    return jobs


def bytes_of(store, jobs):
    results = {job.spec.aggregator: store.read(job.spec.trial_id) for job in jobs}
    failed = {name: result.reason for name, result in results.items() if result.status != "ok"}
    assert not failed
    return {job.spec.aggregator: (store.folder(job.spec.trial_id) / "predictions.csv").read_bytes() for job in jobs}


def test_order_changes_nothing(jobs_of, tmp_path):
    """Nor do workers: tests/engines/test_local.py, and below for all methods."""
    jobs, settings = jobs_of(SENSITIVE)
    here, back = (Store(tmp_path / name) for name in ("here", "back"))
    for store, some in ((here, jobs), (back, jobs[::-1])):
        for job in some:
            run_trial(job.spec, store, {}, settings=settings)
    expected = bytes_of(here, jobs)
    assert len(set(expected.values())) == len(jobs), "and they are not all the same file"
    assert bytes_of(back, jobs) == expected


def test_the_backend_that_computes_is_part_of_a_trial(jobs_of, tmp_path, unforced):
    """Chosen or forced, it changes the name of the trial but not its column; a process with another refuses the trial."""
    names = ["abmil[hidden=16]", "full-attention[dim=16]"]
    (plain, usual), settings = jobs_of(names)
    other = next(name for name in ("sdpa", "tiles") if name != usual.spec.backends["full_attention"])
    backends.force([f"full_attention={other}"])
    (also_plain, forced), _ = jobs_of(names)
    assert plain.spec == also_plain.spec
    assert plain.spec.backends == {}
    assert forced.spec.backends == {"full_attention": other}
    assert forced.spec.trial_id != usual.spec.trial_id
    assert forced.cell.context == usual.cell.context == plain.cell.context
    store = Store(tmp_path / "r")
    assert run_trial(forced.spec, store, {}, settings=settings) == "ok"
    assert store.read(forced.spec.trial_id).provenance["backends"] == {"full_attention": other}
    assert run_trial(usual.spec, store, {}, settings=settings) == "failed"
    assert f"this process has {{'full_attention': '{other}'}}" in store.read(usual.spec.trial_id).reason


def test_an_operation_that_a_class_does_not_name_is_told(jobs_of, tmp_path, monkeypatch):
    monkeypatch.setattr(plugins.resolve("full-attention").entry.cls, "ops", ())
    (job,), settings = jobs_of(["full-attention[dim=16]"])
    store = Store(tmp_path / "r")
    run_trial(job.spec, store, {}, settings=settings)
    (message,) = store.read(job.spec.trial_id).messages
    assert message.startswith("uses full_attention, which its class does not name in `ops`")


@pytest.mark.slow
def test_order_and_workers_change_nothing_for_the_whole_registry(jobs_of, tmp_path):
    """First, last, alone in a process, with one and two workers."""
    names = [SMALL.get(entry.name, entry.name) for entry in plugins.entries() if entry.name != "gigapath-pretrained"]
    jobs, settings = jobs_of([*names, *SENSITIVE[1:4]])
    stores = {name: Store(tmp_path / name) for name in ("there", "back", "two", "alone")}
    run_local(Run(jobs, replace(settings, results=stores["there"].root)))
    run_local(Run(jobs[::-1], replace(settings, results=stores["back"].root)))
    run_local(Run(jobs, replace(settings, results=stores["two"].root), workers=2))
    for job in jobs:
        run_local(Run([job], replace(settings, results=stores["alone"].root)))
    found = {how: {job.cell.aggregator: bytes_of(store, [job]) for job in jobs} for how, store in stores.items()}
    for how, files in found.items():
        assert [name for name, file in files.items() if file != found["alone"][name]] == [], how


@pytest.fixture
def spoiled(jobs_of, tmp_path):
    """Trials of which the first leaves things behind; and the bytes of the others without it."""
    expected = Store(tmp_path / "alone")
    jobs, settings = jobs_of(["abmil[hidden=16]", SENSITIVE[1]])
    for job in jobs:
        run_trial(job.spec, expected, {}, settings=settings)
    (tmp_path / "spoiler.py").write_text(LEAVES_THINGS_BEHIND)
    plugins.discover([tmp_path / "spoiler.py"])
    every, _ = jobs_of(["spoiler", "abmil[hidden=16]", SENSITIVE[1]])
    return every, settings, bytes_of(expected, jobs)


def test_what_a_plugin_leaves_behind_changes_nothing(spoiled, tmp_path):
    """Its effects end with its trial."""
    every, settings, expected = spoiled
    store = Store(tmp_path / "after")
    for job in every:
        assert run_trial(job.spec, store, {}, settings=settings) == "ok"
    assert bytes_of(store, every[1:]) == expected
    assert Path.cwd() == tmp_path
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN


@pytest.mark.slow
def test_what_a_plugin_sets_when_imported_changes_nothing(spoiled, tmp_path):
    """Even if nothing of that file is run."""
    every, settings, expected = spoiled
    store = Store(tmp_path / "imported")
    (tmp_path / "spoils.py").write_text(LEAVES_THINGS_BEHIND.replace('"spoiler"', '"spoils"') + "\nspoil()\n")
    given = [tmp_path / "spoiler.py", tmp_path / "spoils.py"]
    run_local(Run(every, replace(settings, results=store.root), plugins=given))
    assert bytes_of(store, every[1:]) == expected
    assert store.read(every[0].spec.trial_id).status == "ok"
