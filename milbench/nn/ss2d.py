"""V-Mamba's mixer: one selective scan along each of four directions of the tissue, over the cells that hold tissue."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from milbench.errors import MilbenchError
from milbench.nn.mixers import step_bias
from milbench.ops.arguments import check
from milbench.ops.scan_orders import cross_scan
from milbench.ops.selective_scan import selective_scan


def neighbours(cells: Tensor) -> Tensor:
    """Which cell lies at each of the nine places of the 3x3 square around a cell.

    Args:
        cells: (m, 2) int64 (column, row), no two alike.

    Returns:
        (9, m) int64, the square row by row; m where there is no such cell.
    """
    m = len(cells)
    column, row = (cells - cells.amin(0)).T
    width = int(column.max()) + 3  # a free column on either side: no neighbour wraps into the next row
    key = row * width + column
    sorted_keys, order = key.sort()
    offset = torch.tensor([dy * width + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1)], device=cells.device)
    wanted = key + offset[:, None]  # (9, m)
    at = torch.searchsorted(sorted_keys, wanted).clamp(max=m - 1)
    return torch.where(sorted_keys[at] == wanted, order[at], m)


def tissue_conv_naive(x: Tensor, weight: Tensor, cells: Tensor) -> Tensor:
    """Depth-wise 3x3 convolution of a map that is zero off the tissue, as a dense map.

    Args:
        x: (m, c), one row per cell. weight: (c, 1, 3, 3). cells: (m, 2) int64 (column, row), no two alike.

    Returns:
        (m, c), the values at the cells.
    """
    column, row = (cells - cells.amin(0)).T
    dense = x.new_zeros(int(row.max()) + 1, int(column.max()) + 1, x.shape[1])
    dense = dense.index_put((row, column), x)
    return F.conv2d(dense.permute(2, 0, 1)[None], weight, padding=1, groups=len(weight))[0, :, row, column].T


class _TissueConv(torch.autograd.Function):
    """Nine gathers each way: being a neighbour is mutual, so place t of one cell is place 8 - t of the other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(x, taps, index)
        return _gather_taps(x, taps, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, taps, index = ctx.saved_tensors
        grad = grads[0]
        padded = F.pad(x, (0, 0, 0, 1))
        grad_taps = torch.stack([(padded[at] * grad).sum(0) for at in index])
        return _gather_taps(grad, taps, index.flip(0)), grad_taps, None


def _gather_taps(x: Tensor, taps: Tensor, index: Tensor) -> Tensor:
    padded, out = F.pad(x, (0, 0, 0, 1)), torch.zeros_like(x)  # the extra row answers for empty cells
    for at, tap in zip(index, taps, strict=True):
        out.addcmul_(padded[at], tap)
    return out


def tissue_conv(x: Tensor, weight: Tensor, cells: Tensor) -> Tensor:
    """The same as :func:`tissue_conv_naive`, at a cost that follows the number of cells; recomputes in the backward pass.

    Half types are computed in float32.

    Raises:
        MilbenchError: naming the argument, for shapes that do not agree, dtypes that are not floating point, or NaN.
    """
    if weight.shape[1:] != (1, 3, 3):
        raise MilbenchError(f"weight must be (c, 1, 3, 3), got {tuple(weight.shape)}")
    taps = weight.flatten(1).T  # (9, c)
    dtype = check("x (m, c), taps (9, c)", x, taps)
    if cells.shape != (len(x), 2) or cells.dtype != torch.int64:
        raise MilbenchError(f"cells must be ({len(x)}, 2) int64 like x, got {cells.dtype} of {tuple(cells.shape)}")
    return _TissueConv.apply(x.to(dtype), taps.to(dtype), neighbours(cells)).to(x.dtype)


class _Spread(torch.autograd.Function):
    """x (m, c) in each of the four orders: (4, m, c). The backward pass gathers by the inverse orders instead of scattering."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(order, inverse)
        return x[order]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        order, inverse = ctx.saved_tensors
        return _Merge.apply(grads[0], order, inverse), None, None


class _Merge(torch.autograd.Function):
    """Four sequences (4, m, c) back in the cells' order and summed: (m, c). Its backward pass is :class:`_Spread`."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(order, inverse)
        total = y[0][inverse[0]]
        for direction, at in zip(y[1:], inverse[1:], strict=True):
            total += direction[at]
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        order, inverse = ctx.saved_tensors
        return _Spread.apply(grads[0], order, inverse), None, None


RECOMPUTE_ABOVE = 8_192  # cells from which training computes the four directions one by one, and again in the backward pass


class SS2DMixer(nn.Module):
    """Selective scans along rows, columns and both reversed, summed; before them a depth-wise 3x3 convolution of the map.

    Tokens that share a cell are averaged for the map, and all get their cell's value back. By default the map holds only the
    cells that have tokens: the scans jump over the background and the convolution takes it as zero, so time and memory follow
    the tissue. With `dense` the map is the whole H x W box with zeros in the background, as officially; the scans then also run
    through (and the recurrence decays over) the background.

    Args:
        dim: width E of a token.
        states: states per channel.
        expand: inner width over E.
        dense: scan the bounding box instead of the tissue.

    Shapes: (n, dim), grid (n, 2) int64 (column, row) -> (n, dim). The tokens' order does not matter.

    Source: Liu et al. 2024, section 4; MzeroMiko/VMamba SS2D, forward type v05_noz (no gate, no convolution bias), whose state
    dict loads as it is.
    """

    def __init__(self, dim: int, *, states: int = 1, expand: int = 2, dense: bool = False) -> None:
        super().__init__()
        inner, rank = expand * dim, math.ceil(dim / 16)
        self.inner, self.dense = inner, dense
        self.widths = [rank, states, states]
        self.in_proj = nn.Linear(dim, inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 3, groups=inner, bias=False)
        self.x_proj = nn.Linear(inner, 4 * sum(self.widths), bias=False)  # the four directions one after another
        self.dt_projs = nn.Linear(rank, 4 * inner, bias=False)
        self.dt_projs_bias = nn.Parameter(step_bias(4 * inner).unflatten(0, (4, inner)))
        self.A_logs = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(4 * inner, 1))
        self.Ds = nn.Parameter(torch.ones(4 * inner))
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor, grid: Tensor | None) -> Tensor:
        """Mix the tokens of a map."""
        if grid is None:
            raise ValueError("the cross scan needs the grid")
        cells, cell_of = self.cells(grid)  # (m, 2), (n,)
        count = torch.bincount(cell_of, minlength=len(cells)).clamp(min=1)[:, None]
        y = self.scan(x.new_zeros(len(cells), x.shape[1]).index_add(0, cell_of, x) / count, cells)
        return y[cell_of]

    def cells(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        """The map's cells (m, 2), row by row, and the cell of each token (n,)."""
        column, row = (grid - grid.amin(0)).T
        width, height = int(column.max()) + 1, int(row.max()) + 1
        key, cell_of = row * width + column, None
        if self.dense:
            cell_of, key = key, torch.arange(width * height, device=grid.device)
        else:
            key, cell_of = key.unique(return_inverse=True)
        return torch.stack([key % width, key // width], dim=1), cell_of

    def scan(self, x: Tensor, cells: Tensor) -> Tensor:
        """One value per cell in, one out. (m, dim), (m, 2) -> (m, dim)."""
        order = cross_scan(cells)  # (4, m)
        inverse = order.argsort(dim=1)
        u = F.silu(tissue_conv(self.in_proj(x), self.conv2d.weight, cells))  # (m, inner)
        maps = self.x_proj(u).unflatten(1, (4, -1)).transpose(0, 1)  # (4, m, rank + 2 states)
        if torch.is_grad_enabled() and len(x) > RECOMPUTE_ABOVE:
            parts = [checkpoint(self._direction, u, maps[i], order[i], inverse[i], i, use_reentrant=False) for i in range(4)]
            return self.out_proj(self.out_norm(sum(parts[1:], parts[0])))
        step, B, C = maps.gather(1, order[..., None].expand(-1, -1, maps.shape[2])).split(self.widths, dim=2)
        delta = torch.baddbmm(self.dt_projs_bias[:, None], step, self.dt_projs.weight.unflatten(0, (4, -1)).mT)
        A, D = -self.A_logs.exp().unflatten(0, (4, -1)), self.Ds.unflatten(0, (4, -1))  # (4, inner, states), (4, inner)
        y = selective_scan(_Spread.apply(u, order, inverse), F.softplus(delta), A, B, C, D)  # (4, m, inner)
        return self.out_proj(self.out_norm(_Merge.apply(y, order, inverse)))

    def _direction(self, u: Tensor, maps: Tensor, order: Tensor, inverse: Tensor, i: int) -> Tensor:
        """The scan of one direction alone, so that the backward pass needs the arrays of one direction at a time."""
        step, B, C = maps[order].split(self.widths, dim=1)
        channels = slice(i * self.inner, (i + 1) * self.inner)
        delta = F.softplus(torch.addmm(self.dt_projs_bias[i], step, self.dt_projs.weight[channels].T))  # (m, inner)
        A, D = -self.A_logs[channels].exp(), self.Ds[channels]
        y = selective_scan(u[order][None], delta[None], A[None], B[None], C[None], D[None])[0]
        return y[inverse]  # (m, inner)
