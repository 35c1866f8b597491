"""What is predicted: the loss, the reading of the logits and the metrics of subtyping and of survival."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from milbench import stats
from milbench.datasets import Dataset, Sample
from milbench.errors import MilbenchError


class Subtyping:
    """Slide classification with cross-entropy, without class weights.

    Args:
        classes: names of the classes.
    """

    name: ClassVar[str] = "subtyping"
    metric: ClassVar[str] = "macro_auc"  # what selects an epoch

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.n_out = len(self.classes)

    def target(self, sample: Sample) -> Tensor:
        """The class index, () int64."""
        return torch.tensor(sample.label)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy. logits: (C,), target: () int64."""
        return F.cross_entropy(logits[None], target[None])

    def scores(self, logits: Tensor) -> Tensor:
        """Class probabilities (C,)."""
        return logits.softmax(dim=-1)

    def columns(self, sample: Sample, score: NDArray[np.float32]) -> dict[str, Any]:
        """One row of predictions.csv."""
        return {"target": sample.label, **{f"p{c}": value for c, value in enumerate(score)}}

    def metrics(self, samples: Sequence[Sample], scores: NDArray[np.float32]) -> dict[str, Any]:
        """Every stored metric. scores: (n, C)."""
        return stats.of_subtyping(np.array([s.label for s in samples]), scores)


class SurvivalTarget(NamedTuple):
    """bin: () int64, the time bin; event: () bool, False when censored."""

    bin: Tensor
    event: Tensor


def survival_nll(logits: Tensor, bin: Tensor, event: Tensor, alpha: float = 0.0) -> Tensor:
    """Discrete-time negative log-likelihood (Zadeh & Schmid 2020).

    Hazard h_b = sigmoid(logit_b), survival S_b = prod_{j <= b} (1 - h_j), S_{-1} = 1. An event in bin Y costs
    -log S_{Y-1} - log h_Y, a censored case -log S_Y. loss = (1 - alpha) (both) + alpha (events); arguments of log >= 1e-7.

    Args:
        logits: (..., bins). bin: (...) int64. event: (...) bool. alpha: extra weight of the events.

    Returns:
        (...).

    Source: the NLL of mahmoodlab/Patch-GCN and HIPT, whose tables use alpha = 0.
    """
    hazard = logits.sigmoid()
    survival = (1 - hazard).cumprod(dim=-1)  # (..., bins)
    padded = torch.cat([torch.ones_like(survival[..., :1]), survival], dim=-1)  # S_{-1} first
    at = bin[..., None]
    log = lambda x: x.gather(-1, at)[..., 0].clamp(min=1e-7).log()  # noqa: E731
    uncensored = -event.to(logits.dtype) * (log(padded) + log(hazard))
    censored = -(~event).to(logits.dtype) * log(survival)
    return (1 - alpha) * (censored + uncensored) + alpha * uncensored


class Survival:
    """Discrete-time survival: one hazard per time bin.

    Args:
        edges: inner edges of the bins, ascending; a time equal to an edge falls in the later bin.
        n_out: number of bins.
    """

    name: ClassVar[str] = "survival"
    metric: ClassVar[str] = "c_index"

    def __init__(self, edges: Sequence[float], n_out: int = 4) -> None:
        self.edges = np.asarray(edges, dtype=np.float64)
        self.n_out = n_out

    @classmethod
    def from_train(cls, samples: Sequence[Sample], n_out: int = 4) -> Survival:
        """Bins from the training fold only: quantiles of the times of its events, so that each bin holds as many.

        Times outside their range fall in the first or last bin.

        Raises:
            MilbenchError: no event among `samples`.
        """
        times = [s.time for s in samples if s.event]
        if not times:
            raise MilbenchError("no events in the training fold: survival cannot be fitted; merge folds or follow up longer")
        return cls(np.quantile(np.array(times, dtype=np.float64), np.arange(1, n_out) / n_out).tolist(), n_out)

    def target(self, sample: Sample) -> SurvivalTarget:
        """Time bin and event."""
        if sample.time is None:
            raise MilbenchError(f"case {sample.id} has no follow-up time")
        return SurvivalTarget(
            torch.tensor(int(np.searchsorted(self.edges, sample.time, side="right"))), torch.tensor(bool(sample.event))
        )

    def loss(self, logits: Tensor, target: SurvivalTarget) -> Tensor:
        """NLL with alpha = 0, as in the published tables. logits: (bins,)."""
        return survival_nll(logits, target.bin, target.event)

    def scores(self, logits: Tensor) -> Tensor:
        """Risk (): minus the sum of the survival curve, so higher means earlier failure."""
        return -(1 - logits.sigmoid()).cumprod(dim=-1).sum(dim=-1)

    def columns(self, sample: Sample, score: NDArray[np.float32]) -> dict[str, Any]:
        """One row of predictions.csv."""
        return {"time": sample.time, "event": int(bool(sample.event)), "risk": score}

    def metrics(self, samples: Sequence[Sample], scores: NDArray[np.float32]) -> dict[str, Any]:
        """Every stored metric. scores: (n,)."""
        time = np.array([s.time for s in samples], dtype=np.float64)
        event = np.array([bool(s.event) for s in samples])
        return {**stats.of_survival(time, event, scores), "bin_edges": self.edges.tolist()}


def for_fold(dataset: Dataset, train: Sequence[str]) -> Subtyping | Survival:
    """The dataset's task, with anything it must learn learnt from the training fold."""
    if dataset.task == "subtyping":
        return Subtyping(dataset.classes)
    return Survival.from_train([dataset.sample(id) for id in train])
