"""AMISL: a slide is a handful of tissue phenotypes, each the mean of its patches (DeepAttnMISL; Yao et al., MedIA 2020).

Patches are assigned to k-means clusters fitted on training slides; attention weighs the clusters, not the patches.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from milbench import Aggregator, Bag, MilbenchError, Prediction, register
from milbench.nn import AttentionScore
from milbench.recipes import HIPT_SURVIVAL_LOOP


def lloyd(x: Tensor, centroids: Tensor, rounds: int = 100) -> Tensor:
    """k-means from given centroids, until no point changes its cluster. A cluster that loses all its points stays where it is.

    Args:
        x: (n, d). centroids: (K, d). rounds: at most so many.

    Returns:
        (K, d).
    """
    nearest = None
    for _ in range(rounds):
        previous, nearest = nearest, torch.cdist(x, centroids).argmin(dim=1)  # (n,)
        if previous is not None and torch.equal(nearest, previous):
            break
        total = torch.zeros_like(centroids).index_add(0, nearest, x)
        count = nearest.bincount(minlength=len(centroids))[:, None]  # (K, 1)
        centroids = torch.where(count > 0, total / count.clamp(min=1), centroids)
    return centroids


def kmeans(x: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Lloyd's algorithm from k-means++ seeds, each drawn in proportion to the squared distance from the seeds before it.

    Args:
        x: (n, d).

    Returns:
        (clusters, d); fewer distinct points than clusters give repeated centroids, of which the later ones stay empty.
    """
    seeds = [x[torch.randint(len(x), (), generator=generator)]]
    distance = x.new_full((len(x),), torch.inf)
    for _ in range(clusters - 1):
        distance = torch.minimum(distance, (x - seeds[-1]).square().sum(dim=1))  # (n,)
        chance = distance if distance.any() else torch.ones_like(distance)
        seeds.append(x[torch.multinomial(chance, 1, generator=generator)[0]])
    return lloyd(x, torch.stack(seeds))


@register("amisl", label="AMISL", family="structure", member=1, cite="yao2020", version=1)
class AMISL(Aggregator):
    """Attention over phenotype clusters.

    hipt: c_k = mean of MLP_k(x) over cluster k, one MLP per cluster; u = relu(W c); gated attention over all K; rho; head.
    original: c_k = mean of relu(W x), one W for all; plain attention over the clusters that are not empty; rho; head.

    Args:
        in_dim: width d of an instance.
        n_out: number of classes, or of time bins for survival.
        lineage: "hipt", the "MI-FCN" of Patch-GCN and HIPT, is what the survival tables print; "original" is DeepAttnMISL.
        clusters: how many phenotypes K.
        hidden: width of a projected instance; None for the lineage's own: 512 (384 where d = 384), or 64.
        attention_dim: width of the scoring network and of rho; None for the lineage's own: 256, or 32.
        dropout: in training; None for the lineage's own: 0.25, or 0.5 (there after rho only).
        fit_on: how many training patches k-means sees, the same number from each bag that has them.

    Source: HIPT and mahmoodlab/Patch-GCN (MIL_Cluster_FC); uta-smile/DeepAttnMISL (DeepAttnMIL_Surv). Traps: an empty cluster is
    a zero vector which takes part in the attention (hipt) or is masked (original, whose softmax subtracts a maximum over masked
    scores but exponentiates unmasked ones: equal to ours until it overflows); the MLP of a cluster that a bag lacks gets no
    gradient from it. Deviations: clusters come from training bags only, fitted once per fold (published code clusters each
    patient, or the whole cohort); any width (the original's is 4096); the original's Cox loss on 16 patients and its L1 penalty
    are the task's loss on one bag. Official weights hold no centroids: after `load_official` they are those of `prepare`.
    Checkpoints: state dicts of MIL_Cluster_FC_surv of Patch-GCN and HIPT, and of DeepAttnMIL_Surv with lineage=original.
    """

    complexity = "n"
    official_names = {
        "attention_net.0": "project.0",  # hipt
        "attention_net.3.attention_a.0": "score.tanh_branch",
        "attention_net.3.attention_b.0": "score.sigmoid_branch",
        "attention_net.3.attention_c": "score.out",
        "classifier": "head",
        "embedding_net": "project",  # original
        "attention.0": "score.tanh_branch",
        "attention.2": "score.out",
        "fc6.0": "rho.0",
        "fc6.3": "head",
    }
    official_recipe = {"survival": HIPT_SURVIVAL_LOOP}
    centroids: Tensor

    def __init__(
        self,
        in_dim: int,
        n_out: int,
        *,
        lineage: Literal["hipt", "original"] = "hipt",
        clusters: int = 10,
        hidden: int | None = None,
        attention_dim: int | None = None,
        dropout: float | None = None,
        fit_on: int = 20_000,
    ) -> None:
        super().__init__(in_dim, n_out)
        hipt = lineage == "hipt"
        hidden = hidden or ((384 if in_dim == 384 else 512) if hipt else 64)
        attention_dim = attention_dim or (256 if hipt else 32)
        p = dropout if dropout is not None else 0.25 if hipt else 0.5
        self.lineage, self.hidden, self.fit_on = lineage, hidden, fit_on
        if hipt:
            layers = [(nn.Linear(in_dim, hidden), nn.Linear(hidden, hidden)) for _ in range(clusters)]
            self.phis = nn.ModuleList(
                nn.Sequential(first, nn.ReLU(), nn.Dropout(p), second, nn.ReLU(), nn.Dropout(p)) for first, second in layers
            )
        self.project = nn.Sequential(nn.Linear(hidden if hipt else in_dim, hidden), nn.ReLU(), nn.Dropout(p if hipt else 0.0))
        self.score = AttentionScore(hidden, attention_dim, gated=hipt, dropout=p if hipt else 0.0)
        self.rho = nn.Sequential(nn.Linear(hidden, attention_dim), nn.ReLU(), nn.Dropout(p))
        self.head = nn.Linear(attention_dim, n_out)
        self.register_buffer("centroids", torch.full((clusters, in_dim), torch.nan))  # unknown until `prepare`

    @classmethod
    def official(cls, params: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        """The original's loop is not ours: it takes 16 patients a step and another loss."""
        return cls.official_recipe if params["lineage"] == "hipt" else {}

    def prepare(self, train_bags: Sequence[Bag], generator: torch.Generator) -> None:
        """Fit the clusters, on the CPU wherever the model is, so that they are the same."""
        share = -(-self.fit_on // len(train_bags))
        sample = [
            bag.features[torch.randperm(len(bag), generator=generator)[:share].to(bag.features.device)].cpu()
            for bag in train_bags
        ]
        self.centroids.copy_(kmeans(torch.cat(sample), len(self.centroids), generator))

    def assign(self, x: Tensor) -> Tensor:
        """The nearest centroid of each patch: (n, d) -> (n,) int64.

        Raises:
            MilbenchError: there are no centroids yet.
        """
        if self.centroids.isnan().any():
            raise MilbenchError(
                "amisl has no clusters yet: call prepare(train_bags, generator), or load a state dict that holds them"
            )
        with torch.no_grad():
            return torch.cdist(x, self.centroids).argmin(dim=1)

    def forward(self, bag: Bag, clusters: Tensor | None = None) -> Prediction:
        """Predict one bag; `clusters` (n,) int64 instead of the nearest centroids. extras: clusters (n,), attention (K,)."""
        x = bag.features
        clusters = self.assign(x) if clusters is None else clusters
        count = clusters.bincount(minlength=len(self.centroids))  # (K,)
        if self.lineage == "hipt":
            parts = x[clusters.argsort(stable=True)].split(count.tolist())  # K of (n of the cluster, d)
            means = [
                phi(part).mean(dim=0) if len(part) else x.new_zeros(self.hidden)
                for phi, part in zip(self.phis, parts, strict=True)
            ]
            u = self.project(torch.stack(means))  # (K, hidden)
            score = self.score(u)  # (K, 1)
        else:
            h = self.project(x)  # (n, hidden)
            u = h.new_zeros(len(count), h.shape[1]).index_add(0, clusters, h) / count.clamp(min=1)[:, None]  # (K, hidden)
            score = self.score(u).masked_fill(count[:, None] == 0, -torch.inf)  # (K, 1)
        weight = score.softmax(dim=0)  # (K, 1)
        z = self.rho((weight * u).sum(dim=0))  # (attention_dim,)
        share = weight[:, 0] / count.clamp(min=1)  # (K,), the weight of one patch of each cluster
        return Prediction(self.head(z), share[clusters], {"clusters": clusters, "attention": weight[:, 0]})

    def rename_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Official weights hold no centroids, and the original's projection is a 1x1 convolution."""
        renamed = {
            name: value[:, :, 0, 0] if value.ndim == 4 else value for name, value in super().rename_official(state_dict).items()
        }
        return {**renamed, "centroids": renamed.get("centroids", self.centroids)}
