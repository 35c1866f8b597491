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


def gated_linear_attention_naive(q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor) -> Tensor:
    """The definition, one token after the other: S_t = diag(exp(log_gate_t)) S_{t-1} + k_t v_t^T, o_t = S_t^T q_t (eq. 3)."""
    state, out = q.new_zeros(len(q), q.shape[2], v.shape[2]), []
    for q_t, k_t, v_t, gate in zip(*(t.unbind(1) for t in (q, k, v, log_gate.exp())), strict=True):
        state = gate[:, :, None] * state + k_t[:, :, None] * v_t[:, None, :]  # (heads, d_k, d_v)
        out.append((q_t[:, None] @ state)[:, 0])
    return torch.stack(out, dim=1)


def gated_linear_attention(q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, *, chunk: int = 64) -> Tensor:
    """Same result in O(n): products inside a chunk, one (d_k, d_v) state between chunks, exact for gates of any strength.

    Inside a chunk a pair needs exp(G_i - G_j), G the running sum of the log gates. Split at a boundary b between i and j it is
    exp(G_i - G_b) exp(G_b - G_j), a product of two factors that never exceed 1; halving the chunk again and again gives every pair
    its boundary, so all pairs are matrix products and nothing overflows.

    Args:
        q, k: (heads, n, d_k); scale them before, nothing is scaled here.
        v: (heads, n, d_v).
        log_gate: (heads, n, d_k), logarithm of what the state keeps at each token, <= 0.
        chunk: tokens whose products are formed together, a power of two.

    Returns:
        (heads, n, d_v), in the dtype of `v`. Half types are computed in float32. Memory O(n d), in the backward pass too.

    Raises:
        MilbenchError: naming the argument, for shapes that do not agree, dtypes that are not floating point, NaN, a positive log_gate,
            or a chunk that is not a power of two.

    Source: Yang et al. 2024, section 4; fla-org/flash-linear-attention for the meaning. Double backward is not supported.
    """
    spec = "q (heads, n, d_k), k (heads, n, d_k), v (heads, n, d_v), log_gate (heads, n, d_k)"
    dtype = check(spec, q, k, v, log_gate)
    if (log_gate.detach() > 0).any():
        raise MilbenchError("log_gate must not be positive; pass the logarithm of a gate in (0, 1]")
    if chunk < 1 or chunk & (chunk - 1):
        raise MilbenchError(f"chunk must be a power of two, got {chunk}")
    n = q.shape[1]
    chunk = min(chunk, 1 << (n - 1).bit_length())
    chunks = (F.pad(t.to(dtype), (0, 0, 0, -n % chunk)).unflatten(1, (-1, chunk)) for t in (q, k, v, log_gate))
    return _ChunkedGLA.apply(*chunks).flatten(1, 2)[:, :n].to(v.dtype)


def _blocks(scores: Tensor, m: int) -> Tensor:
    """Of (..., c, c): the blocks where the second half of every run of 2m rows meets its first half, (..., c / 2m, m, m), a view."""
    split = scores.unflatten(-1, (-1, 2, m)).unflatten(-4, (-1, 2, m))  # (..., c / 2m, 2, m, c / 2m, 2, m)
    return split[..., 1, :, :, 0, :].diagonal(dim1=-4, dim2=-2).movedim(-1, -3)


def _halvings(q: Tensor, k: Tensor, total: Tensor) -> Iterator[tuple[int, Tensor, Tensor, Tensor, Tensor]]:
    """For m = c/2 ... 1: m, queries of the second halves and keys of the first halves, and what each forgets to the boundary."""
    m = q.shape[-2] // 2
    while m:
        (q2, g2), (k1, g1) = ([t.unflatten(-2, (-1, 2, m))[..., half, :, :] for t in pair] for half, pair in ((1, (q, total)), (0, (k, total))))
        boundary = g1[..., -1:, :]
        yield m, q2, k1, (g2 - boundary).exp_(), (boundary - g1).exp_()
        m //= 2


def _scores(q: Tensor, k: Tensor, total: Tensor) -> Tensor:
    """A_ij = sum_d q_id k_jd exp(G_id - G_jd) for j <= i, else 0. (..., c, d) -> (..., c, c)."""
    scores = torch.diag_embed((q * k).sum(-1))
    for m, q2, k1, keep_q, keep_k in _halvings(q, k, total):
        _blocks(scores, m).copy_((q2 * keep_q) @ (k1 * keep_k).mT)
    return scores


def _scores_backward(d_scores: Tensor, q: Tensor, k: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    diagonal = d_scores.diagonal(dim1=-2, dim2=-1)[..., None]
    dq, dk = diagonal * k, diagonal * q
    for m, q2, k1, keep_q, keep_k in _halvings(q, k, total):
        block = _blocks(d_scores, m)
        dq.unflatten(-2, (-1, 2, m))[..., 1, :, :].addcmul_(keep_q, block @ (k1 * keep_k))
        dk.unflatten(-2, (-1, 2, m))[..., 0, :, :].addcmul_(keep_k, block.mT @ (q2 * keep_q))
    return dq, dk


class _ChunkedGLA(torch.autograd.Function):
    """q, k, log_gate (heads, chunks, c, d_k) and v (heads, chunks, c, d_v) -> (heads, chunks, c, d_v). Saves one state per chunk."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            total = log_gate.cumsum(2)  # G, within a chunk
            end = total[:, :, -1:]  # (heads, chunks, 1, d_k)
            states = (k * (end - total).exp_()).mT @ v  # (heads, chunks, d_k, d_v), what each chunk adds to its end
            keep = end.mT.exp()  # (heads, chunks, d_k, 1)
            for i in range(1, states.shape[1]):
                states[:, i].addcmul_(keep[:, i], states[:, i - 1])  # now: the state after each chunk
            out = _scores(q, k, total) @ v
            out[:, 1:] += (q * total.exp())[:, 1:] @ states[:, :-1]
            ctx.save_for_backward(q, k, v, total, states)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor, ...]:
        q, k, v, total, states = ctx.saved_tensors
        with torch.autocast(q.device.type, enabled=False):
            end = total[:, :, -1:]
            keep = end.mT.exp()
            kept, to_end = total.exp(), (end - total).exp_()
            d_states = torch.zeros_like(states)  # gradient of the state after each chunk
            d_states[:, :-1] = ((q * kept).mT @ do)[:, 1:]
            for i in range(states.shape[1] - 2, -1, -1):
                d_states[:, i].addcmul_(keep[:, i + 1], d_states[:, i + 1])
            dq, dk = _scores_backward(do @ v.mT, q, k, total)
            dq[:, 1:].addcmul_(kept[:, 1:], do[:, 1:] @ states[:, :-1].mT)
            dk.addcmul_(to_end, v @ d_states.mT)
            dv = _scores(q, k, total).mT @ do + (k * to_end) @ d_states
            # G_i enters with q_i and with 1 / k_i; what flows through the end of the chunk reaches all its tokens.
            d_total = q * dq - k * dk
            d_gate = d_total.flip(2).cumsum(2).flip(2) + (states * d_states).sum(-1)[:, :, None]
        return dq, dk, dv, d_gate
