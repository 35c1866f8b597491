"""AB-MIL: a bag is the attention-weighted mean of its instances (Ilse et al., ICML 2018).

A small network scores each instance on its own, so the prediction depends neither on order nor on position.
"""

import re
from collections.abc import Mapping
from itertools import chain, pairwise
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from milbench import Aggregator, Bag, MilbenchError, Prediction, register
from milbench.aggregator import Task
from milbench.nn import AttentionScore
from milbench.recipes import CLAM_LOOP, HIPT_SURVIVAL_LOOP

_ORIGINAL: dict[str, Any] = {
    "optimiser": "adam", "lr": 5e-4, "weight_decay": 1e-4, "max_epochs": 20, "patience": None, "select": "last",
    "source": "AMLab-Amsterdam/AttentionDeepMIL, main.py (MNIST bags)", "not_followed": "",
}  # fmt: skip


def _version(params: Mapping[str, Any]) -> int:
    """2 of the original lineage, whose scoring network had dropout inside before."""
    return 2 if params["lineage"] == "original" else 1


@register("abmil", label="AB-MIL", family="attention", member=0, cite="ilse2018", version=_version)
class ABMIL(Aggregator):
    """Gated attention pooling, the form that WSI papers call AB-MIL.

    h = relu(W x); a = softmax over instances of score(h); logits = head(rho(sum_i a_i h_i)).

    Args:
        in_dim: width d of an instance.
        n_out: number of classes, or of time bins for survival.
        hidden: width of a projected instance.
        trunk: widths of further layers (Linear, ReLU, Dropout) before that projection, such as "256-128".
        attention_dim: width of the scoring network.
        gated: multiply the tanh branch by a sigmoid branch (eq. 9) instead of using it alone (eq. 8).
        dropout: on projected instances and, in the clam lineage, inside the scoring network, in training.
        rho: width of a Linear, ReLU, Dropout between pooling and head; 0 for none. `abmil[rho=256]` is the AMIL of the
            Patch-GCN and HIPT survival tables.
        lineage: "clam": one logit per class, the task's loss. "original": in subtyping -log P(true class), P clamped to
            [1e-5, 1 - 1e-5]; for two classes a single logit s, given as logits (0, s), whose softmax is (1 - sigmoid(s),
            sigmoid(s)). `abmil[lineage=original,hidden=500,attention_dim=128,gated=false,dropout=0]` is the paper's model for
            images, `abmil[lineage=original,trunk=256-128,hidden=64,attention_dim=64,gated=false,dropout=0.5]` for classic sets.

    Source: Ilse et al. 2018, eq. 7-9 (AMLab-Amsterdam/AttentionDeepMIL); the defaults are mahmoodlab/CLAM's, CLAM_SB without its
    instance loss (clam_sb with --no_inst_cluster; CLAM's model_type mil is max pooling, here `max[pick=instance]`); rho is
    MIL_Attention_FC_surv's in mahmoodlab/Patch-GCN. Traps: dropout inside CLAM's scoring networks is 0.25 whenever the
    dropout flag is set at all; a clamped P passes no gradient. Recipes: CLAM's loop, Patch-GCN's survival loop, and in the
    original lineage the original's own; all are equal to the official loops step by step. Deviations: with more than two
    classes, or with time bins, the original lineage has one logit for each; it was published for two classes only.
    Checkpoints: what CLAM saves of CLAM_SB, whose instance classifiers are left out; state dicts of AttentionDeepMIL's Attention
    and GatedAttention with lineage=original; MIL_Attention_FC_surv of Patch-GCN and HIPT with rho=256.
    """

    complexity = "n"
    official_names = {  # CLAM_SB's state dict, the survival model's and the original's -> ours
        "attention_net.0": "project.0",
        "attention_net.3.attention_a.0": "score.tanh_branch",
        "attention_net.3.attention_b.0": "score.sigmoid_branch",
        "attention_net.3.attention_c": "score.out",
        "attention_net.3.module.0": "score.tanh_branch",  # the ungated form
        "attention_net.3.module.2": "score.out",
        "attention_net.3.module.3": "score.out",  # where it has dropout
        "classifiers": "head",
        "classifier": "head",
        "feature_extractor_part2.0": "project.0",
        "attention.0": "score.tanh_branch",
        "attention.2": "score.out",
        "attention_V.0": "score.tanh_branch",
        "attention_U.0": "score.sigmoid_branch",
        "attention_w": "score.out",
        "classifier.0": "head",
    }
    official_recipe = {"subtyping": CLAM_LOOP, "survival": HIPT_SURVIVAL_LOOP}

    def __init__(
        self,
        in_dim: int,
        n_out: int,
        *,
        hidden: int = 512,
        trunk: str = "",
        attention_dim: int = 256,
        gated: bool = True,
        dropout: float = 0.25,
        rho: int = 0,
        lineage: Literal["clam", "original"] = "clam",
    ) -> None:
        super().__init__(in_dim, n_out)
        self.lineage, self.one_logit = lineage, lineage == "original" and n_out == 2
        if trunk and not re.fullmatch(r"\d+(-\d+)*", trunk):
            raise ValueError(f"trunk is a row of widths such as 256-128, not {trunk!r}")
        widths = [in_dim, *map(int, filter(None, trunk.split("-"))), hidden]
        layers = [(nn.Linear(d, out), nn.ReLU(), nn.Dropout(dropout)) for d, out in pairwise(widths)]
        self.project = nn.Sequential(*chain.from_iterable(layers))
        self.score = AttentionScore(hidden, attention_dim, gated=gated, dropout=dropout if lineage == "clam" else 0.0)
        self.rho = nn.Sequential(nn.Linear(hidden, rho), nn.ReLU(), nn.Dropout(dropout)) if rho else nn.Identity()
        self.head = nn.Linear(rho or hidden, 1 if self.one_logit else n_out)

    @classmethod
    def official(cls, params: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        """The original was trained for subtyping only, on bags of MNIST digits."""
        return cls.official_recipe if params["lineage"] == "clam" else {"subtyping": _ORIGINAL}

    def forward(self, bag: Bag) -> Prediction:
        """Predict one bag."""
        h: Tensor = self.project(bag.features)  # (n, hidden)
        weight = self.score(h).softmax(dim=0)  # (n, 1)
        z = (weight * h).sum(dim=0)  # (hidden,)
        logits = self.head(self.rho(z))
        return Prediction(logits=F.pad(logits, (1, 0)) if self.one_logit else logits, attention=weight[:, 0])

    def rename_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """CLAM_SB saves what belongs to its instance loss too, even where that was never trained; AB-MIL has none."""
        other = {"instance_classifiers", "instance_loss_fn"}
        return super().rename_official({k: v for k, v in state_dict.items() if other.isdisjoint(k.split("."))})

    def training_loss(self, prediction: Prediction, target: Any, task: Task) -> Tensor:
        """The task's loss; in the original lineage the clamped negative log-likelihood of the class.

        Raises:
            MilbenchError: two time bins in the original lineage, which has one logit for two outputs.
        """
        if self.lineage == "clam" or task.name != "subtyping":
            if self.one_logit:
                raise MilbenchError(
                    "abmil[lineage=original] has one logit for two outputs, two time bins need two; use lineage=clam"
                )
            return task.loss(prediction.logits, target)
        return -prediction.logits.softmax(dim=0)[target].clamp(1e-5, 1 - 1e-5).log()
