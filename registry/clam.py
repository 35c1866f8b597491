"""CLAM: attention pooling plus a clustering loss on the most and least attended instances (Lu et al., Nat. Biomed. Eng. 2021).

The most attended instances of a slide should look like its class, the least attended should not; one small classifier per
class learns that from the attention's own ranking. At test time CLAM-SB is AB-MIL.
"""

import logging
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from milbench import Aggregator, Bag, Prediction, register
from milbench.aggregator import Task
from milbench.nn import AttentionScore
from milbench.recipes import CLAM_LOOP

log = logging.getLogger("milbench")


def smooth_top1_svm(scores: Tensor, target: Tensor, tau: float = 1.0) -> Tensor:
    """Smooth multi-class hinge: tau logsumexp_j((s_j - s_y + [j != y]) / tau), averaged over rows.

    Rows whose two highest scores are at least tau ln(1000) apart take the hard maximum instead, as the official code does.

    Args:
        scores: (rows, C). target: (rows,) int64.

    Source: Berrada et al. 2018 (oval-group/smooth-topk, SmoothTop1SVM with alpha = 1).
    """
    true = scores.gather(1, target[:, None])  # (rows, 1)
    margin = scores + 1 - F.one_hot(target, scores.shape[1]) - true  # (rows, C), s_j - s_y + [j != y]
    first, second = scores.topk(2, dim=1).values.T
    smooth = tau * (margin / tau).logsumexp(dim=1)
    return torch.where(first - second >= tau * math.log(1000), margin.amax(dim=1), smooth).mean()


@register("clam-sb", label="CLAM-SB", family="attention", member=1, cite="lu2021", version=1)
@register("clam-mb", label="CLAM-MB", family="attention", member=2, cite="lu2021", version=1, preset={"branches": "multi"})
class CLAM(Aggregator):
    """CLAM with one attention for all classes (SB) or one per class (MB).

    total = bag_weight * task loss + (1 - bag_weight) * instance loss. The instance loss needs a class, so in survival only the
    task's loss is left.

    Args:
        in_dim: width d of an instance.
        n_out: number of classes, or of time bins for survival.
        branches: "single" or "multi".
        hidden: width of a projected instance.
        attention_dim: width of the scoring network; 256 is the official "small", 384 "big".
        gated: gated attention.
        dropout: on projected instances and inside the scoring network, in training.
        k: how many instances from each end of the ranking are labelled.
        instance_loss: "svm", the smooth top-1 SVM of the published recipe, or "ce".
        subtyping: classes exclude each other: the top k of the true class's ranking are negatives for the other classes, and
            the sum is divided by the number of classes.
        bag_weight: weight of the bag loss.

    Source: mahmoodlab/CLAM (CLAM_SB, CLAM_MB; its model_type mil is max pooling, here `max[pick=instance]`). Traps: with
    k <= n < 2k the two ends overlap and an instance is labelled both 1 and 0 (official behaviour). Deviation: with n < k the
    official code raises; here k becomes max(1, n // 2), said once.
    Checkpoints: the files that CLAM saves (s_0_checkpoint.pt and so on) of clam_sb and clam_mb; model_size big with
    attention_dim=384.
    """

    carried = ("_said",)
    complexity = "n"
    official_recipe = {"subtyping": CLAM_LOOP}
    official_names = {
        "attention_net.0": "project.0",
        "attention_net.3.attention_a.0": "score.tanh_branch",
        "attention_net.3.attention_b.0": "score.sigmoid_branch",
        "attention_net.3.attention_c": "score.out",
        "attention_net.3.module.0": "score.tanh_branch",  # the ungated form
        "attention_net.3.module.2": "score.out",
        "attention_net.3.module.3": "score.out",  # where it has dropout
        "classifiers": "head",
        "instance_classifiers": "instance_heads",
    }

    def __init__(
        self,
        in_dim: int,
        n_out: int,
        *,
        branches: Literal["single", "multi"] = "single",
        hidden: int = 512,
        attention_dim: int = 256,
        gated: bool = True,
        dropout: float = 0.25,
        k: int = 8,
        instance_loss: Literal["svm", "ce"] = "svm",
        subtyping: bool = True,
        bag_weight: float = 0.7,
    ) -> None:
        super().__init__(in_dim, n_out)
        multi = branches == "multi"
        self.project = nn.Sequential(nn.Linear(in_dim, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.score = AttentionScore(hidden, attention_dim, n_out if multi else 1, gated=gated, dropout=dropout)
        self.head = nn.ModuleList(nn.Linear(hidden, 1) for _ in range(n_out)) if multi else nn.Linear(hidden, n_out)
        self.instance_heads = nn.ModuleList(nn.Linear(hidden, 2) for _ in range(n_out))
        self.k, self.subtyping, self.bag_weight = k, subtyping, bag_weight
        self.instance_loss = smooth_top1_svm if instance_loss == "svm" else F.cross_entropy
        self._said = False

    def forward(self, bag: Bag) -> Prediction:
        """Predict one bag. extras: instances (n, hidden), attention (1 or C, n)."""
        h = self.project(bag.features)  # (n, hidden)
        attention = self.score(h).T.softmax(dim=1)  # (1 or C, n)
        pooled = attention @ h  # (1 or C, hidden)
        if isinstance(self.head, nn.ModuleList):
            logits = torch.cat([head(z) for head, z in zip(self.head, pooled, strict=True)])
            row = attention[int(logits.argmax())]
        else:
            logits, row = self.head(pooled)[0], attention[0]
        return Prediction(logits=logits, attention=row, extras={"instances": h, "attention": attention})

    def rename_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The published checkpoints hold a buffer of the loss, too."""
        return super().rename_official({name: v for name, v in state_dict.items() if "instance_loss_fn" not in name.split(".")})

    def training_loss(self, prediction: Prediction, target: Any, task: Task) -> Tensor:
        """Weighted sum of the bag loss and the instance loss."""
        bag_loss = task.loss(prediction.logits, target)
        if task.name != "subtyping":
            return bag_loss
        return self.bag_weight * bag_loss + (1 - self.bag_weight) * self.clustering_loss(prediction, int(target))

    def clustering_loss(self, prediction: Prediction, target: int) -> Tensor:
        """The instance loss of one bag whose class is `target`."""
        h, attention = prediction.extras["instances"], prediction.extras["attention"]
        n, k = len(h), self.k
        if n < k:
            k = max(1, n // 2)
            if not self._said:
                self._said = True
                log.warning("CLAM: bags of fewer than k = %d instances use k = n // 2 (at least 1) in the instance loss", self.k)
        losses = []
        for c in range(self.n_out) if self.subtyping else [target]:
            row = attention[c if len(attention) > 1 else 0].detach()
            top = h[row.topk(k).indices]
            if c == target:
                bottom = h[(-row).topk(k).indices]
                scores = self.instance_heads[c](torch.cat([top, bottom]))
                labels = torch.arange(2 * k, device=h.device).lt(k).long()  # top 1, bottom 0
            else:
                scores = self.instance_heads[c](top)
                labels = torch.zeros(k, dtype=torch.long, device=h.device)
            losses.append(self.instance_loss(scores, labels))
        return torch.stack(losses).sum() / len(losses)
