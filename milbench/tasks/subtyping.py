"""Subtyping: which class a slide belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from milbench import stats
from milbench.datasets import Dataset, Sample
from milbench.tasks.base import Task


class Subtyping(Task):
    """Slide classification with cross-entropy, without class weights.

    Args:
        classes: names of the classes.
    """

    name: ClassVar[str] = "subtyping"
    metric: ClassVar[str] = "macro_auc"

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.n_out = len(self.classes)

    @classmethod
    def of_fold(cls, dataset: Dataset, train: Sequence[str]) -> Subtyping:
        """The classes of the dataset; nothing is learnt."""
        return cls(dataset.classes)

    def target(self, sample: Sample) -> Tensor:
        """The class index, () int64."""
        return torch.tensor(sample.label)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy. logits: (C,), target: () int64."""
        return F.cross_entropy(logits[None], target[None])

    def scores(self, logits: Tensor) -> Tensor:
        """Class probabilities (C,)."""
        return logits.softmax(dim=-1)

    def stratum(self, target: Tensor) -> int:
        """The class."""
        return int(target)

    def columns(self, sample: Sample, score: NDArray[np.float32]) -> dict[str, Any]:
        """The class and the probability of each class."""
        return {"target": sample.label, **{f"p{c}": value for c, value in enumerate(score)}}

    def metrics(self, samples: Sequence[Sample], scores: NDArray[np.float32]) -> dict[str, Any]:
        """Every stored metric. scores: (n, C)."""
        return stats.of_subtyping(np.array([s.label for s in samples]), scores)
