"""Methods that are O(n) on paper are O(n) here: doubling a bag doubles what is stored for the backward pass and what is multiplied.

Counted, not timed. The counter sees matrix products; our compiled kernels and torch's fused attention it does not see.
"""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from milbench import Bag, plugins
from milbench.errors import SkipTrial
from milbench.tasks import Subtyping

D = 32
SMALL = {
    "transmil": "transmil[hidden=64,landmarks=32]",
    "hipt": "hipt[depth=1,dim=48]",
    "gigapath-random": "gigapath-random[depth=1,dim=64,heads=4]",
    **{entry.name: f"{entry.name}[dim=64]" for entry in plugins.entries() if "dim" in plugins.resolve(entry.name).params},
}
SMALL["hipt"], SMALL["gigapath-random"] = "hipt[depth=1,dim=48]", "gigapath-random[depth=1,dim=64,heads=4]"
QUADRATIC_TIME = {"full-attention", "longmil", "wikg"}  # by definition; their memory is linear all the same


def square(side, seed=0):
    """A full square of side x side patches, so that density does not change with size."""
    xy = torch.cartesian_prod(torch.arange(side), torch.arange(side)).flip(1) * 256
    return Bag(torch.randn(side * side, D, generator=torch.Generator().manual_seed(seed)), xy, 256.0, slide_id="square")


def stored_and_multiplied(model, bag):
    """Bytes kept for the backward pass (each storage once), and FLOPs of forward and backward."""
    seen = {}

    def keep(t):
        seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        loss = model.training_loss(model(bag), torch.tensor(1), Subtyping("ab"))
        stored = sum(size for pointer, size in seen.items() if pointer not in own)
        loss.backward()
    return stored, counter.get_total_flops()


@pytest.mark.slow
@pytest.mark.parametrize("name", [entry.name for entry in plugins.entries()])
def test_doubling_a_bag_doubles_its_cost(name):
    torch.manual_seed(0)
    try:
        model = plugins.resolve(SMALL.get(name, name)).build(D, 2).train()
    except SkipTrial as skip:
        pytest.skip(str(skip))
    if not model.trained_by_gradient:
        assert plugins.resolve(name).entry.complexity == "n"
        return
    model.prepare([square(8, seed) for seed in range(3)], torch.Generator().manual_seed(0))
    one, four = (stored_and_multiplied(model, square(side)) for side in (32, 64))  # 1,024 and 4,096 patches
    assert four[0] < 4.6 * one[0], f"memory grows {four[0] / one[0]:.1f} times on 4 times the patches"
    if name not in QUADRATIC_TIME:
        assert four[1] < 4.6 * one[1], f"arithmetic grows {four[1] / one[1]:.1f} times on 4 times the patches"
