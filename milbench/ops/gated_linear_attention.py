"""Gated linear attention: causal linear attention whose state forgets each key channel at its own data-dependent rate
(Yang et al. 2024, eq. 3-5)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from milbench.errors import MilbenchError
from milbench.ops.arguments import check
from milbench.ops.backends import Backend, choose, offer
from milbench.ops.gpu import fla_gated_linear_attention


def gated_linear_attention_naive(q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor) -> Tensor:
    """The definition, one token after the other: S_t = diag(exp(log_gate_t)) S_{t-1} + k_t v_t^T, o_t = S_t^T q_t (eq. 3)."""
    state, out = q.new_zeros(len(q), q.shape[2], v.shape[2]), []
    for q_t, k_t, v_t, gate in zip(*(t.unbind(1) for t in (q, k, v, log_gate.exp())), strict=True):
        state = gate[:, :, None] * state + k_t[:, :, None] * v_t[:, None, :]  # (heads, d_k, d_v)
        out.append((q_t[:, None] @ state)[:, 0])
    return torch.stack(out, dim=1)


def gated_linear_attention(q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, *, chunk: int = 64) -> Tensor:
    """Same result in O(n): products inside a chunk, one (d_k, d_v) state between chunks, exact for gates of any strength.

    Inside a chunk, what is left of token j at token i is exp(sum of log gates in between). Split at a boundary between them it is
    a product of two factors that never exceed 1, one for i and one for j; halving the chunk again and again gives every pair its
    boundary, so all pairs are matrix products and nothing overflows.

    Args:
        q, k: (heads, n, d_k); scale them before, nothing is scaled here.
        v: (heads, n, d_v).
        log_gate: (heads, n, d_k), logarithm of what the state keeps at each token, <= 0.
        chunk: tokens whose products are formed together, a power of two.

    Returns:
        (heads, n, d_v), in the dtype of `v`. Half types are computed in float32. Memory O(n d), in the backward pass too.

    Raises:
        MilbenchError: naming the argument, for shapes that do not agree, dtypes that are not floating point, NaN, a positive
            log_gate, or a chunk that is not a power of two.

    Source: Yang et al. 2024, section 4; fla-org/flash-linear-attention for the meaning. Double backward is not supported.
    """
    spec = "q (heads, n, d_k), k (heads, n, d_k), v (heads, n, d_v), log_gate (heads, n, d_k)"
    check(spec, q, k, v, log_gate)
    if (log_gate.detach() > 0).any():
        raise MilbenchError("log_gate must not be positive; pass the logarithm of a gate in (0, 1]")
    if chunk < 1 or chunk & (chunk - 1):
        raise MilbenchError(f"chunk must be a power of two, got {chunk}")
    return choose("gated_linear_attention", q.device.type, q.dtype).call(q, k, v, log_gate, chunk=chunk)


def _in_chunks(q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, *, chunk: int = 64) -> Tensor:
    dtype, n = torch.float64 if q.dtype == torch.float64 else torch.float32, q.shape[1]
    chunk = min(chunk, 1 << (n - 1).bit_length())
    padded = (F.pad(t.to(dtype), (0, 0, 0, -n % chunk)).contiguous() for t in (q, k, v, log_gate))  # zeros change nothing before
    chunks = (t.unflatten(1, (-1, chunk)) for t in padded)  # (heads, chunks, c, d)
    return _ChunkedGLA.apply(*chunks).flatten(1, 2)[:, :n].to(v.dtype)


def _halves(t: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """First and second half of every run of 2m tokens: (..., c, d) -> two of (..., c / 2m, m, d), views."""
    first, second = t.unflatten(-2, (-1, 2, m)).unbind(-3)
    return first, second


def _blocks(scores: Tensor, m: int) -> Tensor:
    """Where the second half of every run of 2m tokens looks at its first half: (..., c, c) -> (..., c / 2m, m, m), a view."""
    split = scores.unflatten(-1, (-1, 2, m)).unflatten(-4, (-1, 2, m))  # (..., c / 2m, 2, m, c / 2m, 2, m)
    return split[..., 1, :, :, 0, :].diagonal(dim1=-4, dim2=-2).movedim(-1, -3)


def _doublings(since: Tensor, until: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For m = 1, 2 ... c/2: m, what first halves of 2m tokens keep until the boundary, what second halves keep since.

    `since` starts as the log gates, `until` as zeros; they are summed up in place (differences of long sums would lose
    digits) and end as the sums from the start of the chunk to each token, and from after each token to its end.
    """
    m = 1
    while m < since.shape[-2]:
        (since1, since2), (until1, _) = _halves(since, m), _halves(until, m)
        yield m, until1.exp(), since2.exp()
        until1 += since2[..., -1:, :]
        since2 += since1[..., -1:, :]
        m *= 2


class _ChunkedGLA(torch.autograd.Function):
    """q, k, log_gate (heads, chunks, c, d_k), v (heads, chunks, c, d_v) -> (heads, chunks, c, d_v). Saves one state per chunk."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            scores, since, until = torch.diag_embed((q * k).sum(-1)), log_gate.clone(), torch.zeros_like(log_gate)
            for m, keep1, keep2 in _doublings(since, until):
                _blocks(scores, m).copy_((_halves(q, m)[1] * keep2) @ (_halves(k, m)[0] * keep1).mT)
            keep = since[:, :, -1].exp()[..., None]  # (heads, chunks, d_k, 1)
            added, states = (k * until.exp_()).mT @ v, v.new_zeros(*q.shape[:2], q.shape[3], v.shape[3])
            for i in range(states.shape[1] - 1):  # the state before each chunk
                torch.addcmul(added[:, i], keep[:, i], states[:, i], out=states[:, i + 1])
            out = scores @ v + (q * since.exp_()) @ states
            ctx.save_for_backward(q, k, v, log_gate, states)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor, ...]:
        q, k, v, log_gate, states = ctx.saved_tensors
        do = do.contiguous()
        with torch.autocast(q.device.type, enabled=False):
            d_scores = do @ v.mT
            scores, since, until = torch.diag_embed((q * k).sum(-1)), log_gate.clone(), torch.zeros_like(log_gate)
            dq, dk = torch.zeros_like(q), torch.zeros_like(k)
            for m, keep1, keep2 in _doublings(since, until):
                q2, k1, block = _halves(q, m)[1] * keep2, _halves(k, m)[0] * keep1, _blocks(d_scores, m).contiguous()
                _blocks(scores, m).copy_(q2 @ k1.mT)
                _halves(dq, m)[1].addcmul_(keep2, block @ k1)
                _halves(dk, m)[0].addcmul_(keep1, block.mT @ q2)
            keep = since[:, :, -1].exp()[..., None]
            since.exp_(), until.exp_()
            added, d_states = (q * since).mT @ do, torch.zeros_like(states)
            for i in range(states.shape[1] - 1, 0, -1):  # gradient of the state after each chunk
                torch.addcmul(added[:, i], keep[:, i], d_states[:, i], out=d_states[:, i - 1])
            dq.addcmul_(since, do @ states.mT)
            dk.addcmul_(until, v @ d_states.mT)
            dv = scores.mT @ do + (k * until) @ d_states
            # A gate meets every pair that it lies between: the sum over later tokens of q dq - k dk, plus what flows on past the
            # chunk's end. A token's own pair has no gate in between, so it is added to dq and dk only afterwards.
            upper = torch.ones_like(scores[0, 0]).triu()
            d_gate = upper @ (q * dq - k * dk)
            d_gate[:, :-1] += (states[:, 1:] * d_states[:, :-1]).sum(-1)[:, :, None]
            to_itself = d_scores.diagonal(dim1=-2, dim2=-1)[..., None]
            dq.addcmul_(to_itself, k)
            dk.addcmul_(to_itself, q)
        return dq, dk, dv, d_gate


def _example(device: str) -> tuple[Tensor, ...]:
    q, k, v, gate = (torch.randn(2, 70, 32, device=device) for _ in range(4))
    return q, k, v, F.logsigmoid(gate) / 16


offer(Backend("gated_linear_attention", "fla", "cuda", fla_gated_linear_attention, _example))
offer(Backend("gated_linear_attention", "chunks", "any", _in_chunks, _example))
