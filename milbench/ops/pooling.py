"""Pooling on the slide's grid."""

import torch
from torch import Tensor

from milbench.errors import MilbenchError
from milbench.ops.arguments import check


def pool_2x2_naive(x: Tensor, grid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The definition, cell by cell. Shapes as in :func:`pool_2x2`."""
    halves = grid.div(2, rounding_mode="floor").tolist()
    cells = sorted({(row, column) for column, row in halves})
    number = {at: i for i, at in enumerate(cells)}
    cell = torch.tensor([number[row, column] for column, row in halves])
    pooled = torch.stack([x[cell == i].mean(dim=0) for i in range(len(cells))])
    return pooled, torch.tensor([[column, row] for row, column in cells]), cell


def pool_2x2(x: Tensor, grid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean over the patches present in each absolute 2x2 cell of the grid.

    Args:
        x: (n, d); half types are summed in float32.
        grid: (n, 2) integer (column, row).

    Returns:
        pooled (m, d), the cells' own (column, row) (m, 2) in row-major order, and the cell (n,) of each patch, so that
        `pooled[cell]` puts a cell's value back on its patches.

    Raises:
        MilbenchError: naming the argument whose shape, dtype or values are wrong.

    Source: LongMIL (NeurIPS 2024), section 3.3; absolute cells and the mean over present patches are our reading.

    >>> pooled, cells, cell = pool_2x2(torch.tensor([[1.0], [3.0], [8.0]]), torch.tensor([[0, 0], [1, 1], [2, 0]]))
    >>> pooled[:, 0].tolist(), cells.tolist(), cell.tolist()
    ([2.0, 8.0], [[0, 0], [1, 0]], [0, 0, 1])
    """
    dtype = check("x (n, d)", x)
    if grid.shape != (len(x), 2) or grid.dtype not in (torch.int32, torch.int64):
        raise MilbenchError(f"grid must be ({len(x)}, 2) integers like x, got {grid.dtype} of {tuple(grid.shape)}")
    half = grid.div(2, rounding_mode="floor").flip(1)  # (n, 2), (row, column), so that sorting is row-major
    rows, cell, count = torch.unique(half, dim=0, return_inverse=True, return_counts=True)
    pooled = x.new_zeros(len(rows), x.shape[1], dtype=dtype).index_add(0, cell, x.to(dtype)) / count[:, None]
    return pooled.to(x.dtype), rows.flip(1), cell
