"""2-D positions of tokens for attention: rotary angles by column and row, and the slopes of ALiBi."""

import torch
from torch import Tensor

from milbench.errors import MilbenchError
from milbench.ops.arguments import check


def rope_2d_naive(x: Tensor, grid: Tensor, base: float = 10_000.0) -> Tensor:
    """The definition, pair by pair. Shapes as in :func:`rope_2d`."""
    d, out = x.shape[-1], x.clone()
    for pair in range(d // 2):
        theta = base ** (-2 * (pair % (d // 4)) / (d / 2))
        angle = grid[:, 0 if pair < d // 4 else 1].to(torch.float64) * theta  # (n,)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        a, b = x[..., 2 * pair], x[..., 2 * pair + 1]
        out[..., 2 * pair], out[..., 2 * pair + 1] = a * cos - b * sin, a * sin + b * cos
    return out


def rope_2d(x: Tensor, grid: Tensor, base: float = 10_000.0) -> Tensor:
    """Rotate the channel pairs of queries or keys so that their products depend on differences of positions only.

    Pairs are neighbouring channels. Of each head's d / 2 pairs the first half turns with the column, the second with the row;
    pair j of a half turns by position * theta_j, theta_j = base^(-2j / (d / 2)), j = 0 ... d / 4 - 1.

    Args:
        x: (heads, n, d), d a multiple of 4; half types are computed in float32.
        grid: (n, 2) integer (column, row).
        base: of the angles.

    Returns:
        (heads, n, d).

    Raises:
        MilbenchError: naming the argument whose shape, dtype or values are wrong.

    Source: Su et al. 2021, applied to each axis on half of the pairs; LongMIL (NeurIPS 2024), section 3.2.
    """
    dtype = check("x (heads, n, d)", x)
    if x.shape[-1] % 4:
        raise MilbenchError(f"x must be (heads, n, d) with d a multiple of 4, got {tuple(x.shape)}")
    if grid.shape != (x.shape[1], 2) or grid.dtype not in (torch.int32, torch.int64):
        raise MilbenchError(f"grid must be ({x.shape[1]}, 2) integers like x, got {grid.dtype} of {tuple(grid.shape)}")
    quarter = x.shape[-1] // 4
    theta = base ** (-torch.arange(quarter, dtype=torch.float64, device=x.device) / quarter)
    angle = (grid[:, :, None] * theta).flatten(1)  # (n, d / 2) in float64: positions may be large
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2).to(x.dtype)


def alibi_slopes(heads: int) -> Tensor:
    """(heads,) slopes 2^(-8 h / heads), h = 1 ... heads. Source: Press et al. 2022."""
    return 2.0 ** (-8 * torch.arange(1, heads + 1) / heads)
