"""`milbench analyze`: figures that say why methods differ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from milbench.cli.options import RESULTS

if TYPE_CHECKING:
    from milbench.report.figure import Figure


@click.group()
def analyze() -> None:
    """See why methods differ: rank, sparsity, heatmaps, sizes."""


def _dataset(command: Callable[..., None]) -> Callable[..., None]:
    """The options that name a dataset's features."""
    for option in (
        click.option("--patch-size", type=click.IntRange(min=1), help="Side of a patch in pixels."),
        click.option("--magnification", type=click.IntRange(min=1), help="Such as 20."),
        click.option("--encoder", required=True, help="Of the features (milbench ls datasets)."),
        click.option("--dataset", required=True, help="A dataset whose features are here (milbench ls datasets)."),
    ):
        command = option(command)
    return command


def _save(figure: Figure, results: Path) -> None:
    """Write the figure where the report finds it, and show what it says."""
    saved = figure.save(results / "analysis")
    click.echo(f"{figure.title}\n{figure.caption}\n")
    for path in (saved.pdf, saved.png, saved.csv):
        click.echo(path)


@analyze.command("sizes")
@_dataset
@RESULTS
def analyze_sizes(dataset: str, encoder: str, magnification: int | None, patch_size: int | None, results: Path) -> None:
    """How many instances bags have, and what plain self-attention over as many would take."""
    from milbench import datasets
    from milbench.analysis import slides

    _save(slides.sizes(datasets.load(dataset, encoder, magnification, patch_size)), results)


@analyze.command("positions")
@_dataset
@click.option("--split", required=True, help="Of the dataset, such as official or extrapolation.")
@click.option("--fold", type=click.IntRange(min=0), default=0, show_default=True)
@RESULTS
def analyze_positions(
    dataset: str, encoder: str, magnification: int | None, patch_size: int | None, split: str, fold: int, results: Path
) -> None:
    """Which positions training slides cover, and which test slides: where a model has to extrapolate."""
    from milbench import datasets
    from milbench.analysis import slides

    _save(slides.positions(datasets.load(dataset, encoder, magnification, patch_size), split, fold), results)


@analyze.command("masks")
@click.option("--side", type=click.IntRange(2, 16), default=8, show_default=True, help="Patches along the grid.")
@click.option("--radius", type=click.FloatRange(min=0), default=2, show_default=True, help="Of the window, in grid steps.")
@click.option("--region", type=click.IntRange(min=1), default=4, show_default=True, help="Patches along a square of HIPT.")
@RESULTS
def analyze_masks(side: int, radius: float, region: int, results: Path) -> None:
    """What a patch may attend to: everything, squares, a 1-D band, a 2-D window, less with distance."""
    from milbench.analysis import masks

    _save(masks.figure(side, radius, region), results)
