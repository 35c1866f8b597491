"""The linear mixers, the causal convolution, dilated attention and the scan orders against their naive twins."""

import importlib
import subprocess
import sys

import pytest
import torch

from milbench.errors import MilbenchError
from milbench.nn.dilated_attention import DilatedSelfAttention
from milbench.ops import backends
from milbench.ops.causal_conv import causal_conv1d, causal_conv1d_naive
from milbench.ops.dilated_attention import dilated_attention, dilated_attention_naive
from milbench.ops.gated_linear_attention import gated_linear_attention, gated_linear_attention_naive
from milbench.ops.retention import retention, retention_naive, retention_recurrent
from milbench.ops.scan_orders import cross_scan, scan_order
from milbench.ops.selective_scan import selective_scan, selective_scan_naive

dilated = importlib.import_module("milbench.ops.dilated_attention")  # the package exports functions of the same names
SPANS = next(backend.call for backend in backends.offered("selective_scan") if backend.name == "spans")

SIZES = (1, 2, 7, 37, 63, 64, 65, 128, 129, 257)  # odd sizes, and the borders of chunks and spans
BRANCHES = [((16, 32, 64), (1, 2, 4)), ((8, 8), (1, 2)), ((16, 48), (1, 3)), ((10, 7), (4, 3)), ((5,), (8,)), ((1024,), (2,))]


def _normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _qkv(heads, n, d_k, d_v):
    return _normal(heads, n, d_k), _normal(heads, n, d_k, seed=1), _normal(heads, n, d_v, seed=2)


def _retention(n):
    return *_qkv(3, n, 6, 5), 1 - 2.0 ** (-2 - torch.arange(3, dtype=torch.float64))


def _gla(n, strength=1.0):
    return *_qkv(3, n, 6, 5), -strength * _normal(3, n, 6, seed=3).exp()


def _scan(n, c=70):  # two blocks of channels
    step, rate = 0.3 * _normal(2, n, c).exp(), -_normal(2, c, 5).exp()
    return _normal(2, n, c, seed=1), step, rate, _normal(2, n, 5, seed=2), _normal(2, n, 5, seed=3), _normal(2, c, seed=4)


def _conv(n):
    return _normal(n, 3), _normal(3, 4, seed=1), _normal(3, seed=2)


OPS = {
    "retention": (retention, retention_naive, _retention),
    "retention-short-chunk": (lambda *given: retention(*given, chunk=16), retention_naive, _retention),
    "retention-recurrent": (retention_recurrent, retention_naive, _retention),
    "gla": (gated_linear_attention, gated_linear_attention_naive, _gla),
    "gla-short-chunk": (lambda *given: gated_linear_attention(*given, chunk=8), gated_linear_attention_naive, _gla),
    "gla-weak": (gated_linear_attention, gated_linear_attention_naive, lambda n: _gla(n, 1e-2)),
    "gla-strong": (gated_linear_attention, gated_linear_attention_naive, lambda n: _gla(n, 100.0)),
    "scan": (selective_scan, selective_scan_naive, _scan),
    "scan-without-D": (selective_scan, selective_scan_naive, lambda n: _scan(n)[:-1]),
    "scan-any-device": (SPANS, selective_scan_naive, lambda n: _scan(n)[:-1]),
    "conv": (causal_conv1d, causal_conv1d_naive, _conv),
    "conv-without-bias": (causal_conv1d, causal_conv1d_naive, lambda n: _conv(n)[:-1]),
}


def _with_gradients(op, given, dtype):
    leaves = [t.to(dtype).requires_grad_() for t in given]
    out = op(*leaves)
    weight = _normal(*out.shape, seed=9).to(dtype)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), leaves)]


def _assert_close(ours, naive, tolerance):
    for i, (a, b) in enumerate(zip(ours, naive, strict=True)):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=0.1), "the value" if i == 0 else f"gradient {i - 1}"


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5)], ids=["float64", "float32"])
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", OPS)
def test_values_and_gradients_are_those_of_the_naive_twin(name, n, dtype, tolerance):
    op, naive, given = OPS[name]
    _assert_close(_with_gradients(op, given(n), dtype), _with_gradients(naive, given(n), torch.float64), tolerance)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "any-device"])
@pytest.mark.parametrize(("segments", "ratios"), BRANCHES)
@pytest.mark.parametrize("heads", [1, 4, 6])
def test_dilated_attention_is_its_naive_twin(heads, segments, ratios, fused, monkeypatch):
    if not fused:
        monkeypatch.setattr(dilated, "FUSED", ())
        monkeypatch.setattr(dilated, "ROWS", 3)
    for n in (1, 2, 7, 37, 64, 100):
        naive = _with_gradients(
            lambda *given: dilated_attention_naive(*given, segments, ratios), _qkv(heads, n, 5, 5), torch.float64
        )
        for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 2e-5)):
            ours = _with_gradients(lambda *given: dilated_attention(*given, segments, ratios), _qkv(heads, n, 5, 5), dtype)
            _assert_close(ours, naive, tolerance)


@pytest.mark.parametrize("name", [name for name in OPS if "recurrent" not in name])
def test_gradcheck(name):
    op, _, given = OPS[name]
    narrow = [t[..., :3, :] if name.startswith("scan") and i == 2 else t for i, t in enumerate(given(5))]
    if name.startswith("scan"):
        narrow = [t[:1, ..., :3] if i in (0, 1, 5) else t[:1] for i, t in enumerate(narrow)]
    assert torch.autograd.gradcheck(op, [t.clone().requires_grad_() for t in narrow])


def test_gradients_of_dilated_attention_hold_its_branch_weights_fixed():
    # One branch has weight one, so that its gradient is the numerical one; several are compared with the twin, which detaches.
    given = [t.requires_grad_() for t in _qkv(3, 7, 4, 4)]
    assert torch.autograd.gradcheck(lambda *qkv: dilated_attention(*qkv, (5,), (2,)), given)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ("retention", "gla", "scan", "conv") else pytest.mark.slow) for name in OPS]
)
def test_results_repeat_and_do_not_depend_on_the_number_of_threads(name):
    op, _, given = OPS[name]
    threads = torch.get_num_threads()
    try:
        runs = []
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            runs.append(_with_gradients(op, given(129), torch.float32))
    finally:
        torch.set_num_threads(threads)
    exact = runs[1:] if name != "scan" else runs  # torch's own products may split otherwise over other thread counts
    assert all(torch.equal(a, b) for run in exact[1:] for a, b in zip(exact[0], run, strict=True))


def test_the_future_is_not_seen():
    for name, (op, _, given) in OPS.items():
        tensors = given(71)
        changed = [t.clone() for t in tensors]
        token = 0 if name.startswith("conv") else 1
        for i, t in enumerate(changed):
            if 71 in t.shape:
                t.narrow(token, 40, 31).mul_(0.5)
                assert not torch.equal(t, tensors[i])
        before, after = (op(*some).narrow(token, 0, 40) for some in (tensors, changed))
        assert torch.allclose(before, after, rtol=0, atol=1e-12), name


def test_strong_gates_and_fast_steps_forget_without_overflow():
    q, k, v, _ = _gla(200)
    gate = torch.full_like(q, -1e4).float()
    alone = (q * k).sum(-1, keepdim=True) * v  # nothing but the token itself is left
    assert torch.allclose(gated_linear_attention(q.float(), k.float(), v.float(), gate), alone.float(), atol=1e-4)
    u, delta, A, B, C, _ = (t.float() for t in _scan(200))
    y = selective_scan(u, 1e4 + delta, A, B, C)
    assert torch.allclose(y, (1e4 + delta) * u * (B * C).sum(-1, keepdim=True), rtol=1e-3, atol=1.0)


def test_half_types_are_computed_in_float32():
    for op, _, given in (OPS[name] for name in ("retention", "gla", "scan", "conv")):
        halves = [t.bfloat16() for t in given(37)]
        if given is _retention:
            halves[-1] = given(37)[-1].float()  # decays near 1 need their digits; autocast leaves buffers alone
        assert torch.equal(op(*halves), op(*(t.float() for t in halves)).bfloat16())
    q, k, v = (t.float() for t in _qkv(4, 37, 8, 8))
    decay = torch.tensor([0.5, 0.9, 0.99, 0.999])
    gate = -q.exp()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = retention(q, k, v, decay), gated_linear_attention(q, k, v, gate), dilated_attention(q, k, v, (8, 16), (1, 2))
    outside = retention(q, k, v, decay), gated_linear_attention(q, k, v, gate), dilated_attention(q, k, v, (8, 16), (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))


def _peak(call):
    """Largest sum of live allocations of one call on the CPU, in bytes."""
    live = peak = 0
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


@pytest.mark.parametrize("name", ["retention", "gla", "scan", "dilated"])
def test_memory_is_linear(name):
    def step(n):
        if name == "dilated":
            op, given = (lambda *qkv: dilated_attention(*qkv, (64, 256, 4096), (1, 2, 4))), _qkv(4, n, 16, 16)
        else:
            op, given = OPS[name][0], OPS[name][2](n)
        leaves = [t.float().requires_grad_() for t in given]
        op(*leaves).sum().backward()  # compiles what is compiled
        return _peak(lambda: op(*leaves).sum().backward()), sum(t.nbytes for t in leaves)

    (small, _), (large, inputs) = step(1024), step(4096)
    assert 0 < large <= 4.4 * small
    assert large <= 25 * inputs


BAD = {
    "retention-k": (retention, _retention, 1, lambda t: t[:, :-1], "k must be .*n=7.*got"),
    "retention-v-axes": (retention, _retention, 2, lambda t: t[0], "v must be"),
    "retention-v-integers": (retention, _retention, 2, torch.Tensor.long, "v is torch.int64"),
    "retention-mixed": (retention, _retention, 1, torch.Tensor.float, "k is torch.float32"),
    "retention-decay": (retention, _retention, 3, lambda t: t + 1, r"decay must lie in \(0, 1\)"),
    "retention-nan": (retention, _retention, 0, lambda t: t * torch.nan, "q holds NaN"),
    "gla-gate": (gated_linear_attention, _gla, 3, torch.neg, "log_gate must not be positive"),
    "gla-gate-shape": (gated_linear_attention, _gla, 3, lambda t: t[..., 0], "log_gate must be"),
    "gla-infinite": (gated_linear_attention, _gla, 3, lambda t: t * torch.inf, "log_gate holds NaN or infinite"),
    "scan-delta": (selective_scan, _scan, 1, torch.neg, "delta must not be negative"),
    "scan-A": (selective_scan, _scan, 2, torch.neg, "A must not be positive"),
    "scan-B": (selective_scan, _scan, 3, lambda t: t[..., :-1], "B must be"),
    "scan-D": (selective_scan, _scan, 5, lambda t: t[0], "D must be"),
    "scan-empty": (selective_scan, _scan, 0, lambda t: t[:, :0], "u must be .* no axis empty"),
    "conv-weight": (causal_conv1d, _conv, 1, lambda t: t[:2], "weight must be"),
    "conv-bias": (causal_conv1d, _conv, 2, lambda t: t[:2], "bias must be"),
    "dilated-q": (lambda *a: dilated_attention(*a[:3], (4,), (1,)), _retention, 2, lambda t: t * torch.nan, "v must be"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_tensors_are_refused_by_name(name):
    op, given, which, spoil, message = BAD[name]
    tensors = list(given(7))
    tensors[which] = spoil(tensors[which])
    with pytest.raises(MilbenchError, match=message):
        op(*tensors)


def test_bad_options_are_refused_by_name():
    q, k, v = _qkv(2, 7, 4, 4)
    with pytest.raises(MilbenchError, match="chunk must be a power of two, got 48"):
        gated_linear_attention(q, k, v, -q.abs(), chunk=48)
    with pytest.raises(MilbenchError, match="chunk must be at least 1"):
        retention(q, k, v, torch.tensor([0.5, 0.5]).double(), chunk=0)
    for segments, ratios, message in (
        ((4, 8), (1,), "one per branch"),
        ((), (), "one per branch"),
        ((4.5,), (1,), "segments must be positive integers"),
        ((4,), (0,), "ratios must be positive integers"),
    ):
        with pytest.raises(MilbenchError, match=message):
            dilated_attention(q, k, v, segments, ratios)
    with pytest.raises(MilbenchError, match="heads"):
        DilatedSelfAttention(10, 3, segments=(4,), ratios=(1,))


def test_numba_is_loaded_by_the_first_scan_only():
    code = "import sys, milbench.ops.selective_scan; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


GRID = torch.tensor([[1, 0], [0, 1], [0, 0], [1, 1], [0, 0]])  # two tokens share the first cell


def test_small_scan_orders():
    assert scan_order(GRID, "storage").tolist() == [0, 1, 2, 3, 4]
    assert scan_order(GRID, "raster").tolist() == [2, 4, 0, 1, 3]
    assert scan_order(GRID, "hilbert").tolist() == [2, 4, 1, 3, 0]  # up, right, down
    rows, columns = [2, 4, 0, 1, 3], [2, 4, 1, 0, 3]
    assert cross_scan(GRID).tolist() == [rows, columns, rows[::-1], columns[::-1]]
    assert scan_order(GRID[:1], "hilbert").tolist() == [0]


@pytest.mark.parametrize("n", [1, 2, 7, 37, 257])
def test_orders_are_permutations_and_repeat(n):
    grid = torch.randint(-9, 9, (n, 2), generator=torch.Generator().manual_seed(n))
    everything = torch.arange(n)
    for kind in ("storage", "raster", "random", "hilbert"):
        first, second = (scan_order(grid, kind, torch.Generator().manual_seed(3)) for _ in range(2))
        assert first.dtype == torch.int64
        assert torch.equal(first, second)
        assert torch.equal(first.sort().values, everything)
    orders = cross_scan(grid)
    assert all(torch.equal(order.sort().values, everything) for order in orders)
    at = grid[orders[0]]
    key = at[:, 1] * 100 + at[:, 0]
    assert (key.diff() >= 0).all()
    assert (orders[0].diff()[key.diff() == 0] > 0).all()  # ties by storage order
    if n > 30:
        other = scan_order(grid, "random", torch.Generator().manual_seed(4))
        assert not torch.equal(other, scan_order(grid, "random", torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("side", [2, 4, 16])
def test_neighbours_along_the_hilbert_curve_are_neighbours_on_the_slide(side):
    grid = torch.cartesian_prod(torch.arange(side), torch.arange(side))[torch.randperm(side * side)] + 5
    steps = grid[scan_order(grid, "hilbert")].diff(dim=0).abs().sum(1)
    assert (steps == 1).all()


def test_bad_grids_and_kinds_are_refused():
    for grid, message in ((GRID.float(), "grid must hold integers"), (GRID.T, "grid must be"), (GRID[:0], "grid must be")):
        for order in (lambda g: scan_order(g, "hilbert"), cross_scan):
            with pytest.raises(MilbenchError, match=message):
                order(grid)
    with pytest.raises(MilbenchError, match=r"unknown kind of scan order 'hilbrt'; did you mean hilbert\?"):
        scan_order(GRID, "hilbrt")
