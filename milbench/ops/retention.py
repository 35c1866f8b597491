"""Retention: causal linear attention with a fixed exponential decay per head (Sun et al. 2023, eq. 5-7)."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from milbench.errors import MilbenchError
from milbench.ops.arguments import check
from milbench.ops.backends import Backend, choose, offer
from milbench.ops.gpu import fla_retention


def retention_naive(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
    """The definition, in O(n^2): o_i = sum_{j <= i} decay^(i-j) (q_i . k_j) v_j (eq. 5). Shapes as in :func:`retention`."""
    step = torch.arange(q.shape[1], device=q.device)
    age = step[:, None] - step  # (n, n), i - j
    weight = torch.where(age >= 0, decay[:, None, None] ** age.clamp(min=0), 0.0)  # (heads, n, n)
    return (q @ k.transpose(-1, -2) * weight) @ v


def retention_recurrent(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
    """The same, one token after the other: S_t = decay S_{t-1} + k_t v_t^T, o_t = S_t^T q_t (eq. 6)."""
    state, out = q.new_zeros(len(q), q.shape[2], v.shape[2]), []
    for q_t, k_t, v_t in zip(q.unbind(1), k.unbind(1), v.unbind(1), strict=True):
        state = decay[:, None, None] * state + k_t[:, :, None] * v_t[:, None, :]  # (heads, d_k, d_v)
        out.append((q_t[:, None] @ state)[:, 0])
    return torch.stack(out, dim=1)


def retention(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, *, chunk: int = 128) -> Tensor:
    """Same result in O(n): products inside a chunk, one (d_k, d_v) state between chunks (eq. 7).

    Args:
        q, k: (heads, n, d_k); scale them before, nothing is scaled here.
        v: (heads, n, d_v).
        decay: (heads,), each in (0, 1).
        chunk: tokens whose products are formed together; trades arithmetic for passes over the state.

    Returns:
        (heads, n, d_v), in the dtype of `v`. Half types are computed in float32. Memory O(n d), in the backward pass too.

    Raises:
        MilbenchError: naming the argument, for shapes that do not agree, dtypes that are not floating point, NaN, or a
            decay outside (0, 1).

    Source: Sun et al. 2023, eq. 5-7. Double backward is not supported.
    """
    check("q (heads, n, d_k), k (heads, n, d_k), v (heads, n, d_v), decay (heads)", q, k, v, decay)
    if not ((decay > 0) & (decay < 1)).all():
        raise MilbenchError(f"decay must lie in (0, 1), got {decay.tolist()}")
    if chunk < 1:
        raise MilbenchError(f"chunk must be at least 1, got {chunk}")
    backend = choose("retention", q.device.type, q.dtype, **{"gradient of decay": decay.requires_grad})
    return backend.call(q, k, v, decay, chunk=chunk)


def _in_chunks(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, *, chunk: int = 128) -> Tensor:
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return _Retention.apply(q.to(dtype), k.to(dtype), v.to(dtype), decay.to(dtype), chunk).to(v.dtype)


class _Retention(torch.autograd.Function):
    """Saves the state before each chunk. The backward pass runs over the chunks from the end and carries the state's gradient."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, chunk: int) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            out, states = _forward(q, k, v, decay, chunk)
        ctx.save_for_backward(q, k, v, decay, states)
        ctx.chunk = chunk
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, decay, states = ctx.saved_tensors
        with torch.autocast(do.device.type, enabled=False):
            if not ctx.needs_input_grad[3]:
                return *_backward(do.contiguous(), q, k, v, decay, states, ctx.chunk), None, None
            # decay x d(decay) = sum_i i (q_i . dq_i) - sum_j j (k_j . dk_j): the difference of two large sums needs digits.
            q, k, v, decay = (t.double() for t in (q, k, v, decay))
            _, states = _forward(q, k, v, decay, ctx.chunk)
            dq, dk, dv = _backward(do.double().contiguous(), q, k, v, decay, states, ctx.chunk)
            step = torch.arange(q.shape[1], dtype=q.dtype, device=q.device)
            d_decay = (q * dq - k * dk).sum(-1) @ step / decay
        return *(t.to(do.dtype) for t in (dq, dk, dv, d_decay)), None


def _weights(decay: Tensor, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inside a chunk (heads, c, c); what is left of the state at each row, and of each row at the chunk's end (heads, c, 1)."""
    step, decay = torch.arange(chunk, device=decay.device), decay[:, None, None]
    age = step[:, None] - step
    inside = torch.where(age >= 0, decay ** age.clamp(min=0), 0.0)
    return inside, decay ** (step[:, None] + 1), inside[:, -1, :, None].contiguous()


def _forward(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Outputs, and the state before each chunk (chunks, heads, d_k, d_v)."""
    n = q.shape[1]
    inside, from_state, to_end = _weights(decay, min(chunk, n))
    out, states = v.new_empty(v.shape), v.new_zeros(-(-n // chunk), len(q), q.shape[2], v.shape[2])
    for i, start in enumerate(range(0, n, chunk)):
        qc, kc, vc = (t[:, start : start + chunk] for t in (q, k, v))
        c = qc.shape[1]
        scores = (qc @ kc.mT).mul_(inside[:, :c, :c])  # (heads, c, c)
        out[:, start : start + c] = torch.baddbmm(scores @ vc, qc * from_state[:, :c], states[i])
        if start + c < n:
            torch.baddbmm(states[i] * from_state[:, -1:], (kc * to_end).mT, vc, out=states[i + 1])
    return out, states


def _backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, states: Tensor, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    n = q.shape[1]
    inside, from_state, to_end = _weights(decay, min(chunk, n))
    (dq, dk, dv), d_state = (t.new_empty(t.shape) for t in (q, k, v)), torch.zeros_like(states[0])
    for i, start in reversed(list(enumerate(range(0, n, chunk)))):
        rows = slice(start, start + chunk)
        qc, kc, vc, doc = (t[:, rows] for t in (q, k, v, do))
        c = qc.shape[1]
        scores, d_scores = ((a @ b.mT).mul_(inside[:, :c, :c]) for a, b in ((qc, kc), (doc, vc)))  # (heads, c, c)
        dq[:, rows] = torch.baddbmm(d_scores @ kc, doc * from_state[:, :c], states[i].mT)
        dk[:, rows] = torch.baddbmm(d_scores.mT @ qc, vc * to_end[:, -c:], d_state.mT)
        dv[:, rows] = torch.baddbmm(scores.mT @ doc, kc * to_end[:, -c:], d_state)
        d_state = torch.baddbmm(d_state * from_state[:, c - 1 : c], (qc * from_state[:, :c]).mT, doc)
    return dq, dk, dv


def _example(device: str) -> tuple[Tensor, ...]:
    q, k, v = (torch.randn(2, 70, 32, device=device) for _ in range(3))
    return q, k, v, torch.tensor([0.9, 0.97], device=device)


offer(Backend("retention", "fla", "cuda", fla_retention, _example, cannot=("gradient of decay",)))
offer(Backend("retention", "chunks", "any", _in_chunks, _example))
