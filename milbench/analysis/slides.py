"""What slides are like before any model sees them: how many patches, and where they lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from milbench.datasets import Dataset
from milbench.errors import MilbenchError
from milbench.plots.figure import COLUMN, PAGE, Figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

BINS = 30
CARD = 24  # GiB of a common GPU, for scale
SIDE = 64  # blocks of cells along each axis of the map of positions, at most


def attention_bytes(n: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bytes of plain self-attention over n patches, per layer and head: scores and probabilities, 2 n^2 floats of 4 bytes."""
    return 2 * n**2 * 4


def sizes(dataset: Dataset) -> Figure:
    """How many patches slides have, and what plain self-attention over as many would take (Figure 1)."""
    counted = dict(dataset.sizes()) if dataset.sizes else {s.id: len(dataset.read(s.id)) for s in dataset.samples}
    n = np.array([counted[s.id] for s in dataset.samples], dtype=np.float64)
    edges = np.linspace(0, n.max(), BINS + 1)
    counts = np.histogram(n, edges)[0]
    gib = attention_bytes(edges) / 2**30
    rows = [
        {"from": float(a), "to": float(b), f"{dataset.unit}s": int(count), "gib_at_to": float(size)}
        for a, b, count, size in zip(edges[:-1], edges[1:], counts, gib[1:], strict=True)
    ]
    fits = float(np.sqrt(CARD * 2**30 / 8))
    caption = (
        f"Bars: instances of the {len(n)} {dataset.unit}s of {_described(dataset)}; median {np.median(n):,.0f}, mean "
        f"{n.mean():,.0f}, largest {n.max():,.0f}. Line: memory of plain self-attention in one layer and head, 2 n² floats of 4 "
        f"bytes (scores and probabilities). {CARD} GiB hold one head of {fits:,.0f} instances: {(n > fits).mean():.1%} of "
        f"the {dataset.unit}s are larger. Attention that never stores its scores needs O(n) instead."
    )

    def draw() -> Drawing:
        from matplotlib import pyplot as plt

        drawing, ax = plt.subplots(figsize=(COLUMN, 2.2))
        ax.stairs(counts, edges, fill=True, color="#56B4E9")
        ax.set(xlabel="instances", ylabel=f"{dataset.unit}s", xlim=(0, edges[-1]))
        ax.xaxis.set_major_formatter("{x:,.0f}")
        ax.locator_params(axis="x", nbins=5)
        right = ax.twinx()
        right.spines["right"].set_visible(True)
        right.plot(edges, gib, color="#D55E00")
        right.set_ylim(0)
        right.set_ylabel("GiB per layer and head", color="#D55E00")
        return drawing

    return Figure(f"sizes-{_name(dataset)}", f"Size of the bags: {_described(dataset)}", caption, rows, draw)


def positions(dataset: Dataset, split: str, fold: int = 0) -> Figure:
    """Which places of the grid the slides of the training part cover, and which those of the test part (Figure 4, upper).

    Args:
        dataset: one with coordinates.
        split, fold: who trains and who is tested.

    Raises:
        MilbenchError: no coordinates, or no such split or fold.
    """
    if not dataset.has_coords:
        raise MilbenchError(f"dataset {dataset.name} has no coordinates, so it covers no positions")
    folds = dataset.folds(split)
    if not 0 <= fold < len(folds):
        raise MilbenchError(f"split {split} has folds 0 to {len(folds) - 1}, not {fold}")
    cover = _Cover.of(dataset, {"train": folds[fold].train, "test": folds[fold].test})
    block = cover.block
    rows = [
        {"part": part, "column": int(x) * block, "row": int(y) * block, "cells_along": block, "slides": int(count)}
        for part, grid in cover.slides.items()
        for (x, y), count in np.ndenumerate(grid)
        if count
    ]
    in_blocks = f"in blocks of {block} x {block} cells" if block > 1 else "by cell"
    few = max(1, round(0.05 * len(folds[fold].train)))
    caption = (
        f"How many slides have tissue at each place of the grid (patches from the slide's upper left corner), {in_blocks}: "
        f"{cover.count['train']} slides to train on, {cover.count['test']} to test, {_described(dataset)}, split {split}, fold "
        f"{fold}. Of the cells that test slides cover, {(cover.trained == 0).mean():.1%} are covered by no training slide, "
        f"{(cover.trained < few).mean():.1%} by fewer than {few}: absolute positions are not learnt there."
    )
    title = f"Positions in train and test: {_described(dataset)}"
    return Figure(f"positions-{_name(dataset)}-{split}-{fold}", title, caption, rows, cover.draw)


@dataclass(frozen=True)
class _Cover:
    """Which places of the grid the slides of each part cover.

    Args:
        block: cells along the side of a block.
        slides: part -> (columns, rows) in blocks: how many slides have a cell in each block.
        count: part -> number of slides.
        trained: for each cell of each test slide, how many training slides cover it.
    """

    block: int
    slides: dict[str, NDArray[np.float64]]
    count: dict[str, int]
    trained: NDArray[np.float64]

    @classmethod
    def of(cls, dataset: Dataset, parts: Mapping[str, Sequence[str]]) -> _Cover:
        """Read the positions of all slides of the parts "train" and "test"."""
        cells = {part: list(_cells(dataset, ids)) for part, ids in parts.items()}
        corner = np.max([slide.max(0) for some in cells.values() for slide in some], axis=0) + 1  # (2,)
        block = int(-(-corner.max() // SIDE))
        slides = {part: np.zeros(tuple(-(-corner // block))) for part in parts}
        for part, some in cells.items():
            for slide in some:
                slides[part][*np.unique(slide // block, axis=0).T] += 1
        deep = np.zeros(tuple(corner))
        for slide in cells["train"]:
            deep[*slide.T] += 1
        tested = np.concatenate(cells["test"])
        return cls(block, slides, {part: len(some) for part, some in cells.items()}, deep[*tested.T])

    def draw(self) -> Drawing:
        """A map for each part, in common colours."""
        from matplotlib import pyplot as plt
        from matplotlib.colors import LogNorm

        drawing, axes = plt.subplots(1, 2, figsize=(PAGE * 0.8, 2.8), sharex=True, sharey=True)
        norm = LogNorm(1, max(2, max(grid.max() for grid in self.slides.values())))
        for ax, (part, grid) in zip(axes, self.slides.items(), strict=True):
            shown = np.ma.masked_equal(grid.T, 0)  # rows of the picture are rows of the slide
            columns, rows = grid.shape
            extent = (0, columns * self.block, rows * self.block, 0)
            image = ax.imshow(shown, extent=extent, norm=norm, cmap="viridis", interpolation="none")
            ax.set(title=f"{part} ({self.count[part]} slides)", xlabel="column of the grid")
        axes[0].set_ylabel("row of the grid")
        drawing.colorbar(image, ax=axes, label="slides", shrink=0.8)
        return drawing


def _cells(dataset: Dataset, ids: Sequence[str]) -> Iterator[NDArray[np.int64]]:
    """The grid cells (n, 2) of every slide; those of a case one by one, each from its own corner."""
    for id in ids:
        bag = dataset.read(id)
        grid = bag.grid().numpy()
        slide = np.zeros(len(grid), dtype=np.int64) if bag.slide_index is None else bag.slide_index.numpy()
        for number in np.unique(slide):
            cells = np.unique(grid[slide == number], axis=0)
            yield cells - cells.min(0)


def _name(dataset: Dataset) -> str:
    parts = (dataset.name, dataset.encoder, dataset.magnification and f"{dataset.magnification}x", dataset.patch_size)
    return "-".join(str(part) for part in parts if part)


def _described(dataset: Dataset) -> str:
    scale = [f"{dataset.magnification}x"] if dataset.magnification else []
    return ", ".join([dataset.label, *scale, *([f"patches of {dataset.patch_size} pixels"] if dataset.patch_size else [])])
