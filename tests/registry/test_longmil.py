"""LongMIL and full attention against their definitions, written out densely with plain torch."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from milbench import Bag, plugins
from milbench.nn.transformer import Block, SelfAttention

HYBRIDS = [entry.name for entry in plugins.entries() if entry.name.startswith("longmil")]


def tissue(n, seed=0, d=12, dtype=torch.float64, spread=1.6):
    """n patches on an irregular piece of a lattice, some of them sharing a cell."""
    generator = torch.Generator().manual_seed(seed)
    side = int((spread * n) ** 0.5) + 1
    cell = torch.randint(side * side, (n,), generator=generator)
    xy = torch.stack([cell % side, cell // side], 1) * 448 + 5000
    return Bag(torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype), xy, 448.0, slide_id=f"t{seed}")


def build(name, d=12, n_out=3, seed=0):
    torch.manual_seed(seed)
    return plugins.resolve(name).build(d, n_out).double().eval()


def dense_attention(layer, x, allowed, grid, rope):
    dim = x.shape[1]
    d = dim // layer.heads
    out = []
    q, k, v = layer.qkv(x).split(dim, dim=1)
    for h in range(layer.heads):
        qh, kh, vh = (t[:, h * d : (h + 1) * d] for t in (q, k, v))
        if rope:
            qh, kh = turned(qh, grid), turned(kh, grid)
        score = (qh @ kh.T / d**0.5).masked_fill(~allowed, -torch.inf)
        out.append(score.softmax(1) @ vh)
    return layer.out(torch.cat(out, 1))


def turned(x, grid):
    """Rotary positions as complex numbers: pair j of the first half turns by column * theta_j, of the second half by row * theta_j."""
    n, d = x.shape
    theta = 10_000.0 ** (-2 * torch.arange(d // 4, dtype=torch.float64) / (d / 2))
    angle = torch.cat([grid[:, :1] * theta, grid[:, 1:] * theta], 1)  # (n, d / 2)
    pairs = torch.view_as_complex(x.reshape(n, d // 2, 2).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).reshape(n, d)


def dense_block(block, x, allowed, grid, rope):
    x = x + dense_attention(block.mixer, block.norm(x), allowed, grid, rope)
    norm, first, _, second = block.ffn
    return x + second(F.gelu(first(norm(x))))


def dense_longmil(model, bag):
    """The definition: masks of n x n, cells by a dictionary."""
    grid = torch.floor((bag.coords - bag.coords.min(0).values) / bag.step + 0.5).long()
    near = ((grid[:, None] - grid[None]) ** 2).sum(-1) <= model.radius**2
    x = model.project(bag.features)
    for block in model.local:
        x = dense_block(block, x, near, grid, rope=False)
    cells = {}
    for i, (column, row) in enumerate(grid.tolist()):
        cells.setdefault((row // 2, column // 2), []).append(i)
    pooled = torch.stack([x[members].mean(0) for members in cells.values()])
    at = torch.tensor([[column, row] for row, column in cells])
    everything = torch.ones(len(at), len(at), dtype=torch.bool)
    x = dense_block(model.whole, pooled, everything, at, rope=True)
    return model.head(model.norm(x.mean(0)))


@pytest.mark.parametrize("name", ["longmil[dim=16,radius=2]", "longmil[dim=32,heads=4,radius=3.5,blocks=1]", "longmil[dim=16]"])
@pytest.mark.parametrize("n", [1, 2, 7, 60])
def test_longmil_is_its_definition(name, n):
    model, bag = build(name), tissue(n)
    torch.testing.assert_close(model(bag).logits, dense_longmil(model, bag), rtol=1e-9, atol=1e-9)


def test_full_attention_is_its_definition():
    model, bag = build("full-attention[dim=16,heads=2]"), tissue(40)
    grid = bag.grid()
    x = model.project(bag.features)
    for block in model.blocks:
        x = dense_block(block, x, torch.ones(40, 40, dtype=torch.bool), grid, rope=True)
    torch.testing.assert_close(model(bag).logits, model.head(model.norm(x.mean(0))), rtol=1e-9, atol=1e-9)


def test_parameter_counts_of_the_specification():
    def count(name, d):
        return sum(p.numel() for p in plugins.resolve(name).build(d, 3).parameters())

    assert (count("longmil", 384), count("longmil", 1024)) == (5_469_699, 5_715_459)
    assert (count("full-attention", 384), count("full-attention", 1024)) == (3_696_387, 3_942_147)


@pytest.mark.parametrize("name", HYBRIDS)
def test_recomputed_training_gives_the_same_gradients(name):
    bag = tissue(50)
    gradients = []
    for above in (32_000, 0):
        model = build(f"{name}[dim=32,radius=2,recompute_above={above}]").train()
        torch.manual_seed(1)
        model(bag).logits.square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", HYBRIDS)
def test_position_on_the_slide_does_not_matter_but_arrangement_does(name):
    model, bag = build(f"{name}[dim=32,radius=2]"), tissue(50)
    moved = replace(bag, coords=bag.coords + 448 * 1000)
    torch.testing.assert_close(model(bag).logits, model(moved).logits, rtol=1e-9, atol=1e-9)
    shuffled = replace(bag, coords=bag.coords[torch.randperm(50, generator=torch.Generator().manual_seed(0))])
    assert (model(bag).logits - model(shuffled).logits).abs().max() > 1e-4


def test_local_blocks_never_cross_slides():
    """The tokens after the local blocks of a case of two slides are those of each slide alone."""
    block = Block(16, SelfAttention(16, radius=10.0)).double()
    one, two = tissue(20, 1, 16), tissue(30, 2, 16)
    both = Bag(
        torch.cat([one.features, two.features]),
        torch.cat([one.coords, two.coords]),
        448.0,
        slide_index=torch.tensor([0] * 20 + [1] * 30),
    )
    alone = torch.cat([block(bag.features, bag.grid()) for bag in (one, two)])
    torch.testing.assert_close(block(both.features, both.grid(gap=12)), alone, rtol=1e-9, atol=1e-9)


def test_dropout_acts_in_training_only():
    model, bag = build("longmil[dim=16,radius=2,dropout=0.5]"), tissue(40)
    assert torch.equal(model(bag).logits, model(bag).logits)
    model.train()
    assert not torch.equal(model(bag).logits, model(bag).logits)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="5 heads do not divide a width of 384"):
        plugins.resolve("longmil[heads=5]").build(8, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["longmil-retnet", "longmil-gla", "longmil-mamba-single", "longmil-vmamba"])
def test_a_hundred_thousand_patches_train_in_three_gigabytes(name):
    """One training step with a linear global layer, in a process of its own: growth of resident memory."""
    import subprocess
    import sys

    program = f"""
import torch
from milbench import Bag, plugins
from milbench.profiling.measure import extra_bytes
from milbench.profiling.ops import tissue
from milbench.recipes import get
from milbench.tasks import Subtyping
plugins.discover()
bag = Bag(torch.randn(100_000, 384), tissue(100_000) * 224, 224.0)
model = plugins.resolve({name!r}).build(384, 3).train()
step = lambda bag: model.training_step(bag, torch.tensor(1), Subtyping("abc"), optimisers)
optimisers = model.optimisers(get("paper", "subtyping"))
step(Bag(bag.features[:500], bag.coords[:500], 224.0))  # compiled kernels and optimiser states are not the bag's
print(extra_bytes(lambda: step(bag)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    if done.stdout.strip() == "None":
        pytest.skip("this system does not tell a process's peak memory")
    assert int(done.stdout) < 3e9


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("name", ["longmil", "longmil-retnet", "longmil-gla"])
def test_heads_reach_the_local_and_the_global_layer(name, heads):
    model = build(f"{name}[dim=32,heads={heads}]")
    assert [block.mixer.heads for block in (*model.local, model.whole)] == [heads] * 3


def test_only_hybrids_whose_numbers_changed_have_another_version():
    version = lambda text: plugins.resolve(text).implementation.partition("@")[2]  # noqa: E731
    assert {name: version(name) for name in HYBRIDS} == {
        name: "2" if name in ("longmil-retnet", "longmil-gla") else "1" for name in HYBRIDS
    }
    assert version("longmil[global_layer=gla]") == "2", "a version follows from the parameters, whatever the name"


@pytest.mark.parametrize("name", [*HYBRIDS, "full-attention"])
def test_which_slide_of_a_case_comes_first_does_not_matter(name):
    one, two = tissue(20, seed=1), tissue(30, seed=2)
    case = lambda a, b: Bag(  # noqa: E731
        torch.cat([a.features, b.features]), torch.cat([a.coords, b.coords]), 448.0, slide_id="case",
        slide_index=torch.tensor([0] * len(a) + [1] * len(b)),
    )  # fmt: skip
    model = build(f"{name}[dim=32]")
    torch.testing.assert_close(model(case(one, two)).logits, model(case(two, one)).logits, rtol=1e-9, atol=1e-12)
