"""k-NN: a slide is the mean or the maximum of its instances, and its nearest training slides vote. Nothing is trained."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from milbench import Aggregator, Bag, MilbenchError, Prediction, register
from milbench.errors import SkipTrial


@register("knn-mean", label="KNN (Mean)", family="pooling", member=2, version=1, preset={"pool": "mean"})
@register("knn-max", label="KNN (Max)", family="pooling", member=3, version=1, preset={"pool": "max"})
class KNN(Aggregator):
    """Vote fractions of the k nearest training slides.

    logits are the log of the fractions, at least log(1e-6), so that softmax gives the fractions back. With k = 5 and uniform
    votes a class score takes six values, which makes the AUC coarse.

    Args:
        in_dim: width d of an instance.
        n_out: number of classes.
        pool: the bag vector, "mean" or element-wise "max" over instances.
        k: neighbours, at most the number of training slides. No paper says how many; 5 with uniform votes and Euclidean distance
            is scikit-learn's default, the likeliest meaning of a row that says no more than KNN.
        metric: "euclidean", or "cosine" for 1 - cosine.
        normalise: of bag vectors: "none", "l2" to unit length, "z" to zero mean and unit variance of each feature over training
            slides. The maximum of raw features is sensitive to their scale: a few wide features decide unless "z" is taken.
        weights: "uniform", or "distance" for votes of 1 / distance, where exact matches outvote all others.

    Source: no official code; the KNN rows of the LongMIL paper, which leave all of the above open and are not defined for
    survival (the trial is skipped). Traps: of equally distant slides the first in training order counts.
    Checkpoints: none, there is nothing to train.
    """

    complexity = "n"
    vectors: Tensor  # (slides, d)
    classes: Tensor  # (slides,)
    centre: Tensor  # (d,)
    scale: Tensor  # (d,)

    def __init__(
        self,
        in_dim: int,
        n_out: int,
        *,
        pool: Literal["mean", "max"] = "mean",
        k: int = 5,
        metric: Literal["euclidean", "cosine"] = "euclidean",
        normalise: Literal["none", "l2", "z"] = "none",
        weights: Literal["uniform", "distance"] = "uniform",
    ) -> None:
        super().__init__(in_dim, n_out)
        if k < 1:
            raise MilbenchError(f"k-NN needs k >= 1, got {k}")
        self.pool, self.k, self.metric, self.normalise, self.weights = pool, k, metric, normalise, weights
        self.register_buffer("vectors", torch.empty(0, in_dim))
        self.register_buffer("classes", torch.empty(0, dtype=torch.int64))
        self.register_buffer("centre", torch.zeros(in_dim))
        self.register_buffer("scale", torch.ones(in_dim))

    def fit(self, bags: Sequence[Bag], targets: Sequence[Any]) -> None:
        """Keep the vector and the class of every training slide.

        Raises:
            SkipTrial: survival targets.
        """
        if not isinstance(targets[0], Tensor):
            raise SkipTrial("k-NN is a vote on classes; the paper defines no k-NN for survival")
        vectors = torch.stack([self.pooled(bag) for bag in bags])  # (slides, d)
        self.classes = torch.stack(list(targets)).to(vectors.device)
        if self.normalise == "z":
            spread = vectors.std(dim=0, correction=0)
            self.centre, self.scale = vectors.mean(dim=0), torch.where(spread > 0, spread, 1.0)
        self.vectors = self.normalised(vectors)

    def pooled(self, bag: Bag) -> Tensor:
        """The vector (d,) of a bag."""
        return bag.features.mean(dim=0) if self.pool == "mean" else bag.features.amax(dim=0)

    def normalised(self, vectors: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        return F.normalize(vectors, dim=-1) if self.normalise == "l2" else (vectors - self.centre) / self.scale

    def forward(self, bag: Bag) -> Prediction:
        """Predict one bag. extras: neighbours (k,), indices of training slides, nearest first; votes (n_out,).

        Raises:
            MilbenchError: before `fit`.
        """
        if not len(self.vectors):
            raise MilbenchError("k-NN has seen no training slides; call fit or load a fitted state dict first")
        x = self.normalised(self.pooled(bag))  # (d,)
        cosine = self.metric == "cosine"
        distance = 1 - F.cosine_similarity(self.vectors, x[None]) if cosine else (self.vectors - x).norm(dim=1)  # (slides,)
        near = distance.argsort(stable=True)[: self.k]  # (k,)
        weight = torch.ones_like(distance) if self.weights == "uniform" else 1 / distance.clamp(min=1e-12)
        votes = weight[near] @ F.one_hot(self.classes[near], self.n_out).to(weight.dtype)  # (n_out,)
        votes = votes / votes.sum()
        return Prediction(logits=votes.clamp(min=1e-6).log(), extras={"neighbours": near, "votes": votes})

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *rest: Any) -> None:
        for name in ("vectors", "classes"):  # as many as there were training slides
            if (saved := state_dict.get(prefix + name)) is not None:
                setattr(self, name, getattr(self, name).new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)
