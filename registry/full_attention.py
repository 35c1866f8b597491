"""Full attention: two transformer blocks over all patches, with their true 2-D positions (LongMIL, NeurIPS 2024, baseline)."""

from typing import Literal

from torch import Tensor, nn

from milbench import Aggregator, Bag, Prediction, register
from milbench.nn.transformer import Block, SelfAttention


@register("full-attention", label="Full Attention", family="transformer", member=1, cite="li2024longmil", version=1)
class FullAttention(Aggregator):
    """h = relu(W x); blocks of full self-attention and FFN; logits = head(LayerNorm(mean over tokens)).

    Args:
        in_dim: width d of an instance.
        n_out: number of classes, or of time bins for survival.
        dim: width E of a token.
        blocks: transformer blocks.
        heads: attention heads.
        positions: "rope", rotary by (column, row), or "none", which needs no coordinates and sees no order.
        dropout: on attention probabilities, in training.

    Source: LongMIL (NeurIPS 2024), section 3.2 and appendix A.5; no official code. Traps: attention is exact and never
    materialised, so memory is O(n), but time is O(n^2). Deviations: the paper names neither the projection nor the FFN; both are
    LongMIL's.
    Checkpoints: none is public.
    """

    complexity = "n^2"
    ops = ("full_attention",)
    needs_coords = True

    def __init__(
        self,
        in_dim: int,
        n_out: int,
        *,
        dim: int = 384,
        blocks: int = 2,
        heads: int = 1,
        positions: Literal["rope", "none"] = "rope",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(in_dim, n_out)
        self.needs_coords = positions == "rope"
        self.project = nn.Sequential(nn.Linear(in_dim, dim), nn.ReLU())
        self.blocks = nn.ModuleList(
            Block(dim, SelfAttention(dim, heads, rope=positions == "rope", dropout=dropout)) for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, n_out)

    def forward(self, bag: Bag) -> Prediction:
        """Predict one bag."""
        grid = bag.grid() if self.needs_coords else None
        x: Tensor = self.project(bag.features)  # (n, dim)
        for block in self.blocks:
            x = block(x, grid)
        return Prediction(logits=self.head(self.norm(x.mean(dim=0))))
