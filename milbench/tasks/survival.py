"""Survival: how early a case fails, from hazards in time bins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from milbench import stats
from milbench.datasets import Dataset, Sample
from milbench.errors import MilbenchError
from milbench.tasks.base import Task


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


class Survival(Task):
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
    def of_fold(cls, dataset: Dataset, train: Sequence[str]) -> Survival:
        """Four time bins, from the training samples."""
        return cls.from_train([dataset.sample(id) for id in train])

    @classmethod
    def from_train(cls, samples: Sequence[Sample], n_out: int = 4) -> Survival:
        """Edges are quantiles of the event times of `samples`, the training part, so that bins hold equally many events.

        A time before the first edge falls in the first bin, a time after the last edge in the last.

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

    def stratum(self, target: SurvivalTarget) -> tuple[int, int]:
        """Time bin and event."""
        return int(target.bin), int(target.event)

    def columns(self, sample: Sample, score: NDArray[np.float32]) -> dict[str, Any]:
        """Follow-up time, event and risk."""
        return {"time": sample.time, "event": int(bool(sample.event)), "risk": score}

    def metrics(self, samples: Sequence[Sample], scores: NDArray[np.float32]) -> dict[str, Any]:
        """Every stored metric. scores: (n,)."""
        time = np.array([s.time for s in samples], dtype=np.float64)
        event = np.array([bool(s.event) for s in samples])
        return {**stats.of_survival(time, event, scores), "bin_edges": self.edges.tolist()}
