"""Datasets: load one, add features of your own, check them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from milbench import datasets
from milbench.config import Settings
from milbench.datasets import Dataset
from milbench.datasets.files import manifest
from milbench.datasets.files.adding import joined
from milbench.datasets.files.check import Examined, FeatureSet, counts, examine
from milbench.datasets.files.classes import parsed as parse_classes
from milbench.datasets.files.ids import listed as parse_ids
from milbench.datasets.files.seen import Watch
from milbench.errors import MilbenchError, unknown

__all__ = [
    "Added", "Examined", "FeatureSet", "Watch", "add_dataset", "check_dataset", "counts", "load_dataset", "parse_classes",
    "parse_ids", "summary",
]  # fmt: skip

Progress = Callable[[str, int, int], None]


def load_dataset(
    name: str,
    encoder: str | None = None,
    *,
    magnification: int | None = None,
    patch_size: int | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    data: str | Path | None = None,
    pack: bool | None = None,
) -> Dataset:
    """A dataset: its samples, their bags and its splits.

    `dataset.samples` lists who is in it, `dataset.read(sample.id)` gives the :class:`milbench.Bag` of one of them, and
    `dataset.folds("official")` the folds of a split, each with the ids `train`, `val` and `test`.

    Args:
        name: a built-in dataset or one that you added (`milbench ls datasets`).
        encoder: whose features; may be left out where there are those of one encoder only.
        magnification, patch_size: which features, where an encoder has several.
        dtype: what features are stored as before they become float32.
        data: folder of the datasets that you added. [default: MILBENCH_DATA, or data]
        pack: False reads feature files directly instead of packing them into one.

    Raises:
        MilbenchError: no such dataset or features, or a check of the files finds errors.

    Examples:
        >>> dataset = load_dataset("musk1")
        >>> len(dataset.samples), dataset.in_dim, list(dataset.splits)
        (92, 166, ['kfold5', 'kfold10'])
        >>> dataset.read(dataset.samples[0].id).features.shape
        torch.Size([4, 166])
        >>> len(dataset.folds("kfold10")[0].test)
        10
    """
    settings = Settings.from_environment(data=data, pack=pack)
    if encoder is None:
        encoder, magnification, patch_size = _only(name, magnification, patch_size, settings)
    return datasets.load(name, encoder, magnification, patch_size, dtype, settings)


def _only(name: str, magnification: int | None, patch_size: int | None, settings: Settings) -> tuple[str, int | None, int | None]:
    """The only features that a dataset has, of those that are asked for."""
    saved = manifest.load(name, settings.data)
    if saved is not None:
        fit = saved.matching(None, magnification, patch_size)
        if len(fit) != 1:
            known = ", ".join(features.name for features in saved.features) or "none"
            raise MilbenchError(f"dataset {name}: say which features, with encoder (magnification, patch_size); it has {known}")
        return fit[0].key
    infos = {info.name: info for info in datasets.infos(settings)}
    if name not in infos:
        raise unknown("dataset", name, infos)
    encoders = infos[name].encoders
    if len(encoders) > 1:
        raise MilbenchError(f"dataset {name}: say whose features with encoder, known: {', '.join(encoders)}")
    return encoders[0] if encoders else "?", magnification, patch_size


@dataclass(frozen=True)
class Added:
    """What adding to a dataset came to.

    Args:
        examined: what was understood of the files, and every finding.
        path: the manifest that was written; None where there was nothing new, or there were errors.
    """

    examined: Examined
    path: Path | None

    @property
    def errors(self) -> list[Any]:
        """Findings for which nothing was written."""
        return self.examined.of("error")


def add_dataset(
    name: str,
    *,
    features: Path | None = None,
    encoder: str | None = None,
    magnification: int | None = None,
    patch_size: int | None = None,
    patches: Path | None = None,
    step: float | None = None,
    swap_xy: bool = False,
    labels: Path | None = None,
    slides: Path | None = None,
    header: bool = True,
    encoding: str | None = None,
    columns: Mapping[str, str] | None = None,
    classes: Mapping[str, list[str]] | None = None,
    skip_incomplete: bool = False,
    splits: Mapping[str, Path] | None = None,
    folds: int | None = None,
    drop: str | None = None,
    task: str | None = None,
    unit: str | None = None,
    label: str | None = None,
    published: str | None = None,
    exclude: Sequence[str] = (),
    replace: bool = False,
    check: bool = True,
    data: str | Path | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Added:
    """Add features, labels or splits to a dataset, all at once or one after the other, as `milbench data add` does.

    Everything is checked first, and nothing is written when there are errors.

    Args:
        name: of the dataset.
        features: folder of CLAM, TRIDENT or npz files. encoder, magnification, patch_size: what they are of.
        patches: CLAM's patches folder, where it is not beside the features.
        step: level-0 pixels between patches, where no file says it. swap_xy: positions stand in the files as (y, x).
        labels: table of labels, or of survival; header=False where it has none. slides: table of the slides of its cases.
        encoding: of the tables given here, where they are not UTF-8.
        columns: role (slide, case, label, time, event, censorship) -> column; an empty one leaves the role to none.
        classes: class -> labels that mean it, in the order of the classes' indices.
        skip_incomplete: leave out rows without a label, a time or an event.
        splits: name -> split table; the name "" takes the usual one. drop: "val" or "test", a part that is left out.
        folds: K of one more generated split kfoldK.
        task: "subtyping" or "survival". unit: "slide" or "case".
        label: name in tables.
        published: cohort whose published counts are compared.
        exclude: slides or cases to leave out.
        replace: take what is given instead of what was added before.
        check: False does not look into the feature files.
        data: folder of the datasets. [default: MILBENCH_DATA, or data]
        progress: is called with what is read, the number of files that are done, and of all.

    Raises:
        MilbenchError: arguments that do not go together, or a table that cannot be read.
    """
    settings = Settings.from_environment(data=data)
    whole = joined(
        name, task=task, unit=unit, label=label, published=published, labels=labels, slides=slides, header=header,
        encoding=encoding, columns=dict(columns or {}), classes=None if classes is None else dict(classes),
        skip_incomplete=skip_incomplete, splits=dict(splits or {}), folds=folds, encoder=encoder,
        magnification=magnification, patch_size=patch_size, features=features, patches=patches, step=step,
        swap_xy=swap_xy, drop=drop, exclude=list(exclude), replace=replace, home=settings.data,
    )  # fmt: skip
    added = [each for each in whole.features if each.key == (encoder, magnification, patch_size)]
    everywhere = any((labels, slides, columns, exclude, skip_incomplete, replace))  # then all sets have other slides
    chosen = [] if not check else whole.features if everywhere else added
    examined = examine(whole, chosen, cache=settings.cache, progress=progress)
    if examined.of("error"):
        return Added(examined, None)
    path = manifest.save(whole)
    examined.remember()
    return Added(examined, path)


def check_dataset(
    name: str,
    *,
    deep: bool = False,
    data: str | Path | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Examined:
    """Look at every file of a dataset. Errors stop a run before its first epoch; warnings are printed under its tables.

    Args:
        name: a dataset that you added.
        deep: look at every feature and position, and read files anew that were read before.
        data: folder of the datasets. [default: MILBENCH_DATA, or data]
        progress: is called with what is read, the number of files that are done, and of all.

    Raises:
        MilbenchError: no such dataset.
    """
    settings = Settings.from_environment(data=data)
    here = manifest.load(name, settings.data)
    if here is None:
        names = manifest.names(settings.data)
        if not names:
            raise MilbenchError(
                f"there are no datasets in {settings.data} yet; add one with: milbench data add {name} (--help tells how)"
            )
        raise unknown(f"dataset in {settings.data}", name, names)
    examined = examine(here, deep=deep, cache=settings.cache, progress=progress)
    examined.remember()
    return examined


def summary(examined: Examined) -> dict[str, Any]:
    """What a look at a dataset found, as plain data."""
    names = examined.roster.stratum_names(examined.manifest)
    return {
        "dataset": examined.manifest.name,
        "task": examined.manifest.task,
        "unit": examined.manifest.unit,
        "samples": len(examined.roster.samples),
        "cases": len({sample.case_id for sample in examined.roster.samples}),
        "classes": {name: sum(sample.stratum == i for sample in examined.roster.samples) for i, name in enumerate(names)},
        "features": [
            {
                "encoder": each.features.encoder,
                "magnification": each.features.magnification,
                "patch_size": each.features.patch_size,
                "slides": len(each.facts),
                "width": each.in_dim,
                "patches": sum(facts.n for facts in each.facts.values()),
                "dtypes": sorted({facts.dtype for facts in each.facts.values()}),
                "steps": sorted(set(each.steps.values())),
            }
            for each in examined.sets
        ],
        "splits": counts(examined),
        "lacking": examined.lacking,
        "errors": len(examined.of("error")),
        "warnings": len(examined.of("warning")),
        "findings": [asdict(finding) for finding in examined.findings],
    }
