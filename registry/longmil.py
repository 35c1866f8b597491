"""LongMIL: local attention on the tissue, 2x2 pooling, then global attention on a quarter of the tokens (NeurIPS 2024).

A window of the true 2-D neighbourhood keeps attention matrices of high rank and extrapolates to larger slides; what is left for
the global layer is short enough for full attention, or linear with a mixer of O(n).
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from milbench import Aggregator, Bag, Prediction, register
from milbench.nn.mixers import GLAMixer, MambaMixer, RetentionMixer, token_order
from milbench.nn.ss2d import SS2DMixer
from milbench.nn.transformer import RECOMPUTE_ABOVE, Block, SelfAttention
from milbench.ops.pooling import pool_2x2

Global = Literal["full", "retnet", "gla", "mamba-random", "mamba-single", "vmamba"]


def _global_block(kind: Global, dim: int, heads: int, dropout: float, recompute_above: int) -> Block:
    mixer: nn.Module
    match kind:
        case "full":
            mixer = SelfAttention(dim, heads, rope=True, dropout=dropout)
        case "retnet":
            mixer = RetentionMixer(dim, heads=heads)
        case "gla":
            mixer = GLAMixer(dim, heads=heads)
        case "mamba-random" | "mamba-single":
            mixer = MambaMixer(dim)
        case "vmamba":
            mixer = SS2DMixer(dim)
    # A state-space block has its own gate and expansion and comes without an FFN, as in Mamba and VMamba.
    return Block(dim, mixer, ffn=kind in ("full", "retnet", "gla"), recompute_above=recompute_above)


def _version(params: Mapping[str, Any]) -> int:
    """2 of a global retnet or gla, which had four heads whatever `heads` said."""
    return 2 if params["global_layer"] in ("retnet", "gla") else 1


method = partial(register, cite="li2024longmil", family="local", version=_version)
hybrid = partial(method, complexity="n radius^2")


@method("longmil", label="LongMIL", member=0)
@hybrid("longmil-retnet", label="LongMIL + RetNet", member=1, preset={"global_layer": "retnet"})
@hybrid("longmil-gla", label="LongMIL + GLA", member=2, preset={"global_layer": "gla"})
@hybrid("longmil-mamba-random", label="LongMIL + Mamba (random)", member=3, preset={"global_layer": "mamba-random"})
@hybrid("longmil-mamba-single", label="LongMIL + Mamba (single)", member=4, preset={"global_layer": "mamba-single"})
@hybrid("longmil-vmamba", label="LongMIL + V-Mamba", member=5, preset={"global_layer": "vmamba"})
class LongMIL(Aggregator):
    """Local blocks, mean over the present patches of each 2x2 cell, one global block, mean over tokens, LayerNorm, Linear.

    Args:
        in_dim: width d of an instance.
        n_out: number of classes, or of time bins for survival.
        dim: width E of a token.
        blocks: local blocks before the pooling.
        radius: of the local window in grid steps, Euclidean, on every head. A step is a patch at every magnification and patch
            size: 10 are 2,240 level-0 pixels between patches 224 pixels apart, and 4,480 at 448.
        heads: of the local attention and of a full, retnet or gla global layer; the others have none.
        global_layer: "full" attention with 2-D rotary positions, or a linear mixer; "mamba-single" reads the pooled cells row
            by row, "mamba-random" in an order redrawn each training step and fixed per slide otherwise.
        dropout: on the probabilities of local and full attention, in training; a linear mixer has none.
        recompute_above: tokens from which training recomputes activations instead of storing them.

    Source: LongMIL (NeurIPS 2024), section 3.3, eq. 10-14, and appendix A.5.3 for the defaults. Its authors' repository holds an
    earlier version only, with known faults (window on one head, scrambled rotation, uneven cells, dropout at test time), which
    are not reproduced. Deviations, where the paper is silent: patches pool by their mean over absolute 2x2 cells; pooled
    cells are in raster order; local blocks carry no positions but their window; the FFN is 4x with GELU, in the local blocks and
    after full attention, retnet and gla, while Mamba and V-Mamba come without, as they were published.
    Checkpoints: none is public.
    """

    complexity = "n radius^2 + (n/4)^2"
    ops = ("full_attention", "gated_linear_attention", "local_attention_2d", "retention", "selective_scan")
    needs_coords = True
    fixed = {"positions": "the window of local blocks; 2-D rotary in full attention, else the raster order of pooled cells"}

    def __init__(
        self,
        in_dim: int,
        n_out: int,
        *,
        dim: int = 384,
        blocks: int = 2,
        radius: float = 10.0,
        heads: int = 1,
        global_layer: Global = "full",
        dropout: float = 0.0,
        recompute_above: int = RECOMPUTE_ABOVE,
    ) -> None:
        super().__init__(in_dim, n_out)
        self.radius, self.global_layer = radius, global_layer
        self.project = nn.Sequential(nn.Linear(in_dim, dim), nn.ReLU())
        self.local = nn.ModuleList(
            Block(dim, SelfAttention(dim, heads, radius=radius, dropout=dropout), recompute_above=recompute_above)
            for _ in range(blocks)
        )
        self.whole = _global_block(global_layer, dim, heads, dropout, recompute_above // 4)  # a quarter of the tokens is left
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, n_out)

    def forward(self, bag: Bag) -> Prediction:
        """Predict one bag."""
        grid = bag.grid(gap=math.ceil(self.radius) + 2)  # wider than the window, so that slides of a case never meet
        x: Tensor = self.project(bag.features)  # (n, dim)
        for block in self.local:
            x = block(x, grid)
        x, cells, _ = pool_2x2(x, grid)  # (m, dim), (m, 2)
        if self.global_layer == "mamba-random":
            order = token_order("random", len(x), None, key=bag.slide_id, training=self.training, device=x.device)
            x, cells = x[order], cells[order]
        x = self.whole(x, cells)
        return Prediction(logits=self.head(self.norm(x.mean(dim=0))))
