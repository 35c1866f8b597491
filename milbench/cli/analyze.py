"""`milbench analyze`: figures that say why methods differ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from milbench.cli.options import DATA, PLUGIN, RESULTS
from milbench.config import Settings

if TYPE_CHECKING:
    from milbench.bags import Bag
    from milbench.plots.figure import Figure


TRIALS = click.option(
    "--trial", "trials", multiple=True, metavar="ID", help="A stored trial with weights, or the start of its id; may be repeated."
)
STEP = click.option(
    "--step", type=click.FloatRange(min=0, min_open=True), help="Level-0 pixels between patches, where the file does not say."
)


@click.group()
def analyze() -> None:
    """See why methods differ: rank, sparsity, heatmaps, sizes."""


@analyze.command("rank")
@TRIALS
@click.option("--aggregator", "aggregators", multiple=True, metavar="NAME", help="A method with fresh weights; may be repeated.")
@click.option("--slide", "slides", multiple=True, metavar="ID", help="May be repeated. [default: a trial's first test slide]")
@click.option(
    "--features", type=click.Path(path_type=Path), multiple=True, metavar="FILE", help="Slides from files of CLAM or TRIDENT."
)
@STEP
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
    step: float | None, dataset: str | None, encoder: str | None, exact_to: int, directions: int, name: str | None,
    threads: int | None, results: Path, data_folder: Path | None, plugin_files: tuple[str, ...],
) -> None:  # fmt: skip
    """Rank, spectrum and sparsity of what mixes tokens, layer by layer, with fresh and with trained weights.

    Figures and their numbers go to RESULTS/analysis: rank-NAME, matrices-NAME, spectra-NAME and bands-NAME.
    """
    import os

    import torch

    from milbench import plugins, process
    from milbench.analysis import rank_figures, subjects
    from milbench.errors import MilbenchError
    from milbench.trials.store import Store

    if not trials and not aggregators:
        raise MilbenchError("say which model: --trial ID or --aggregator NAME")
    if features and (slides or dataset):
        raise MilbenchError("slides come from --features or from a dataset, not from both")
    torch.set_num_threads(threads or os.cpu_count() or 1)
    settings = Settings.from_environment(data=data_folder)
    plugins.discover(plugin_files)
    process.settle()
    found = [subjects.Trained.find(Store(results), trial, settings) for trial in dict.fromkeys(trials)]
    files = [subjects.read_features(path, step) for path in features]

    work: list[tuple[rank_figures.Subject, list[Bag]]] = []
    for one, label in zip(found, subjects.labels(found), strict=True):
        models = {"fresh": one.model(trained=False), "trained": one.model()}
        subject = rank_figures.Subject(one.variant.name, label, one.spec.trial_id, models)
        work.append((subject, [one.prepared(bag) for bag in files] or [one.bag(id) for id in slides or one.fold.test[:1]]))
    if aggregators:
        bags = files or _slides_of(dataset, encoder, slides, settings)
        for text in aggregators:
            variant = plugins.resolve(text)
            model = subjects.fresh(text, bags[0].features.shape[1])
            work.append((rank_figures.Subject(variant.name, variant.label, "", {"fresh": model}), bags))

    measured: list[rank_figures.Measured] = []
    for subject, bags in work:
        for number, bag in enumerate(bags):
            for m in rank_figures.measure(subject, bag, exact_to=exact_to, directions=directions, pictures=number == 0):
                measured.append(m)
                click.echo(f"{subject.label}, {bag.slide_id}, {m.head.layer}, head {m.head.head}, {m.when}: {m.numbers}")
    name = name or f"{subjects.one_of_each([s.aggregator for s, _ in work])}-{work[0][1][0].slide_id}"
    made = rank_figures.figures(measured, subjects.file_name(name))
    click.echo("\nWritten:")
    for figure in made:
        saved = figure.save(results / "analysis")
        click.echo(f"  {saved.png}, .pdf, .csv: {figure.title}")


def _slides_of(dataset: str | None, encoder: str | None, slides: tuple[str, ...], settings: Settings) -> list[Bag]:
    """Slides of a dataset for models with fresh weights."""
    from milbench import datasets
    from milbench.analysis import subjects
    from milbench.errors import MilbenchError

    if not dataset or not slides:
        raise MilbenchError("--aggregator needs --features FILE, or --dataset NAME and --slide ID")
    known = next((info.encoders for info in datasets.infos(settings) if info.name == dataset), ())
    if encoder is None and len(known) != 1:
        raise MilbenchError(f"dataset {dataset}: say whose features with --encoder, known: {', '.join(known) or 'none'}")
    loaded = datasets.load(dataset, encoder or known[0], settings=settings)
    return [subjects.of_dataset(loaded, id) for id in slides]


@analyze.command("heatmap")
@TRIALS
@click.option("--slide", metavar="ID", help="A slide or case of the trials' dataset.")
@click.option("--features", type=click.Path(path_type=Path), metavar="FILE", help="A slide from a file of CLAM or TRIDENT.")
@STEP
@click.option("--thumbnail", type=click.Path(path_type=Path), metavar="IMAGE", help="Of the whole slide, laid underneath.")
@click.option("--slide-size", type=(float, float), metavar="W H", help="Of the slide in level-0 pixels, if the file is silent.")
@RESULTS
@DATA
@PLUGIN
def heatmap(
    trials: tuple[str, ...], slide: str | None, features: Path | None, step: float | None, thumbnail: Path | None,
    slide_size: tuple[float, float] | None, results: Path, data_folder: Path | None, plugin_files: tuple[str, ...],
) -> None:  # fmt: skip
    """Attention, or gradient x input, of one slide on its tissue, several models side by side.

    A figure goes to RESULTS/analysis, and for every model a GeoJSON file that QuPath opens: squares in level-0 pixels.
    """
    from milbench import plugins, process
    from milbench.analysis import heatmap as maps
    from milbench.analysis import subjects
    from milbench.errors import MilbenchError
    from milbench.trials.store import Store

    if not trials:
        raise MilbenchError("say which models: --trial ID")
    if (slide is None) == (features is None):
        raise MilbenchError("say which slide: --slide ID of the trials' dataset, or --features FILE")
    under = None
    if thumbnail:
        size = slide_size or (subjects.slide_size(features) if features else None)
        if size is None:
            raise MilbenchError("--thumbnail needs --slide-size W H: how many level-0 pixels it shows")
        under = (maps.image_of(thumbnail), size)
    settings = Settings.from_environment(data=data_folder)
    plugins.discover(plugin_files)
    process.settle()
    panels: list[maps.Heatmap] = []
    found = [subjects.Trained.find(Store(results), trial, settings) for trial in dict.fromkeys(trials)]
    for trained, label in zip(found, subjects.labels(found), strict=True):
        bag = trained.prepared(subjects.read_features(features, step)) if features else trained.bag(str(slide))
        panels += maps.heatmaps(trained.model(), trained.task, bag, label=label, trial=trained.spec.trial_id)
    if under and len({p.slide for p in panels}) > 1:
        raise MilbenchError(f"{bag.slide_id} holds several slides, --thumbnail shows one; leave it out")
    folder = results / "analysis"
    name = subjects.file_name("heatmap", bag.slide_id, subjects.one_of_each([p.label for p in panels]))
    saved = maps.figure(panels, name, under).save(folder)
    written = [saved.png, saved.pdf, saved.csv]
    for p in panels:
        path = folder / f"{subjects.file_name('heatmap', p.slide, p.label, p.trial)}.geojson"
        written.append(maps.save_geojson(p, path))
    click.echo("\n".join(["Written:", *(f"  {path}" for path in written)]))


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
@DATA
def analyze_sizes(
    dataset: str, encoder: str, magnification: int | None, patch_size: int | None, results: Path, data_folder: Path | None
) -> None:
    """How many instances bags have, and what plain self-attention over as many would take."""
    from milbench import datasets
    from milbench.analysis import slides

    settings = Settings.from_environment(data=data_folder)
    _save(slides.sizes(datasets.load(dataset, encoder, magnification, patch_size, settings=settings)), results)


@analyze.command("positions")
@_dataset
@click.option("--split", required=True, help="Of the dataset, such as official or extrapolation.")
@click.option("--fold", type=click.IntRange(min=0), default=0, show_default=True)
@RESULTS
@DATA
def analyze_positions(
    dataset: str,
    encoder: str,
    magnification: int | None,
    patch_size: int | None,
    split: str,
    fold: int,
    results: Path,
    data_folder: Path | None,
) -> None:
    """Which positions training slides cover, and which test slides: where a model has to extrapolate."""
    from milbench import datasets
    from milbench.analysis import slides

    settings = Settings.from_environment(data=data_folder)
    found = datasets.load(dataset, encoder, magnification, patch_size, settings=settings)
    _save(slides.positions(found, split, fold), results)


@analyze.command("masks")
@click.option("--side", type=click.IntRange(2, 16), default=8, show_default=True, help="Patches along the grid.")
@click.option("--radius", type=click.FloatRange(min=0), default=2, show_default=True, help="Of the window, in grid steps.")
@click.option("--region", type=click.IntRange(min=1), default=4, show_default=True, help="Patches along a square of HIPT.")
@RESULTS
def analyze_masks(side: int, radius: float, region: int, results: Path) -> None:
    """What a patch may attend to: everything, squares, a 1-D band, a 2-D window, less with distance."""
    from milbench.analysis import masks

    _save(masks.figure(side, radius, region), results)
