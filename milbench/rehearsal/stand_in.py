"""Datasets of stand-in bags, whose features are noise.

Slides, splits and widths are the real ones where they are here, and as published where they are not.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import accumulate, pairwise
from typing import Any

import torch

from milbench import datasets
from milbench.bags import Bag
from milbench.config import Settings
from milbench.datasets import ENCODERS, Dataset, Fold, Sample, splits
from milbench.datasets.cohorts import COHORTS, Cohort
from milbench.errors import MilbenchError, NotHere
from milbench.seeds import derive_seed
from milbench.trials.plan import Job

SPREAD = 0.5  # of the logarithm of made-up sizes
SMALLEST = 16  # instances of a stand-in bag
UNKNOWN_WIDTH = 1024


@cache
def stand_in(
    scale: float,
    name: str,
    encoder: str,
    magnification: int | None = None,
    patch_size: int | None = None,
    dtype: Any = "float32",
    settings: Settings | None = None,
) -> Dataset:
    """The dataset with generated bags `scale` times smaller than its own; its `sizes` are the real ones, or made up.

    Args:
        scale: real bags are this much larger.
        name, encoder, magnification, patch_size, dtype, settings: as :func:`milbench.datasets.load` takes them.

    Raises:
        MilbenchError: an unknown dataset.
        NotHere: a dataset that is not here and of which nothing is published.
    """
    try:
        real = datasets.load(name, encoder, magnification, patch_size, dtype=dtype, settings=settings)
    except NotHere:
        if name not in COHORTS:
            raise
        real = _made_up(name, COHORTS[name], encoder, magnification or 20, patch_size or COHORTS[name].patch_size)
    sizes = dict(real.sizes()) if real.sizes else {s.id: len(real.read(s.id)) for s in real.samples}
    parts = {**_splits(COHORTS[name], real.samples, sizes), **real.splits} if name in COHORTS else real.splits

    def read(id: str) -> Bag:
        n = max(SMALLEST, round(sizes[id] / scale))
        generator = torch.Generator().manual_seed(derive_seed("rehearsal", id))
        features = torch.randn(n, real.in_dim, generator=generator)  # (n, d)
        step = (patch_size or 256) * 40 / (magnification or 20)
        coords = _tissue(n, generator) * step if real.has_coords else None
        return Bag(features, coords, step if real.has_coords else None, slide_id=id, case_id=id, source="stand-in")

    return replace(real, read=read, splits=parts, fingerprint=f"REHEARSAL:{scale:g}:{real.fingerprint}", sizes=lambda: sizes)


def dataset_of(job: Job, scale: float, settings: Settings | None) -> Dataset:
    """The stand-in dataset of a job."""
    s = job.spec
    return stand_in(scale, s.dataset, s.encoder, s.magnification, s.patch_size, dtype=s.feature_dtype, settings=settings)


def sizes_of(dataset: Dataset) -> Mapping[str, int]:
    """Instances of each real bag, which a stand-in dataset always knows."""
    assert dataset.sizes is not None
    return dataset.sizes()


def _tissue(n: int, generator: torch.Generator) -> torch.Tensor:
    """(n, 2) cells of a ragged disc, row by row."""
    side = math.ceil(math.sqrt(2 * n)) + 1
    cells = torch.cartesian_prod(torch.arange(side), torch.arange(side))  # (side^2, 2)
    far = (cells - side / 2).norm(dim=1) + side / 4 * torch.rand(len(cells), generator=generator)
    return cells[far.argsort()[:n].sort().values].flip(1).float()


def _uniform(*axes: object) -> float:
    """From 0 up to 1, the same for the same axes."""
    return derive_seed("rehearsal", *axes) / 2**63


def _unread(id: str) -> Bag:
    raise MilbenchError(f"{id} is made up and has no features")


def _made_up(name: str, cohort: Cohort, encoder: str, magnification: int, patch_size: int) -> Dataset:
    """As many samples as published, with sizes around the average."""
    strata = [c for c, count in enumerate(cohort.counts) for _ in range(count)]
    ids = sorted((f"{name}-{i:04d}" for i in range(len(strata))), key=lambda id: hashlib.sha256(id.encode()).digest())
    samples = tuple(
        Sample(id, id, label=c)
        if cohort.task == "subtyping"
        else Sample(id, id, time=1 + 99 * _uniform(id, "time"), event=c == 1)
        for id, c in zip(ids, strata, strict=True)
    )
    mean = cohort.instances * (magnification / 20) ** 2 * (cohort.patch_size / patch_size) ** 2

    def size(id: str) -> int:
        normal = math.sqrt(-2 * math.log(1 - _uniform(id, 0))) * math.cos(2 * math.pi * _uniform(id, 1))
        return max(SMALLEST, round(mean * math.exp(SPREAD * normal - SPREAD**2 / 2)))

    sizes = {s.id: size(s.id) for s in samples}
    return Dataset(
        name=name,
        label=cohort.label,
        task=cohort.task,
        unit=cohort.unit,
        classes=cohort.classes,
        samples=samples,
        read=_unread,
        in_dim=ENCODERS.get(encoder, UNKNOWN_WIDTH),
        has_coords=True,
        encoder=encoder,
        fingerprint="made up",
        splits={},  # stand_in adds them
        magnification=magnification,
        patch_size=patch_size,
        sizes=lambda: sizes,
    )


def _splits(cohort: Cohort, samples: Sequence[Sample], sizes: Mapping[str, int]) -> dict[str, Callable[[], Sequence[Fold]]]:
    """Stand-ins for the published splits, with parts as large as theirs, and the splits that any dataset has."""
    order = sorted(sizes, key=lambda id: hashlib.sha256(id.encode()).digest())

    def folds(parts: Sequence[Sequence[int]]) -> list[Fold]:
        made = []
        for number, lengths in enumerate(parts):
            turn = number * len(order) // len(parts)
            ids = order[turn:] + order[:turn]
            ends = [round(len(ids) * end / sum(lengths)) for end in accumulate(lengths)]
            made.append(Fold(*(tuple(ids[start:end]) for start, end in pairwise([0, *ends]))))
        return made

    return {
        **{name + twin: partial(folds, parts) for name, parts in cohort.splits.items() for twin in ("", "-grouped")},
        **{f"kfold{k}": partial(splits.k_fold, samples, k) for k in (5, 10)},
        "extrapolation": partial(splits.extrapolation, samples, sizes),
        "extrapolation-mixed": partial(splits.extrapolation, samples, sizes, mixed=True),
    }
