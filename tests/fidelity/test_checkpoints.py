"""Weights that the methods' authors trained load into ours and give finite, repeatable predictions."""

import pytest
import torch

from milbench import Bag, plugins

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
