"""Selective scan: a diagonal state-space model whose step and projections depend on the token (Gu and Dao 2023, alg. 2)."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from milbench.errors import MilbenchError
from milbench.ops.arguments import check
from milbench.ops.backends import Backend, choose, offer
from milbench.ops.gpu import mamba_scan

SPAN = 128  # tokens whose states exist at a time where the compiled kernels cannot run


def selective_scan_naive(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None) -> Tensor:
    """The definition, one token after the other: h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t, y_t = C_t . h_t + D u_t."""
    h, out = torch.zeros_like(A), []  # (g, c, s)
    for u_t, delta_t, B_t, C_t in zip(*(t.unbind(1) for t in (u, delta, B, C)), strict=True):
        h = (delta_t[..., None] * A).exp() * h + (delta_t * u_t)[..., None] * B_t[:, None]
        out.append((h * C_t[:, None]).sum(-1))
    y = torch.stack(out, dim=1)  # (g, n, c)
    return y if D is None else y + D[:, None] * u


def selective_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None) -> Tensor:
    """Same result with the states kept in cache: O(n c s) time, memory of a few (g, n, c) arrays, never (n, c, s).

    Args:
        u: (g, n, c), the input; g scans of their own, such as the four directions of V-Mamba.
        delta: (g, n, c), the step of each token and channel, >= 0 (after its softplus).
        A: (g, c, s), rate of each of the s states of a channel, <= 0.
        B, C: (g, n, s), how a token enters the states and how it reads them, shared by the channels.
        D: (g, c), weight of the input in the output, or None.

    Returns:
        (g, n, c), in the dtype of `u`. Half types are computed in float32.

    Raises:
        MilbenchError: naming the argument, for shapes that do not agree, dtypes that are not floating point, NaN, or a wrong
            sign.

    Source: Gu and Dao 2023, alg. 2; B discretised by Euler's rule as in state-spaces/mamba (selective_scan_ref). Double backward
    is not supported on a CPU.
    """
    spec = "u (g, n, c), delta (g, n, c), A (g, c, s), B (g, n, s), C (g, n, s)"
    check(spec, u, delta, A, B, C) if D is None else check(f"{spec}, D (g, c)", u, delta, A, B, C, D)
    if (delta.detach() < 0).any():
        raise MilbenchError("delta must not be negative; pass it after its softplus")
    if (A.detach() > 0).any():
        raise MilbenchError("A must not be positive; pass -exp(A_log)")
    return choose("selective_scan", u.device.type, u.dtype).call(u, delta, A, B, C, D)


def _by(scan: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A scan of u, delta, A, B, C in full precision as one with D in any."""

    def call(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None) -> Tensor:
        dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
        full = [t.to(dtype) for t in (u, delta, A, B, C)]
        y = scan(*full)
        return (y if D is None else torch.addcmul(y, D[:, None].to(dtype), full[0])).to(u.dtype)

    return call


def _run(kernel: Callable[..., None], blocks: list[tuple[Any, ...]]) -> None:
    threads = min(torch.get_num_threads(), len(blocks))
    if threads == 1:
        for block in blocks:
            kernel(*block)
    else:
        with ThreadPoolExecutor(threads) as pool:  # the kernels release the GIL
            list(pool.map(lambda block: kernel(*block), blocks))


class _CacheScan(torch.autograd.Function):
    """The scan by the compiled kernels; saves one state per span of tokens, and the backward pass recomputes the rest."""

    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> Tensor:
        from milbench.ops.cpu import scan as kernels

        u, delta, A, B, C = (t.detach().contiguous() for t in given)  # one memory layout, so one compiled form
        A = A.mT.contiguous()  # (g, s, c)
        (g, n, c), s = u.shape, A.shape[1]
        y, stored = torch.empty_like(u), u.new_empty(g, -(-n // kernels.SPAN), s, c)
        ctx.save_for_backward(u, delta, A, B, C, stored)
        arrays = [t.numpy() for t in (u, delta, A, B, C, y, stored)]
        _run(kernels.forward, [(*(t[i] for t in arrays), first) for i in range(g) for first in range(0, c, kernels.LANES)])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        from milbench.ops.cpu import scan as kernels

        u, delta, A, B, C, stored = ctx.saved_tensors
        starts = range(0, u.shape[2], kernels.LANES)
        du, ddelta, dA = torch.empty_like(u), torch.empty_like(delta), torch.empty_like(A)
        dB, dC = (t.new_empty(len(starts), *t.shape) for t in (B, C))  # one part per block: no two threads add to the same
        arrays = [t.numpy() for t in (u, delta, A, B, C, dy.contiguous(), stored, du, ddelta, dA)]
        parts = dB.numpy(), dC.numpy()
        _run(
            kernels.backward,
            [
                (*(t[i] for t in arrays), *(t[block, i] for t in parts), first)
                for i in range(len(u))
                for block, first in enumerate(starts)
            ],
        )
        return du, ddelta, dA.mT, dB.sum(0), dC.sum(0)


def _scan_in_spans(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The scan on any device: spans in sequence, each by doubling, each recomputed in the backward pass."""
    h, out = torch.zeros_like(A), []
    for start in range(0, u.shape[1], SPAN):
        tokens = (t[:, start : start + SPAN] for t in (u, delta, B, C))
        h, y = checkpoint(_span, h, A, *tokens, use_reentrant=False)
        out.append(y)
    return torch.cat(out, dim=1)


def _span(h: Tensor, A: Tensor, u: Tensor, delta: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """State after the span and its outputs: each pass joins a token's steps with those of the token `lag` before it."""
    decay = (delta[..., None] * A[:, None]).exp()  # (g, t, c, s)
    x = (delta * u)[..., None] * B[:, :, None]  # (g, t, c, s)
    x = torch.cat([x[:, :1] + decay[:, :1] * h[:, None], x[:, 1:]], dim=1)
    lag = 1
    while lag < x.shape[1]:
        x = torch.cat([x[:, :lag], x[:, lag:] + decay[:, lag:] * x[:, :-lag]], dim=1)
        decay = torch.cat([decay[:, :lag], decay[:, lag:] * decay[:, :-lag]], dim=1)
        lag *= 2
    return x[:, -1], (x * C[:, :, None]).sum(-1)


def _example(device: str) -> tuple[Tensor, ...]:
    u, step, B, C = (torch.randn(2, 70, size, device=device) for size in (32, 32, 16, 16))
    return u, F.softplus(step), -torch.rand(2, 32, 16, device=device) - 0.5, B, C, torch.ones(2, 32, device=device)


offer(Backend("selective_scan", "mamba-ssm", "cuda", mamba_scan, _example))
offer(Backend("selective_scan", "cache", "cpu", _by(_CacheScan.apply), _example))
offer(Backend("selective_scan", "spans", "any", _by(_scan_in_spans), _example))
