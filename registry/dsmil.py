"""DS-MIL: every instance is attended by its likeness to the most critical one (Li et al., CVPR 2021).

One stream scores instances and takes the maximum; the other weighs them by similarity to the winner. Neither order nor
position matters.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from milbench import Aggregator, Bag, Prediction, register
from milbench.aggregator import Task
from milbench.recipes import HIPT_SUBTYPING_LOOP, HIPT_SURVIVAL_LOOP


@register("dsmil", label="DS-MIL", family="attention", member=3, cite="li2021", version=1)
class DSMIL(Aggregator):
    """Dual-stream MIL.

    s = W x; the critical instance of class c is argmax_i s_ic; A_ic = softmax_i(q_i . q_crit(c) / sqrt(128)); B = A^T v; every
    bag logit mixes the embeddings of all classes (a Conv1d over the width of B, as published).

    Args:
        in_dim: width d of an instance.
        n_out: number of classes, or of time bins for survival.
        query_dim: width of q.
        nonlinear: q is Linear, ReLU, Linear, Tanh instead of a single Linear.
        values: "identity", or a projection of the instances: "relu" (Dropout, Linear, ReLU) or "linear" (Dropout, Linear).
        dropout: before that projection, in training.
        orthogonal: start from orthogonal weights and zero biases, as the official script does and `--recipe official` with it.
        lineage: "official": loss 0.5 BCE(bag) + 0.5 BCE(max) on one-hot targets, scores sigmoid(bag), so class scores need not
            sum to 1. "hipt": logits 0.5 (bag + max) and the task's own loss; with `nonlinear=false,values=linear` this is the
            DS-MIL of the survival tables. In survival the official lineage puts the task's loss on both streams.

    Source: binli123/dsmil-wsi (FCLayer, BClassifier); HIPT's model_dsmil. Traps: the choice of the critical instance passes no
    gradient; ties go to the first instance; HIPT's subtyping loop divides the loss by 32 and steps after every bag, for Adam
    the same as eps and weight decay 32 times as large, which is how the recipe has it. Deviations: the official script shuffles
    patches, which changes nothing but rounding, and can drop some, also at test time; we do not.
    Checkpoints: state dicts of the official MILNet, such as the published aggregator of Camelyon16 (n_out=1), with values=relu
    where it was built with passing_v; HIPT's MILNet with lineage=hipt,nonlinear=false,values=linear.
    """

    complexity = "n"
    official_recipe = {
        "subtyping": {
            "optimiser": "adam", "lr": 1e-4, "betas": (0.5, 0.9), "weight_decay": 1e-3, "schedule": "cosine", "final_lr": 5e-6,
            "max_epochs": 50, "patience": 11, "select": "best val accuracy and AUCs", "ties": "first",
            "params": {"orthogonal": True}, "source": "binli123/dsmil-wsi, train_tcga.py",
            "not_followed": "its k-fold scheme selects on the test fold: here on the validation part",
        },
        "survival": HIPT_SURVIVAL_LOOP,
    }  # fmt: skip
    official_names = {
        "i_classifier.fc.0": "instance_head",
        "b_classifier.q": "query",
        "b_classifier.v": "value",
        "b_classifier.fcc": "bag_head",
    }

    def __init__(
        self,
        in_dim: int,
        n_out: int,
        *,
        query_dim: int = 128,
        nonlinear: bool = True,
        values: Literal["identity", "relu", "linear"] = "identity",
        dropout: float = 0.0,
        orthogonal: bool = False,
        lineage: Literal["official", "hipt"] = "official",
    ) -> None:
        super().__init__(in_dim, n_out)
        self.lineage = lineage
        self.instance_head = nn.Linear(in_dim, n_out)
        first = nn.Linear(in_dim, query_dim)
        self.query = nn.Sequential(first, nn.ReLU(), nn.Linear(query_dim, query_dim), nn.Tanh()) if nonlinear else first
        if values == "identity":
            self.value: nn.Module = nn.Identity()
        else:
            self.value = nn.Sequential(
                nn.Dropout(dropout), nn.Linear(in_dim, in_dim), nn.ReLU() if values == "relu" else nn.Identity()
            )
        self.bag_head = nn.Conv1d(n_out, n_out, kernel_size=in_dim)
        for layer in self.modules() if orthogonal else ():
            if isinstance(layer, nn.Linear | nn.Conv1d):
                nn.init.orthogonal_(layer.weight)
                nn.init.constant_(layer.bias, 0.0)  # type: ignore[arg-type]

    @classmethod
    def official(cls, params: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        """HIPT's loops in its lineage."""
        hipt = {"subtyping": HIPT_SUBTYPING_LOOP, "survival": HIPT_SURVIVAL_LOOP}
        return hipt if params["lineage"] == "hipt" else cls.official_recipe

    def forward(self, bag: Bag) -> Prediction:
        """Predict one bag. extras: bag (n_out,), max (n_out,), instances (n, n_out), attention (n_out, n)."""
        x = bag.features
        scores = self.instance_head(x)  # (n, n_out)
        q = self.query(x)  # (n, query_dim)
        critical = q[scores.argmax(dim=0)]  # (n_out, query_dim)
        scale = float(torch.tensor(q.shape[1], dtype=torch.float32).sqrt())  # the official code's root is float32, whatever q is
        attention = (critical @ q.T / scale).softmax(dim=1)  # (n_out, n)
        embedding = attention @ self.value(x)  # (n_out, d)
        bag_logits = self.bag_head(embedding[None])[0, :, 0]  # (n_out,)
        highest = scores.amax(dim=0)
        logits = bag_logits if self.lineage == "official" else 0.5 * (bag_logits + highest)
        extras = {"bag": bag_logits, "max": highest, "instances": scores, "attention": attention}
        return Prediction(logits=logits, attention=attention[int(logits.argmax())], extras=extras)

    def training_loss(self, prediction: Prediction, target: Any, task: Task) -> Tensor:
        """The mean of both streams' losses (official), or the task's loss on their mean (hipt)."""
        if self.lineage == "hipt":
            return task.loss(prediction.logits, target)
        streams = torch.stack([prediction.extras["bag"], prediction.extras["max"]])  # (2, n_out)
        if task.name != "subtyping":
            return 0.5 * (task.loss(streams[0], target) + task.loss(streams[1], target))
        truth = F.one_hot(target, self.n_out).to(streams.dtype).expand_as(streams)
        return F.binary_cross_entropy_with_logits(streams, truth)

    def scores(self, prediction: Prediction, task: Task) -> Tensor:
        """Official lineage: the sigmoid of each bag logit, since its loss is multi-label."""
        if self.lineage == "official" and task.name == "subtyping":
            return prediction.logits.sigmoid()
        return task.scores(prediction.logits)
