"""Figures of `milbench analyze rank`: matrices, spectra, rank and sparsity per layer, and 1-D bands (LongMIL, Fig. 2)."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from milbench import plugins
from milbench.aggregator import Aggregator
from milbench.analysis import mixing, rank
from milbench.analysis.mixing import Head, Mixing, Window
from milbench.bags import Bag
from milbench.plots.figure import COLUMN, OTHERS, PAGE, Figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

PIXELS = 96  # of a matrix image, along a side
POINTS = 150  # of a spectrum
LAYERS = 3  # that images show of a deep model
RADII = (0, 1, 4, 16, 64)  # of the 1-D bands


@dataclass(frozen=True)
class Subject:
    """A method and its models to compare.

    Args:
        aggregator, label: its name in commands and in figures.
        trial: the stored trial, or "".
        models: "fresh" and perhaps "trained" -> the model.
    """

    aggregator: str
    label: str
    trial: str
    models: dict[str, Aggregator]

    @property
    def style(self) -> dict[str, Any]:
        """Its colour, marker and line."""
        return style(self.aggregator, *plugins.family_of(self.aggregator))


@dataclass(frozen=True)
class Measured:
    """One matrix and what was found.

    Args:
        subject, slide, when, head: whose.
        numbers: about the matrix.
        image: (PIXELS, PIXELS) means of n times the share, of the first head of a layer on the first slide; None of others.
        mask: the same of a window's mask.
        bands: see :func:`milbench.analysis.rank.bands`.
    """

    subject: Subject
    slide: str
    when: str
    head: Head
    numbers: rank.Numbers
    image: NDArray[np.float64] | None = None
    mask: NDArray[np.float64] | None = None
    bands: tuple[dict[str, int], ...] = ()

    @property
    def names(self) -> dict[str, Any]:
        """What every row of a table begins with."""
        return {
            "aggregator": self.subject.aggregator, "trial": self.subject.trial, "slide": self.slide, "layer": self.head.layer,
            "head": self.head.head, "when": self.when,
        }  # fmt: skip

    @property
    def row(self) -> dict[str, Any]:
        """A row of the table, as README of results/ describes it."""
        numbers = self.numbers
        row = {
            **self.names, "kind": self.head.mixing.kind, "n": numbers.n, "d": numbers.width, "exact": numbers.exact,
            "rank": numbers.rank.low, "rank_low": numbers.rank.low, "rank_high": numbers.rank.high,
            "tolerance": numbers.tolerance,
            "rank_float64": numbers.rank_float64,
        }  # fmt: skip
        for name in ("rank_1e_4", "effective_rank", "stable_rank"):
            value = getattr(numbers, name)
            row |= {name: value.low, f"{name}_low": value.low, f"{name}_high": value.high}
        return row | {"sparsity": numbers.sparsity, "sigma_1": float(numbers.sigma[0]), "residual": numbers.residual}


def measure(subject: Subject, bag: Bag, *, exact_to: int, directions: int, pictures: bool) -> Iterator[Measured]:
    """Every matrix of a method on one bag, fresh weights first.

    Args:
        subject: the method.
        bag: the slide.
        exact_to, directions: see :func:`milbench.analysis.rank.numbers`.
        pictures: also make images and bands.
    """
    for when, model in subject.models.items():
        drawn: set[str] = set()
        banded: tuple[dict[str, int], ...] = ()
        for head in mixing.observe(model, bag):
            measured = rank.numbers(head.mixing, exact_to=exact_to, directions=directions)
            more: dict[str, Any] = {}
            if pictures and head.layer not in drawn:
                drawn.add(head.layer)
                more = {"image": image(head.mixing.shares())}
                if not banded:
                    more["bands"] = banded = tuple(rank.bands(head.mixing, RADII))
                if isinstance(head.mixing, Window):
                    more["mask"] = image(head.mixing.mask())
            yield Measured(subject, bag.slide_id, when, head, measured, **more)


def image(matrix: Mixing, pixels: int = PIXELS) -> NDArray[np.float64]:
    """n |A_ij| averaged over the entries of each of pixels x pixels squares (of fewer where n is less); 1 is an even share."""
    pixels = min(pixels, matrix.n)
    at = torch.arange(matrix.n) * pixels // matrix.n  # (n,), the pixel of each token
    total = torch.zeros(pixels, pixels, dtype=torch.float64)
    for part, rows in matrix.blocks():
        columns = torch.zeros(len(rows), pixels, dtype=torch.float64).index_add_(1, at, rows.abs().double())
        total.index_add_(0, at[part], columns)
    count = torch.bincount(at).double()
    return (total * matrix.n / (count[:, None] * count)).numpy()


def figures(measured: list[Measured], name: str) -> list[Figure]:
    """The four figures, named after their kind and `name`."""
    return [
        figure
        for figure in (_per_layer(measured, name), _images(measured, name), _spectra(measured, name), _bands(measured, name))
        if figure.rows
    ]


def _about(measured: list[Measured]) -> str:
    tokens: dict[str, int] = {}
    for m in measured:
        tokens[m.slide] = max(m.numbers.n, tokens.get(m.slide, 0))
    slides = [f"{slide} (up to {n:,} tokens in a layer)" for slide, n in tokens.items()]
    return f"Slide{'s' * (len(slides) > 1)} {', '.join(slides)}."


def _per_layer(measured: list[Measured], name: str) -> Figure:
    bounded = sum(not m.numbers.exact for m in measured)
    error = (
        f" Lines: what the estimate leaves possible for {bounded} matrices too large to decompose; the point is the lower bound."
        if bounded
        else ""
    )
    return Figure(
        f"rank-{name}",
        "Rank and sparsity of token-mixing matrices, layer by layer",
        f"{_about(measured)} One point per head and slide: numerical rank (singular values above n x 1.2e-7 of the largest) and "
        "effective rank (exponential of the entropy of the singular values), both over n, and the share of entries of at most "
        f"1e-4 / n. Rows are divided by the sum of their absolute values. Hollow: fresh weights; filled: trained.{error}",
        [m.row for m in measured],
        lambda: _draw_per_layer(measured),
    )


def _draw_per_layer(measured: list[Measured]) -> Drawing:
    from matplotlib import pyplot as plt

    places = list(dict.fromkeys((m.subject.label, m.head.layer) for m in measured))
    shown: tuple[tuple[str, Callable[[rank.Numbers], tuple[float, float]]], ...] = (
        ("rank / n", lambda x: (x.rank.low / x.n, x.rank.high / x.n)),
        ("effective rank / n", lambda x: (x.effective_rank.low / x.n, x.effective_rank.high / x.n)),
        ("sparsity", lambda x: (x.sparsity, x.sparsity)),
    )
    drawing, axes = plt.subplots(1, 3, figsize=(PAGE, 0.7 + 0.24 * len(places)), sharey=True)
    for ax, (title, value) in zip(axes, shown, strict=True):
        for m in measured:
            look = m.subject.style
            y = places.index((m.subject.label, m.head.layer)) + (0.16 if m.when == "trained" else -0.16) * (
                "trained" in m.subject.models
            )
            low, high = value(m.numbers)
            if low < high:
                ax.plot([low, high], [y, y], color=look["color"], linewidth=0.8, alpha=0.6)
            face = look["color"] if m.when == "trained" else "white"
            ax.plot(low, y, look["marker"], color=look["color"], markerfacecolor=face, markersize=4, clip_on=False, zorder=3)
        ax.set_xlim(-0.02, 1.02)
        ax.set_xlabel(title)
        if title.startswith("effective"):
            ax.set_xscale("log")
            ax.set_xlim(1 / max(m.numbers.n for m in measured), 1.2)
        ax.grid(True, axis="x", linewidth=0.3)
    axes[0].set_yticks(range(len(places)), [f"{label} · {_short(layer)}" for label, layer in places])
    axes[0].set_ylim(len(places) - 0.5, -0.5)
    return drawing


def _short(layer: str) -> str:
    """`blocks.0.mixer` -> `blocks.0`."""
    return layer.removesuffix(".mixer").removesuffix(".attn")


def _images(measured: list[Measured], name: str) -> Figure:
    panels = _panels([m for m in measured if m.image is not None])
    rows = [
        {**m.names, "what": what, "row": r, **{f"column_{c}": float(f"{value:.5g}") for c, value in enumerate(line)}}
        for row in panels
        for m, what, picture in row
        for r, line in enumerate(picture.tolist())
    ]
    return Figure(
        f"matrices-{name}",
        "Token-mixing matrices",
        f"{_about(measured)} First head of each layer, of at most {LAYERS} layers of a method (first, middle, last). Row: the "
        "token that is written; column: the token that is read, in the layer's own order. Colour: n times the share, "
        f"averaged in each of {PIXELS} x {PIXELS} squares; 1 is an even share, white is zero.",
        rows,
        lambda: _draw_images(panels),
    )


def _layers(pictured: list[Measured], subject: Subject) -> list[str]:
    """The layers of a method to show."""
    layers = list(dict.fromkeys(m.head.layer for m in pictured if m.subject is subject))
    return layers if len(layers) <= LAYERS else [layers[0], layers[len(layers) // 2], layers[-1]]


def _subjects(measured: list[Measured]) -> list[Subject]:
    subjects: list[Subject] = []
    for m in measured:
        if not any(m.subject is s for s in subjects):
            subjects.append(m.subject)
    return subjects


def _panels(pictured: list[Measured]) -> list[list[tuple[Measured, str, NDArray[np.float64]]]]:
    """One row of panels per method: its layers, fresh beside trained, and the mask of its first window."""
    panels = []
    for subject in _subjects(pictured):
        shown = [m for m in pictured if m.subject is subject]
        row = []
        for layer in _layers(pictured, subject):
            row += [(m, m.when, m.image) for m in shown if m.head.layer == layer and m.image is not None]
        row += [(m, "mask", m.mask) for m in shown if m.mask is not None][:1]
        panels.append(row)
    return panels


def _draw_images(panels: list[list[tuple[Measured, str, NDArray[np.float64]]]]) -> Drawing:
    from matplotlib import pyplot as plt
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    columns = max(map(len, panels))
    side = min(1.4, (PAGE - 1) / columns)
    drawing, axes = plt.subplots(
        len(panels), columns, figsize=(max(COLUMN, 1 + side * columns), len(panels) * (side + 0.4)), squeeze=False
    )
    colours = ScalarMappable(LogNorm(1e-2, 1e2), "viridis")
    for row, places in zip(panels, axes, strict=True):
        for ax in places[len(row) :]:
            ax.set_axis_off()
        for (m, what, picture), ax in zip(row, places, strict=False):
            seen = np.ma.masked_less_equal(picture, 0)
            ax.imshow(seen, norm=colours.norm, cmap=colours.cmap, interpolation="nearest")
            ax.set_title(f"{_short(m.head.layer)}\n{what}", fontsize=6.5)
            ax.set_xticks([])
            ax.set_yticks([])
            ax.set_xlabel(f"{m.numbers.n:,} tokens", fontsize=6, labelpad=2)
            ax.spines[["top", "right"]].set_visible(True)
        places[0].set_ylabel(textwrap.fill(row[0][0].subject.label, 16), fontsize=7)
    drawing.colorbar(colours, ax=axes, extend="both", shrink=min(1.0, 2 / len(panels)), aspect=16, label="n times the share")
    return drawing


def _spectra(measured: list[Measured], name: str) -> Figure:
    first = [m for m in measured if m.slide == measured[0].slide]
    rows = []
    for m in first:
        sigma = m.numbers.sigma / m.numbers.sigma[0]
        for i in _positions(len(sigma)):
            rows.append({**m.names, "index": i + 1, "share_of_n": (i + 1) / m.numbers.n, "sigma_over_sigma_1": float(sigma[i])})
    return Figure(
        f"spectra-{name}",
        "Singular values of token-mixing matrices",
        f"{_about(first)} Singular values over the largest, every head, against their number over n; darker: later layers. "
        "Dotted: fresh weights; solid: trained (or fresh, where nothing was trained). Grey: 1e-4. Lines that "
        "end early: only the leading ones are known.",
        rows,
        lambda: _draw_spectra(first),
    )


def _positions(count: int) -> list[int]:
    """Indices of a spectrum that a line needs: dense at the start, even over the rest."""
    return sorted(
        {*np.unique(np.geomspace(1, count, POINTS // 2).astype(int) - 1), *np.linspace(0, count - 1, POINTS // 2).astype(int)}
    )


def _draw_spectra(measured: list[Measured]) -> Drawing:
    from matplotlib import pyplot as plt
    from matplotlib.colors import to_rgb

    subjects = _subjects(measured)
    columns = min(3, len(subjects))
    lines = -(-len(subjects) // columns)
    width = COLUMN if columns == 1 else PAGE
    drawing, axes = plt.subplots(lines, columns, figsize=(width, 0.3 + 1.9 * lines), sharex=True, sharey=True, squeeze=False)
    for ax in axes.flat[len(subjects) :]:
        ax.set_axis_off()
    for subject, ax in zip(subjects, axes.flat, strict=False):
        shown = [m for m in measured if m.subject is subject]
        layers = list(dict.fromkeys(m.head.layer for m in shown))
        colour = np.array(to_rgb(subject.style["color"]))
        ax.axhline(1e-4, color=OTHERS, linewidth=0.6)
        for m in shown:
            at = np.array(_positions(len(m.numbers.sigma)))
            sigma = (m.numbers.sigma / m.numbers.sigma[0]).numpy()[at]
            light = 0.75 * (1 - layers.index(m.head.layer) / max(1, len(layers) - 1)) if len(layers) > 1 else 0
            line = ":" if m.when == "fresh" and "trained" in subject.models else "-"
            ax.plot((at + 1) / m.numbers.n, sigma, line, color=colour + (1 - colour) * light, linewidth=1)
        ax.set_title(subject.label)
        ax.set_yscale("log")
        ax.set_ylim(1e-8, 2)
        ax.set_xlim(0, 1)
    for ax in axes[:, 0]:
        ax.set_ylabel("σ / σ₁")
    for ax in axes.flat[max(0, len(subjects) - columns) : len(subjects)]:  # the lowest panel of each column
        ax.tick_params(labelbottom=True)
        ax.set_xlabel("index / n")
    return drawing


def _bands(measured: list[Measured], name: str) -> Figure:
    rows = [{**m.names, **band} for m in measured for band in m.bands]
    failing = sum(not row["holds"] for row in rows)
    return Figure(
        f"bands-{name}",
        "Rank of 1-D bands and its lower bound n - b",
        "Softmax attention within |i - j| <= b of the first tokens in file order, with the layer's own queries and keys: rank in "
        "float64 of the first head of each method's first attention layer (points) and n - b of LongMIL, eq. 14 (line). "
        + (f"{failing} of {len(rows)} lie below it." if failing else f"All {len(rows)} lie on or above it."),
        rows,
        lambda: _draw_bands(measured),
    )


def _draw_bands(measured: list[Measured]) -> Drawing:
    from matplotlib import pyplot as plt

    drawing, ax = plt.subplots(figsize=(COLUMN, 2.2))
    told: set[str] = set()
    for m in measured:
        if m.bands:
            x = np.array([band["b"] for band in m.bands])
            look = m.subject.style
            ax.plot(
                x,
                [band["bound"] / band["n"] for band in m.bands],
                color="black",
                linewidth=0.8,
                label=None if told else "(n - b) / n",
            )
            label = None if m.subject.label in told else m.subject.label
            told |= {m.subject.label, ""}
            face = look["color"] if m.when == "trained" else "white"
            ax.plot(
                x, [band["rank"] / band["n"] for band in m.bands], linestyle="none", marker=look["marker"], color=look["color"],
                markerfacecolor=face, label=label, alpha=0.8,
            )  # fmt: skip
    ax.set_xscale("symlog", linthresh=1)
    ax.set_xticks(RADII, [str(b) for b in RADII])
    ax.set_xlabel("half-width b of the band")
    ax.set_ylabel("rank / n")
    ax.legend()
    return drawing
