"""A dataset in the user's files as trials see it: from its manifest to bags."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from milbench.bags import Bag
from milbench.config import Settings
from milbench.datasets import splits
from milbench.datasets.base import Dataset, Fold, Sample
from milbench.datasets.files import formats
from milbench.datasets.files.check import Examined, FeatureSet, examine
from milbench.datasets.files.manifest import Features, Manifest
from milbench.datasets.files.roster import Roster
from milbench.datasets.files.seen import State, Watch, changing, state_of, too_young
from milbench.datasets.packed import packed
from milbench.errors import MilbenchError, NotHere
from milbench.words import counted


def dataset(
    manifest: Manifest, features: Features, settings: Settings, dtype: Literal["float32", "float16"] = "float32"
) -> Dataset:
    """The dataset with one set of features, after its files were checked.

    The last few datasets stay in memory and are returned again as long as none of their tables and files changed, so that a
    worker does not parse, check and verify them for every trial.

    Args:
        manifest, features: which.
        settings: whether and where features are packed.
        dtype: of stored features.

    Raises:
        NotHere: the labels were not added yet.
        MilbenchError: the check finds errors.
    """
    now, states = time.time_ns(), _states(manifest, features)
    key = (manifest.name, manifest.home, manifest.model_dump_json(), features.key, settings, dtype, states)
    for known, seen, last in _last:
        if states and known == key and not any(too_young(state, seen) for _, state in states):
            return last
    checked = _checked(manifest, features, settings, dtype)
    others = [one for one in _last if one[0][:-1] != key[:-1]]
    _last[:] = [(key, now, checked), *others][:KEPT]
    return checked


KEPT = 4  # datasets that stay in memory: a worker that runs several columns meets them in turn
_last: list[tuple[Any, int, Dataset]] = []  # what it depends on, when that was looked at, and the dataset


def forget() -> None:
    """Drop the datasets that are kept in memory, as a new process would."""
    _last.clear()


def _states(manifest: Manifest, features: Features) -> list[tuple[Path, State]]:
    """Every file that a dataset is read from, with its size and times; an empty list where a file is missing."""
    place = manifest.layout(features)
    labels = [manifest.labels.file, manifest.labels.slides] if manifest.labels else []
    given = [*filter(None, labels), *manifest.splits.values()]
    named = [manifest.resolved(path) for path in given] + ([place.patches] if place.patches else [])
    try:
        inside = [[path / name for name in sorted(os.listdir(path))] if path.is_dir() else [path] for path in named]
        return [(path, state_of(path, None)) for path in (*place.files(), *(path for some in inside for path in some))]
    except (OSError, MilbenchError):  # the check says what it is
        return []


def _checked(manifest: Manifest, features: Features, settings: Settings, dtype: str) -> Dataset:
    with Watch() as progress:
        examined = examine(manifest, [features], cache=settings.cache, progress=progress)
    examined.remember()
    if examined.lacking:
        raise NotHere(f"dataset {manifest.name}: {examined.lacking}")
    if errors := examined.of("error"):
        raise MilbenchError(
            f"dataset {manifest.name} has {counted(len(errors), 'error')}; the first: {errors[0]}. "
            f"See all with: milbench data check {manifest.name}"
        )
    (files,) = examined.sets
    sizes = {id: sum(files.facts[slide].n for slide in slides) for id, slides in files.slides.items()}
    samples = examined.roster.samples
    fingerprint = _fingerprint(examined, files, files.contents)
    read = packed(
        partial(_bag, files, {sample.id: sample for sample in samples}, manifest.unit),
        sizes,
        in_dim=files.in_dim,
        dtype="float16" if dtype == "float16" else files.dtype,
        fingerprint=fingerprint,
        name=f"{manifest.name} {features.name}",
        folder=settings.packs if settings.pack else None,
        owner=manifest.key_of(features, shared=settings.cache is not None),
    )
    return Dataset(
        name=manifest.name,
        label=manifest.label,
        task=manifest.task,
        unit=manifest.unit,
        classes=tuple(manifest.labels.classes) if manifest.labels else (),
        samples=samples,
        read=read,
        in_dim=files.in_dim,
        has_coords=bool(files.steps),
        encoder=features.encoder,
        fingerprint=fingerprint,
        former_fingerprint=_fingerprint(examined, files, {slide: facts.digest for slide, facts in files.facts.items()}),
        splits=_splits(examined.roster, sizes, manifest),
        magnification=features.magnification,
        patch_size=features.patch_size,
        notes=tuple(str(finding) for finding in examined.findings if finding.reported),
        sizes=lambda: sizes,
        sides={id: side for id, slides in files.slides.items() if (side := files.facts[slides[0]].side)},
    )


def _splits(roster: Roster, sizes: Mapping[str, int], manifest: Manifest) -> dict[str, Callable[[], Sequence[Fold]]]:
    """Splits by name: generated ones, those of the user's tables, and twins of these in which no patient is in two parts."""
    samples, salt = roster.samples, manifest.name
    patients = roster.known_patients(manifest)
    twins = {
        f"{name}-grouped": partial(splits.grouped_twin, samples, folds, salt)
        for name, folds in roster.splits.items()
        # Suites ask for HIPT's by name, whether or not patients are torn. Where nobody knows patients, a twin would be no twin.
        if name in roster.leaking or (name.startswith("hipt") and patients)
    }
    return {
        **{f"kfold{k}": partial(splits.k_fold, samples, k, salt=salt) for k in sorted({5, 10, *manifest.folds})},
        "extrapolation": partial(splits.extrapolation, samples, sizes, salt=salt),
        "extrapolation-mixed": partial(splits.extrapolation, samples, sizes, mixed=True, salt=salt),
        **twins,
        **{name: partial(list, folds) for name, folds in roster.splits.items()},
    }


def _fingerprint(examined: Examined, files: FeatureSet, contents: Mapping[str, str]) -> str:
    """Hash of who is in the dataset with which outcome, and of every file's contents and step.

    Names of folders and formats are not in it: the same features elsewhere are the same dataset.

    Args:
        examined: the roster, and of what task.
        files: of these features.
        contents: slide -> hash of what its file holds.
    """
    who = [[s.id, s.case_id, s.label, s.time, s.event] for s in sorted(examined.roster.samples, key=lambda sample: sample.id)]
    exchanged = ["swap_xy"] if files.features.swap_xy else []
    what = {id: [[slide, contents[slide], files.steps.get(slide)] for slide in slides] for id, slides in files.slides.items()}
    classes = list(examined.manifest.labels.classes) if examined.manifest.labels else []
    # Where slides of a case stand on its grid follows from what they hold; before, from the order of the table.
    side_by_side = ["by content"] if any(len(slides) > 1 for slides in files.slides.values()) else []
    text = json.dumps(
        [examined.manifest.task, examined.manifest.unit, classes, who, what, *exchanged, *side_by_side], sort_keys=True
    )
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()[:16]


def _bag(files: FeatureSet, samples: Mapping[str, Sample], unit: str, id: str) -> Bag:
    """Read one slide, or all slides of a case.

    Raises:
        BadFile: a file cannot be used, or changed since the dataset's fingerprint was made.
    """
    slides = files.slides[id]
    read = [_read(files, slide) for slide in slides]
    features = torch.from_numpy(np.concatenate([features for features, _ in read]) if len(read) > 1 else read[0][0])  # (n, d)
    source = str(files.files[slides[0]][0]) + (f" and {len(slides) - 1} more" if len(slides) > 1 else "")
    coords, step = None, None
    if files.steps:
        step = files.steps[slides[0]]
        coords = torch.from_numpy(
            np.concatenate([_scaled(xy, step / files.steps[s]) for (_, xy), s in zip(read, slides, strict=True)])
        )
    index = [torch.full((len(x),), i) for i, (x, _) in enumerate(read)] if unit == "case" else None
    return Bag(
        features,
        coords,
        step,
        slide_id=id,
        case_id=samples[id].case_id,
        slide_index=torch.cat(index) if index else None,
        source=source,
    )


def _read(files: FeatureSet, slide: str) -> tuple[NDArray[np.float32], NDArray[Any] | None]:
    path, patches = files.files[slide]
    features, xy = formats.read(path, patches)
    if state_of(path, patches) != files.memory.state(path):
        raise changing(path)
    return features, xy[:, ::-1].copy() if xy is not None and files.features.swap_xy else xy


def _scaled(xy: NDArray[Any] | None, factor: float) -> NDArray[Any]:
    """Positions (n, 2) in the pixels of the case's first slide: slides of one case may be scanned at different magnifications."""
    assert xy is not None
    exact = xy.astype(np.int64 if np.issubdtype(xy.dtype, np.integer) else np.float64)
    return exact if factor == 1 else exact * factor
