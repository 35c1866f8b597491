"""Mean- and max-pooling: the baselines that every attention must beat.

Instances are projected and classified one by one; pooling happens on their logits. Neither order nor position matters.
"""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from milbench import Aggregator, Bag, Prediction, register
from milbench.recipes import CLAM_LOOP, HIPT_SURVIVAL_LOOP


class _Pooling(Aggregator):
    """Linear, ReLU, Dropout, Linear per instance: (n, d) -> (n, n_out). With hidden=0 a single Linear."""

    complexity = "n"

    def __init__(self, in_dim: int, n_out: int, hidden: int, dropout: float, rho: int = 0) -> None:
        super().__init__(in_dim, n_out)
        block = lambda d, out: nn.Sequential(nn.Linear(d, out), nn.ReLU(), nn.Dropout(dropout)) if out else nn.Identity()  # noqa: E731
        self.project, self.rho = block(in_dim, hidden), block(hidden or in_dim, rho)
        self.head = nn.Linear(rho or hidden or in_dim, n_out)


@register("mean", label="Mean-pooling", family="pooling", member=0, version=1)
class MeanPooling(_Pooling):
    """The head applied to the mean projected instance, which is the mean of the instances' logits.

    Args:
        in_dim: width d of an instance.
        n_out: number of classes, or of time bins for survival.
        hidden: width of a projected instance; 0 for a linear probe on the mean feature.
        dropout: on projected instances, in training.

        reduce: "sum" adds the projected instances instead, so that larger bags weigh more.
        rho: width of a Linear, ReLU, Dropout between pooling and head; 0 for none. `mean[reduce=sum,rho=256]` is the Deep Sets of
            the Patch-GCN survival tables.

    Source: no official code; the trunk that MambaMIL and MIL_BASELINE share. Published "mean-pooling" rows rarely say which
    trunk they use. Deep Sets: MIL_Sum_FC_surv of mahmoodlab/Patch-GCN, with its survival loop as recipe.
    Checkpoints: MIL_Sum_FC_surv with reduce=sum,rho=256; plain mean-pooling has none.
    """

    official_names = {"phi.0": "project.0", "classifier": "head"}

    def __init__(
        self,
        in_dim: int,
        n_out: int,
        *,
        hidden: int = 512,
        dropout: float = 0.25,
        reduce: Literal["mean", "sum"] = "mean",
        rho: int = 0,
    ) -> None:
        super().__init__(in_dim, n_out, hidden, dropout, rho)
        self.reduce = reduce

    @classmethod
    def official(cls, params: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        """Deep Sets' survival loop."""
        return {"survival": HIPT_SURVIVAL_LOOP} if params["reduce"] == "sum" else {}

    def forward(self, bag: Bag) -> Prediction:
        """Predict one bag."""
        h: Tensor = self.project(bag.features)  # (n, hidden)
        pooled = h.mean(dim=0) if self.reduce == "mean" else h.sum(dim=0)  # (hidden,)
        return Prediction(logits=self.head(self.rho(pooled)))


@register("max", label="Max-pooling", family="pooling", member=1, version=1)
class MaxPooling(_Pooling):
    """The highest logits in the bag.

    Args:
        in_dim: width d of an instance.
        n_out: number of classes, or of time bins for survival.
        hidden: width of a projected instance; 0 for a linear probe.
        dropout: on projected instances, in training.
        pick: "class" takes the maximum of each class on its own, so that classes may come from different instances.
            "instance" takes all logits of one instance: for two classes the one with the highest P(class 1), for more the one
            with the highest probability of any class.

    Source: "class" as in MambaMIL and MIL_BASELINE, "instance" as in mahmoodlab/CLAM (MIL_fc, MIL_fc_mc), whose command line
    calls it model_type mil. That is max pooling, not AB-MIL, whatever a table calls CLAM's "MIL"; its recipe is CLAM's loop.
    Checkpoints: what CLAM saves of model_type mil, with pick=instance.
    """

    official_names = {"fc.0": "project.0", "classifier": "head", "classifiers": "head"}

    def __init__(
        self, in_dim: int, n_out: int, *, hidden: int = 512, dropout: float = 0.25, pick: Literal["class", "instance"] = "class"
    ) -> None:
        super().__init__(in_dim, n_out, hidden, dropout)
        self.pick = pick

    @classmethod
    def official(cls, params: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        """CLAM's loop for its own max pooling."""
        return {"subtyping": CLAM_LOOP} if params["pick"] == "instance" else {}

    def forward(self, bag: Bag) -> Prediction:
        """Predict one bag."""
        logits: Tensor = self.head(self.project(bag.features))  # (n, n_out)
        if self.pick == "class":
            return Prediction(logits=logits.amax(dim=0))
        probability = logits.softmax(dim=1)
        best = probability[:, 1] if self.n_out == 2 else probability.amax(dim=1)  # (n,)
        return Prediction(logits=logits[best.argmax()])
