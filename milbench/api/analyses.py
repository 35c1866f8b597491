"""Why methods differ: rank and sparsity of what mixes tokens, heatmaps, bag sizes, positions, windows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from milbench import datasets, plugins, process
from milbench.analysis import heatmap as maps
from milbench.analysis import masks, rank_figures, slides, subjects
from milbench.api.results import find_trial, store_of
from milbench.bags import Bag
from milbench.config import Settings
from milbench.errors import MilbenchError
from milbench.plots.figure import Figure, Saved

__all__ = ["Features", "Figure", "Saved", "Slides", "Where", "heatmap", "positions", "rank", "sizes", "windows"]


@dataclass(frozen=True)
class Where:
    """Where an analysis finds what it looks at.

    Args:
        results: the results folder; figures go to `analysis` in it. [default: MILBENCH_RESULTS, or results]
        data: folder of the datasets that you added. [default: MILBENCH_DATA, or data]
        plugin: files that register aggregators of your own.
    """

    results: str | Path | None = None
    data: str | Path | None = None
    plugin: tuple[str | Path, ...] = ()

    @property
    def settings(self) -> Settings:
        """The same as a Settings."""
        return Settings.from_environment(data=self.data, results=self.results)

    @property
    def folder(self) -> Path:
        """Where figures go."""
        return self.settings.results / "analysis"

    def ready(self) -> Where:
        """With plug-ins registered and this process set as a trial has it."""
        plugins.discover(self.plugin)
        process.settle()
        return self

    def trained(self, selectors: Iterable[str]) -> list[subjects.Trained]:
        """The models of stored trials, each once, as :func:`milbench.api.results.find_trial` finds them."""
        store, settings = store_of(self.settings.results), self.settings
        ids = dict.fromkeys(find_trial(text, results=store.root).trial_id for text in selectors)
        return [subjects.Trained.find(store, trial_id, settings) for trial_id in ids]


@dataclass(frozen=True)
class Slides:
    """Which slides models are shown: those of a dataset, or of feature files.

    Args:
        ids: slides or cases of a dataset.
        files: feature files of CLAM or TRIDENT.
        step: level-0 pixels between patches, where a file does not say it.
        swap_xy: positions stand in the files as (y, x).
        dataset, encoder: where `ids` come from, for models with fresh weights.
    """

    ids: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    step: float | None = None
    swap_xy: bool = False
    dataset: str | None = None
    encoder: str | None = None

    def read(self) -> list[Bag]:
        """The bags of the feature files."""
        return [subjects.read_features(path, self.step, swap_xy=self.swap_xy) for path in self.files]

    def of_dataset(self, settings: Settings) -> list[Bag]:
        """The bags of the dataset, for models with fresh weights.

        Raises:
            MilbenchError: dataset, slides or encoder are not given, or are unknown.
        """
        if not self.dataset or not self.ids:
            raise MilbenchError("--aggregator needs --features FILE, or --dataset NAME and --slide ID")
        known = next((info.encoders for info in datasets.infos(settings) if info.name == self.dataset), ())
        if self.encoder is None and len(known) != 1:
            raise MilbenchError(f"dataset {self.dataset}: say whose features with --encoder, known: {', '.join(known) or 'none'}")
        loaded = datasets.load(self.dataset, self.encoder or known[0], settings=settings)
        return [subjects.of_dataset(loaded, id) for id in self.ids]


def rank(
    trials: Sequence[str] = (),
    aggregators: Sequence[str] = (),
    shown: Slides | None = None,
    *,
    exact_to: int = 4096,
    directions: int = 512,
    name: str | None = None,
    threads: int | None = None,
    where: Where | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Saved]:
    """Rank, spectrum and sparsity of what mixes tokens, layer by layer, with fresh and with trained weights.

    Args:
        trials: stored trials with weights, as :func:`milbench.api.results.find_trial` takes them.
        aggregators: methods with fresh weights.
        shown: the slides; unless given, the first test slide of each trial.
        exact_to: largest n with all singular values. directions: of the estimate above that.
        name: of the figures' files; the methods and the slide unless given.
        threads: CPU threads; all cores unless given.
        where: results, data and plug-ins.
        say: is called with a line for each layer and head that is measured.

    Returns:
        The figures, saved with their numbers.

    Raises:
        MilbenchError: an unknown trial, aggregator or slide; a trial without weights; a method that mixes no tokens.
    """
    shown, where = shown or Slides(), where or Where()
    if not trials and not aggregators:
        raise MilbenchError("say which model: --trial ID or --aggregator NAME")
    if shown.files and (shown.ids or shown.dataset):
        raise MilbenchError("slides come from --features or from a dataset, not from both")
    torch.set_num_threads(threads or os.cpu_count() or 1)
    work = _models(trials, aggregators, shown, where.ready())
    measured: list[rank_figures.Measured] = []
    for subject, bags in work:
        for number, bag in enumerate(bags):
            for m in rank_figures.measure(subject, bag, exact_to=exact_to, directions=directions, pictures=number == 0):
                measured.append(m)
                say(f"{subject.label}, {bag.slide_id}, {m.head.layer}, head {m.head.head}, {m.when}: {m.numbers}")
    name = name or f"{subjects.one_of_each([subject.aggregator for subject, _ in work])}-{work[0][1][0].slide_id}"
    return [figure.save(where.folder) for figure in rank_figures.figures(measured, subjects.file_name(name))]


def _models(
    trials: Sequence[str], aggregators: Sequence[str], shown: Slides, where: Where
) -> list[tuple[rank_figures.Subject, list[Bag]]]:
    """Each model with the bags that it is shown."""
    stored = where.trained(trials)
    files = shown.read()
    work: list[tuple[rank_figures.Subject, list[Bag]]] = []
    for trained, label in zip(stored, subjects.labels(stored), strict=True):
        models = {"fresh": trained.model(trained=False), "trained": trained.model()}
        subject = rank_figures.Subject(trained.variant.name, label, trained.spec.trial_id, models)
        ids = shown.ids or trained.fold.test[:1]
        work.append((subject, [trained.prepared(bag) for bag in files] or [trained.bag(id) for id in ids]))
    bags = files or (shown.of_dataset(where.settings) if aggregators else [])
    for text in aggregators:
        variant = plugins.resolve(text)
        model = subjects.fresh(text, bags[0].features.shape[1])
        work.append((rank_figures.Subject(variant.name, variant.label, "", {"fresh": model}), bags))
    return work


def heatmap(
    trials: Sequence[str],
    *,
    slide: str | None = None,
    features: Path | None = None,
    step: float | None = None,
    swap_xy: bool = False,
    thumbnail: Path | None = None,
    slide_size: tuple[float, float] | None = None,
    where: Where | None = None,
) -> list[Path]:
    """Attention, or gradient x input, of one slide on its tissue, several models side by side.

    Args:
        trials: stored trials with weights, as :func:`milbench.api.results.find_trial` takes them.
        slide: a slide or case of the trials' dataset; or
        features: a feature file of CLAM or TRIDENT, with `step`, level-0 pixels between patches, where it does not say it.
        swap_xy: positions stand in that file as (y, x).
        thumbnail: an image of the whole slide, laid underneath.
        slide_size: width and height of the slide in level-0 pixels, where the file does not say it.
        where: results, data and plug-ins.

    Returns:
        The files: PNG, PDF and CSV, and for every model a GeoJSON file that QuPath opens.

    Raises:
        MilbenchError: an unknown trial or slide, a trial without weights, or an image that cannot be read.
    """
    where = where or Where()
    if not trials:
        raise MilbenchError("say which models: --trial ID")
    if (slide is None) == (features is None):
        raise MilbenchError("say which slide: --slide ID of the trials' dataset, or --features FILE")
    under = None
    if thumbnail:
        size = slide_size or (subjects.facts(features).extent if features else None)
        if size is None:
            raise MilbenchError("--thumbnail needs --slide-size W H: how many level-0 pixels it shows")
        under = (maps.image_of(thumbnail), size)
    panels: list[maps.Heatmap] = []
    stored = where.ready().trained(trials)
    for trained, label in zip(stored, subjects.labels(stored), strict=True):
        bag = trained.prepared(subjects.read_features(features, step, swap_xy=swap_xy)) if features else trained.bag(str(slide))
        side = subjects.facts(features).side if features else trained.dataset.sides.get(str(slide))
        panels += maps.heatmaps(trained.model(), trained.task, bag, label=label, trial=trained.spec.trial_id, side=side)
    if under and len({panel.slide for panel in panels}) > 1:
        raise MilbenchError(f"{bag.slide_id} holds several slides, --thumbnail shows one; leave it out")
    return _saved(panels, subjects.file_name("heatmap", bag.slide_id, _models_of(panels)), under, where.folder)


def _models_of(panels: Sequence[maps.Heatmap]) -> str:
    return subjects.one_of_each([panel.label for panel in panels])


def _saved(panels: list[maps.Heatmap], name: str, under: tuple[Path, tuple[float, float]] | None, folder: Path) -> list[Path]:
    figure = maps.figure(panels, name, under).save(folder)
    files = [folder / f"{subjects.file_name('heatmap', p.slide, p.label, p.trial)}.geojson" for p in panels]
    return [figure.png, figure.pdf, figure.csv, *map(maps.save_geojson, panels, files)]


@dataclass(frozen=True)
class Features:
    """The features of a dataset that an analysis looks at.

    Args:
        dataset, encoder, magnification, patch_size: as :func:`milbench.load_dataset` takes them.
    """

    dataset: str
    encoder: str
    magnification: int | None = None
    patch_size: int | None = None

    def load(self, where: Where) -> datasets.Dataset:
        """The dataset."""
        return datasets.load(self.dataset, self.encoder, self.magnification, self.patch_size, settings=where.settings)


def sizes(features: Features, where: Where | None = None) -> tuple[Figure, Saved]:
    """How many instances bags have, and what plain self-attention over as many would take."""
    where = where or Where()
    return _save(slides.sizes(features.load(where)), where)


def positions(features: Features, split: str, fold: int = 0, where: Where | None = None) -> tuple[Figure, Saved]:
    """Which positions training slides cover, and which test slides: where a model has to extrapolate."""
    where = where or Where()
    return _save(slides.positions(features.load(where), split, fold), where)


def windows(side: int = 8, radius: float = 2, region: int = 4, where: Where | None = None) -> tuple[Figure, Saved]:
    """What a patch may attend to: everything, squares, a 1-D band, a 2-D window, less with distance.

    Args:
        side: patches along the grid.
        radius: of the window, in grid steps.
        region: patches along a square of HIPT.
        where: results, data and plug-ins.
    """
    return _save(masks.figure(side, radius, region), where or Where())


def _save(figure: Figure, where: Where) -> tuple[Figure, Saved]:
    """Write the figure where the report finds it."""
    return figure, figure.save(where.folder)
