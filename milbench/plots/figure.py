"""A figure and its numbers, saved together, and one look for all of them: the same method has the same colour everywhere."""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, get_args

from milbench.errors import MilbenchError
from milbench.files import own_file, parse_json, read_bytes, replacing, write_atomically
from milbench.names import Family, checked
from milbench.numbers import cells, written

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing
    from matplotlib.lines import Line2D

UNSEEN = 4  # of 255: a difference between two colours that nobody sees
COLUMN, PAGE = 3.4, 7.0  # widths in inches of a column and of a page of text

# A family has a colour of Okabe and Ito's, told apart by colour-blind readers, and a line, told apart without colour; its members
# have a marker each.
_FAMILIES: dict[str, tuple[str, Any]] = dict(
    zip(
        get_args(Family),
        (
            ("#000000", "-"), ("#E69F00", "--"), ("#CC79A7", "-."), ("#009E73", ":"), ("#56B4E9", (0, (6, 1))),
            ("#0072B2", (0, (3, 1, 1, 1, 1, 1))), ("#D55E00", (0, (1, 0.7))),
        ),
        strict=True,
    )
)  # fmt: skip
_MARKERS = "osD^vPX<>*"
OTHERS = "#7F7F7F"  # methods of the reader's own


class HasFamily(Protocol):
    """A cell of a plan, as far as its look goes."""

    @property
    def aggregator(self) -> str:
        """Name of the method."""

    @property
    def family(self) -> str:
        """Its family, or nothing."""

    @property
    def member(self) -> int | None:
        """Its place in the family."""


def style(aggregator: str, family: str = "", member: int | None = None) -> dict[str, Any]:
    """Colour, marker and line of a method, as matplotlib's keywords; a variant `name[...]` looks like its method.

    Args:
        aggregator: the name.
        family: decides colour and line; methods without a family that is known share a grey.
        member: decides the marker; a hash of the name does where it is None.
    """
    name = aggregator.split("[")[0]
    at = hashlib.sha256(name.encode()).digest()[0] if member is None else member
    colour, line = _FAMILIES.get(family, (OTHERS, (0, (8, 3))))
    return {"color": colour, "marker": _MARKERS[at % len(_MARKERS)], "linestyle": line}


def styles(cells: Iterable[HasFamily]) -> dict[str, dict[str, Any]]:
    """The style of every method in a plan; cells of an earlier version have no family, which others of the method may have."""
    known = {cell.aggregator: cell for cell in sorted(cells, key=lambda cell: bool(cell.family))}
    return {name: style(name, cell.family, cell.member) for name, cell in known.items()}


def label_ends(ax: "Axes", lines: Sequence["Line2D"], labels: Sequence[str], size: float = 5.5) -> None:
    """Write a label right of the axes for each line, at the height of its end or as near as others let it, with a thread there.

    Args:
        ax: with its limits, which must not change any more.
        lines: each with one point at least.
        labels: one of each, a word or a number.
        size: of the text in points.
    """
    import numpy as np

    points = ax.transData.transform(np.array([np.asarray(line.get_xydata())[-1] for line in lines]))
    ends = ax.transAxes.inverted().transform(points)  # (lines, 2), from 0 to 1 inside the axes
    gap = 1.1 * size / (ax.bbox.height / ax.figure.dpi * 72)
    order = sorted(range(len(lines)), key=lambda at: ends[at][1])
    heights: list[float] = []
    for at in order:
        heights.append(max(float(ends[at][1]), heights[-1] + gap if heights else 0.0))
    for at in reversed(range(len(order))):  # what was pushed over the top comes down, with all below it that are in the way
        heights[at] = min(heights[at], heights[at + 1] - gap if at + 1 < len(order) else 1.0)
    for at, height in zip(order, heights, strict=True):
        ax.annotate(
            labels[at], ends[at], (1.02, height), "axes fraction", "axes fraction", fontsize=size, va="center",
            color=lines[at].get_color(), arrowprops={"arrowstyle": "-", "linewidth": 0.3, "color": lines[at].get_color()},
        )  # fmt: skip


@contextmanager
def look() -> Iterator[None]:
    """The look of every figure while it is drawn: readable at the width of a column, text that stays text in a PDF."""
    import matplotlib

    matplotlib.use("Agg")
    with matplotlib.rc_context({
        "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "legend.fontsize": 7, "xtick.labelsize": 7,
        "ytick.labelsize": 7, "lines.linewidth": 1.2, "lines.markersize": 4, "axes.spines.top": False,
        "axes.spines.right": False, "legend.frameon": False, "figure.constrained_layout.use": True, "pdf.fonttype": 42,
        "savefig.dpi": 200, "svg.hashsalt": "milbench",
    }):  # fmt: skip
        yield


def _shrink(path: Path) -> None:
    """A palette of 256 colours where nobody can see the difference: it takes little more than a third of the space."""
    import numpy as np
    from PIL import Image, ImageChops

    with Image.open(path) as picture:
        whole, dpi = picture.convert("RGB"), picture.info["dpi"]
    few = whole.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    if np.asarray(ImageChops.difference(whole, few.convert("RGB"))).max() <= UNSEEN:
        few.save(path, optimize=True, dpi=dpi)


@dataclass
class Figure:
    """A picture that the report shows.

    Args:
        name: file name.
        title: one line.
        caption: what is plotted, over what, and what to see.
        rows: every plotted number; the file holds them to 6 significant digits.
        draw: makes the picture, under :func:`look`, of the numbers that the file holds (:func:`milbench.numbers.written`).
    """

    name: str
    title: str
    caption: str
    rows: list[dict[str, Any]] = field(repr=False)
    draw: "Callable[[], Drawing]" = field(repr=False)

    def numbers(self) -> str:
        """The rows as CSV; an undefined number is an empty field."""
        out = io.StringIO()
        writer = csv.DictWriter(out, list(dict.fromkeys(key for row in self.rows for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(cells, written(self.rows)))
        return out.getvalue()

    def save(self, folder: Path) -> "Saved":
        """Write NAME.pdf, .png, .csv and .json (name, title, caption) to `folder`; the same numbers give the same bytes."""
        from matplotlib import pyplot as plt

        saved = Saved(checked(self.name, "figure"), self.title, self.caption, folder)
        with look():
            drawing = self.draw()
            with replacing(saved.pdf) as path:
                drawing.savefig(path, metadata={"CreationDate": None, "Producer": None, "Creator": "milbench"})
            with replacing(saved.png) as path:
                drawing.savefig(path, metadata={"Software": "milbench"})
                _shrink(path)
            plt.close(drawing)
        write_atomically(saved.csv, self.numbers())
        text = {"name": self.name, "title": self.title, "caption": self.caption}
        write_atomically(folder / f"{self.name}.json", json.dumps(text, indent=1, ensure_ascii=False) + "\n")
        return saved


@dataclass(frozen=True)
class Saved:
    """A figure in a folder."""

    name: str
    title: str
    caption: str
    folder: Path

    @property
    def sentence(self) -> str:
        """The title as a caption begins with it: with the mark that ends a sentence."""
        return self.title if self.title.endswith(("?", "!", ".")) else f"{self.title}."

    @property
    def pdf(self) -> Path:
        """For LaTeX."""
        return self.folder / f"{self.name}.pdf"

    @property
    def png(self) -> Path:
        """For pages and screens."""
        return self.folder / f"{self.name}.png"

    @property
    def csv(self) -> Path:
        """Every plotted number."""
        return self.folder / f"{self.name}.csv"


def saved(folder: Path) -> list[Saved]:
    """The figures in `folder`, in the order of names: what `milbench analyze` and `milbench profile` left in results/analysis.

    Raises:
        MilbenchError: a figure's text cannot be read, or it names files that are not the folder's own.
    """
    figures = []
    for path in sorted(folder.glob("*.json")):
        text = parse_json(read_bytes(own_file(path)) or b"", path, "make the figure again, or move it away")
        if isinstance(text, dict) and text.keys() == {"name", "title", "caption"}:
            if not all(isinstance(value, str) for value in text.values()) or text["name"] != path.stem:
                raise MilbenchError(
                    f"{path}: does not describe the figure {path.stem}; make the figure again, or move the file away"
                )
            figures.append(Saved(checked(text["name"], "figure"), text["title"], text["caption"], folder))
    return figures
