"""A figure and its numbers, saved together: PDF, PNG, CSV and a line for the report."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


@dataclass
class Figure:
    """A picture that the report shows.

    Args:
        name: file name.
        title: one line.
        caption: what is plotted, over what, and what to see.
        rows: every plotted number.
        draw: makes the picture.
    """

    name: str
    title: str
    caption: str
    rows: list[dict[str, Any]] = field(repr=False)
    draw: "Callable[[], Drawing]" = field(repr=False)

    def save(self, folder: Path) -> list[Path]:
        """Write NAME.pdf, .png, .csv and .json (name, title, caption) to `folder`; the same numbers give the same bytes."""
        raise NotImplementedError


def saved(folder: Path) -> "list[Figure]":
    """The figures that `milbench analyze` and `milbench profile` left in `folder` (results/analysis), in the order of names."""
    raise NotImplementedError
