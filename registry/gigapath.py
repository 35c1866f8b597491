"""GigaPath's slide encoder: a LongNet over all patches of a slide, with fixed 2-D positions (Xu et al., Nature 2024).

Twelve transformer layers whose attention looks inside segments of growing length over every r-th token, so the cost stays near
linear. The embedding of a class token goes to a linear head.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from milbench import Aggregator, Bag, MilbenchError, Prediction, register
from milbench.aggregator import unwrapped
from milbench.errors import SkipTrial
from milbench.nn.longnet import LongNetLayer
from milbench.nn.mixers import token_order
from milbench.nn.optimisers import Optimiser
from milbench.nn.weights import read
from milbench.recipes import Recipe

RATIOS = (1, 2, 4, 8, 16)
LAYER_DECAY = 0.95


def segment_lengths(max_pixels: int, patch_pixels: int) -> list[int]:
    """Five segment lengths, evenly spaced in their logarithm, from 1024 to the number of patches of the largest slide."""
    last = int(math.log2((max_pixels // patch_pixels) ** 2))
    return [int(2 ** (10 + (last - 10) * i / 4)) for i in range(5)]


def sincos_table(size: int, dim: int) -> Tensor:
    """Codes of the positions 0 .. size - 1 on one axis: sines, then cosines. (size, dim) float32, computed in float64."""
    rate = 10000 ** -(torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))
    angle = torch.arange(size, dtype=torch.float64)[:, None] * rate  # (size, dim / 2)
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()


method = partial(register, cite="xu2024", family="structure")


@method("gigapath-random", label="GigaPath (random)", member=3)
@method("gigapath-pretrained", label="GigaPath (pretrained)", member=4, preset={"pretrained": True, "encoder_dim": 1536})
class GigaPath(Aggregator):
    """The slide encoder of GigaPath with a linear head, all trained.

    Args:
        in_dim: width d of an instance.
        n_out: number of classes, or of time bins for survival.
        dim: width of a token.
        depth: layers.
        heads: attention heads.
        ffn: width of the FFN; None for 4 dim.
        encoder_dim: width that the encoder reads, 1536 in the published weights. Where instances have another, a Linear in front
            maps them to it, as the LongMIL paper does for UNI. None: as wide as the instances, without that Linear.
        readout: "cls", the class token, or "mean" over the patches.
        feature_layer: None, the encoder's output through its last norm; k, the output of layer k without that norm, 0 being the
            embeddings. Official fine-tuning takes 11 of 12, which leaves the last layer unused.
        patch_pixels: level-0 pixels of a position's cell, officially 256 at any magnification.
        grid_size: cells per axis that have a position.
        max_pixels: largest side of a slide in level-0 pixels; sets the segment lengths.
        order: in which the segments are cut: "storage", the order of the file, or "random", drawn anew at each training step and
            fixed by the slide's name otherwise. The positions of the patches stay theirs.
        dropout: on embeddings and after each attention, in training.
        drop_path: rate of dropped branches in the last layer, growing from 0 in the first, in training.
        pretrained: start from `weights`; without them a trial is skipped.
        weights: file of the published slide encoder (a state dict, or one under the key "model"); read as tensors only.

    Source: prov-gigapath/prov-gigapath, gigapath_slide_enc12l768d. Traps: zeros that fill a segment take part in the attention,
    so n affects results; segments are cut from the order of the patches, which official fine-tuning shuffles for every slide, in
    training, validation and test; past the grid the official table is out of range or silently takes the next row's position,
    here that is an error; slides of a case keep their own positions, which may coincide. Deviations: positions (officially a
    table of 3 GB) come from one short table per axis, to the same values; float32; a random order can be repeated.
    The defaults are the encoder's; `--recipe official` takes what fine-tuning takes: order=random, dropout=0.1 and the output of
    the last layer but one, feature_layer=11. Vectors hold the encoder against the official code, no vector the fine-tuning.
    Checkpoints: prov-gigapath's slide encoder (gated), alone or fine-tuned, with gigapath-pretrained[weights=FILE].
    """

    complexity = "n sum(segment / ratio)"
    needs_coords = True
    order_sensitive = True
    fixed = {"positions": "sines and cosines of the cell (row, column), as wide as a token"}
    official_recipe = {  # learning rate 4e-3 per 256 bags; rates of the layers fall towards the input, see `optimisers`
        "subtyping": {
            "optimiser": "adamw", "lr": 5e-4, "weight_decay": 1e-5, "decay_vectors": False, "accumulate": 32,
            "left_over": "restart", "schedule": "cosine-per-step", "warmup_epochs": 1, "final_lr": 1e-6, "max_epochs": 5,
            "patience": None, "select": "last", "params": {"order": "random", "dropout": 0.1},
            "source": "prov-gigapath/prov-gigapath, finetune; learning rates of layers fall by 0.95 towards the input",
            "not_followed": "float32, there half precision; the order of patches is seeded",
        }
    }  # fmt: skip
    official_names = {
        "patch_embed.proj": "patch_embed",
        "encoder.layers": "layers",
        "encoder.layer_norm": "layer_norm",
        "classifier.0": "head",
    }
    axis_code: Tensor

    def __init__(
        self,
        in_dim: int,
        n_out: int,
        *,
        dim: int = 768,
        depth: int = 12,
        heads: int = 16,
        ffn: int | None = None,
        encoder_dim: int | None = None,
        readout: Literal["cls", "mean"] = "cls",
        feature_layer: int | None = None,
        patch_pixels: int = 256,
        grid_size: int = 1000,
        max_pixels: int = 262144,
        dropout: float = 0.25,
        drop_path: float = 0.1,
        order: Literal["storage", "random"] = "storage",
        pretrained: bool = False,
        weights: str | None = None,
    ) -> None:
        super().__init__(in_dim, n_out)
        if pretrained and not weights:
            raise SkipTrial("no weights: GigaPath's are gated; give the downloaded file as gigapath-pretrained[weights=PATH]")
        if weights and not pretrained:
            raise MilbenchError("gigapath-random takes no weights; use gigapath-pretrained[weights=PATH]")
        if feature_layer is not None and not 0 <= feature_layer <= depth:
            raise MilbenchError(f"feature_layer is {feature_layer}, expected 0 to {depth} or none")
        self.readout, self.feature_layer, self.patch_pixels, self.dropout = readout, feature_layer, patch_pixels, dropout
        self.order: Literal["storage", "random"] = order
        encoder_dim = encoder_dim or in_dim
        segments = segment_lengths(max_pixels, patch_pixels)
        self.patch_embed = nn.Linear(encoder_dim, dim)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        rates = [drop_path * k / max(1, depth - 1) for k in range(depth)]
        self.layers = nn.ModuleList(
            LongNetLayer(dim, heads, ffn=ffn or 4 * dim, segments=segments, ratios=RATIOS, dropout=dropout, drop_path=rate)
            for rate in rates
        )
        self.layer_norm, self.norm = nn.LayerNorm(dim), nn.LayerNorm(dim, eps=1e-6)
        self.register_buffer("axis_code", sincos_table(grid_size, dim // 2), persistent=False)  # (grid_size, dim / 2)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        self.project = nn.Linear(in_dim, encoder_dim) if in_dim != encoder_dim else nn.Identity()
        self.head = nn.Linear(dim, n_out)
        if weights:
            self.load_official(read(weights))

    @classmethod
    def official(cls, params: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        """With the output of the last layer but one, however many there are."""
        own = cls.official_recipe["subtyping"]
        return {"subtyping": {**own, "params": {**own["params"], "feature_layer": params["depth"] - 1}}}

    def forward(self, bag: Bag) -> Prediction:
        """Predict one bag. extras: embedding (dim,)."""
        embedding = self.embeddings(bag)[-1 if self.feature_layer is None else self.feature_layer]
        return Prediction(logits=self.head(embedding), extras={"embedding": embedding})

    def embeddings(self, bag: Bag) -> list[Tensor]:
        """The slide's embedding (dim,) from the embedded patches, from each layer, and from the encoder's output: depth + 2."""
        x = self.patch_embed(self.project(bag.features)) + self.positions(bag)
        x = x[token_order(self.order, len(x), None, key=bag.slide_id, training=self.training, device=x.device)]
        x = F.dropout(torch.cat([self.cls_token[0], x]), self.dropout, self.training)  # (1 + n, dim)
        states = [x]
        for layer in self.layers:
            x = layer(x)
            states.append(x)
        states.append(self.layer_norm(x))
        return [self.norm(x[0] if self.readout == "cls" else x[1:].mean(dim=0)) for x in states]

    def positions(self, bag: Bag) -> Tensor:
        """Position codes (n, dim): half of the row of cells, half of the column, as the official table lays them out.

        Raises:
            MilbenchError: no coordinates, or a patch beyond the last cell that has a code.
        """
        where = f"slide {bag.slide_id} ({bag.source})"
        if bag.coords is None:
            raise MilbenchError(f"{where}: has no coordinates, GigaPath needs them")
        cell = torch.div(bag.coords, self.patch_pixels, rounding_mode="floor").long()  # (n, 2)
        size = len(self.axis_code)
        if not 0 <= int(cell.min()) <= int(cell.max()) < size:
            raise MilbenchError(
                f"{where}: coordinates run from {bag.coords.amin(0).tolist()} to {bag.coords.amax(0).tolist()}, GigaPath has "
                f"positions for 0 to {size * self.patch_pixels - 1} level-0 pixels per axis; shift them, or raise grid_size"
            )
        return torch.cat([self.axis_code[cell[:, 1]], self.axis_code[cell[:, 0]]], dim=1)

    def rename_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of the encoder alone, or with a fine-tuned head; a head and a Linear in front that are not given stay ours."""
        plain = {unwrapped(name).removeprefix("slide_encoder."): value for name, value in state_dict.items()}
        pretraining = ("pos_embed", "mask_token", "decoder")
        renamed = super().rename_official({name: value for name, value in plain.items() if not name.startswith(pretraining)})
        ours = {name: value for name, value in self.state_dict().items() if name.startswith(("head.", "project."))}
        return renamed | {name: value for name, value in ours.items() if name not in renamed}

    def optimisers(self, recipe: Recipe) -> list[Optimiser]:
        """The recipe's; the official one slows layer k of L (from 0) by 0.95^(L - k) and the class token most."""
        (optimiser,) = super().optimisers(recipe)
        if recipe.name == "official":
            depth = len(self.layers)
            slower = {self.cls_token: LAYER_DECAY ** (depth + 1)}
            slower |= {p: LAYER_DECAY ** (depth - k) for k, layer in enumerate(self.layers) for p in layer.parameters()}
            optimiser.param_groups[:] = [
                {**group, "params": [p], "lr": group["lr"] * slower.get(p, 1.0)}
                for group in optimiser.param_groups
                for p in group["params"]
            ]
        return [optimiser]
