"""What a patch may attend to under each kind of attention, on a small full grid (Figure 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from milbench import ops
from milbench.plots.figure import PAGE, Figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


def matrices(side: int, radius: float, region: int) -> dict[str, Tensor]:
    """Name -> (n, n) attention matrix over side x side patches, row by row, where all scores are equal.

    They are what the operations compute: with values that are the identity, the output is the attention matrix.
    """
    grid = torch.cartesian_prod(torch.arange(side), torch.arange(side)).flip(1)  # (n, 2) column, row
    n = len(grid)
    nothing, identity = torch.zeros(1, n, 4), torch.eye(n)[None]

    def local(window: ops.Window) -> Tensor:
        return ops.local_attention_2d(nothing, nothing, identity, window)[0]

    window = local(ops.Window(grid, radius))
    width = round(float((window > 0).sum(1).float().mean()))  # of the band that sees as many patches, on average
    along = torch.stack([torch.arange(n), torch.zeros(n, dtype=torch.int64)], dim=1)
    squares = grid[:, 1] // region * side + grid[:, 0] // region
    slopes = torch.tensor([1.0])
    everywhere = 2.0 * side
    return {
        "full": ops.full_attention(nothing, nothing, identity)[0],
        f"squares of {region} x {region}\n(HIPT)": local(ops.Window(grid, everywhere, regions=squares)),
        f"band of {2 * (width // 2) + 1} along the sequence\n(1-D window)": local(ops.Window(along, width // 2)),
        f"window of radius {radius:g}\n(LongMIL)": window,
        "decay with distance\n(2-D ALiBi)": local(ops.Window(grid, everywhere, alibi=slopes)),
    }


def figure(side: int = 8, radius: float = 2.0, region: int = 4) -> Figure:
    """Attention matrices, and above each what one patch in the middle sees on the slide; at last the distances themselves.

    Args:
        side: patches along the grid.
        radius: of the window, in grid steps.
        region: patches along a square of HIPT's slicing.
    """
    grid = torch.cartesian_prod(torch.arange(side), torch.arange(side)).flip(1).float()
    distance = torch.cdist(grid, grid)
    shown = {**{name: m.numpy() for name, m in matrices(side, radius, region).items()}, "Euclidean distance": distance.numpy()}
    middle = side // 2 * side + side // 2
    plain = {name: name.replace("\n", " ") for name in shown}
    rows: list[dict[str, Any]] = [
        {"matrix": plain[name], "query": i, "key": j, "value": float(f"{value:.6g}")}
        for name, matrix in shown.items()
        for (i, j), value in np.ndenumerate(matrix)
    ]
    attended = {name: (shown[name] > 0).sum(1).mean() for name in list(shown)[2:4]}
    (band, seen_in_band), (window, seen_in_window) = attended.items()
    near = (distance.numpy() <= radius).sum()
    missed = ((distance.numpy() <= radius) & (shown[band] == 0)).sum() / near
    caption = (
        f"A full grid of {side} x {side} patches in raster order, all scores equal. Above: what the patch with the cross attends "
        f"to; below: the whole matrix, queries by keys (the darker, the more; white is nothing). The {plain[band]} sees "
        f"{seen_in_band:.1f} patches on average, the {plain[window]} {seen_in_window:.1f}; of the pairs no farther than "
        f"{radius:g} steps apart the band misses {missed:.0%}, those above and below each other."
    )

    def draw() -> Drawing:
        from matplotlib import pyplot as plt

        drawing, axes = plt.subplots(2, len(shown), figsize=(PAGE, 2.9))
        for (above, below), (name, matrix) in zip(axes.T, shown.items(), strict=True):
            colours = "Blues" if name != "Euclidean distance" else "viridis"
            above.imshow(matrix[middle].reshape(side, side), cmap=colours, vmin=0, interpolation="none")
            above.plot(middle % side, middle // side, "x", color="#D55E00", markersize=5)
            below.imshow(matrix, cmap=colours, vmin=0, interpolation="none")
            above.set_title(name.replace(" along the sequence", ""), fontsize=6.5)
            for ax in (above, below):
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set_visible(True)
                ax.spines[:].set_linewidth(0.5)
        axes[0, 0].set_ylabel("on the slide")
        axes[1, 0].set_ylabel("matrix")
        return drawing

    return Figure("masks", "What attention may see", caption, rows, draw)
