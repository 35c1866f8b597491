"""What a task is: a target for each sample, a loss, scores that the metrics read, and the metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from milbench.datasets import Dataset, Sample


class Task(ABC):
    """What is predicted of a bag. Also what an aggregator may ask for (:class:`milbench.aggregator.Task`).

    Args:
        n_out: length of the logits.
    """

    name: ClassVar[str]
    metric: ClassVar[str]  # of the validation part, higher is better: it selects the epoch
    n_out: int

    @classmethod
    @abstractmethod
    def of_fold(cls, dataset: Dataset, train: Sequence[str]) -> Task:
        """The dataset's task. What must be learnt (edges of time bins) comes from the training samples only.

        Args:
            dataset: which samples.
            train: ids of the training part.
        """

    @abstractmethod
    def target(self, sample: Sample) -> Any:
        """What the loss compares with: a tensor, or a named tuple of tensors."""

    @abstractmethod
    def loss(self, logits: Tensor, target: Any) -> Tensor:
        """The loss of one bag, (). logits: (n_out,)."""

    @abstractmethod
    def scores(self, logits: Tensor) -> Tensor:
        """What the metrics read: class probabilities (C,), or the risk (). logits: (n_out,)."""

    @abstractmethod
    def stratum(self, target: Any) -> object:
        """What `sampling = "class-balanced"` draws equally often."""

    @abstractmethod
    def columns(self, sample: Sample, score: NDArray[Any]) -> dict[str, Any]:
        """One row of predictions.csv, from the target on."""

    @abstractmethod
    def metrics(self, samples: Sequence[Sample], scores: NDArray[Any]) -> dict[str, Any]:
        """Every stored metric. scores: (n, ...) as :meth:`scores` gives them."""


def to_device(target: Any, device: str | torch.device) -> Any:
    """A target, a tensor or a named tuple of tensors, on that device."""
    return target.to(device) if isinstance(target, Tensor) else type(target)(*(part.to(device) for part in target))
