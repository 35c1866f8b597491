"""HIPT: a transformer inside each 4096-pixel region, then one over the regions (Chen et al., CVPR 2022).

Patches meet only those of their own region; regions meet each other as one vector each.
"""

import argparse
import pickle
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from milbench import Aggregator, Bag, MilbenchError, Prediction, register
from milbench.aggregator import unwrapped
from milbench.errors import SkipTrial
from milbench.nn import AttentionScore
from milbench.recipes import HIPT_SUBTYPING_LOOP, HIPT_SURVIVAL_LOOP

LONG = 32_000  # patches above which training keeps no activations of the local transformer, but computes them again
REGIONS_AT_ONCE = 64


def slice_regions(bag: Bag, side: int) -> tuple[Tensor, Tensor]:
    """Cut slides into squares of side x side patches on a lattice that starts at pixel (0, 0).

    Args:
        side: patches along a region; 16 of 256 pixels are the paper's 4096.

    Returns:
        region (n,) int64: number of the patch's region, by slide, row, column; two slides never share one.
        cell (n,) int64: its place inside, row by row, 0 to side^2 - 1.

    Raises:
        MilbenchError: the bag has no coordinates.
    """
    if bag.coords is None or bag.step is None:
        raise MilbenchError(f"slide {bag.slide_id} ({bag.source}): has no coordinates, so it has no regions")
    at = ((bag.coords.double() + 0.5) / bag.step).floor().long()  # (n, 2); half a pixel, as whole pixels round a fractional step
    square, inside = at.div(side, rounding_mode="floor"), at.remainder(side)
    slide = torch.zeros_like(at[:, 0]) if bag.slide_index is None else bag.slide_index.long()
    region = torch.stack([slide, square[:, 1], square[:, 0]], dim=1).unique(dim=0, return_inverse=True)[1]  # (n,)
    return region, inside[:, 1] * side + inside[:, 0]


class _Block(nn.Module):
    """Pre-norm self-attention and MLP with residuals; layers are named as in the official checkpoints.

    x: (regions, tokens, dim), seen: (regions, 1, 1, tokens) bool, or None where all are -> (regions, tokens, dim).
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(dim, 3 * dim), "proj": nn.Linear(dim, dim)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, 4 * dim), "fc2": nn.Linear(4 * dim, dim)})

    def forward(self, x: Tensor, seen: Tensor | None) -> Tensor:
        qkv = self.attn["qkv"](self.norm1(x)).unflatten(2, (3, self.heads, -1))  # (regions, tokens, 3, heads, dim / heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (regions, heads, tokens, dim / heads) each
        x = x + self.attn["proj"](F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class LocalTransformer(nn.Module):
    """vit4k_xs: the patches of a region, with learnt positions and a class token -> one vector per region.

    Args:
        in_dim: width of a patch. dim: width of a token. depth: blocks. heads: attention heads. side: patches along a region.
    """

    BASE = 14  # the positions were learnt on 14 x 14 cells and are stretched to side x side

    def __init__(self, in_dim: int, dim: int, depth: int, heads: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.BASE**2, dim))
        self.phi = nn.Sequential(nn.Linear(in_dim, dim), nn.GELU())
        self.blocks = nn.ModuleList(_Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        for name, parameter in self.named_parameters():
            if name in ("cls_token", "pos_embed") or parameter.ndim == 2:
                nn.init.trunc_normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def positions(self) -> Tensor:
        """(side^2, dim), bicubic. As officially, 0.1 is added to the side, which shifts every sample a little."""
        grid = self.pos_embed[:, 1:].unflatten(1, (self.BASE, self.BASE)).permute(0, 3, 1, 2)  # (1, dim, 14, 14)
        stretched = F.interpolate(grid, scale_factor=(self.side + 0.1) / self.BASE, mode="bicubic")
        return stretched[0].flatten(1).T

    def forward(self, x: Tensor, region: Tensor, cell: Tensor) -> Tensor:
        """x: (n, in_dim), region and cell: (n,) as of :func:`slice_regions` -> (regions, dim).

        Regions of like size are padded to the longest and go together, so that cost follows the tissue.
        """
        tokens = self.phi(x) + self.positions()[cell]  # (n, dim)
        order, count = region.argsort(stable=True), region.bincount()  # (n,), (regions,)
        start = count.cumsum(0) - count
        by_size = count.argsort(stable=True)
        out = []
        for group in by_size.split(REGIONS_AT_ONCE):
            rank = torch.arange(int(count[group[-1]]), device=x.device)  # (longest,)
            seen = rank < count[group, None]  # (group, longest)
            padded = tokens[order[(start[group, None] + rank).clamp(max=len(x) - 1)]]  # (group, longest, dim)
            again = len(x) > LONG and torch.is_grad_enabled()
            out.append(checkpoint(self._encode, padded, seen, use_reentrant=False) if again else self._encode(padded, seen))
        return torch.cat(out)[by_size.argsort()]

    def _encode(self, tokens: Tensor, seen: Tensor) -> Tensor:
        """(regions, tokens, dim) and which of them are patches -> (regions, dim)."""
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(tokens), -1, -1)
        x = torch.cat([cls, tokens], dim=1)
        mask = None if bool(seen.all()) else F.pad(seen, (1, 0), value=True)[:, None, None]
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x[:, 0])

    def load(self, path: str) -> None:
        """Load a self-supervised checkpoint (HIPT's vit4k_xs_dino.pth: the teacher's backbone, without its projection head).

        Raises:
            MilbenchError: the file cannot be read safely, or names every entry that is missing, unknown or of another shape.
        """
        try:
            with torch.serialization.safe_globals([argparse.Namespace]):  # such files keep the arguments of their script
                content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            names = {unwrapped(name).removeprefix("backbone."): t for name, t in content.get("teacher", content).items()}
            self.load_state_dict({name: t for name, t in names.items() if not name.startswith("head.")})
        except (OSError, RuntimeError, pickle.UnpicklingError) as error:
            raise MilbenchError(f"{path}: no weights for HIPT's local transformer: {error}") from error


@register("hipt", label="HIPT", family="structure", member=0, cite="chen2022", version=1)
class HIPT(Aggregator):
    """Local transformer in every region, a small transformer over regions, gated attention over regions, head.

    Args:
        in_dim: width d of an instance.
        n_out: number of classes, or of time bins for survival.
        region: patches along a region; officially 16 of 256 pixels. With another patch size it is still counted in patches.
        dim: width of tokens and regions; a multiple of `heads` and of the second transformer's 3.
        depth: blocks of the local transformer.
        heads: its attention heads.
        dropout: on regions, in training; the local transformer has none.
        weights: checkpoint of a pre-trained local transformer (needs the official sizes and 384-d features); None for random.
        frozen: leave the local transformer as it is in `weights`; without them a trial is skipped. With HIPT's DINO weights it is
            the row of the published tables, while the default trains everything from random weights.

    Source: mahmoodlab/HIPT (HIPT_LGP_FC, vit4k_xs). Traps: position codes are sampled a little off the grid's centres (see
    `positions`); published tables leave out slides without a full region. Deviations: an official region is a full 16 x 16 grid
    cut from the slide, glass included; here it holds the patches that tissue segmentation kept, at their places, and absent
    cells take no part in the attention: a slide smaller than a region works, a full grid gives the official numbers. Two patches
    in one cell (contours with different offsets) both stay, with the same position. Regions lie on a lattice from pixel (0, 0).
    They never hold patches of two slides; all regions of a case meet in the second transformer, as officially.
    Checkpoints: vit4k_xs_dino.pth with `weights`; state dicts of HIPT_LGP_FC with a vit4k_xs.
    """

    complexity = "256 n + regions^2"
    needs_coords = True
    official_names = {
        "local_vit": "local",
        "global_phi": "project",
        "global_transformer": "between",
        "global_attn_pool.attention_a.0": "score.tanh_branch",
        "global_attn_pool.attention_b.0": "score.sigmoid_branch",
        "global_attn_pool.attention_c": "score.out",
        "global_rho": "rho",
        "classifier": "head",
    }
    official_recipe = {"subtyping": HIPT_SUBTYPING_LOOP, "survival": HIPT_SURVIVAL_LOOP}
    fixed = {"positions": "learnt, of the cell in its region; none between regions"}

    def __init__(
        self,
        in_dim: int,
        n_out: int,
        *,
        region: int = 16,
        dim: int = 192,
        depth: int = 6,
        heads: int = 6,
        dropout: float = 0.25,
        weights: str | None = None,
        frozen: bool = False,
    ) -> None:
        super().__init__(in_dim, n_out)
        self.region = region
        if frozen and weights is None:
            raise SkipTrial(
                "no weights: a frozen local transformer needs its checkpoint; give it as hipt[frozen=true,weights=PATH]"
            )
        self.local = LocalTransformer(in_dim, dim, depth, heads, region)
        if weights is not None:
            self.local.load(weights)
        self.local.requires_grad_(not frozen)
        self.project = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Dropout(dropout))
        layer = nn.TransformerEncoderLayer(dim, 3, dim, dropout, batch_first=True)
        self.between = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.score = AttentionScore(dim, dim, dropout=dropout)
        self.rho = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Dropout(dropout))
        self.head = nn.Linear(dim, n_out)

    def forward(self, bag: Bag) -> Prediction:
        """Predict one bag. extras: region (n,), regions (M, dim), attention (M,); a region's share is spread over its patches."""
        region, cell = slice_regions(bag, self.region)
        regions = self.local(bag.features, region, cell)  # (M, dim)
        h = self.between(self.project(regions)[None])[0]  # (M, dim)
        weight: Tensor = self.score(h).softmax(dim=0)  # (M, 1)
        z = self.rho((weight * h).sum(dim=0))  # (dim,)
        share = weight[:, 0] / region.bincount()
        return Prediction(self.head(z), share[region], {"region": region, "regions": regions, "attention": weight[:, 0]})
