"""Losses, time bins and risks against the published code's numbers and against their formulas."""

import csv

import numpy as np
import pytest
import torch

from milbench import MilbenchError
from milbench.datasets import Sample
from milbench.tasks import Subtyping, Survival, for_fold, survival_nll
from tests.builders.datasets import toy_dataset


def test_nll_against_the_official_code(shared):
    golden = np.load(shared / "golden" / "survival_losses.npz")
    bins, event = torch.from_numpy(golden["Y"]), torch.from_numpy(golden["c"]) == 0
    for alpha in (0.0, 0.15, 0.4, 0.5, 1.0):
        logits = torch.from_numpy(golden["logits"]).requires_grad_()
        rows = survival_nll(logits, bins, event, alpha)
        torch.testing.assert_close(rows.detach(), torch.from_numpy(golden[f"nll/a{alpha}/per_row"]), rtol=2e-5, atol=2e-6)
        rows.mean().backward()
        torch.testing.assert_close(logits.grad, torch.from_numpy(golden[f"nll/a{alpha}/grad"]), rtol=1e-4, atol=1e-7)
        double = survival_nll(logits.detach().double(), bins, event, alpha).mean()
        assert float(double) == pytest.approx(float(golden[f"nll/a{alpha}/f64"]), rel=1e-8)
    risk = Survival([1.0, 2.0, 3.0]).scores(torch.from_numpy(golden["logits"]))
    torch.testing.assert_close(risk, torch.from_numpy(golden["risk"]), rtol=2e-5, atol=1e-6)


def test_nll_by_hand():
    """Hazards 1/2 everywhere: an event in bin 1 costs -log(1/2) - log(1/2), a case censored there -log(1/4)."""
    logits = torch.zeros(2, 4, dtype=torch.float64)
    loss = survival_nll(logits, torch.tensor([1, 1]), torch.tensor([True, False]))
    np.testing.assert_allclose(loss, [np.log(4), np.log(4)])
    first = survival_nll(logits[:1], torch.tensor([0]), torch.tensor([True]))
    np.testing.assert_allclose(first, [np.log(2)])


def test_saturated_rows_stay_finite():
    logits = torch.tensor([[60.0, 60, 60, 60], [-60.0, -60, -60, -60]], requires_grad=True)
    for event in (True, False):
        loss = survival_nll(logits, torch.tensor([3, 3]), torch.tensor([event] * 2)).sum()
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(logits.grad).all()


def test_bins_come_from_the_events_of_the_training_fold():
    train = [Sample(str(t), str(t), time=float(t), event=t % 2 == 0) for t in range(1, 17)]
    task = Survival.from_train(train)
    np.testing.assert_allclose(task.edges, np.quantile([2, 4, 6, 8, 10, 12, 14, 16], [0.25, 0.5, 0.75]))
    bins = [int(task.target(Sample("x", "x", time=t, event=True)).bin) for t in (-5.0, 0.0, 5.4, 5.5, 9.0, 12.6, 1e6)]
    assert bins == [0, 0, 0, 1, 2, 3, 3], "a time on an edge falls in the later bin; times outside are clamped"


def test_bins_against_the_published_table(shared):
    """The 4-bin labels of the Patch-GCN/MCAT code, whose quantiles come from the whole cohort's events."""
    with (shared / "data" / "tcga_survival" / "patchgcn_brca_survival_table.csv").open() as file:
        rows = list(csv.DictReader(file))
    samples = [
        Sample(str(i), str(i), time=float(r["survival_months"]), event=float(r["censorship"]) == 0) for i, r in enumerate(rows)
    ]
    task = Survival.from_train(samples)
    wrong = [r for s, r in zip(samples, rows, strict=True) if int(task.target(s).bin) != int(float(r["disc_label"]))]
    assert len(rows) == 956
    assert len(wrong) == 0, wrong[:3]


def test_no_event_is_an_error():
    with pytest.raises(MilbenchError, match="no events in the training fold"):
        Survival.from_train([Sample("a", "a", time=1.0, event=False)])


def test_metrics_of_both_tasks():
    data = toy_dataset()
    task = for_fold(data, data.folds("one")[0].train)
    assert isinstance(task, Subtyping)
    score = np.array([[1.0 - s.label, s.label] for s in data.samples], dtype=np.float32)
    m = task.metrics(data.samples, score)
    assert m["macro_auc"] == m["macro_f1"] == m["accuracy"] == 1
    assert m["confusion"] == [[10, 0], [0, 10]]

    data = toy_dataset(task="survival")
    task = for_fold(data, data.folds("one")[0].train)
    m = task.metrics(data.samples, np.array([-s.time for s in data.samples], dtype=np.float32))
    assert m["c_index"] == 1
    assert m["events"] == 13
    assert len(m["bin_edges"]) == 3
