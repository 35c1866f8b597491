"""Mean- and max-pooling: the baselines that every attention must beat.

Instances are projected and classified one by one; pooling happens on their logits. Neither order nor position matters.
"""

from typing import Literal

from torch import Tensor, nn

from milbench import Aggregator, Bag, Prediction, register


class _Pooling(Aggregator):
    """Linear, ReLU, Dropout, Linear per instance: (n, d) -> (n, n_out). With hidden=0 a single Linear."""

    complexity = "n"

    def __init__(self, in_dim: int, n_out: int, hidden: int, dropout: float) -> None:
        super().__init__(in_dim, n_out)
        self.project = nn.Sequential(nn.Linear(in_dim, hidden), nn.ReLU(), nn.Dropout(dropout)) if hidden else nn.Identity()
        self.head = nn.Linear(hidden or in_dim, n_out)


@register("mean", label="Mean-pooling", version=1)
class MeanPooling(_Pooling):
    """Mean of the instances' logits, which is the head applied to the mean projected instance.

    Args:
        in_dim: width d of an instance.
        n_out: number of classes, or of time bins for survival.
        hidden: width of a projected instance; 0 for a linear probe on the mean feature.
        dropout: on projected instances, in training.

    Source: no official code; the trunk that MambaMIL and MIL_BASELINE share. Published "mean-pooling" rows rarely say which
    trunk they use.
    """

    def __init__(self, in_dim: int, n_out: int, *, hidden: int = 512, dropout: float = 0.25) -> None:
        super().__init__(in_dim, n_out, hidden, dropout)

    def forward(self, bag: Bag) -> Prediction:
        """Predict one bag."""
        return Prediction(logits=self.head(self.project(bag.features).mean(dim=0)))


@register("max", label="Max-pooling", version=1)
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

    Source: "class" as in MambaMIL and MIL_BASELINE, "instance" as in mahmoodlab/CLAM (MIL_fc, MIL_fc_mc).
    """

    official_names = {"fc.0": "project.0", "classifier": "head", "classifiers": "head"}

    def __init__(
        self, in_dim: int, n_out: int, *, hidden: int = 512, dropout: float = 0.25, pick: Literal["class", "instance"] = "class"
    ) -> None:
        super().__init__(in_dim, n_out, hidden, dropout)
        self.pick = pick

    def forward(self, bag: Bag) -> Prediction:
        """Predict one bag."""
        logits: Tensor = self.head(self.project(bag.features))  # (n, n_out)
        if self.pick == "class":
            return Prediction(logits=logits.amax(dim=0))
        probability = logits.softmax(dim=1)
        best = probability[:, 1] if self.n_out == 2 else probability.amax(dim=1)  # (n,)
        return Prediction(logits=logits[best.argmax()])
