"""Retention: causal linear attention with a fixed exponential decay per head (Sun et al. 2023, eq. 5-7)."""

from typing import Any

import torch
from torch import Tensor

from milbench.errors import MilbenchError
from milbench.ops.arguments import check


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
        MilbenchError: naming the argument, for shapes that do not agree, dtypes that are not floating point, NaN, a decay outside (0, 1).

    Source: Sun et al. 2023; the gradients are retentions, too (see :class:`_Retention`).
    """
    dtype = check("q (heads, n, d_k), k (heads, n, d_k), v (heads, n, d_v), decay (heads)", q, k, v, decay)
    if not ((decay > 0) & (decay < 1)).all():
        raise MilbenchError(f"decay must lie in (0, 1), got {decay.tolist()}")
    if chunk < 1:
        raise MilbenchError(f"chunk must be at least 1, got {chunk}")
    with torch.autocast(q.device.type, enabled=False):
        return _Retention.apply(q.to(dtype), k.to(dtype), v.to(dtype), decay.to(dtype), chunk).to(v.dtype)


class _Retention(torch.autograd.Function):
    """o = (Q K^T . W) V with W_ij = decay^(i-j) for j <= i, else 0. The same form gives each gradient:

    dQ = (dO V^T . W) K, and with time reversed dK = (V dO^T . W^T) Q and dV = (K Q^T . W^T) dO. As W_ij grows with i - j only,
    decay x d(decay) = sum_i i (q_i . dq_i) - sum_j j (k_j . dk_j).
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, chunk: int) -> Tensor:
        ctx.save_for_backward(q, k, v, decay)
        ctx.chunk = chunk
        return _chunked(q, k, v, decay, chunk)

    @staticmethod
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, decay = ctx.saved_tensors
        need_q, need_k, need_v, need_decay, _ = ctx.needs_input_grad
        dq = dk = dv = d_decay = None
        if need_q or need_decay:
            dq = _Retention.apply(do, v, k, decay, ctx.chunk)
        if need_k or need_v or need_decay:
            q_back, k_back, v_back, do_back = (t.flip(1) for t in (q, k, v, do))
            if need_k or need_decay:
                dk = _Retention.apply(v_back, do_back, q_back, decay, ctx.chunk).flip(1)
            if need_v:
                dv = _Retention.apply(k_back, q_back, do_back, decay, ctx.chunk).flip(1)
        if need_decay:
            step = torch.arange(q.shape[1], dtype=torch.float64, device=q.device)  # a difference of two large sums
            d_decay = ((q * dq - k * dk).sum(-1).double() @ step / decay.double()).to(decay.dtype)
        return dq, dk, dv, d_decay, None


def _chunked(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, chunk: int) -> Tensor:
    n = q.shape[1]
    step = torch.arange(min(chunk, n), device=q.device)
    age = step[:, None] - step  # (c, c)
    weight = torch.where(age >= 0, decay[:, None, None] ** age.clamp(min=0), 0.0)  # (heads, c, c)
    from_state = decay[:, None, None] ** (step[:, None] + 1)  # (heads, c, 1): what is left of the state at each row
    to_end = from_state.flip(1) / decay[:, None, None]  # (heads, c, 1): what is left of each row at the chunk's end
    state, out = q.new_zeros(len(q), q.shape[2], v.shape[2]), v.new_empty(v.shape)
    for start in range(0, n, chunk):
        qc, kc, vc = (t[:, start : start + chunk] for t in (q, k, v))
        c = qc.shape[1]
        scores = (qc @ kc.mT).mul_(weight[:, :c, :c])  # (heads, c, c)
        out[:, start : start + chunk] = torch.baddbmm(scores @ vc, qc * from_state[:, :c], state)
        state = torch.baddbmm(state * from_state[:, c - 1 : c], (kc * to_end[:, -c:]).mT, vc)
    return out
