"""TransMIL: two Nyström attention layers with convolutions on a square of tokens between them (Shao et al., NeurIPS 2021).

The square is filled in file order: it is not the tissue's shape, so the order of the patches matters, their coordinates do not.
"""

import math

import torch
from nystrom_attention import NystromAttention
from torch import Tensor, nn

from milbench import Aggregator, Bag, Prediction, register


class _Layer(nn.Module):
    """Pre-norm Nyström self-attention with a residual. (1, tokens, hidden) -> same."""

    def __init__(self, hidden: int, heads: int, landmarks: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.attn = NystromAttention(
            dim=hidden,
            dim_head=hidden // heads,
            heads=heads,
            num_landmarks=landmarks,
            pinv_iterations=6,
            residual=True,
            dropout=dropout,
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attn(self.norm(x))


class _PPEG(nn.Module):
    """Pyramid position encoding: depth-wise 7x7, 5x5 and 3x3 convolutions, summed with the square; the class token passes by."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.proj, self.proj1, self.proj2 = (nn.Conv2d(hidden, hidden, k, padding=k // 2, groups=hidden) for k in (7, 5, 3))

    def forward(self, x: Tensor, side: int) -> Tensor:
        token, rest = x[:, :1], x[:, 1:]
        square = rest.transpose(1, 2).unflatten(2, (side, side))  # (1, hidden, side, side)
        square = square + self.proj(square) + self.proj1(square) + self.proj2(square)
        return torch.cat([token, square.flatten(2).transpose(1, 2)], dim=1)


@register("transmil", label="TransMIL", family="transformer", member=0, cite="shao2021", version=1)
class TransMIL(Aggregator):
    """TransMIL with the attention of the package nystrom-attention.

    Args:
        in_dim: width d of an instance.
        n_out: number of classes, or of time bins for survival.
        hidden: width of a token.
        heads: attention heads.
        landmarks: Nyström landmarks, 256 officially. Every step pays for at least that many tokens, so take fewer for small bags.
        dropout: after each attention, in training.

    Source: szc19990412/TransMIL. Traps: the first tokens are repeated to fill a square; the attention pads with zeros on the left
    to a multiple of `landmarks` and the zeros take part, so the result depends on n mod landmarks. Deviations: any width d
    (officially 1024 only).
    Checkpoints: state dicts of the official TransMIL, without Lightning's prefix `model.`.
    """

    complexity = "n landmarks"
    order_sensitive = True
    fixed = {"positions": "convolutions over a square that is filled in file order"}
    official_recipe = {
        "subtyping": {
            "optimiser": "lookahead-radam", "lr": 2e-4, "weight_decay": 1e-5, "decay_vectors": False, "accumulate": 2,
            "left_over": "flush", "max_epochs": 200, "patience": 10, "select": "best val loss", "ties": "first",
            "source": "szc19990412/TransMIL, Camelyon/TransMIL.yaml under pytorch-lightning",
            "not_followed": "float32, there half precision",
        }
    }  # fmt: skip
    official_names = {"_fc1.0": "project.0", "_fc2": "head", "pos_layer": "ppeg"}

    def __init__(
        self, in_dim: int, n_out: int, *, hidden: int = 512, heads: int = 8, landmarks: int = 256, dropout: float = 0.1
    ) -> None:
        super().__init__(in_dim, n_out)
        self.project = nn.Sequential(nn.Linear(in_dim, hidden), nn.ReLU())
        self.cls_token = nn.Parameter(torch.randn(1, 1, hidden))
        self.layer1 = _Layer(hidden, heads, landmarks, dropout)
        self.ppeg = _PPEG(hidden)
        self.layer2 = _Layer(hidden, heads, landmarks, dropout)
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, n_out)

    def forward(self, bag: Bag) -> Prediction:
        """Predict one bag."""
        h = self.project(bag.features)  # (n, hidden)
        side = math.isqrt(len(h) - 1) + 1  # ceil(sqrt(n))
        h = torch.cat([h, h[: side * side - len(h)]])  # (side^2, hidden)
        x = torch.cat([self.cls_token, h[None]], dim=1)  # (1, 1 + side^2, hidden)
        x = self.layer2(self.ppeg(self.layer1(x), side))
        return Prediction(logits=self.head(self.norm(x[0, 0])))
