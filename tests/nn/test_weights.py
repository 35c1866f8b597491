"""Starting from weights: what is read, what counts as the trunk of a model, and what is said where they do not fit."""

import pytest
import safetensors.torch
import torch
from torch import nn

from milbench import Bag, MilbenchError, plugins
from milbench.nn.weights import Trunk, read

D = 6
METHODS = [  # how the classes enter: one layer, a layer for each class, an axis of a convolution, two tiers, branches
    "abmil[hidden=8,attention_dim=4]", "abmil[hidden=8,lineage=original]", "clam-mb[hidden=8]", "clam-sb[hidden=8]", "dsmil",
    "dtfd-afs[hidden=8]", "transmil[hidden=16,landmarks=4]", "amisl[clusters=3,hidden=8]", "longmil[dim=16]",
    "rrt[hidden=16]", "wikg[hidden=8]", "acmil[hidden=8]", "acmil[arch=mha,hidden=8]", "aem", "aem[arch=dsmil]",
]  # fmt: skip


def build(name, n_out=3, seed=0):
    torch.manual_seed(seed)
    return plugins.resolve(name).build(D, n_out)


def with_weights(name, path):
    return f"{name.removesuffix(']')}{',' if '[' in name else '['}weights={path}]"


@pytest.mark.parametrize("name", METHODS)
def test_a_trunk_starts_from_weights_of_other_classes(name, tmp_path):
    donor, path = build(name, n_out=2, seed=1), tmp_path / "donor.safetensors"
    safetensors.torch.save_file({key: t.contiguous() for key, t in donor.state_dict().items()}, path)
    fresh, started = build(name), build(with_weights(name, path))
    of_donor, before, after = donor.state_dict(), fresh.state_dict(), started.state_dict()
    moved = {key for key, _ in started.named_parameters() if not torch.equal(after[key], before[key])}
    assert moved, "nothing was loaded"
    assert all(torch.equal(after[key], of_donor[key]) for key in moved)
    kept = {key for key, _ in started.named_parameters()} - moved
    varied = {key for key in kept if key not in of_donor or not torch.equal(before[key], of_donor[key])}
    layers = {key.split(".")[-2] if not key.split(".")[-2].isdigit() else key.split(".")[-3] for key in varied}
    assert layers <= {"head", "instance_head", "bag_head", "instance_heads", "branch_heads", "out"}, (
        "all but the heads starts from them, and CLAM-MB's attention for each class"
    )


def test_official_names_and_containers(tmp_path):
    donor = build("wikg[hidden=8]", seed=1)
    names = {ours: official for official, ours in donor.official_names.items()}
    official = {
        f"{names.get(key.split('.')[0], key.split('.')[0])}.{key.partition('.')[2]}": t for key, t in donor.state_dict().items()
    }
    official["gate_U.weight"] = torch.zeros(4, 8)
    for i, content in enumerate((official, {"state_dict": official, "epoch": 3}, {"model": official})):
        torch.save(content, tmp_path / f"{i}.pth")
        started = build(f"wikg[hidden=8,weights={tmp_path}/{i}.pth]")
        assert torch.equal(started.to_head.weight, donor.to_head.weight)
        assert not torch.equal(started.head.weight, donor.head.weight)


def test_the_head_is_that_of_a_fresh_model_and_so_are_later_draws(tmp_path):
    torch.save(build("abmil[hidden=8]", seed=1).state_dict(), tmp_path / "w.pth")
    fresh, next_fresh = build("abmil[hidden=8]"), torch.rand(3)
    started, next_started = build(f"abmil[hidden=8,weights={tmp_path}/w.pth]"), torch.rand(3)
    assert torch.equal(started.head.weight, fresh.head.weight)
    assert torch.equal(next_started, next_fresh)
    assert started(Bag(torch.randn(4, D))).logits.shape == (3,)


def test_everything_that_does_not_fit_is_listed(tmp_path):
    state = build("abmil[hidden=8,attention_dim=4]", seed=1).state_dict()
    state["odd"], state["score.out.weight"] = torch.zeros(1), torch.zeros(1, 5)
    del state["project.0.bias"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(
        MilbenchError, match=r"w\.pth do not fit ABMIL: missing project\.0\.bias; score\.out\.weight is .*; unknown odd"
    ):
        build(f"abmil[hidden=8,attention_dim=4,weights={tmp_path}/w.pth]")


def test_a_model_without_trained_weights_has_no_trunk():
    with pytest.raises(MilbenchError, match="no trained weights"):
        Trunk(nn.Linear(2, 3), nn.Linear(2, 4)).load({"weight": torch.zeros(3, 2)}, "w.pth")


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"text", "not a file of tensors"), ([1, 2], "no state dict"), ({"a": 1}, "no state dict"), ({}, "no state dict")],
)
def test_what_is_no_state_dict_is_refused(tmp_path, content, says):
    path = tmp_path / "w.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(MilbenchError, match=says):
        read(str(path))


def test_code_in_a_file_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    torch.save({"a": Evil()}, tmp_path / "w.pth")
    with pytest.raises(MilbenchError, match="not a file of tensors"):
        read(str(tmp_path / "w.pth"))
