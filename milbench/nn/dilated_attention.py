"""Self-attention of LongNet: projections around dilated attention, with a norm before the output projection."""

from collections.abc import Sequence

from torch import Tensor, nn

from milbench.errors import MilbenchError
from milbench.ops.dilated_attention import dilated_attention


class DilatedSelfAttention(nn.Module):
    """Multi-head self-attention that looks inside segments, over every r-th token.

    Args:
        dim: width of a token, a multiple of `heads`.
        heads: number of heads.
        segments: length of a segment, per branch; clipped to the bag.
        ratios: dilation r, per branch.

    Shapes: (n, dim) -> (n, dim).

    Source: Ding et al. 2023; names and sub-LN as in microsoft/torchscale (DilatedAttention), as used by prov-gigapath.
    """

    def __init__(self, dim: int, heads: int, *, segments: Sequence[int], ratios: Sequence[int]) -> None:
        super().__init__()
        if dim % heads:
            raise MilbenchError(f"{heads} heads do not divide a width of {dim}")
        self.heads, self.segments, self.ratios = heads, tuple(segments), tuple(ratios)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(dim, dim) for _ in range(4))
        self.inner_attn_ln = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens."""
        q, k, v = (p(x).unflatten(1, (self.heads, -1)).transpose(0, 1) for p in (self.q_proj, self.k_proj, self.v_proj))
        out = dilated_attention(q, k, v, self.segments, self.ratios)  # (heads, n, dim / heads)
        return self.out_proj(self.inner_attn_ln(out.transpose(0, 1).flatten(1)))
