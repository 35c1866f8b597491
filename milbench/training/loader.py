"""The bags of a fold, read when they are asked for, standardised with training statistics, and in which order they are shown."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from milbench.bags import Bag
from milbench.datasets import Dataset, Fold
from milbench.recipes import Recipe
from milbench.seeds import derive_seed


class Standardiser:
    """Zero mean and unit variance per feature, learnt from training bags only.

    Args:
        mean: (d,). scale: (d,), 1 where a feature is constant.
    """

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        self.mean, self.scale = mean, scale

    @classmethod
    def from_bags(cls, bags: Iterator[Bag]) -> Standardiser:
        """Two sums in float64 over every instance of the bags; O(d) memory."""
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for bag in bags:
            x = bag.features.double()
            count, total, squares = count + len(x), total + x.sum(0), squares + (x * x).sum(0)
        mean = total / count
        std = (squares / count - mean**2).clamp(min=0).sqrt()
        return cls(mean.float(), torch.where(std > 1e-6 * mean.abs().clamp(min=1e-6), std, 1.0).float())

    @classmethod
    def of_fold(cls, dataset: Dataset, fold: Fold) -> Standardiser:
        """Learnt from the fold's training part."""
        return cls.from_bags(dataset.read(id) for id in fold.train)

    def __call__(self, features: Tensor) -> Tensor:
        """(n, d) -> (n, d)."""
        return (features - self.mean) / self.scale


class Bags(Sequence[Bag]):
    """The bags of one part of a fold, checked when first read; `instances` are the sizes of those read so far."""

    def __init__(
        self, dataset: Dataset, ids: Sequence[str], *, device: str = "cpu", standardise: Standardiser | None = None
    ) -> None:
        self.samples = [dataset.sample(id) for id in ids]
        self._dataset, self._device, self._standardise = dataset, device, standardise
        self.instances: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        id = self.samples[index].id
        bag = self._dataset.read(id)
        if id not in self.instances:
            self.instances[id] = len(bag.check(self._dataset.in_dim))
        if self._standardise is not None:
            bag = bag.with_features(self._standardise(bag.features))
        return bag.to(self._device)


class FoldStatistics:
    """The training statistics of the fold that was asked for last, so that the many trials of a fold read all its bags once.

    A worker has one of these and passes it to its trials.
    """

    def __init__(self) -> None:
        self._key: Hashable = None
        self._last: Standardiser | None = None

    def standardiser(self, dataset: Dataset, fold: Fold, key: Hashable) -> Standardiser:
        """The statistics of the fold's training bags.

        Args:
            dataset, fold: which bags.
            key: says which data these are; equal keys mean equal training bags.
        """
        if self._last is None or key != self._key:
            self._last, self._key = Standardiser.of_fold(dataset, fold), key
        return self._last


def fold_bags(
    dataset: Dataset, fold: Fold, *, standardiser: Standardiser | None = None, device: str = "cpu"
) -> tuple[Bags, Bags | None, Bags]:
    """Train, validation (None where empty) and test bags of a fold.

    Args:
        dataset, fold: which bags.
        standardiser: of the fold's training bags; None leaves features as they are.
        device: where bags go when they are read.
    """
    train, val, test = (Bags(dataset, ids, device=device, standardise=standardiser) for ids in fold)
    return train, (val if len(val) else None), test


class BagOrder:
    """Which training bags each epoch shows, in order. It depends on the recipe, the strata and the axes only.

    The bags are gone through again and again, each pass in an order of its own; an epoch takes the next `epoch_bags` of them.

    Args:
        strata: of each training bag (:meth:`milbench.tasks.Task.stratum`).
        recipe: gives `sampling` and `epoch_bags`.
        axes: named axes that the order is derived from.
    """

    def __init__(self, strata: Sequence[object], recipe: Recipe, axes: Sequence[object]) -> None:
        self._strata, self._sampling, self._axes = strata, recipe.sampling, axes
        self.shown = recipe.epoch_bags or len(strata)  # bags an epoch

    def epoch(self, number: int) -> list[int]:
        """Indices of the bags that epoch `number`, from 1 on, shows."""
        n = len(self._strata)
        start, stop = (number - 1) * self.shown, number * self.shown
        first = start // n
        order = [i for at in range(first, -(-stop // n)) for i in self._pass(at + 1)]
        return order[start - first * n : stop - first * n]

    def _pass(self, number: int) -> list[int]:
        generator = torch.Generator().manual_seed(derive_seed(*self._axes, "order", number))
        n = len(self._strata)
        if self._sampling == "shuffle":
            return torch.randperm(n, generator=generator).tolist()
        weight = torch.tensor([1 / self._strata.count(stratum) for stratum in self._strata])
        return torch.multinomial(weight, n, replacement=True, generator=generator).tolist()
