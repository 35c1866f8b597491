"""Orders in which a sequence model may read the patches of a slide: permutations of the occupied tokens."""

from typing import Literal, get_args

import torch
from torch import Tensor

from milbench.errors import MilbenchError, unknown

Kind = Literal["storage", "raster", "random", "hilbert"]


def _check(grid: Tensor) -> None:
    if grid.ndim != 2 or grid.shape[1] != 2 or not len(grid):
        raise MilbenchError(f"grid must be (n, 2), column and row of each token, n >= 1, got {tuple(grid.shape)}")
    if grid.dtype.is_floating_point or grid.dtype.is_complex or grid.dtype == torch.bool:
        raise MilbenchError(f"grid must hold integers, got {grid.dtype}")


def _sorted(major: Tensor, minor: Tensor) -> Tensor:
    """Order by `major`, then `minor`, then storage: (n,)."""
    order = minor.argsort(stable=True)
    return order[major[order].argsort(stable=True)]


def hilbert_index(x: Tensor, y: Tensor, bits: int) -> Tensor:
    """Distance along the Hilbert curve that fills the square of 2^bits cells, starting at (0, 0) and ending at (2^bits - 1, 0).

    Each pass settles the quadrant at one scale, then turns and mirrors the rest into it (Hilbert 1891).

    Shapes: (n,), (n,) -> (n,) int64.
    """
    x, y, distance = x.clone(), y.clone(), torch.zeros_like(x)
    for bit in reversed(range(bits)):
        right, up = (x >> bit) & 1, (y >> bit) & 1
        distance += (3 * right ^ up) << 2 * bit
        mask = (1 << bit) - 1
        x, y = x & mask, y & mask
        mirror = (right == 1) & (up == 0)
        x, y = torch.where(mirror, mask - x, x), torch.where(mirror, mask - y, y)
        x, y = torch.where(up == 0, y, x), torch.where(up == 0, x, y)
    return distance


def scan_order(grid: Tensor, kind: Kind, generator: torch.Generator | None = None) -> Tensor:
    """A permutation of the tokens: the i-th that a model reads is `order[i]`; `order.argsort()` undoes it.

    Args:
        grid: (n, 2) integer (column, row) of each token.
        kind: "storage" as they are; "raster" row by row; "random" uniformly; "hilbert" along the curve, whose neighbours are near
            in both axes. Tokens that share a cell keep their storage order.
        generator: of the random order; None takes torch's own.

    Returns:
        (n,) int64.

    Raises:
        MilbenchError: naming the argument, for a grid that is not (n, 2) integers, or an unknown kind.
    """
    _check(grid)
    match kind:
        case "storage":
            return torch.arange(len(grid), device=grid.device)
        case "raster":
            return _sorted(grid[:, 1], grid[:, 0])
        case "random":
            return torch.randperm(len(grid), generator=generator).to(grid.device)
        case "hilbert":
            x, y = (grid.to(torch.int64) - grid.amin(0)).unbind(1)
            bits = int(torch.maximum(x, y).max()).bit_length()
            return hilbert_index(x, y, bits).argsort(stable=True)
    raise unknown("kind of scan order", kind, get_args(Kind))


def cross_scan(grid: Tensor) -> Tensor:
    """The four orders of V-Mamba over the occupied cells: row by row, column by column, and both backwards.

    Shapes: (n, 2) integer (column, row) -> (4, n) int64. Tokens that share a cell keep their storage order in the forward scans.

    Raises:
        MilbenchError: for a grid that is not (n, 2) integers.

    Source: Liu et al. 2024 (VMamba), fig. 3; there over every cell of the box, here over tissue only.
    """
    _check(grid)
    rows, columns = _sorted(grid[:, 1], grid[:, 0]), _sorted(grid[:, 0], grid[:, 1])
    return torch.stack([rows, columns, rows.flip(0), columns.flip(0)])
