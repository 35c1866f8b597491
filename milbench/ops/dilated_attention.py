"""Dilated attention (LongNet): attention inside segments, over every r-th token, at several scales (Ding et al. 2023)."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from milbench.errors import MilbenchError
from milbench.ops.arguments import check

FUSED = ("cpu",)  # types of device on which torch has a fused attention that also hands out its log-sum-exp
ROWS = 256  # queries whose scores exist at a time where there is no fused kernel


def dilated_attention_naive(q: Tensor, k: Tensor, v: Tensor, segments: Sequence[int], ratios: Sequence[int]) -> Tensor:
    """The definition, with every zero written out and a mask that says which tokens a branch reaches."""
    heads, n, d = q.shape
    outs, lses = [], []
    for w, r in zip(segments, ratios, strict=True):
        w = min(w, n)
        group = torch.arange(heads, device=q.device) // -(-heads // r)  # (heads,)
        seen = torch.arange(w, device=q.device) % r == group[:, None]  # (heads, w)
        qs, ks, vs = (F.pad(t, (0, 0, 0, -n % w)).view(heads, -1, w, d) for t in (q, k, v))  # (heads, segments, w, d)
        score = qs @ ks.transpose(-1, -2) * d**-0.5  # (heads, segments, w, w)
        score = score.masked_fill(~seen[:, None, None], -torch.inf)
        inner_zeros = (-(-w // r) - seen.sum(1)).to(q.dtype)  # the length inside a segment is rounded up with zeros, too
        zero = inner_zeros.log()[:, None, None, None].expand(*score.shape[:-1], 1)
        score = torch.cat([score, zero], dim=-1)
        lse = score.logsumexp(-1)  # (heads, segments, w)
        out = (score - lse[..., None]).exp()[..., :-1] @ vs
        outs.append(out.flatten(1, 2)[:, :n])
        lses.append(lse.masked_fill(~seen[:, None], -torch.inf).flatten(1)[:, :n])
    weight = torch.stack(lses).detach().softmax(0).nan_to_num(0)  # (branches, heads, n); a token that no branch reaches gets 0
    return (weight[..., None] * torch.stack(outs)).sum(0)


def dilated_attention(q: Tensor, k: Tensor, v: Tensor, segments: Sequence[int], ratios: Sequence[int]) -> Tensor:
    """Same result, each piece of a branch by fused attention on a strided view: no zero and no score matrix is ever stored.

    In branch (w, r) the tokens are cut into segments of w (at most n), the heads into r groups, and head group j attends inside
    each segment over positions j, j + r, j + 2r ... only. Branches are mixed per token and head with the softmax of their
    log-sum-exp, through which no gradient flows.

    Args:
        q, k, v: (heads, n, d); scores are scaled by d^-0.5.
        segments: segment length w of each branch.
        ratios: dilation r of each branch.

    Returns:
        (heads, n, d), in the dtype of `v`; zero where no branch reaches. Half types are computed in float32. Time
        O(n d sum w / r), memory O(n d).

    Raises:
        MilbenchError: naming the argument, for shapes that do not agree, dtypes that are not floating point, NaN, or
            branches whose segments and ratios are not pairs of positive integers.

    Source: Ding et al. 2023, section 2; prov-gigapath (torchscale's DilatedAttention). As there, the zeros that fill up the last
    segment, and a segment to a multiple of r, are keys like others, with logit and value 0: they are counted in the softmax.
    Double backward is not supported.
    """
    dtype = check("q (heads, n, d), k (heads, n, d), v (heads, n, d)", q, k, v)
    if not segments or len(segments) != len(ratios):
        raise MilbenchError(f"segments and ratios must be pairs, one per branch, got {list(segments)} and {list(ratios)}")
    for name, values in (("segments", segments), ("ratios", ratios)):
        if any(int(value) != value or value < 1 for value in values):
            raise MilbenchError(f"{name} must be positive integers, got {list(values)}")
    branches = [(min(int(w), q.shape[1]), int(r)) for w, r in zip(segments, ratios, strict=True)]
    with torch.autocast(q.device.type, enabled=False):
        return _Dilated.apply(*(_rows(t.to(dtype)) for t in (q, k, v)), branches).to(v.dtype)


def _rows(t: Tensor) -> Tensor:
    """The same with each token's channels side by side: torch's fused kernel takes that for granted and reads on regardless."""
    return t if t.stride(-1) == 1 else t.contiguous()


def _view(t: Tensor, heads: slice, first: int, count: int, length: int, offset: int, ratio: int) -> Tensor:
    return t[heads, first : first + count * length].unflatten(1, (count, length))[:, :, offset::ratio]


def _pieces(heads: int, n: int, branches: list[tuple[int, int]]) -> Iterator[tuple[int, Callable[[Tensor], Tensor], int]]:
    """Branch, view of (heads, n, ...) as (heads of a group, segments, tokens, ...), and the zero keys beside each segment's own.

    The full segments of a head group are one piece, a partial one at the end is another.
    """
    for b, (w, r) in enumerate(branches):
        size, whole = -(-heads // r), n // w
        for offset in range(min(-(-heads // size), w)):
            group = slice(offset * size, (offset + 1) * size)
            for first, count, length in ((0, whole, w), (whole * w, 1, n - whole * w)):
                if seen := len(range(offset, length, r)):
                    view = partial(_view, heads=group, first=first, count=count, length=length, offset=offset, ratio=r)
                    yield b, view, -(-w // r) - seen


def _attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax attention and the log-sum-exp of its scores: (a, b, t, d) -> (a, b, t, d), (a, b, t)."""
    if q.device.type in FUSED:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    out, lse = torch.empty_like(q), torch.empty_like(q[..., 0])
    for rows in torch.arange(q.shape[2], device=q.device).split(ROWS):
        score = q[:, :, rows] @ k.mT * q.shape[-1] ** -0.5
        lse[:, :, rows] = score.logsumexp(-1)
        out[:, :, rows] = score.softmax(-1) @ v
    return out, lse


def _attend_backward(do: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if q.device.type in FUSED:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(do, q, k, v, out, lse, 0.0, False)
    scale = q.shape[-1] ** -0.5
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for rows in torch.arange(q.shape[2], device=q.device).split(ROWS):
        p = (q[:, :, rows] @ k.mT * scale - lse[:, :, rows, None]).exp()
        dp = do[:, :, rows] @ v.mT - (do[:, :, rows] * out[:, :, rows]).sum(-1, keepdim=True)
        dq[:, :, rows] = (p * dp) @ k * scale
        dk += (p * dp).mT @ q[:, :, rows] * scale
        dv += p.mT @ do[:, :, rows]
    return dq, dk, dv


class _Dilated(torch.autograd.Function):
    """All branches and their mixture; saves each piece's outputs.

    z keys with logit and value 0 turn an output o with log-sum-exp l into o exp(l - l'), l' = log(exp l + z). The backward pass
    of attention needs scores, outputs and log-sum-exp only, so given o and l' it is right without the zero keys.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, branches: list[tuple[int, int]]) -> Tensor:
        heads, n, _ = q.shape
        lses, kept = q.new_full((len(branches), heads, n), -torch.inf), []
        for b, view, zeros in _pieces(heads, n, branches):
            out, lse = _attend(view(q), view(k), view(v))
            if zeros:
                with_zeros = torch.logaddexp(lse, lse.new_tensor(zeros).log())
                out, lse = out * (lse - with_zeros).exp()[..., None], with_zeros
            view(lses[b]).copy_(lse)
            kept += [out, lse]
        weight = lses.softmax(0).nan_to_num(0)[..., None]  # (branches, heads, n, 1); 0 for tokens that no branch reaches
        mixed = torch.zeros_like(v, memory_format=torch.contiguous_format)
        for (b, view, _), out in zip(_pieces(heads, n, branches), kept[::2], strict=True):
            view(mixed).addcmul_(out, view(weight[b]))
        ctx.save_for_backward(q, k, v, weight, *kept)
        ctx.branches = branches
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weight, *kept = ctx.saved_tensors
        do = _rows(do)
        grads = [torch.zeros_like(t, memory_format=torch.contiguous_format) for t in (q, k, v)]
        with torch.autocast(q.device.type, enabled=False):
            for (b, view, _), out, lse in zip(_pieces(len(q), q.shape[1], ctx.branches), kept[::2], kept[1::2], strict=True):
                parts = _attend_backward(view(do) * view(weight[b]), view(q), view(k), view(v), out, lse)
                for grad, part in zip(grads, parts, strict=True):
                    view(grad).add_(part)
        return *grads, None
