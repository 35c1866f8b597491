"""Every public operation against its naive twin, values and gradients, whatever lies behind the numbers in memory and in every dtype.

A few fixed layouts of each run by default; `make test-all` draws hundreds of cases (sizes, strides, grids, masks, backends).
"""

import random
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from milbench import ops
from milbench.errors import MilbenchError
from milbench.nn.ss2d import tissue_conv, tissue_conv_naive
from milbench.ops import backends

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 6e-3}  # of the largest value
SIZES = (1, 2, 3, 5, 7, 8, 16, 17, 31, 33, 63, 65, 100, 128, 129, 257)


def plain(t):
    return t.clone()


def transposed(t):
    return t.mT.contiguous().mT if t.ndim > 1 else t.clone()


def strided(t):
    """Every second channel of something wider, whose rest is NaN: who reads on is found out."""
    wide = torch.full((*t.shape[:-1], 2 * t.shape[-1]), torch.nan, dtype=t.dtype)
    wide[..., ::2] = t
    return wide[..., ::2]


def inside(t):
    """A window of something larger, not at its start."""
    large = torch.full([size + 3 for size in t.shape], torch.nan, dtype=t.dtype)
    window = large[tuple(slice(2, 2 + size) for size in t.shape)]
    return window.copy_(t)


def expanded(t):
    """All rows are one row in memory."""
    return t[..., :1, :].expand(t.shape) if t.ndim > 1 else t[:1].expand(t.shape)


LAYOUTS = (plain, transposed, strided, inside, expanded)


@dataclass
class Case:
    """Tensors of float64 for `fast` and `naive`; `keep` says which of them stay float32 when the others are halves."""

    fast: object
    naive: object
    tensors: list
    keep: tuple = ()
    force: tuple = ()


def normal(*shape, scale=1.0):
    return scale * torch.randn(*shape, dtype=torch.float64)


def some_grid(rng, n):
    side = max(2, round(1.3 * n**0.5))
    grid = {
        "blob": lambda: torch.randint(0, side, (n, 2)),
        "line": lambda: torch.stack([torch.arange(n), torch.zeros(n, dtype=torch.int64)], dim=1),
        "one cell": lambda: torch.full((n, 2), 7),
        "negative": lambda: torch.randint(-side, side, (n, 2)),
        "far apart": lambda: torch.randint(0, side, (n, 2)) + torch.arange(n)[:, None] % 2 * 200_000,
    }[rng.choice(["blob", "blob", "line", "one cell", "negative", "far apart"])]()
    return grid.to(rng.choice([torch.int32, torch.int64]))


def qkv(rng, n, same=False):
    heads, d = rng.choice([1, 2, 3, 5]), rng.choice([1, 2, 3, 8, 16, 17, 33])
    return normal(heads, n, d), normal(heads, n, d), normal(heads, n, d if same else rng.choice([d, 1, 5, 24]))


def local(rng, n, backend):
    q, k, v = qkv(rng, n)
    scale = rng.choice([None, 0.3])
    alibi = torch.rand(len(q)) if rng.random() < 0.4 else None
    regions = torch.randint(-2, 3, (n,)) * 2**33 if rng.random() < 0.3 else None
    where = some_grid(rng, n), rng.choice([0, 0.5, 1, 2**0.5, 2, 5**0.5, 7.3, 20, 5000])
    window = ops.Window(*where, alibi, regions)
    exact = ops.Window(*where, None if alibi is None else alibi.double(), regions)
    return Case(
        lambda q, k, v: ops.local_attention_2d(q, k, v, window, scale=scale),
        lambda q, k, v: ops.local_attention_2d_naive(q, k, v, exact, scale=scale),
        [q, k, v], force=(f"local_attention_2d={backend}",),
    )  # fmt: skip


def full(rng, n, backend):
    return Case(ops.full_attention, ops.full_attention_naive, [*qkv(rng, n)], force=(f"full_attention={backend}",))


def retention(rng, n):
    q, k, v = qkv(rng, n)
    decay = torch.tensor([rng.choice([0.01, 0.5, 0.9, 0.97, 0.99]) for _ in q], dtype=torch.float64)
    chunk = rng.choice([1, 3, 16, 128, 1000])
    return Case(partial(ops.retention, chunk=chunk), ops.retention_naive, [q, 0.3 * k, v, decay], keep=(3,))


def gla(rng, n):
    q, k, v = qkv(rng, n)
    gate = -normal(*q.shape).abs() * rng.choice([1e-4, 0.05, 1, 20])
    chunk = rng.choice([1, 4, 64, 256])
    return Case(partial(ops.gated_linear_attention, chunk=chunk), ops.gated_linear_attention_naive, [q, 0.3 * k, v, gate])


def scan(rng, n, backend):
    g, c, s = rng.choice([1, 2, 4]), rng.choice([1, 2, 5, 65]), rng.choice([1, 2, 7, 16])
    tensors = [
        normal(g, n, c), F.softplus(normal(g, n, c) - rng.choice([0, 4])), -normal(g, c, s).abs() * rng.choice([0.01, 1, 10]),
        normal(g, n, s), normal(g, n, s), normal(g, c),
    ]  # fmt: skip
    return Case(ops.selective_scan, ops.selective_scan_naive, tensors[: rng.choice([5, 6])], force=(f"selective_scan={backend}",))


def conv(rng, n):
    c = rng.choice([1, 3, 17])
    tensors = [normal(n, c), normal(c, rng.choice([1, 2, 4, 9])), normal(c)]
    return Case(ops.causal_conv1d, ops.causal_conv1d_naive, tensors[: rng.choice([2, 3])])


def dilated(rng, n):
    branches = rng.choice([1, 2, 3])
    segments = [rng.choice([1, 2, 5, 16, 31, 64, 512]) for _ in range(branches)]
    ratios = [rng.choice([1, 2, 3, 4, 8]) for _ in range(branches)]
    twins = (partial(op, segments=segments, ratios=ratios) for op in (ops.dilated_attention, ops.dilated_attention_naive))
    return Case(*twins, [*qkv(rng, n, same=True)])


def pool(rng, n):
    grid = some_grid(rng, n)
    return Case(lambda x: ops.pool_2x2(x, grid)[0], lambda x: ops.pool_2x2_naive(x, grid)[0], [normal(n, rng.choice([1, 8, 33]))])


def rope(rng, n):
    grid = some_grid(rng, n)
    return Case(partial(ops.rope_2d, grid=grid), partial(ops.rope_2d_naive, grid=grid), [normal(2, n, 4 * rng.choice([1, 5]))])


def tissue(rng, n):
    cells = torch.randint(-20, 20, (n, 2)).unique(dim=0)
    cells = cells[torch.randperm(len(cells))]
    c = rng.choice([1, 3, 8])
    return Case(
        partial(tissue_conv, cells=cells), partial(tissue_conv_naive, cells=cells), [normal(len(cells), c), normal(c, 1, 3, 3)]
    )


OPS = {
    "local attention": partial(local, backend="tiles"), "local attention in blocks": partial(local, backend="blocks"),
    "full attention": partial(full, backend="sdpa"), "full attention in tiles": partial(full, backend="tiles"),
    "retention": retention, "gated linear attention": gla, "selective scan": partial(scan, backend="cache"),
    "selective scan in spans": partial(scan, backend="spans"), "causal convolution": conv, "dilated attention": dilated,
    "pooling": pool, "rotation": rope, "convolution of the tissue": tissue,
}  # fmt: skip


def check(case, layouts, dtype, output=plain):
    """Compare with the twin in float64 on plain copies of the very same numbers; `output` lays out the gradient that comes back."""
    kinds = [torch.float32 if i in case.keep and dtype.itemsize == 2 else dtype for i in range(len(case.tensors))]
    given = [layout(t.to(kind)) for t, kind, layout in zip(case.tensors, kinds, layouts, strict=True)]
    leaves = [t.detach().requires_grad_() for t in given]
    twins = [t.detach().double().contiguous().requires_grad_() for t in given]
    backends.force(case.force)
    try:
        ours, naive = case.fast(*leaves), case.naive(*twins)
    finally:
        backends.force([])
    assert ours.dtype == dtype
    weight = normal(*naive.shape).to(dtype)
    ours_grad = torch.autograd.grad(ours, leaves, output(weight))
    naive_grad = torch.autograd.grad(naive, twins, weight.double())
    largest = max(float(g.abs().max()) for g in naive_grad)
    for what, a, b in zip(("value", *range(len(leaves))), (ours, *ours_grad), (naive, *naive_grad), strict=True):
        if dtype == torch.float16 and b.abs().max() > 6e4:
            continue  # beyond what the type holds
        scale = max(float(b.detach().abs().max()), 1e-3 if what == "value" else 0.05 * largest, 0.1)
        off = float((a.detach().double() - b.detach()).abs().max()) / scale
        assert off <= TOLERANCE[dtype], f"{'the value' if what == 'value' else f'gradient {what}'} is off by {off:.1e}"


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("op", OPS)
def test_strides_and_dtypes_are_taken(op, layout):
    for dtype in DTYPES:
        torch.manual_seed(0)
        case = OPS[op](random.Random(1), 37)
        check(case, [layout] * len(case.tensors), dtype, output=plain if layout is expanded else layout)


@pytest.mark.slow
@pytest.mark.parametrize("op", OPS)
def test_hundreds_of_drawn_cases(op):
    for seed in range(100):
        rng = random.Random(f"{op} {seed}")
        torch.manual_seed(seed)
        torch.set_num_threads(rng.choice([1, 2, 3]))
        case, dtype = OPS[op](rng, rng.choice(SIZES)), rng.choice(DTYPES)
        layouts = [rng.choice(LAYOUTS) for _ in case.tensors]
        try:
            check(case, layouts, dtype, output=rng.choice(LAYOUTS[:4]))
        except AssertionError as error:
            names = [layout.__name__ for layout in layouts]
            raise AssertionError(f"seed {seed}, {dtype}, {[tuple(t.shape) for t in case.tensors]} {names}: {error}") from error
        finally:
            torch.set_num_threads(1)


@pytest.mark.parametrize("op", OPS)
def test_what_no_kernel_can_read_is_refused(op):
    case = OPS[op](random.Random(1), 7)
    first, *rest = case.tensors
    lazily_negated = torch.complex(torch.zeros_like(first), -first).conj().imag
    assert torch.equal(lazily_negated, first)
    for bad, says in ((lazily_negated, "lazily negated"), (first.to_sparse(), "sparse")):
        with pytest.raises(MilbenchError, match=says):
            case.fast(bad, *rest)
