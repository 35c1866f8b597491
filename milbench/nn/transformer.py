"""The transformer block of WSI models: a token mixer and an FFN, pre-norm, with memory that a long bag can afford."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from milbench.ops.full_attention import full_attention
from milbench.ops.local_attention import local_attention_2d
from milbench.ops.positions import rope_2d
from milbench.ops.window import Window

RECOMPUTE_ABOVE = 32_000  # tokens from which a block keeps its input only and computes the rest again in the backward pass
FFN_CHUNK = 32_768  # tokens whose 4 E wide hidden layer exists at a time, above that size


class Block(nn.Module):
    """x + mixer(LayerNorm(x)), then, with `ffn`, x + FFN(LayerNorm(x)) with a GELU layer of width 4 E.

    Args:
        dim: width E of a token.
        mixer: called as mixer(x, grid) -> x.
        ffn: whether there is an FFN.
        recompute_above: bags of more tokens are trained with recomputation.

    Shapes: (n, dim), grid (n, 2) or None -> (n, dim).
    """

    def __init__(self, dim: int, mixer: nn.Module, *, ffn: bool = True, recompute_above: int = RECOMPUTE_ABOVE) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mixer = mixer
        self.ffn = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)) if ffn else None
        self.recompute_above = recompute_above

    def forward(self, x: Tensor, grid: Tensor | None = None) -> Tensor:
        """Mix the tokens, then each on its own."""
        if not torch.is_grad_enabled() or len(x) <= self.recompute_above:
            x = x + self._mix(x, grid)
            return x if self.ffn is None else x + self.ffn(x)
        x = x + _recomputed(self._mix, x, grid)
        if self.ffn is None:
            return x
        ffn = self.ffn
        return x + torch.cat([_recomputed(ffn, chunk) for chunk in x.split(FFN_CHUNK)])

    def _mix(self, x: Tensor, grid: Tensor | None) -> Tensor:
        return self.mixer(self.norm(x), grid)


def _recomputed(function: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    return checkpoint(function, *inputs, use_reentrant=False)


class SelfAttention(nn.Module):
    """Multi-head self-attention: over the whole bag, or with `radius` within a Euclidean window of the tissue.

    Args:
        dim: width E of a token.
        heads: attention heads; E / heads must be a multiple of 4 for the rotary positions.
        radius: of the window in grid steps, on every head; None attends to all tokens.
        rope: rotate queries and keys by their (column, row), half of each head's pairs each.
        dropout: on attention probabilities, in training.

    Shapes: (n, dim), grid (n, 2) or None (then without radius and rope) -> (n, dim).

    Source: LongMIL (NeurIPS 2024), section 3.
    """

    def __init__(
        self, dim: int, heads: int = 1, *, radius: float | None = None, rope: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if dim % heads or (rope and dim // heads % 4):
            parts = "parts of a multiple of 4" if rope else "equal parts"
            raise ValueError(f"{heads} heads do not divide a width of {dim} into {parts}")
        self.heads, self.radius, self.rope, self.dropout = heads, radius, rope, dropout
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, grid: Tensor | None = None) -> Tensor:
        """Mix the tokens."""
        # One product per part: a common one would hold its (n, 3 E) beside the copies that attention makes of each part.
        parts = (F.linear(x, weight) for weight in self.qkv.weight.chunk(3))
        q, k, v = (part.unflatten(1, (self.heads, -1)).transpose(0, 1) for part in parts)  # (heads, n, E / heads) each
        if self.rope and grid is not None:
            q, k = rope_2d(q, grid), rope_2d(k, grid)
        dropout = self.dropout if self.training else 0.0
        if self.radius is None:
            y = full_attention(q, k, v, dropout=dropout)
        elif grid is not None:
            y = local_attention_2d(q, k, v, Window(grid, self.radius), dropout=dropout)
        else:
            raise ValueError("a window needs the grid")
        return self.out(y.transpose(0, 1).flatten(1))
