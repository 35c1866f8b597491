"""Attention, positions and pooling on irregular tissue: values and gradients of every fast op against its naive twin."""

import tracemalloc

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode  # torch's documented way in, which stands only there

from milbench.errors import MilbenchError
from milbench.ops.full_attention import full_attention, full_attention_naive
from milbench.ops.local_attention import local_attention_2d as in_window
from milbench.ops.local_attention import local_attention_2d_naive as in_window_naive
from milbench.ops.pooling import pool_2x2, pool_2x2_naive
from milbench.ops.positions import alibi_slopes, rope_2d, rope_2d_naive
from milbench.ops.window import Window


def local_attention_2d(q, k, v, grid, radius, *, alibi=None, regions=None, **options):
    return in_window(q, k, v, Window(grid, radius, alibi, regions), **options)


def local_attention_2d_naive(q, k, v, grid, radius, *, alibi=None, regions=None, **options):
    return in_window_naive(q, k, v, Window(grid, radius, alibi, regions), **options)


TOLERANCE = {torch.float32: dict(rtol=2e-5, atol=1e-5), torch.float64: dict(rtol=1e-10, atol=1e-11)}


def tissue(n, seed=0):
    """n occupied cells of a ragged blob, in random order, some of them twice."""
    generator = torch.Generator().manual_seed(seed)
    side = int((1.8 * n) ** 0.5) + 3
    rough = torch.rand(1, 1, 5, 5, generator=generator)
    field = torch.nn.functional.interpolate(rough, size=(side, side), mode="bicubic")[0, 0]
    inside = (field + 0.2 * torch.rand(side, side, generator=generator)).flatten().argsort(descending=True)[:n]
    inside = inside[torch.randperm(n, generator=generator)]
    inside[: n // 10] = inside[n // 2 : n // 2 + n // 10].clone()
    return torch.stack([inside % side, inside // side], dim=1)


def square(n):
    side = int(n**0.5)
    return torch.cartesian_prod(torch.arange(side), torch.arange(side))


def slides():
    """Three slides side by side with gaps, one of them at negative columns."""
    return torch.cat([tissue(60, 1) - torch.tensor([500, 0]), tissue(50, 2), tissue(40, 3) + torch.tensor([1000, 7])])


def draw(heads, n, d, dtype=torch.float32, seed=0, d_v=None):
    generator = torch.Generator().manual_seed(seed)
    widths = (d, d, d_v or d)
    return [torch.randn(heads, n, w, dtype=dtype, generator=generator).requires_grad_() for w in widths]


def assert_same(fast, naive, inputs, dtype):
    """Equal values, and equal gradients of a random projection."""
    weight = torch.randn(naive.shape, dtype=naive.dtype, generator=torch.Generator().manual_seed(1))
    ours, theirs = (torch.autograd.grad((out * weight).sum(), inputs) for out in (fast, naive))
    for a, b in zip((fast, *ours), (naive, *theirs), strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 7, 37, 257])
@pytest.mark.parametrize(("heads", "d", "d_v"), [(1, 40, 24), (2, 16, 16), (4, 5, 3)])
@pytest.mark.parametrize("masks", ["plain", "alibi", "regions"])
def test_local_attention_equals_its_definition(dtype, n, heads, d, d_v, masks):
    grid, inputs = tissue(n), draw(heads, n, d, dtype, d_v=d_v)
    options = {
        "plain": {},
        "alibi": dict(alibi=alibi_slopes(heads).to(dtype), scale=0.3),
        "regions": dict(regions=grid[:, 0] // 4 * 1000 - grid[:, 1] // 4),
    }[masks]
    args = (*inputs, grid, 3.7)
    assert_same(local_attention_2d(*args, **options), local_attention_2d_naive(*args, **options), inputs, dtype)


@pytest.mark.parametrize("radius", [0, 1, 2**0.5, 5**0.5, 10, 1e9, float("inf")])
@pytest.mark.parametrize(
    "grid",
    [tissue(300), square(400), torch.full((90, 2), 7), slides(), torch.tensor([[0, 0], [10**6, 3], [10**6, 3], [5, 10**9]])],
    ids=["blob", "square", "one cell", "slides", "far apart"],
)
def test_local_attention_on_every_shape_and_radius(grid, radius):
    if radius > 100 and grid.max() > 10**5:
        with pytest.raises(MilbenchError, match="radius"):
            local_attention_2d(*draw(1, len(grid), 8), grid, radius)
        return
    inputs = draw(2, len(grid), 12, torch.float64)
    args = (*inputs, grid, radius)
    assert_same(local_attention_2d(*args), local_attention_2d_naive(*args), inputs, torch.float64)


@pytest.mark.parametrize("heads", [1, 4, 8])
def test_local_attention_at_the_width_of_longmil(heads):
    inputs = draw(heads, 700, 384 // heads)
    args = (*inputs, tissue(700), 10)
    assert_same(local_attention_2d(*args), local_attention_2d_naive(*args), inputs, torch.float32)


def test_local_attention_passes_gradcheck():
    grid, inputs = tissue(23), draw(2, 23, 3, torch.float64)
    assert torch.autograd.gradcheck(lambda q, k, v: local_attention_2d(q, k, v, grid, 2.5, alibi=alibi_slopes(2)), inputs)


def test_large_scores_do_not_overflow():
    inputs = [100 * t.detach() for t in draw(1, 50, 16)]
    args = (*[t.requires_grad_() for t in inputs], tissue(50), 4)
    torch.testing.assert_close(local_attention_2d(*args), local_attention_2d_naive(*args), rtol=1e-3, atol=1e-3)


def test_dropout_is_the_same_in_forward_and_backward():
    grid, inputs = tissue(23), draw(2, 23, 3, torch.float64)

    def dropped(q, k, v):
        return local_attention_2d(q, k, v, grid, 3, dropout=0.4, generator=torch.Generator().manual_seed(5))

    assert torch.autograd.gradcheck(dropped, inputs)
    assert torch.equal(dropped(*inputs), dropped(*inputs))


def test_dropout_keeps_the_mean_and_drops_at_its_rate():
    n, rate = 60, 0.3
    q, k, _ = (t.detach() for t in draw(2, n, 4, torch.float64))
    one_hot = torch.eye(n, dtype=torch.float64).expand(2, n, n)  # values that read the weights out
    grid, generator = tissue(n), torch.Generator().manual_seed(0)
    weights = local_attention_2d_naive(q, k, one_hot, grid, 5)
    runs = torch.stack([local_attention_2d(q, k, one_hot, grid, 5, dropout=rate, generator=generator) for _ in range(300)])
    kept = (runs > 0)[:, weights > 0].double()
    assert kept.mean().item() == pytest.approx(1 - rate, abs=0.003)
    assert kept.mean(0).std().item() == pytest.approx((rate * (1 - rate) / 300) ** 0.5, rel=0.1)  # as independent draws
    assert torch.corrcoef(kept[:, :40].T).fill_diagonal_(0).abs().max() < 0.3
    torch.testing.assert_close(runs.sum(0) / kept.shape[0], weights, rtol=0, atol=0.15 * weights.max().item())
    torch.testing.assert_close(runs[0][runs[0] > 0] * (1 - rate), weights[runs[0] > 0])


def test_order_of_the_bag_does_not_matter():
    grid, inputs, order = tissue(300), draw(2, 300, 16), torch.randperm(300)
    out = local_attention_2d(*inputs, grid, 4)
    torch.testing.assert_close(local_attention_2d(*(t[:, order] for t in inputs), grid[order], 4), out[:, order])


def test_threads_change_rounding_only_and_runs_are_equal():
    grid, inputs, threads = tissue(900), draw(1, 900, 32), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 2, 5):
            torch.set_num_threads(count)
            out = local_attention_2d(*inputs, grid, 6)
            results.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    finally:
        torch.set_num_threads(threads)
    for one, two, again, five in zip(*results, strict=True):
        assert torch.equal(two, again)
        torch.testing.assert_close(one, two)
        torch.testing.assert_close(one, five)


def test_half_precision_and_autocast():
    grid, inputs = tissue(100), [t.detach().bfloat16().requires_grad_() for t in draw(2, 100, 16)]
    out, exact = local_attention_2d(*inputs, grid, 4), local_attention_2d_naive(*(t.float() for t in inputs), grid, 4)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), exact, rtol=1e-2, atol=1e-2)
    assert all(g.dtype == torch.bfloat16 for g in torch.autograd.grad(out.float().sum(), inputs))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(local_attention_2d(*inputs, grid, 4), out)


class Allocated(TorchDispatchMode):
    """Bytes of every result that is not a view, as if none were freed."""

    def __enter__(self):
        self.storages = {}
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
        if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in given:
            self.storages[len(self.storages)] = out.untyped_storage().nbytes()
        return out


def allocations(n, d):
    """Bytes that forward and backward keep for the gradient, and that they allocate in all, freed or not."""
    grid, inputs, weight, saved = square(n), draw(1, n, d), torch.ones(1, n, d), []
    tracemalloc.start()  # for what numpy holds
    try:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t), Allocated() as mode:
            torch.autograd.grad(local_attention_2d(*inputs, grid, 10), inputs, weight)
        return sum(saved), sum(mode.storages.values()) + tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_is_linear():
    d, threads = 64, torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        allocations(256, d)  # what is compiled and imported on first use does not count
        for n in (4096, 16384):
            saved, total = allocations(n, d)
            assert saved <= 4.2 * n * d * 4
            assert total <= 12 * n * d * 4 + 2**20  # a tile's buffers do not grow
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(q=torch.zeros(5, 4)), "q must be"),
        (dict(q=torch.zeros(2, 0, 4)), "q must be"),
        (dict(q=torch.zeros(2, 5, 4, dtype=torch.int64)), "q is torch.int64"),
        (dict(k=torch.zeros(2, 5, 3)), "k must be"),
        (dict(v=torch.zeros(2, 6, 4)), "v must be"),
        (dict(v=torch.zeros(2, 5, 4, dtype=torch.float64)), "v is torch.float64"),
        (dict(k=torch.full((2, 5, 4), torch.nan)), "k holds NaN"),
        (dict(v=torch.full((2, 5, 4), torch.inf)), "v holds NaN or infinite"),
        (dict(grid=torch.zeros(5, 2)), "grid must be"),
        (dict(grid=torch.zeros(4, 2, dtype=torch.int64)), "grid must be"),
        (dict(radius=-1), "radius must be"),
        (dict(radius=float("nan")), "radius must be"),
        (dict(alibi=torch.zeros(3)), "alibi must be"),
        (dict(alibi=torch.zeros(2, requires_grad=True)), "alibi must be"),
        (dict(regions=torch.zeros(5)), "regions must be"),
        (dict(dropout=1.0), "dropout must"),
    ],
)
def test_local_attention_names_the_bad_argument(changes, message):
    good = dict(**{name: torch.zeros(2, 5, 4) for name in "qkv"}, grid=torch.zeros(5, 2, dtype=torch.int64), radius=1)
    local_attention_2d(**good)
    with pytest.raises(MilbenchError, match=message):
        local_attention_2d(**{**good, **changes})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 7, 37, 257])
@pytest.mark.parametrize("heads", [1, 4])
def test_full_attention_equals_its_definition(dtype, n, heads):
    inputs = draw(heads, n, 16, dtype, d_v=24)
    assert_same(full_attention(*inputs, scale=0.2), full_attention_naive(*inputs, scale=0.2), inputs, dtype)


def test_full_attention_never_holds_n_by_n():
    n, inputs = 3000, draw(1, 3000, 16)
    with Allocated() as mode:
        torch.autograd.grad(full_attention(*inputs).sum(), inputs)
    assert max(mode.storages.values()) < n * n


def test_full_attention_drops_at_its_rate():
    q, k, _ = (t.detach() for t in draw(1, 40, 4))
    weights = full_attention(q, k, torch.eye(40)[None], dropout=0.3)
    assert (weights == 0).float().mean().item() == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [(dict(q=torch.zeros(5, 4)), "q must"), (dict(k=torch.zeros(2, 5, 3)), "k must"), (dict(v=torch.zeros(2, 6, 4)), "v must"),
     (dict(v=torch.full((2, 5, 4), torch.nan)), "v holds NaN"), (dict(dropout=-0.1), "dropout must")],
)  # fmt: skip
def test_full_attention_names_the_bad_argument(changes, message):
    with pytest.raises(MilbenchError, match=message):
        full_attention(**{**{name: torch.zeros(2, 5, 4) for name in "qkv"}, **changes})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 7, 37, 257])
def test_rope_equals_its_definition(dtype, n):
    x, _, _ = draw(3, n, 12, dtype)
    assert_same(rope_2d(x, tissue(n)), rope_2d_naive(x, tissue(n)), [x], dtype)


def test_rope_scores_depend_on_differences_of_positions_only():
    q, k, _ = (t.detach() for t in draw(2, 50, 16, torch.float64))
    grid, moved = tissue(50), tissue(50) + torch.tensor([40, -17])
    scores = [rope_2d(q, at) @ rope_2d(k, at).mT for at in (grid, moved)]
    torch.testing.assert_close(*scores)
    same = q[:, :1].expand(-1, 50, -1)  # one vector everywhere: equal differences, equal scores
    scores = rope_2d(same, square(49).repeat(2, 1)[:50]) @ rope_2d(same, square(49).repeat(2, 1)[:50]).mT
    torch.testing.assert_close(scores[:, 0, 8], scores[:, 16, 24])  # one column and one row on, both times


@pytest.mark.parametrize("axis", [0, 1])
def test_rope_turns_half_of_each_head_by_each_axis(axis):
    x, grid = torch.ones(2, 1, 8), torch.zeros(1, 2, dtype=torch.int64)
    grid[0, axis] = 3
    turned = (rope_2d(x, grid) != x)[:, 0].view(2, 2, 4)  # (head, half, channel)
    assert turned[:, axis].all() and not turned[:, 1 - axis].any()


@pytest.mark.parametrize("change", [dict(x=torch.zeros(2, 5, 6)), dict(x=torch.zeros(5, 8)), dict(grid=torch.zeros(5, 2))])
def test_rope_names_the_bad_argument(change):
    with pytest.raises(MilbenchError, match=next(iter(change))):
        rope_2d(**{"x": torch.zeros(2, 5, 8), "grid": torch.zeros(5, 2, dtype=torch.int64), **change})


def test_alibi_slopes():
    assert alibi_slopes(8).tolist() == [2.0**-h for h in range(1, 9)]
    assert alibi_slopes(1).tolist() == [2.0**-8]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 7, 37, 257])
def test_pool_equals_its_definition(dtype, n):
    x = draw(1, n, 6, dtype)[0].detach()[0].requires_grad_()
    grid = tissue(n) - 9
    fast, naive = pool_2x2(x, grid), pool_2x2_naive(x, grid)
    assert torch.equal(fast[1], naive[1]) and torch.equal(fast[2], naive[2])
    assert_same(fast[0], naive[0], [x], dtype)


def test_pool_of_a_drawing():
    grid = torch.tensor([[3, 2], [2, 2], [0, 0], [-1, 0], [1, 1], [1, 1]])
    pooled, cells, cell = pool_2x2(torch.tensor([[1.0], [3.0], [6.0], [7.0], [0.0], [3.0]]), grid)
    assert cells.tolist() == [[-1, 0], [0, 0], [1, 1]]  # by row, then column
    assert pooled.flatten().tolist() == [7.0, 3.0, 2.0]
    assert pooled[cell].flatten().tolist() == [2.0, 2.0, 3.0, 7.0, 3.0, 3.0]


@pytest.mark.parametrize("change", [dict(x=torch.zeros(5)), dict(x=torch.full((5, 3), torch.nan)), dict(grid=torch.zeros(5, 2))])
def test_pool_names_the_bad_argument(change):
    with pytest.raises(MilbenchError, match=next(iter(change))):
        pool_2x2(**{"x": torch.zeros(5, 3), "grid": torch.zeros(5, 2, dtype=torch.int64), **change})
