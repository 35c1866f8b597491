"""What an analysis looks at: models of stored trials or with fresh weights, and the bags they are shown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from milbench import datasets, plugins, process, tasks
from milbench.aggregator import Aggregator
from milbench.bags import Bag
from milbench.config import Settings
from milbench.datasets import Dataset, Fold
from milbench.datasets.files import formats
from milbench.errors import MilbenchError, unknown
from milbench.plugins import Variant
from milbench.seeds import derive_seed
from milbench.training import Bags, Standardiser
from milbench.trials.run import build_model
from milbench.trials.spec import TrialSpec
from milbench.trials.store import MODEL, Store


def read_features(path: Path, step: float | None = None, *, swap_xy: bool = False) -> Bag:
    """The bag in a feature file (see :mod:`milbench.datasets.files.formats`); its stem is the slide.

    Args:
        path: the file.
        step: level-0 pixels between neighbouring patches, where neither the file nor CLAM's patches file says it.
        swap_xy: positions stand in the file as (y, x).

    Raises:
        MilbenchError: not a feature file, or positions without a step.
    """
    if not path.is_file() or path.suffix not in (".h5", ".pt", ".npz"):
        raise MilbenchError(f"--features {path}: no .h5, .pt or .npz file")
    patches = formats.layout(path.parent).patches_of(path)
    features, coords = formats.read(path, patches)
    if coords is None:
        return Bag(torch.from_numpy(features), slide_id=path.stem, case_id=path.stem, source=str(path))
    step = step or formats.inspect(path, patches).step
    if not step:
        raise MilbenchError(f"{path}: says nowhere how far apart patches are; give --step in level-0 pixels")
    xy = torch.from_numpy(coords[:, ::-1].copy() if swap_xy else coords)
    return Bag(torch.from_numpy(features), xy, step, slide_id=path.stem, case_id=path.stem, source=str(path))


def facts(path: Path) -> formats.Facts:
    """What a feature file says of itself: the slide's size, the side of a patch, and more.

    Raises:
        MilbenchError: not a feature file.
    """
    return formats.inspect(path, formats.layout(path.parent).patches_of(path))


@dataclass(frozen=True)
class Trained:
    """A trial of the results store whose weights were kept.

    Args:
        spec: the trial.
        variant: the method with its parameters.
        weights: the file.
        dataset: the trial's.
    """

    spec: TrialSpec
    variant: Variant
    weights: Path
    dataset: Dataset

    @classmethod
    def find(cls, store: Store, trial_id: str, settings: Settings | None = None) -> Trained:
        """The trial `trial_id`, or the only one whose id begins so.

        Args:
            store: where the results are.
            trial_id: of the trial, or how it begins.
            settings: where datasets are; None is what the environment says.

        Raises:
            MilbenchError: no or several such trials, no weights, another implementation, or its data are not here.
        """
        matching = [known for known in store.ids() if known.startswith(trial_id)]
        if trial_id not in matching and len(matching) != 1:
            raise MilbenchError(f"{store.trials}: {'several trials begin' if matching else 'no trial begins'} with {trial_id!r}")
        result = store.read(trial_id if trial_id in matching else matching[0])
        assert result is not None
        spec = result.spec
        if MODEL not in result.sha256:
            raise MilbenchError(
                f"trial {result.trial_id} ({result.status}) kept no weights; run its suite with --keep-models all"
            )
        store.verified(result.model_dump(), MODEL)
        weights = store.folder(result.trial_id) / MODEL  # trials with weights are never packed
        entry = plugins.resolve(spec.aggregator).entry
        usual = entry.parameters().model_dump()
        changes = {name: value for name, value in spec.params.items() if value != usual.get(name)}
        variant = Variant(entry, spec.params, changes)
        if variant.implementation != spec.implementation:
            raise MilbenchError(
                f"trial {result.trial_id} was trained by {spec.implementation}, here is {variant.implementation}; run it again"
            )
        where = (spec.dataset, spec.encoder, spec.magnification, spec.patch_size)
        dataset = datasets.load(*where, dtype=spec.feature_dtype, settings=settings)
        return cls(spec.model_copy(update={"device": "cpu"}), variant, weights, dataset)

    @cached_property
    def fold(self) -> Fold:
        """The trial's fold."""
        return self.dataset.folds(self.spec.split)[self.spec.fold]

    @cached_property
    def task(self) -> tasks.Task:
        """What the trial predicts."""
        return tasks.for_fold(self.dataset, self.fold.train)

    @cached_property
    def standardise(self) -> Standardiser | None:
        """What the trial did to features before they reached the model."""
        return Standardiser.from_bags(self.dataset.read(id) for id in self.fold.train) if self.spec.standardise else None

    def model(self, *, trained: bool = True) -> Aggregator:
        """The model as the trial left it, or as it began."""
        process.seed(derive_seed(*self.spec.axes, "weights"))
        model = build_model(self.spec, self.dataset, self.task.n_out)
        if trained:
            others = {name: value for name, value in model.state_dict().items() if not isinstance(value, Tensor)}
            model.load_state_dict(others | safetensors.torch.load_file(self.weights))  # get_extra_state is not in the file
        return model.eval()

    def bag(self, id: str) -> Bag:
        """A bag of the trial's dataset, as the model saw it."""
        return of_dataset(self.dataset, id, self.standardise)

    def prepared(self, bag: Bag) -> Bag:
        """A bag from a file, as the model would have seen it."""
        bag = bag.check(self.dataset.in_dim)
        return bag if self.standardise is None else bag.with_features(self.standardise(bag.features))


def labels(trials: Sequence[Trained]) -> list[str]:
    """What figures call the trials: the method, and the start of the trial's id where a method comes more than once."""
    methods = [trial.variant.label for trial in trials]
    return [
        method if methods.count(method) == 1 else f"{method} ({trial.spec.trial_id[:6]})"
        for method, trial in zip(methods, trials, strict=True)
    ]


def of_dataset(dataset: Dataset, id: str, standardise: Standardiser | None = None) -> Bag:
    """One bag of a dataset.

    Raises:
        MilbenchError: no such slide or case.
    """
    known = [sample.id for sample in dataset.samples]
    if id not in known:
        raise unknown(f"{dataset.unit} of dataset {dataset.name}", id, known)
    return Bags(dataset, [id], standardise=standardise)[0]


def fresh(name: str, in_dim: int, n_out: int = 2, seed: int = 0) -> Aggregator:
    """The aggregator `name` with random weights."""
    process.seed(seed)
    return plugins.resolve(name).build(in_dim, n_out).eval()


def file_name(*parts: Any) -> str:
    """The parts as a name that any file system takes."""
    return "-".join(re.sub(r"[^A-Za-z0-9._]+", "-", str(part)).strip("-") for part in parts)


def one_of_each(names: Sequence[str]) -> str:
    """`a-b-c`, or `a-and-5-more`: a short name for a set of things."""
    names = list(dict.fromkeys(names))
    return file_name(*names) if len(names) <= 3 else f"{file_name(names[0])}-and-{len(names) - 1}-more"
