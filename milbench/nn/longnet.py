"""The transformer layer of LongNet: dilated self-attention and an FFN, each with a norm before it and one inside (sub-LN)."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from milbench.nn.dilated_attention import DilatedSelfAttention


class _FFN(nn.Module):
    """Two Linears with a norm between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.ffn_layernorm = nn.LayerNorm(hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.ffn_layernorm(F.gelu(self.fc1(x))))


class LongNetLayer(nn.Module):
    """x + attention(LayerNorm(x)), then x + FFN(LayerNorm(x)).

    Args:
        dim: width of a token.
        heads: attention heads.
        ffn: width inside the FFN.
        segments: segment length per branch of the attention.
        ratios: dilation per branch.
        dropout: on both branches' outputs, in training.
        drop_path: probability of dropping such a branch as a whole, in training; kept ones grow by 1 / (1 - drop_path).

    Shapes: (n, dim) -> (n, dim).

    Source: Ding et al. 2023; names as in microsoft/torchscale's EncoderLayer, as used by prov-gigapath.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        ffn: int,
        segments: Sequence[int],
        ratios: Sequence[int],
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.self_attn = DilatedSelfAttention(dim, heads, segments=segments, ratios=ratios)
        self.self_attn_layer_norm, self.final_layer_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.ffn = _FFN(dim, ffn)
        self.dropout, self.drop_path = dropout, drop_path

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens, then each on its own."""
        x = x + self._drop(self.self_attn(self.self_attn_layer_norm(x)))
        return x + self._drop(self.ffn(self.final_layer_norm(x)))

    def _drop(self, branch: Tensor) -> Tensor:
        kept = F.dropout(branch.new_ones(()), self.drop_path, self.training)  # 0, or 1 / (1 - drop_path)
        return F.dropout(branch, self.dropout, self.training) * kept
