"""R2T-MIL: patches look at each other inside square regions, and regions at each other, before AB-MIL pools them (CVPR 2024).

The regions are cut from a square that is filled in the order of the bag: the order of the patches matters, their places do not.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from milbench import Aggregator, Bag, MilbenchError, Prediction, register
from milbench.nn import wide

CROSS_REGIONS = 8  # a side, officially whatever `regions` says


def to_regions(x: Tensor, side: int) -> Tensor:
    """Cut a square of tokens, filled row by row and with zeros at its end, into side x side regions. (n, E) -> (side^2, T, E)."""
    rows = math.isqrt(len(x) - 1) + 1  # ceil(sqrt(n))
    r = -(-rows // side)
    square = F.pad(x, (0, 0, 0, (side * r) ** 2 - len(x))).view(side, r, side, r, -1)
    return square.transpose(1, 2).reshape(side**2, r**2, -1)


def from_regions(x: Tensor, n: int) -> Tensor:
    """The first n tokens of the square again, in their order. (side^2, T, E) -> (n, E)."""
    side, r = math.isqrt(x.shape[0]), math.isqrt(x.shape[1])
    return x.view(side, side, r, r, -1).transpose(1, 2).reshape((side * r) ** 2, -1)[:n]


class _Attention(nn.Module):
    """Multi-head attention inside each group, with a filter of the queries along their order where `epeg` is not 0.

    Official code filters the logits q k^T along the query axis. The filter is linear, so the filtered logits are those of
    filtered queries: no T x T matrix is held. (groups, T, E) -> same.
    """

    def __init__(self, hidden: int, heads: int, epeg: int = 0) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.pe = nn.Conv2d(heads, heads, (epeg, 1), padding=(epeg // 2, 0), groups=heads, bias=False) if epeg else None
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (groups, heads, T, E / heads)
        if self.pe is not None:
            q = q + self.pe(q)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.dropout(self.proj(out.transpose(1, 2).flatten(2)))


class _RegionLayer(nn.Module):
    """R-MSA: attention inside each of side x side regions. (n, E) -> same."""

    def __init__(self, hidden: int, heads: int, side: int, epeg: int) -> None:
        super().__init__()
        self.side, self.norm, self.attn = side, nn.LayerNorm(hidden), _Attention(hidden, heads, epeg)

    def forward(self, x: Tensor) -> Tensor:
        return x + from_regions(self.attn(to_regions(self.norm(x), self.side)), len(x))


class _CrossLayer(nn.Module):
    """CR-MSA: k representatives of each region attend to those of the other regions and are handed back. (n, E) -> same."""

    def __init__(self, hidden: int, heads: int, k: int, *, mlp: bool) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(hidden), _Attention(hidden, heads)
        if mlp:
            first, second = nn.Linear(hidden, hidden // 4, bias=False), nn.Linear(hidden // 4, k, bias=False)
            self.phi: nn.Parameter | nn.Sequential = nn.Sequential(first, nn.Tanh(), second)
        else:
            self.phi = nn.Parameter(torch.empty(hidden, k).uniform_(-(k**-0.5), k**-0.5))

    def forward(self, x: Tensor) -> Tensor:
        z = to_regions(self.norm(x), CROSS_REGIONS)  # (regions, T, E)
        with torch.autocast(z.device.type, enabled=False):  # 1e-8 is 0 in float16, and 1 / 1e-8 infinite
            s = z @ self.phi if isinstance(self.phi, nn.Parameter) else self.phi(z)  # (regions, T, k)
            low, high = s.amin(dim=1, keepdim=True), s.amax(dim=1, keepdim=True)
            share = s.softmax(dim=2) * (s - low) / (high - low + 1e-8)  # (regions, T, k)
            representatives = (s.softmax(dim=1).mT @ z).transpose(0, 1)  # (k, regions, E)
        return x + from_regions(share @ self.attn(representatives).transpose(0, 1), len(x))


@register("rrt", label="R2T-MIL", family="transformer", member=2, cite="tang2024", version=1)
class RRTMIL(Aggregator):
    """Re-embedded regional transformer in front of AB-MIL.

    h = relu(W x); h <- h + attention within regions(LN(h)); h <- h + attention across regions(LN(h)); t = LN(h);
    a = softmax over instances of w act(V t); logits = head(sum_i a_i t_i).

    Args:
        in_dim: width d of an instance.
        n_out: number of classes, or of time bins for survival.
        hidden: width E of a token, officially 512 only; a multiple of both numbers of heads.
        layers: of attention, the last across regions (officially n_layers).
        heads, regions: of the layers within regions: heads, and regions a side of the square (region_num). Across regions there
            are always 8 a side.
        epeg: length of the filter on the logits of each head (epeg_k), odd.
        representatives: of a region (crmsa_k).
        cross_heads, cross_mlp: of the layer across regions: heads (crmsa_heads), and a two-layer network in place of a matrix
            that chooses the representatives (crmsa_mlp).
        shortcut: t = LN(h + relu(W x)) (all_shortcut).
        activation: of the pooling's score (da_act): the class's default "relu", or "tanh", which every official command sets.
        attention_dim: width of that score.
        dropout: on projected instances, in training; after each attention it is 0.1.

    Official commands: Camelyon16 `rrt[representatives=1,shortcut=true,activation=tanh]` with ResNet-50; TCGA-BRCA
    `rrt[epeg=17,cross_heads=1,shortcut=true,activation=tanh]`; TCGA-NSCLC with PLIP
    `rrt[epeg=13,cross_heads=1,cross_mlp=true,shortcut=true,activation=tanh]`.

    Source: Tang et al. 2024 (DearCaat/RRT-MIL, RRTMIL). Traps: the zeros that fill the square are keys like any other; up to 64
    patches every region is one token, so both attentions add no exchange between patches at all; officially float16 gives NaN
    there and for every region of zeros, as 1e-8 is 0 in it; epoch, early stopping and operating point are chosen on the test fold
    in every official command. Deviations: the division by a range + 1e-8 is never done in half precision; any width; the filter's
    bias, a constant before a softmax, is left out and dropped from official weights.
    Checkpoints: the entry `model` of what main.py saves (fold_0_model_best_auc.pt).
    """

    complexity = "n^2 / regions^2"
    order_sensitive = True
    official_names = {
        "patch_to_emb.0": "project.0",
        "online_encoder.layers": "layers",
        "online_encoder.cr_msa": "cross",
        "online_encoder.norm": "norm",
        "pool_fn.attention.attention": "score",
        "predictor": "head",
    }
    official_recipe = {
        "subtyping": {  # outside Camelyon16, whose patience is 30 from epoch 130 on
            "optimiser": "adam", "lr": 2e-4, "weight_decay": 1e-5, "schedule": "cosine", "max_epochs": 200, "min_epochs": 72,
            "patience": 20, "ties": "first", "source": "DearCaat/RRT-MIL, main.py",
            "not_followed": "selects on the test fold, here on the validation part; an equal epoch renews the patience there",
        },
        "survival": {
            "optimiser": "adam", "lr": 2e-4, "weight_decay": 1e-5, "schedule": "cosine", "max_epochs": 30, "patience": None,
            "ties": "first", "source": "DearCaat/RRT-MIL, Survival/, with the epochs of its README",
            "not_followed": "selects on the tested fold, here on a validation part",
        },
    }  # fmt: skip

    def __init__(
        self,
        in_dim: int,
        n_out: int,
        *,
        hidden: int = 512,
        layers: int = 2,
        heads: int = 8,
        regions: int = 8,
        epeg: int = 15,
        representatives: int = 3,
        cross_heads: int = 8,
        cross_mlp: bool = False,
        shortcut: bool = False,
        activation: Literal["relu", "tanh"] = "relu",
        attention_dim: int = 128,
        dropout: float = 0.25,
    ) -> None:
        super().__init__(in_dim, n_out)
        if hidden % heads or hidden % cross_heads or epeg % 2 == 0:
            wrong = f"hidden={hidden}, heads={heads}, cross_heads={cross_heads}, epeg={epeg}"
            raise MilbenchError(f"rrt: hidden must be a multiple of heads and of cross_heads, and epeg odd, got {wrong}")
        self.shortcut = shortcut
        self.project = nn.Sequential(nn.Linear(in_dim, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.layers = nn.ModuleList(_RegionLayer(hidden, heads, regions, epeg) for _ in range(layers - 1))
        self.cross = _CrossLayer(hidden, cross_heads, representatives, mlp=cross_mlp)
        self.norm = nn.LayerNorm(hidden)
        act = nn.ReLU() if activation == "relu" else nn.Tanh()
        self.score = nn.Sequential(nn.Linear(hidden, attention_dim, bias=False), act, nn.Linear(attention_dim, 1, bias=False))
        self.head = nn.Linear(hidden, n_out)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, bag: Bag) -> Prediction:
        """Predict one bag. extras: tokens (n, hidden)."""
        embedded = h = wide(self.project(bag.features))  # (n, hidden)
        for layer in self.layers:
            h = layer(h)
        h = self.cross(h)
        tokens = self.norm(h + embedded if self.shortcut else h)
        weight = self.score(tokens).softmax(dim=0)  # (n, 1)
        return Prediction(logits=self.head((weight * tokens).sum(dim=0)), attention=weight[:, 0], extras={"tokens": tokens})

    def rename_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Layers hold their attention twice as deep officially; the filter's bias has no effect and is dropped."""
        used = {name: value for name, value in state_dict.items() if not name.endswith("pe.bias")}
        return super().rename_official(
            {name.replace("attn.attn.", "attn.").replace("attn.phi", "phi"): value for name, value in used.items()}
        )
