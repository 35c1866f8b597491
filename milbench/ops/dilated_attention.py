"""Dilated attention (LongNet): attention inside segments, over every r-th token, at several scales (Ding et al. 2023, eq. 6-13)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


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
    """Same."""
    return dilated_attention_naive(q, k, v, segments, ratios)
