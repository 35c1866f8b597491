"""Exact attention of every patch to the patches within a Euclidean radius on the slide's grid: the local layer of LongMIL.

Time O(n r^2 d), memory O(n d): the backward pass recomputes the windows from q, k, v, the output and the log-sum-exp.
"""

import itertools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from milbench.errors import MilbenchError
from milbench.ops.arguments import check
from milbench.ops.backends import Backend, choose, offer
from milbench.ops.gpu import blocked_local_attention, flex_local_attention
from milbench.ops.window import Window, largest_square

if TYPE_CHECKING:
    from milbench.ops.cpu.windows import Plan

T = TypeVar("T")


def local_attention_2d(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: Window,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Softmax attention in which every patch attends the patches in its window.

    Args:
        q: (heads, n, d) queries; half types are computed in float32.
        k: (heads, n, d) keys.
        v: (heads, n, d_v) values.
        window: which patches see each other.
        scale: of the scores; None is d^-0.5.
        dropout: probability of dropping an attention weight; a caller in evaluation passes 0.
        generator: of the dropout; None is torch's global one.

    Returns:
        (heads, n, d_v) in the dtype of v.

    Raises:
        MilbenchError: naming the argument that has a wrong shape, dtype or value.

    Source: see :class:`milbench.ops.window.Window`.
    """
    check("q (heads, n, d), k (heads, n, d), v (heads, n, d_v)", q, k, v)
    window.check(len(q), q.shape[1])
    if not 0 <= dropout < 1:
        raise MilbenchError(f"dropout must lie in [0, 1), got {dropout}")
    backend = choose("local_attention_2d", q.device.type, q.dtype, dropout=dropout)
    return backend.call(q, k, v, window, scale=scale, dropout=dropout, generator=generator)


def tiled_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: Window,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Our compiled CPU kernels: tiles of queries against one slice of keys per row of the grid. Arguments as above, checked."""
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    seed = int(torch.randint(2**31, (), generator=generator)) if dropout else 0
    slopes = (torch.zeros(len(q)) if window.alibi is None else window.alibi.detach()).to(dtype).numpy()
    arguments = (_plan(window), slopes.dtype.type(scale), slopes, float(dropout), seed)
    return _LocalAttention.apply(q.to(dtype), k.to(dtype), v.to(dtype), *arguments).to(v.dtype)


def local_attention_2d_naive(q: Tensor, k: Tensor, v: Tensor, window: Window, *, scale: float | None = None) -> Tensor:
    """The definition of :func:`local_attention_2d` with an n x n matrix."""
    distance = torch.cdist(*2 * (window.grid.to(torch.float64),), compute_mode="donot_use_mm_for_euclid_dist")  # (n, n)
    allowed = distance <= window.radius
    if window.regions is not None:
        allowed &= window.regions[:, None] == window.regions
    score = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)  # (heads, n, n)
    if window.alibi is not None:
        score = score - window.alibi[:, None, None] * distance.to(score.dtype)
    return score.masked_fill(~allowed, -torch.inf).softmax(-1) @ v


class _LocalAttention(torch.autograd.Function):
    """Forward and backward by the CPU kernels; keeps q, sorted k and v, the output and the log-sum-exp."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: "Plan", *options: Any) -> Tensor:
        from milbench.ops.cpu import windows as cpu

        out, lse = _zeros(v.shape, q), _zeros(q.shape[:2], q)
        q, k, v = q.contiguous(), _sorted(k, plan), _sorted(v, plan)
        inputs, results = [t.detach().numpy() for t in (q, k, v)], [t.numpy() for t in (out, lse)]
        pieces = _pieces(plan, 8 * torch.get_num_threads())  # more than threads, for balance
        _in_threads(lambda tiles: cpu.forward(tiles, plan, *inputs, *options, *results), pieces)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.plan, ctx.options = plan, options
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        from milbench.ops.cpu import windows as cpu

        q, k, v, out, lse = ctx.saved_tensors  # looked at once: a checkpoint computes them again for each look
        plan = ctx.plan
        inputs, given = [t.numpy() for t in (q, k, v)], [t.numpy() for t in (out, lse, grad.contiguous())]
        dq, dk, dv = (_zeros(t.shape, t) for t in (q, q, grad))

        def run(tiles: tuple[int, int]) -> tuple[int, int, np.ndarray, np.ndarray]:
            first, end = cpu.key_range(tiles, plan)
            sums = [np.zeros((len(x), end - first + cpu.PAD, x.shape[2]), x.dtype) for x in inputs[1:]]
            cpu.backward(tiles, plan, *inputs, *ctx.options, *given, first, dq.numpy(), *sums)
            return first, end, *sums

        # Each thread sums the gradients of the keys it meets; neighbours overlap by a window and are added in a fixed order.
        # In four rounds, so that a quarter of these sums exists at a time.
        threads = torch.get_num_threads()
        pieces = _pieces(plan, 4 * threads)
        for start in range(0, len(pieces), threads):
            for first, end, *sums in _in_threads(run, pieces[start : start + threads]):
                place = torch.from_numpy(plan.order[first:end])
                for total, part in zip((dk, dv), sums, strict=True):
                    total.index_add_(1, place, torch.from_numpy(part)[:, : end - first, : total.shape[2]])
        return dq, dk, dv, *[None] * 5


def _plan(window: Window) -> "Plan":
    from milbench.ops.cpu import windows as cpu

    cells = window.grid.cpu().numpy().astype(np.int64)
    cells = cells - cells.min(0)
    extent = cells.max(0)
    radius = min(float(window.radius), math.hypot(*extent))  # nothing is farther
    if radius > cpu.LARGEST_RADIUS or extent.max() >= 2**30:
        raise MilbenchError(f"radius of {radius:.0f} cells in a grid of {extent + 1} cells: at most {cpu.LARGEST_RADIUS} in 2^30")
    label = np.zeros(len(cells), np.int64)
    if window.regions is not None:
        label = np.unique(window.regions.cpu().numpy(), return_inverse=True)[1]
    short, long = np.argsort(extent)  # rows along the longer side: more of them for the threads
    return cpu.make_plan(cells[:, short], cells[:, long], label, largest_square(radius))


def _sorted(x: Tensor, plan: "Plan") -> Tensor:
    from milbench.ops.cpu import windows as cpu

    heads, n, d = x.shape
    out = _zeros((heads, n + cpu.PAD, cpu.padded_width(d, x.element_size())), x)
    torch.index_select(x.detach(), 1, torch.from_numpy(plan.order), out=out[:, :n, :d])
    return out


def _zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Zeros from numpy, which asks for huge pages: filling fresh memory costs five times less than in torch's."""
    return torch.from_numpy(np.zeros(shape, np.float64 if like.dtype == torch.float64 else np.float32))


def _pieces(plan: "Plan", count: int) -> list[tuple[int, int]]:
    """The tiles in at most `count` runs of about equal length."""
    tiles = len(plan.tile_start) - 1
    bounds = np.linspace(0, tiles, min(count, tiles) + 1).astype(int).tolist()
    return list(itertools.pairwise(bounds))


def _in_threads(run: Callable[[tuple[int, int]], T], pieces: list[tuple[int, int]]) -> list[T]:
    threads = min(torch.get_num_threads(), len(pieces))
    if threads == 1:
        return [run(piece) for piece in pieces]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, pieces))


def _example(device: str) -> tuple[Any, ...]:
    q, k, v = (torch.randn(2, 40, 32, device=device) for _ in range(3))
    return q, k, v, Window(torch.arange(80, device=device).view(40, 2) % 7, 2.0)


offer(Backend("local_attention_2d", "tiles", "cpu", tiled_attention, _example))
offer(Backend("local_attention_2d", "flex", "cuda", flex_local_attention, _example, cannot=("dropout",)))
offer(Backend("local_attention_2d", "blocks", "any", blocked_local_attention, _example))
