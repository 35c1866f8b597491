"""Built-in aggregators against numbers produced by their official code: logits, attention, losses and gradients.

The vectors live in an optional folder (MILBENCH_VECTORS, else `golden` of the shared folder). Every case in a file is run.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHARED
from torch.nn import functional as F

from milbench import Bag, plugins
from milbench.tasks import Subtyping

VECTORS = Path(os.environ.get("MILBENCH_VECTORS", SHARED / "golden"))
FORWARD, GRADIENT, DOUBLE = 2e-5, 1e-4, 1e-8  # largest deviation, relative to the largest value of the array
CLAM = {"dropout": 0}
CASES = [
    ("clam_sb", "clam-sb", CLAM),
    ("clam_sb_ungated", "clam-sb", {**CLAM, "gated": False}),
    ("clam_mb", "clam-mb", CLAM),
    ("clam_maxpool_mil_fc", "max", {"pick": "instance", "dropout": 0}),
    ("clam_maxpool_mil_fc_mc", "max", {"pick": "instance", "dropout": 0}),
    ("dsmil_nonlin_id", "dsmil", {}),
    ("dsmil_lin_id", "dsmil", {"nonlinear": False}),
    ("dsmil_nonlin_v", "dsmil", {"values": "relu"}),
    ("dsmil_lin_v", "dsmil", {"nonlinear": False, "values": "relu"}),
    ("dsmil_hipt_variant", "dsmil", {"nonlinear": False, "values": "linear", "lineage": "hipt"}),
    ("transmil", "transmil", {}),
]


def close(ours, official, tolerance):
    ours, official = np.asarray(ours, dtype=np.float64), np.asarray(official, dtype=np.float64)
    if tolerance == GRADIENT and official.size and np.abs(official).max() < 1e-12:
        tolerance = 1.0
    assert np.abs(ours.reshape(official.shape) - official).max() <= tolerance * max(np.abs(official).max(), 1e-12)


class Vector:
    """One file of vectors and a model that has its weights."""

    def __init__(self, name, aggregator, params):
        path = VECTORS / f"{name}.npz"
        if not path.is_file():
            pytest.skip(f"{path} is not here (optional reference numbers; MILBENCH_VECTORS points elsewhere)")
        self.arrays, self.about = np.load(path), json.loads(path.with_suffix(".json").read_text())
        weights = {key[2:]: torch.from_numpy(self.arrays[key]) for key in self.arrays if key.startswith("w/")}
        some = next(iter(self.about["cases"]))
        self.in_dim = self.arrays[f"{some}/x"].shape[1]
        self.n_out = next(
            self.arrays[f"{some}/{key}"].shape[-1] for key in ("logits", "bag", "prob") if f"{some}/{key}" in self.arrays
        )
        self.model = (
            plugins.resolve(aggregator)
            .entry.cls(self.in_dim, self.n_out, **{**plugins.resolve(aggregator).params, **params})
            .eval()
        )
        self.model.load_official(weights)
        self.task = Subtyping([str(c) for c in range(self.n_out)])
        names = list(self.model.rename_official(weights))
        self.ours = dict(zip(weights, names, strict=True))

    def cases(self):
        for case, about in self.about["cases"].items():
            arrays = {key[len(case) + 1 :]: self.arrays[key] for key in self.arrays if key.startswith(f"{case}/")}
            x = torch.from_numpy(arrays["x"]).requires_grad_()
            yield arrays, x, torch.tensor(about["label"])

    def gradients(self, arrays, x, prefix=""):
        close(x.grad, arrays[f"{prefix}grad_x"], 1e-3 if arrays[f"{prefix}grad_x"].dtype == np.float16 else GRADIENT)
        if f"{prefix}param_grad_l2" in arrays:
            parameters = dict(self.model.named_parameters())
            found = [parameters[self.ours[name]].grad for name in self.about["param_order"]]
            norms = [0.0 if g is None else float(g.double().norm()) for g in found]
            close(norms, arrays[f"{prefix}param_grad_l2"], GRADIENT)


@pytest.mark.parametrize("aggregator", ["clam-sb", "clam-sb[gated=false]", "clam-mb"])
def test_clam(aggregator):
    variant = plugins.resolve(aggregator)
    name = variant.entry.name.replace("-", "_") + ("_ungated" if variant.changes else "")
    vector = Vector(name, variant.entry.name, {**variant.changes, **CLAM})
    model = vector.model
    from milbench_registry.clam import smooth_top1_svm

    for arrays, x, label in vector.cases():
        prediction = model(Bag(x))
        close(prediction.logits.detach(), arrays["logits"], FORWARD)
        close(prediction.extras["attention"].detach(), torch.from_numpy(arrays["A_raw"]).softmax(1), FORWARD)
        for loss, subtyping in (("ce", True), ("ce", False), ("svm", True), ("svm", False)):
            model.instance_loss, model.subtyping = {"ce": F.cross_entropy, "svm": smooth_top1_svm}[loss], subtyping
            model.zero_grad()
            x.grad = None
            prefix = f"{loss}_{'sub' if subtyping else 'nosub'}/"
            prediction = model(Bag(x))
            close(model.clustering_loss(prediction, int(label)).detach(), arrays[f"{prefix}inst_loss"], FORWARD)
            total = model.training_loss(prediction, label, vector.task)
            close(total.detach(), arrays[f"{prefix}total"], FORWARD)
            total.backward()
            vector.gradients(arrays, x, prefix)
    if "logits_f64" in arrays:
        double = model.double()
        for arrays, x, _ in vector.cases():
            close(double(Bag(x.detach().double())).logits.detach(), arrays["logits_f64"], DOUBLE)


def test_ab_mil_is_clam_without_its_instance_loss():
    """CLAM_SB's weights, less the instance classifiers, in abmil give the same logits."""
    vector = Vector("clam_sb", "clam-sb", CLAM)
    abmil = plugins.resolve("abmil").build(vector.in_dim, vector.n_out).eval()
    official = {k[2:]: torch.from_numpy(vector.arrays[k]) for k in vector.arrays if k.startswith("w/") and "instance" not in k}
    abmil.load_official(official)
    for arrays, x, _ in vector.cases():
        close(abmil(Bag(x)).logits.detach(), arrays["logits"], FORWARD)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case[0].startswith("dsmil") and "hipt" not in case[0]], ids=lambda case: case[0]
)
def test_dsmil(case):
    vector = Vector(*case)
    for arrays, x, label in vector.cases():
        vector.model.zero_grad()
        prediction = vector.model(Bag(x))
        close(prediction.logits.detach(), arrays["bag"], FORWARD)
        close(prediction.extras["instances"].detach(), arrays["inst"], FORWARD)
        close(prediction.extras["max"].detach(), arrays["max"], FORWARD)
        close(prediction.extras["attention"].T.detach(), arrays["A"], FORWARD)
        loss = vector.model.training_loss(prediction, label, vector.task)
        close(loss.detach(), arrays["loss"], FORWARD)
        loss.backward()
        vector.gradients(arrays, x)
    vector.model.double()
    for arrays, x, _ in vector.cases():
        close(vector.model(Bag(x.detach().double())).logits.detach(), arrays["bag_f64"], DOUBLE)


@pytest.mark.parametrize("name", ["clam_maxpool_mil_fc", "clam_maxpool_mil_fc_mc", "dsmil_hipt_variant", "transmil"])
def test_logits_loss_and_gradients(name):
    vector = Vector(*next(case for case in CASES if case[0] == name))
    for arrays, x, label in vector.cases():
        vector.model.zero_grad()
        prediction = vector.model(Bag(x))
        close(prediction.logits.detach(), arrays["logits" if "logits" in arrays else "top_instance_logits"], FORWARD)
        loss = vector.model.training_loss(prediction, label, vector.task)
        close(loss.detach(), arrays["loss"], FORWARD)
        loss.backward()
        vector.gradients(arrays, x)
    vector.model.double()
    for arrays, x, _ in vector.cases():
        if "logits_f64" in arrays:
            close(vector.model(Bag(x.detach().double())).logits.detach(), arrays["logits_f64"], DOUBLE)


def test_smooth_svm():
    from milbench_registry.clam import smooth_top1_svm

    path = VECTORS / "smooth_top1_svm.npz"
    if not path.is_file():
        pytest.skip(f"{path} is not here (optional reference numbers)")
    arrays = np.load(path)
    for case in json.loads(path.with_suffix(".json").read_text())["cases"]:
        x, y = torch.from_numpy(arrays[f"{case}/x"]).requires_grad_(), torch.from_numpy(arrays[f"{case}/y"])
        tau = float(arrays[f"{case}/tau"])
        loss = smooth_top1_svm(x, y, tau)
        close(loss.detach(), arrays[f"{case}/loss"], FORWARD)
        loss.backward()
        close(x.grad, arrays[f"{case}/grad"], GRADIENT)
        rows = [float(smooth_top1_svm(x[i : i + 1].detach(), y[i : i + 1], tau)) for i in range(len(x))]
        close(rows, arrays[f"{case}/per_row"], FORWARD)


def test_authors_own_weights_load_and_predict(shared):
    """CLAM's demo checkpoint: 1024-d, two classes, wrapped in a data-parallel module."""
    state = torch.load(shared / "data" / "checkpoints" / "clam_sb_s_0_checkpoint.pt", weights_only=True, map_location="cpu")
    model = plugins.resolve("clam-sb").build(1024, 2).eval()
    model.load_official(state)
    bag = Bag(torch.randn(50, 1024, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(model(bag).logits, model(bag).logits)
    assert torch.isfinite(model(bag).logits).all()
    state = torch.load(shared / "data" / "checkpoints" / "dsmil_c16_aggregator.pth", weights_only=True, map_location="cpu")
    model = plugins.resolve("dsmil").build(512, 1).eval()
    model.load_official(state)
    assert torch.isfinite(model(Bag(torch.randn(9, 512))).logits).all()
