"""AEM: attention pooling that is paid for resting on few instances, by the negative entropy of its weights (MICCAI 2025).

The regulariser goes with any attention; here with gated attention, a learned query, and DS-MIL. Neither order nor position
matters.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from milbench import Aggregator, Bag, Prediction, register
from milbench.aggregator import Task
from milbench.nn import AttentionScore, QueryPooling, wide
from milbench.recipes import ACMIL_LOOP


@register("aem", label="AEM", family="attention", member=5, cite="zhang2025", version=1)
class AEM(Aggregator):
    """Attention entropy maximisation.

    loss = bag loss + weight * N, N = mean over rows of the attention of sum_i p_i log p_i: minimising it spreads the attention.
    N lies in [-ln n, 0], so the same weight counts more on longer bags.

    Args:
        in_dim: width d of an instance.
        n_out: number of classes, or of time bins for survival.
        arch: "ga", AB-MIL: h = relu(W x), gated attention, one row; "mha", the same h and a learned query with 8 heads, a row for
            each; "dsmil", DS-MIL with one row per class: q = W x, s = V x, p_c = softmax over instances of
            q_i . q_argmax(s_c) / sqrt(hidden), pooled instances into a Conv1d; the bag loss is the mean of both streams' losses,
            the score the mean of both streams' scores.
        weight: of N (lamda); officially 0, which is no regulariser, and 0.1 in the example.
        hidden: width E of a projected instance, or of a query of "dsmil"; for "mha" a multiple of 8. None takes the official
            width, which is 128 for 384 and otherwise half of d, here rounded up to a multiple of 8.
        attention_dim: width of the gated scoring network.
        dropout: after the attention of "mha", in training.

    Source: Zhang et al. 2025 (dazhangyu123/AEM). Traps: the commands printed as AB-MIL and AEM train "mha", the script's default;
    N is added, a positive entropy would be subtracted. Deviations: the option to drop instances in training is left out; an empty
    bag is refused (officially it gets the biases); "dsmil" gives the mean of both streams as its logits, and its loss in
    survival is the task's on both.
    Checkpoints: the entry `model` of what its script saves (checkpoint-best.pth).
    """

    complexity = "n"
    official_names = {
        "dimreduction.fc1": "project.0",
        "attention.attention_V.0": "pool.tanh_branch",
        "attention.attention_U.0": "pool.sigmoid_branch",
        "attention.attention_weights": "pool.out",
        "q": "query",
        "attention": "pool",
        "classifier.fc": "head",
        "i_classifier.fc.0": "instance_head",
        "b_classifier.q": "to_query",
        "b_classifier.fcc": "head",
    }
    official_recipe = {"subtyping": ACMIL_LOOP}

    def __init__(
        self,
        in_dim: int,
        n_out: int,
        *,
        arch: Literal["ga", "mha", "dsmil"] = "ga",
        weight: float = 0.1,
        hidden: int | None = None,
        attention_dim: int = 128,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(in_dim, n_out)
        self.arch, self.weight = arch, weight
        width = hidden or (128 if in_dim == 384 else -(-in_dim // 16) * 8)
        if arch == "dsmil":
            self.instance_head, self.to_query = nn.Linear(in_dim, n_out), nn.Linear(in_dim, width)
            self.head: nn.Module = nn.Conv1d(n_out, n_out, kernel_size=in_dim)
            return
        self.project = nn.Sequential(nn.Linear(in_dim, width, bias=False), nn.ReLU())
        if arch == "mha":
            self.query = nn.Parameter(1e-6 * torch.randn(1, 1, width))
        self.pool = AttentionScore(width, attention_dim) if arch == "ga" else QueryPooling(width, 8, dropout)
        self.head = nn.Linear(width, n_out)

    def forward(self, bag: Bag) -> Prediction:
        """Predict one bag.

        extras: scores (rows, n), before the softmax over instances; pooled (hidden,). "dsmil": scores, streams (2, n_out), which
        are the highest instance's and the bag's logits, and instances (n, n_out).
        """
        if self.arch == "dsmil":
            return self._two_streams(bag.features)
        h = self.project(bag.features)  # (n, hidden)
        scores = wide(
            self.pool.scores(self.query[0, 0], h) if isinstance(self.pool, QueryPooling) else self.pool(h).T
        )  # (rows, n)
        attention = scores.softmax(dim=1)
        pooled = (attention @ h)[0] if self.arch == "ga" else self.pool(attention, h)  # (hidden,)
        return Prediction(self.head(pooled), attention.mean(dim=0), {"scores": scores, "pooled": pooled})

    def _two_streams(self, x: Tensor) -> Prediction:
        instances = self.instance_head(x)  # (n, n_out)
        q = self.to_query(x)  # (n, hidden)
        scores = wide(q.shape[1] ** -0.5 * q[instances.argmax(dim=0)] @ q.T)  # (n_out, n)
        attention = scores.softmax(dim=1)
        streams = torch.stack([instances.amax(dim=0), self.head((attention @ x)[None])[0, :, 0]])  # (2, n_out)
        logits = streams.mean(dim=0)
        return Prediction(logits, attention[logits.argmax()], {"scores": scores, "streams": streams, "instances": instances})

    def training_loss(self, prediction: Prediction, target: Any, task: Task) -> Tensor:
        """The bag loss and the weighted negative entropy of the attention."""
        return self.bag_loss(prediction, target, task) + self.weight * negative_entropy(prediction.extras["scores"])

    def bag_loss(self, prediction: Prediction, target: Any, task: Task) -> Tensor:
        """The task's; of "dsmil" the mean of both streams'."""
        if self.arch != "dsmil":
            return task.loss(prediction.logits, target)
        return torch.stack([task.loss(logits, target) for logits in prediction.extras["streams"]]).mean()

    def scores(self, prediction: Prediction, task: Task) -> Tensor:
        """The task's reading of the logits; of "dsmil" the mean of both streams'."""
        if self.arch != "dsmil":
            return task.scores(prediction.logits)
        return torch.stack([task.scores(logits) for logits in prediction.extras["streams"]]).mean(dim=0)


def negative_entropy(scores: Tensor) -> Tensor:
    """Mean over rows of sum_i p_i log p_i, p the softmax of a row. scores (rows, n) -> ()."""
    log_p = F.log_softmax(scores, dim=1)
    return (log_p.exp() * log_p).sum(dim=1).mean()
