"""Weights that the methods' authors trained load into ours and give finite, repeatable predictions."""

import pytest
import torch

from milbench import Bag, MilbenchError, plugins
from tests.fidelity.harness import Vector
from tests.fidelity.trajectory import paths, setup_of, width

CHECKPOINTS = {"clam_sb_s_0_checkpoint.pt": ("clam-sb", 1024, 2), "dsmil_c16_aggregator.pth": ("dsmil", 512, 1)}


@pytest.mark.parametrize("file", CHECKPOINTS)
def test_authors_own_weights(shared, file):
    name, in_dim, n_out = CHECKPOINTS[file]
    state = torch.load(shared / "data" / "checkpoints" / file, weights_only=True, map_location="cpu")
    model = plugins.resolve(name).build(in_dim, n_out).eval()
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_official(state)
    assert all(not torch.equal(fresh[key], value) for key, value in model.state_dict().items()), "every weight was replaced"
    bag = Bag(torch.randn(50, in_dim, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        first, second = model(bag), model(bag)
    assert torch.isfinite(first.logits).all()
    assert torch.equal(first.logits, second.logits)
    assert first.attention.sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("path", paths(), ids=lambda path: path.stem)
def test_weights_saved_under_data_parallel(path):
    """The wrapper's name may stand before everything, or around any part of the model."""
    vector = Vector(path)
    classes = vector.about["constructor"].get("n_classes", vector.about["constructor"].get("num_cls"))
    variant = plugins.resolve(setup_of(vector).variant)
    plain = variant.build(width(vector), classes)
    plain.load_official(vector.weights)
    for depth in range(3):
        parts = {name: name.split(".") for name in vector.weights}
        wrapped = {".".join([*p[:depth], "module", *p[depth:]]): vector.weights[name] for name, p in parts.items()}
        model = variant.build(width(vector), classes)
        model.load_official(wrapped)
        for name, value in plain.state_dict().items():
            assert torch.equal(value, model.state_dict()[name]), (depth, name)


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("last", [2, 3])
def test_clam_without_gates_with_and_without_dropout(last, parallel):
    """`module` is also what CLAM calls the layers of its ungated attention, where dropout moves the last one."""
    model = plugins.resolve("abmil[gated=false,hidden=8,attention_dim=4]").build(5, 2)
    theirs = {
        "attention_net.0": "project.0", "attention_net.3.module.0": "score.tanh_branch",
        f"attention_net.3.module.{last}": "score.out", "classifiers": "head",
    }  # fmt: skip
    ours = {name: torch.randn_like(value) for name, value in model.state_dict().items()}
    state = {f"{official}.{kind}": ours[f"{new}.{kind}"] for official, new in theirs.items() for kind in ("weight", "bias")}
    model.load_official({n.replace("attention_net.", "attention_net.module.") if parallel else n: v for n, v in state.items()})
    assert all(torch.equal(value, ours[name]) for name, value in model.state_dict().items())


def test_two_weights_for_one_place_are_refused():
    model = plugins.resolve("mean[hidden=8]").build(5, 2)
    twice = {"classifier.weight": torch.zeros(2, 8), "module.classifier.weight": torch.ones(2, 8)}
    with pytest.raises(
        MilbenchError, match=r"several official weights are called head\.weight here, .*module\.classifier\.weight"
    ):
        model.load_official(twice)
