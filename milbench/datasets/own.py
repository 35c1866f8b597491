"""A dataset of one's own, as trials see it: from its manifest to bags."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from milbench.bags import Bag
from milbench.config import Settings
from milbench.datasets import formats, splits
from milbench.datasets.base import Dataset, Fold, Sample
from milbench.datasets.check import Examined, FeatureSet, examine
from milbench.datasets.findings import many
from milbench.datasets.manifest import Features, Manifest
from milbench.datasets.packed import packed
from milbench.errors import MilbenchError, NotHere


def dataset(
    manifest: Manifest, features: Features, settings: Settings, dtype: Literal["float32", "float16"] = "float32"
) -> Dataset:
    """The dataset with one set of features, checked before it is given away.

    Args:
        manifest, features: which.
        settings: whether and where features are packed.
        dtype: of stored features.

    Raises:
        NotHere: the labels were not added yet.
        MilbenchError: the check finds errors.
    """
    found = examine(manifest, [features])
    found.remember()
    if found.lacking:
        raise NotHere(f"dataset {manifest.name}: {found.lacking}")
    if errors := found.of("error"):
        raise MilbenchError(
            f"dataset {manifest.name} has {many(len(errors), 'error')}; the first: {errors[0]}. "
            f"See all with: milbench data check {manifest.name}"
        )
    (files,) = found.sets
    sizes = {id: sum(files.facts[slide].n for slide in slides) for id, slides in files.slides.items()}
    samples, salt = found.roster.samples, manifest.name
    fingerprint = _fingerprint(found, files)
    read = packed(
        partial(_bag, files, {sample.id: sample for sample in samples}, manifest.unit),
        sizes,
        in_dim=files.in_dim,
        dtype="float16" if dtype == "float16" else files.dtype,
        fingerprint=fingerprint,
        name=f"{manifest.name} {features.name}",
        folder=settings.packs if settings.pack else None,
    )
    given: dict[str, Callable[[], Sequence[Fold]]] = {name: partial(list, folds) for name, folds in found.roster.splits.items()}
    twins = {
        f"{name}-grouped": partial(splits.grouped_twin, samples, folds, salt)
        for name, folds in found.roster.splits.items()
        if name in found.roster.leaking or name.startswith("hipt")
    }
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
        splits={
            **{f"kfold{k}": partial(splits.k_fold, samples, k, salt=salt) for k in (5, 10)},
            "extrapolation": partial(splits.extrapolation, samples, sizes, salt=salt),
            "extrapolation-mixed": partial(splits.extrapolation, samples, sizes, mixed=True, salt=salt),
            **twins,
            **given,
        },
        magnification=features.magnification,
        patch_size=features.patch_size,
        notes=tuple(map(str, found.of("warning"))),
        sizes=lambda: sizes,
    )


def _fingerprint(found: Examined, files: FeatureSet) -> str:
    """Hash of who is in the dataset with which outcome, and of every file's shape, sampled rows and step.

    Names of folders and formats are not in it: the same features elsewhere are the same dataset.
    """
    who = [[s.id, s.case_id, s.label, s.time, s.event] for s in sorted(found.roster.samples, key=lambda sample: sample.id)]
    what = {
        id: [[slide, files.facts[slide].digest, files.steps.get(slide)] for slide in slides]
        for id, slides in files.slides.items()
    }
    classes = list(found.manifest.labels.classes) if found.manifest.labels else []
    text = json.dumps([found.manifest.task, found.manifest.unit, classes, who, what], sort_keys=True)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()[:16]


def _bag(files: FeatureSet, samples: Mapping[str, Sample], unit: str, id: str) -> Bag:
    """Read one slide, or all slides of a case."""
    slides = files.slides[id]
    read = [formats.read(*files.files[slide]) for slide in slides]
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


def _scaled(xy: NDArray[Any] | None, factor: float) -> NDArray[Any]:
    """Positions (n, 2) in the pixels of the case's first slide: slides of one case may be scanned at different magnifications."""
    assert xy is not None
    exact = xy.astype(np.int64 if np.issubdtype(xy.dtype, np.integer) else np.float64)
    return exact if factor == 1 else exact * factor
