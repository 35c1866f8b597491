"""A trial that starts from weights: what it is called, and what its result says about where they were trained."""

import pytest
import torch

from milbench import plugins, suites
from milbench.trials.run import run_trial
from milbench.trials.store import Store

SUITE = """
title = "One fold"
[grid]
dataset = ["musk1"]
encoder = ["hand-crafted"]
split = ["kfold10"]
fold = [0]
seed = [0]
aggregator = ["mean"]
[recipe]
name = "paper"
max_epochs = 1
[table]
name = "one"
metrics = ["macro_auc"]
reference = "mean"
"""


@pytest.mark.parametrize(("cohort", "warned"), [("", False), ("bracs", False), ("MUSK1", True), ("bracs+musk1", True)])
def test_a_note_says_that_the_test_cohort_was_seen(tmp_path, cohort, warned):
    (tmp_path / "one.toml").write_text(SUITE)
    weights = tmp_path / "w.pth"
    torch.save(plugins.resolve("mean[hidden=8]").build(166, 5).state_dict(), weights)
    name = f"mean[hidden=8,weights={weights}{f',trained_on={cohort}' if cohort else ''}]"
    _, (job,) = suites.expand(suites.load(str(tmp_path / "one.toml")), aggregators=[name])
    store = Store(tmp_path / "results")
    assert run_trial(job.spec, store, job.labels) == "ok"
    result = store.read(job.spec.trial_id)
    assert "+sha256:" in result.spec.implementation
    assert any("starts from weights trained on" in message for message in result.messages) == warned


def test_without_weights_a_trial_is_what_it_was(tmp_path):
    (tmp_path / "one.toml").write_text(SUITE)
    _, (job,) = suites.expand(suites.load(str(tmp_path / "one.toml")), aggregators=["mean[hidden=8]"])
    assert job.spec.params == {"hidden": 8, "dropout": 0.25, "reduce": "mean", "rho": 0}
    assert job.spec.implementation == "mean@1"
