"""Linear-time sequence mixers as aggregators: RetNet, GLA, Mamba and V-Mamba, one layout for all.

project -> blocks of (LayerNorm, mixer, residual) -> mean over tokens -> LayerNorm -> linear. The LongMIL paper compares these
rows and gives no layout for them; this one is LongMIL's own trunk (width 384, Linear and ReLU in front, mean readout) with two
mixer blocks, so that rows differ by the mixer. RetNet and GLA carry the transformer's FFN, the Mamba family does without.
"""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from milbench import Aggregator, Bag, Prediction, register
from milbench.nn.mixers import GLAMixer, MambaMixer, RetentionMixer, token_order
from milbench.nn.ss2d import SS2DMixer
from milbench.nn.transformer import RECOMPUTE_ABOVE, Block
from milbench.ops.scan_orders import Kind


class _MixerMIL(Aggregator):
    """The layout; a subclass says which mixer.

    Args:
        in_dim, n_out: as of every aggregator.
        mixer: makes the mixer of a block, for tokens of width `dim`.
        dim, blocks, ffn, order, recompute_above: as in the subclasses.
    """

    complexity = "n"
    order_sensitive = True
    fixed = {"positions": "the order of the tokens"}

    def __init__(
        self, in_dim: int, n_out: int, mixer: Callable[[], nn.Module], dim: int, blocks: int, ffn: bool, order: Kind,
        recompute_above: int,
    ) -> None:  # fmt: skip
        super().__init__(in_dim, n_out)
        self.order: Kind = order
        if order in ("raster", "hilbert"):  # by position, so file order is forgotten
            self.needs_coords, self.order_sensitive = True, False
        self.project = nn.Sequential(nn.Linear(in_dim, dim), nn.ReLU())
        self.blocks = nn.ModuleList(Block(dim, mixer(), ffn=ffn, recompute_above=recompute_above) for _ in range(blocks))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, n_out)

    def forward(self, bag: Bag) -> Prediction:
        """Predict one bag. extras: tokens (n, dim), in the bag's order."""
        x: Tensor = self.project(bag.features)  # (n, dim)
        grid = bag.grid() if self.needs_coords else None
        order = token_order(self.order, len(x), grid, key=bag.slide_id, training=self.training, device=x.device)
        x, grid = x[order], None if grid is None else grid[order]
        for block in self.blocks:
            x = block(x, grid)
        tokens = torch.empty_like(x).index_copy(0, order, x)  # undo the order
        return Prediction(logits=self.head(self.norm(tokens.mean(dim=0))), extras={"tokens": tokens})


class _HeadsMIL(_MixerMIL):
    """A mixer with heads: which one is a matter of the class, and not a parameter that would be part of a trial's identity."""

    mixer: ClassVar[type[RetentionMixer] | type[GLAMixer]]

    def __init__(
        self, in_dim: int, n_out: int, *, dim: int = 384, blocks: int = 2, heads: int = 4, ffn: bool = True,
        order: Kind = "storage", recompute_above: int = RECOMPUTE_ABOVE,
    ) -> None:  # fmt: skip
        super().__init__(in_dim, n_out, partial(self.mixer, dim, heads=heads), dim, blocks, ffn, order, recompute_above)


@register("retnet", label="RetNet", family="linear", member=0, cite="sun2023", version=1)
class RetNet(_HeadsMIL):
    """Multi-scale retention in the order of the patches.

    Args:
        in_dim: width d of an instance.
        n_out: number of classes, or of time bins for survival.
        dim: width of a token.
        blocks: mixer blocks.
        heads: one fixed decay each.
        ffn: an FFN of width 4 dim after each mixer.
        order: "storage", "raster" or "hilbert" (these two need coordinates), or "random", see mamba-random.
        recompute_above: tokens from which training recomputes activations instead of storing them.

    Source: Sun et al. 2023; microsoft/torchscale, the numbers of its recurrent form. Traps: causal, so the order of the patches
    matters and the first ones see nothing; torchscale's three forms differ by the eps of a norm, see `RetentionMixer`.
    Deviations: the layout around the mixer is ours.
    Checkpoints: microsoft/torchscale's state dicts fit the mixers, no whole model is public.
    """

    ops = ("retention",)
    mixer = RetentionMixer


@register("gla", label="GLA", family="linear", member=1, cite="yang2024", version=1)
class GLA(_HeadsMIL):
    """Gated linear attention in the order of the patches.

    Args:
        in_dim: width d of an instance.
        n_out: number of classes, or of time bins for survival.
        dim: width of a token.
        blocks: mixer blocks.
        heads: attention heads.
        ffn: an FFN of width 4 dim after each mixer.
        order: "storage", "raster" or "hilbert" (these two need coordinates), or "random", see mamba-random.
        recompute_above: tokens from which training recomputes activations instead of storing them.

    Source: Yang et al. 2024; fla-org/flash-linear-attention's layer at its defaults. Traps: causal, so the order of the patches
    matters; there is no form that looks both ways. Deviations: the layout around the mixer is ours.
    Checkpoints: fla-org's state dicts of the layer fit the mixers, no whole model is public.
    """

    ops = ("gated_linear_attention",)
    mixer = GLAMixer


@register("mamba-random", label="Mamba (random)", family="linear", member=2, cite="gu2024", version=1, preset={"order": "random"})
@register("mamba-single", label="Mamba (single)", family="linear", member=3, cite="gu2024", version=1)
class Mamba(_MixerMIL):
    """Mamba in one direction: in the order of the patches (single), or in a random order (random).

    Args:
        in_dim: width d of an instance.
        n_out: number of classes, or of time bins for survival.
        dim: width of a token.
        blocks: mixer blocks.
        states: states per channel.
        ffn: an FFN of width 4 dim after each mixer.
        order: "storage"; "raster" or "hilbert", which need coordinates; "random": one permutation of the stored order for all
            blocks, drawn anew at each training step, fixed by the slide's name in evaluation (the paper does not say), and
            undone afterwards.
        recompute_above: tokens from which training recomputes activations instead of storing them.

    Source: Gu and Dao 2024; state-spaces/mamba, mamba_simple at its defaults. Traps: causal. Deviations: the layout around the
    mixer is ours; weight decay reaches A and D too, which the official code exempts.
    Checkpoints: state-spaces/mamba's state dicts of the block fit the mixers, no whole model is public.
    """

    ops = ("selective_scan",)

    def __init__(
        self, in_dim: int, n_out: int, *, dim: int = 384, blocks: int = 2, states: int = 16, ffn: bool = False,
        order: Kind = "storage", recompute_above: int = RECOMPUTE_ABOVE,
    ) -> None:  # fmt: skip
        super().__init__(in_dim, n_out, partial(MambaMixer, dim, states=states), dim, blocks, ffn, order, recompute_above)


@register("vmamba", label="V-Mamba", family="linear", member=4, cite="liu2024", version=1)
class VMamba(_MixerMIL):
    """V-Mamba's cross scan: the tissue's cells along rows, columns and both reversed, summed.

    Args:
        in_dim: width d of an instance.
        n_out: number of classes, or of time bins for survival.
        dim: width of a token.
        blocks: mixer blocks.
        states: states per channel.
        ffn: an FFN of width 4 dim after each mixer, as in the backbone for natural images.
        dense: scan the whole bounding box with zeros in the background, as officially, at a cost of its area; the default scans
            only the cells that hold tissue.
        recompute_above: tokens from which training recomputes activations instead of storing them.

    Source: Liu et al. 2024; MzeroMiko/VMamba SS2D v05_noz. Traps: patches that share a cell are averaged for the map and get the
    cell's value back; the slides of a case stand side by side on the map, so rows run on from one to the next. Deviations: the
    layout around the mixer is ours, and the default scans the tissue only.
    Checkpoints: MzeroMiko/VMamba's state dicts of SS2D fit the mixers, no whole model is public.
    """

    ops = ("selective_scan",)
    needs_coords = True
    order_sensitive = False

    def __init__(
        self, in_dim: int, n_out: int, *, dim: int = 384, blocks: int = 2, states: int = 1, ffn: bool = False,
        dense: bool = False, recompute_above: int = RECOMPUTE_ABOVE,
    ) -> None:  # fmt: skip
        mixer = partial(SS2DMixer, dim, states=states, dense=dense)
        super().__init__(in_dim, n_out, mixer, dim, blocks, ffn, "storage", recompute_above)
