"""A window on the slide: which patches attend each other in local attention, and by how much distance counts."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from milbench.errors import MilbenchError


@dataclass(frozen=True, eq=False)
class Window:
    """Patch i attends patch j iff the Euclidean distance of their cells is at most `radius`.

    Args:
        grid: (n, 2) integer (column, row) of each patch; duplicates attend each other.
        radius: in grid steps, 0 or more; a patch always attends itself.
        alibi: (heads,) slopes; -slope * distance is added to the scores. Takes no gradient.
        regions: (n,) integer labels; patches attend their own label only (HIPT's slicing). None: no such mask.

    Source: LongMIL (NeurIPS 2024), local attention with 2-D distance mask; ALiBi by Press et al. 2022.
    """

    grid: Tensor
    radius: float
    alibi: Tensor | None = None
    regions: Tensor | None = None

    def check(self, heads: int, n: int) -> None:
        """Refuse a window that does not fit queries (heads, n, d).

        Raises:
            MilbenchError: naming the field that has a wrong shape, dtype or value.
        """
        grid, alibi, regions, integers = self.grid, self.alibi, self.regions, (torch.int32, torch.int64)
        if grid.shape != (n, 2) or grid.dtype not in integers:
            raise MilbenchError(f"grid must be ({n}, 2) integers like q, got {grid.dtype} of {tuple(grid.shape)}")
        if not self.radius >= 0:
            raise MilbenchError(f"radius must be 0 or more grid steps, got {self.radius}")
        if alibi is not None and (alibi.shape != (heads,) or alibi.requires_grad or not alibi.isfinite().all()):
            raise MilbenchError(f"alibi must be ({heads},) finite slopes without gradient, one per head, got {alibi}")
        if regions is not None and (regions.shape != (n,) or regions.dtype not in integers):
            raise MilbenchError(f"regions must be ({n},) integers like q, got {regions.dtype} of {tuple(regions.shape)}")


def largest_square(radius: float) -> int:
    """The largest whole number whose root is at most `radius`: squared distances of cells are compared without rounding."""
    near = math.floor(radius**2)  # may be off by one, by rounding
    return max(s for s in (0, near - 1, near, near + 1) if s >= 0 and math.sqrt(s) <= radius)
