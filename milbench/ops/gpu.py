"""Calls into GPU kernels of other packages and of torch, with our shapes. They import their package when called, not before.

Nothing here runs on a CPU; each is used only after a tiny call of it worked on the device (:mod:`milbench.ops.backends`).
"""

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from milbench.ops.scan_orders import scan_order
from milbench.ops.window import Window, largest_square

HALVES = (torch.float16, torch.bfloat16)
BLOCK = 128  # tokens of a flex_attention block


def flash_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, dropout: float = 0.0) -> Tensor:
    """flash-attn's variable-length kernel on one bag. q, k, v: (heads, n, d), half precision."""
    from flash_attn import flash_attn_varlen_func

    n = q.shape[1]
    ends = torch.tensor([0, n], dtype=torch.int32, device=q.device)
    q, k, v = (t.transpose(0, 1).contiguous() for t in (q, k, v))  # (n, heads, d)
    out = flash_attn_varlen_func(q, k, v, ends, ends, n, n, dropout_p=dropout, softmax_scale=scale)
    return out.transpose(0, 1)


def fla_retention(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, *, chunk: int = 64) -> Tensor:
    """fla's chunk kernel for a fixed decay per head. Shapes as in our own operation; no gradient of decay."""
    from fla.ops.simple_gla import chunk_simple_gla

    out, _ = chunk_simple_gla(*(_fla(t) for t in (q, k, v)), g_gamma=decay.detach().float().log(), scale=1.0)
    return out[0].transpose(0, 1)


def fla_gated_linear_attention(q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor, *, chunk: int = 64) -> Tensor:
    """fla's chunk kernel for gated linear attention. Shapes as in our own operation."""
    from fla.ops.gla import chunk_gla

    out, _ = chunk_gla(*(_fla(t) for t in (q, k, v)), g=_fla(log_gate), scale=1.0)
    return out[0].transpose(0, 1)


def _fla(t: Tensor) -> Tensor:
    return t.transpose(0, 1)[None].contiguous()  # (1, n, heads, d)


def mamba_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None) -> Tensor:
    """mamba-ssm's fused scan, one call per group. Shapes as in :func:`milbench.ops.selective_scan.selective_scan`."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    out = []
    for g in range(len(u)):  # A and D differ between groups, which the kernel has no axis for
        args = [t[g].T[None].contiguous() for t in (u, delta)]  # (1, c, n)
        maps = [t[g].T[None, None].contiguous() for t in (B, C)]  # (1, 1, s, n)
        out.append(selective_scan_fn(*args, A[g].float(), *maps, None if D is None else D[g].float())[0].T)
    return torch.stack(out)


class Tissue(NamedTuple):
    """Tokens in Hilbert order, cut into blocks of 128 that are compact on the slide.

    order: (n,). at: (n + padding, 2) int32 cells. label: (n + padding,) int32 regions, of padding a region of its own.
    near: (blocks, blocks) bool, whether the bounding boxes of two blocks are within the radius. squared: as it is compared.
    """

    order: Tensor
    at: Tensor
    label: Tensor
    near: Tensor
    squared: int


def tissue_blocks(window: Window) -> Tissue:
    """Which blocks of a slide can see each other. Costs (n / 128)^2, nothing of size n^2."""
    grid, regions = window.grid, window.regions
    order = scan_order(grid, "hilbert")
    n = len(order)
    blocks = -(-n // BLOCK)
    padding = blocks * BLOCK - n
    at = (grid[order].long() - grid.amin(0)).to(torch.int32)
    label = torch.zeros_like(at[:, 0]) if regions is None else regions[order].unique(return_inverse=True)[1].to(torch.int32)
    at = torch.cat([at, at[-1:].expand(padding, 2)])  # (n + padding, 2)
    label = torch.cat([label, (label.min() - 1).expand(padding)])
    boxes = at.view(blocks, BLOCK, 2)
    low, high = boxes.amin(1), boxes.amax(1)
    gap = (torch.maximum(low[:, None], low[None]) - torch.minimum(high[:, None], high[None])).clamp(min=0)  # (blocks, blocks, 2)
    squared = largest_square(min(window.radius, 2.0**31))  # no cell is farther
    return Tissue(order, at, label, gap.long().square().sum(-1) <= squared, squared)


def blocked_local_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: Window,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Local attention in plain torch, for devices without a kernel: each block attends the blocks it can see.

    Exact; time O(n r^2) and memory O(n d), since the backward pass computes each block again. Arguments as in
    :func:`milbench.ops.local_attention.local_attention_2d`; dropout draws from torch's global generator.
    """
    tissue, alibi = tissue_blocks(window), window.alibi
    n, given = len(tissue.order), v.dtype
    exact = torch.float64 if given == torch.float64 else torch.float32
    q, k, v = (t[:, tissue.order].to(exact) for t in (q, k, v))
    token = torch.arange(len(tissue.at), device=q.device).view(-1, BLOCK)

    def attend(queries: Tensor, mine: Tensor, theirs: Tensor) -> Tensor:
        apart = (tissue.at[mine][:, None] - tissue.at[theirs]).long().square().sum(-1)  # (block, keys)
        seen = (apart <= tissue.squared) & (tissue.label[mine][:, None] == tissue.label[theirs])
        mask = torch.where(seen, 0.0, -torch.inf).to(exact)[None]
        if alibi is not None:
            mask = mask - alibi.to(exact)[:, None, None] * apart.to(exact).sqrt()
        # The keys are taken inside, so that what is kept for the backward pass is an index and not a copy.
        return F.scaled_dot_product_attention(queries, k[:, theirs], v[:, theirs], attn_mask=mask, scale=scale, dropout_p=dropout)

    out = []
    for block, near in zip(token, tissue.near, strict=True):
        mine, theirs = block[block < n], token[near].flatten()
        out.append(checkpoint(attend, q[:, mine], mine, theirs[theirs < n], use_reentrant=False))
    return torch.empty_like(v).index_copy(1, tissue.order, torch.cat(out, dim=1)).to(given)


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def flex_local_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: Window,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """flex_attention over the blocks of the tissue. Arguments as in :func:`milbench.ops.local_attention.local_attention_2d`."""
    assert not dropout, "flex_attention has no dropout"
    from torch.nn.attention.flex_attention import BlockMask

    order, at, label, near, _ = tissue_blocks(window)
    alibi, radius = window.alibi, window.radius
    n, padding = len(order), len(at) - len(order)
    blocks = near.to(torch.int8).argsort(dim=1, descending=True, stable=True).to(torch.int32)  # of each row, those it sees first

    def inside(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        dx, dy = at[i, 0] - at[j, 0], at[i, 1] - at[j, 1]
        return (dx * dx + dy * dy <= radius * radius) & (label[i] == label[j])

    def bias(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        assert alibi is not None
        dx, dy = (at[i, 0] - at[j, 0]).float(), (at[i, 1] - at[j, 1]).float()
        return score - alibi[h] * (dx * dx + dy * dy).sqrt()

    mask = BlockMask.from_kv_blocks(
        near.sum(1).to(torch.int32)[None, None], blocks[None, None], BLOCK_SIZE=BLOCK, mask_mod=inside
    )
    q, k, v = (F.pad(t[:, order], (0, 0, 0, padding))[None] for t in (q, k, v))
    out = _compiled_flex()(q, k, v, block_mask=mask, score_mod=None if alibi is None else bias, scale=scale)[0, :, :n]
    return torch.empty_like(out).index_copy(1, order, out)
