"""`milbench analyze`: figures that say why methods differ, and whether the tests that say so keep their level."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from milbench.cli import show
from milbench.cli.options import DATA, PATH, PLUGIN, QUIET, RESULTS

if TYPE_CHECKING:
    from milbench.api.analyses import Figure, Saved

TRIALS = click.option(
    "--trial",
    "trials",
    multiple=True,
    metavar="TRIAL",
    help="A stored trial with weights: its id, the start of it, or METHOD:fold0:seed1 (milbench ls trials); may be repeated.",
)
STEP = click.option(
    "--step", type=click.FloatRange(min=0, min_open=True), help="Level-0 pixels between patches, where the file does not say."
)
SWAP_XY = click.option("--swap-xy", is_flag=True, help="Positions stand in the files of --features as (y, x).")


@click.group()
def analyze() -> None:
    """See why methods differ: rank, sparsity, heatmaps, sizes; and whether the tests that say so keep their level."""


@analyze.command("rank")
@TRIALS
@click.option("--aggregator", "aggregators", multiple=True, metavar="NAME", help="A method with fresh weights; may be repeated.")
@click.option("--slide", "slides", multiple=True, metavar="ID", help="May be repeated. [default: a trial's first test slide]")
@click.option("--features", type=PATH, multiple=True, metavar="FILE", help="Slides from files of CLAM or TRIDENT.")
@STEP
@SWAP_XY
@click.option("--dataset", help="Where the slides of --aggregator come from, unless from --features.")
@click.option("--encoder", help="Whose features, with --dataset.")
@click.option(
    "--exact-to",
    type=click.IntRange(min=1),
    default=4096,
    show_default=True,
    help="Largest n with all singular values.",
)
@click.option("--directions", type=click.IntRange(min=1), default=512, show_default=True, help="Of the estimate above that.")
@click.option("--name", help="Of the figures' files. [default: the methods and the slide]")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. [default: all cores]")
@RESULTS
@DATA
@PLUGIN
def rank(
    trials: tuple[str, ...], aggregators: tuple[str, ...], slides: tuple[str, ...], features: tuple[Path, ...],
    step: float | None, swap_xy: bool, dataset: str | None, encoder: str | None, results: Path, data_folder: Path | None,
    plugin_files: tuple[str, ...], **measured: Any,
) -> None:  # fmt: skip
    """Rank, spectrum and sparsity of what mixes tokens, layer by layer, with fresh and with trained weights.

    Figures and their numbers go to RESULTS/analysis: rank-NAME, matrices-NAME, spectra-NAME and bands-NAME.
    """
    from milbench.api import analyses as api

    saved = api.rank(
        trials,
        aggregators,
        api.Slides(slides, features, step, swap_xy, dataset, encoder),
        where=api.Where(results, data_folder, plugin_files),
        say=click.echo,
        **measured,
    )
    click.echo("\nWritten:")
    for figure in saved:
        click.echo(f"  {figure.png}, .pdf, .csv: {figure.title}")


@analyze.command("heatmap")
@TRIALS
@click.option("--slide", metavar="ID", help="A slide or case of the trials' dataset.")
@click.option("--features", type=PATH, metavar="FILE", help="A slide from a file of CLAM or TRIDENT.")
@STEP
@SWAP_XY
@click.option("--thumbnail", type=PATH, metavar="IMAGE", help="Of the whole slide, laid underneath.")
@click.option("--slide-size", type=(float, float), metavar="W H", help="Of the slide in level-0 pixels, if the file is silent.")
@RESULTS
@DATA
@PLUGIN
def heatmap(
    trials: tuple[str, ...], results: Path, data_folder: Path | None, plugin_files: tuple[str, ...], **shown: Any
) -> None:
    """Attention, or gradient x input, of one slide on its tissue, several models side by side.

    A figure goes to RESULTS/analysis, and for every model a GeoJSON file that QuPath opens: squares in level-0 pixels.
    """
    from milbench.api import analyses as api

    where = api.Where(results, data_folder, plugin_files)
    show.written(api.heatmap(trials, where=where, **shown))


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


def _show(figure: Figure, saved: Saved) -> None:
    """What the figure says, and its files."""
    click.echo(f"{figure.title}\n{figure.caption}\n")
    for path in (saved.pdf, saved.png, saved.csv):
        click.echo(path)


@analyze.command("sizes")
@_dataset
@RESULTS
@DATA
def analyze_sizes(results: Path, data_folder: Path | None, **features: Any) -> None:
    """How many instances bags have, and what plain self-attention over as many would take."""
    from milbench.api import analyses as api

    _show(*api.sizes(api.Features(**features), api.Where(results, data_folder)))


@analyze.command("positions")
@_dataset
@click.option("--split", required=True, help="Of the dataset, such as official or extrapolation.")
@click.option("--fold", type=click.IntRange(min=0), default=0, show_default=True)
@RESULTS
@DATA
def analyze_positions(split: str, fold: int, results: Path, data_folder: Path | None, **features: Any) -> None:
    """Which positions training slides cover, and which test slides: where a model has to extrapolate."""
    from milbench.api import analyses as api

    _show(*api.positions(api.Features(**features), split, fold, api.Where(results, data_folder)))


@analyze.command("masks")
@click.option("--side", type=click.IntRange(2, 16), default=8, show_default=True, help="Patches along the grid.")
@click.option("--radius", type=click.FloatRange(min=0), default=2, show_default=True, help="Of the window, in grid steps.")
@click.option("--region", type=click.IntRange(min=1), default=4, show_default=True, help="Patches along a square of HIPT.")
@RESULTS
def analyze_masks(side: int, radius: float, region: int, results: Path) -> None:
    """What a patch may attend to: everything, squares, a 1-D band, a 2-D window, less with distance."""
    from milbench.api import analyses as api

    _show(*api.windows(side, radius, region, api.Where(results)))


@analyze.command("calibration")
@click.option("--suite", metavar="SUITE", help="That was run with many seeds of the method: its name, or the TOML file.")
@click.option("--aggregator", default="abmil", show_default=True, help="The method that meets itself.")
@click.option("--seeds", type=click.IntRange(min=3), help="How many trainings. [default: all that finished every fold]")
@click.option(
    "--predictions", type=PATH, multiple=True, metavar="FILE.csv[.gz]",
    help="Predictions per model, fold and case; each model is a training of one method. May be repeated.",
)  # fmt: skip
@click.option("--reports", type=PATH, default="reports", show_default=True, help="Folder to write to.")
@QUIET
@RESULTS
def analyze_calibration(quiet: bool, **asked: Any) -> None:
    """A method against itself: how often does each test call it different?

    Every two disjoint groups of its trainings meet, five against five and one against one. A test that keeps its level says
    p < 0.05 in about 5 % of the pairs. Written to REPORTS/calibration.
    """
    from milbench.api import calibrations as api

    with show.bar(quiet) as progress:
        made = api.calibration(**asked, progress=progress)
    show.report(made, quiet)
