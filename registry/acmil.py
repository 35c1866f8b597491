"""ACMIL: several attention branches that must look at different instances, with the most attended hidden at random (ECCV 2024).

One attention soon rests on a few instances. Here each branch predicts on its own, branches pay for looking alike, and in training
each is blind to some of the instances that it would have weighed most. Neither order nor position matters.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from milbench import Aggregator, Bag, Prediction, register
from milbench.aggregator import Task
from milbench.nn import AttentionScore, HeadPooling, QueryPooling, wide
from milbench.recipes import ACMIL_LOOP

HEADS = 8


def masked(scores: Tensor, draw: Tensor, hide: int) -> Tensor:
    """Scores whose softmax leaves out, in each row, `hide` instances drawn from the highest ones.

    Args:
        scores: (..., n), before the softmax.
        draw: (..., top), uniform numbers; the positions of the lowest in a row are hidden, in the row's ranking.
        hide: how many; with `hide` = n all get equal weight, as in official code.
    """
    places = draw.argsort(dim=-1)[..., :hide]
    hidden = scores.topk(draw.shape[-1], dim=-1).indices.gather(-1, places)
    return scores.scatter(-1, hidden, torch.finfo(scores.dtype).min)


@register("acmil", label="ACMIL", family="attention", member=4, cite="zhang2024acmil", version=1)
class ACMIL(Aggregator):
    """Attention-challenging MIL.

    h = relu(W x); p_k = softmax over instances of branch k's scores; z_k = sum_i p_ki h_i with a head of its own; the slide:
    z = sum_i mean_k(p_ki) h_i, and another head. loss = slide + mean over branches + diversity * mean over pairs of branches of
    cosine(p_k, p_l). Predictions are the slide's; nothing is hidden outside training.

    Args:
        in_dim: width d of an instance.
        n_out: number of classes, or of time bins for survival.
        arch: "ga", one gated network with a score for each branch; "mha", a learned query with 8 heads for each branch, on keys
            and values of its own. Then cosines are averaged over the heads.
        hidden: width E of a projected instance, for "mha" a multiple of 8; None takes the official width, which is 128 for 384
            and otherwise half of d, here rounded up to a multiple of 8.
        attention_dim: width of the gated scoring network.
        branches: how many; 1 has the slide's head and loss only, which is the official AB-MIL.
        top, hide: in training, of the `top` highest scores of each branch (and head) the share `hide`, rounded down, is left
            out. A note of the authors says that hide=0 is sometimes better.
        diversity: weight of the cosines.
        dropout: after the attention of "mha", in training.

    Source: Zhang et al. 2024 (dazhangyu123/ACMIL, ACMIL_GA, ACMIL_MHA). Traps: the script's own defaults, 1 branch and nothing
    hidden, are plain AB-MIL; the published settings are ours. Its validation F1 is the micro average, which is accuracy. A batch
    of two silently uses its first bag. Deviations: an empty bag is refused (officially it gets the biases); with one branch there
    is no branch head, which officially is made and never trained; in survival every loss is the task's.
    Checkpoints: the entry `model` of what its script saves (checkpoint-best.pth).
    """

    complexity = "n"
    official_names = {
        "dimreduction.fc1": "project.0",
        "attention.attention_V.0": "score.tanh_branch",
        "attention.attention_U.0": "score.sigmoid_branch",
        "attention.attention_weights": "score.out",
        "q": "query",
        "sub_attention": "pools",
        "bag_attention": "slide",
        "classifier": "branch_heads",
        "Slide_classifier.fc": "head",
    }
    official_recipe = {"subtyping": ACMIL_LOOP}

    def __init__(
        self,
        in_dim: int,
        n_out: int,
        *,
        arch: Literal["ga", "mha"] = "ga",
        hidden: int | None = None,
        attention_dim: int = 128,
        branches: int = 5,
        top: int = 10,
        hide: float = 0.6,
        diversity: float = 1.0,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(in_dim, n_out)
        if branches < 1 or top < 0 or not 0 <= hide <= 1:
            raise ValueError(f"branches must be at least 1, top at least 0 and hide in [0, 1], got {branches}, {top} and {hide}")
        self.arch, self.top, self.hide, self.diversity = arch, top, hide, diversity
        width = hidden or (128 if in_dim == 384 else -(-in_dim // 16) * 8)
        self.project = nn.Sequential(nn.Linear(in_dim, width, bias=False), nn.ReLU())
        if arch == "ga":
            self.score = AttentionScore(width, attention_dim, branches)
        else:
            self.query = nn.Parameter(1e-6 * torch.randn(1, branches, width))
            self.pools = nn.ModuleList(QueryPooling(width, HEADS, dropout) for _ in range(branches))
            self.slide = HeadPooling(width, HEADS, dropout)
        self.branch_heads = nn.ModuleList(nn.Linear(width, n_out) for _ in range(branches if branches > 1 else 0))
        self.head = nn.Linear(width, n_out)

    def forward(self, bag: Bag) -> Prediction:
        """Predict one bag.

        extras: branches (B, hidden), the pooled vectors; attention (heads, B, n), one head for "ga"; scores (heads, B, n), before
        anything is hidden.
        """
        h = self.project(bag.features)  # (n, hidden)
        if self.arch == "ga":
            scores = self.score(h).T[:, None]  # (B, 1, n)
        else:
            pools = cast("Iterable[QueryPooling]", self.pools)
            scores = torch.stack([pool.scores(q, h) for pool, q in zip(pools, self.query[0], strict=True)])  # (B, 8, n)
        scores = wide(scores)
        attention = self._masked(scores).softmax(dim=2)  # (B, heads, n)
        of_slide = attention.mean(dim=0)  # (heads, n)
        if self.arch == "ga":
            pooled, slide = attention[:, 0] @ h, (of_slide @ h)[0]  # (B, hidden), (hidden,)
        else:
            pooled = torch.stack([pool(weight, h) for pool, weight in zip(self.pools, attention, strict=True)])
            slide = self.slide(of_slide, h)
        extras = {"branches": pooled, "attention": attention.transpose(0, 1), "scores": scores.transpose(0, 1)}
        return Prediction(logits=self.head(slide), attention=of_slide.mean(dim=0), extras=extras)

    def _masked(self, scores: Tensor) -> Tensor:
        """Scores (B, heads, n) with the share to hide left out, in training."""
        top = min(self.top, scores.shape[2])
        hide = int(self.hide * top)
        if not self.training or not hide:
            return scores
        return masked(scores, torch.rand(*scores.shape[:2], top, device=scores.device), hide)

    def training_loss(self, prediction: Prediction, target: Any, task: Task) -> Tensor:
        """The slide's loss, and with several branches their mean loss and how alike they look."""
        loss = task.loss(prediction.logits, target)
        if not self.branch_heads:
            return loss
        return loss + self.branch_loss(prediction, target, task) + self.diversity * likeness(prediction.extras["attention"])

    def branch_logits(self, prediction: Prediction) -> Tensor:
        """The prediction of each branch. (B, n_out)."""
        return torch.stack([head(z) for head, z in zip(self.branch_heads, prediction.extras["branches"], strict=True)])

    def branch_loss(self, prediction: Prediction, target: Any, task: Task) -> Tensor:
        """Mean over the branches of the task's loss."""
        return torch.stack([task.loss(logits, target) for logits in self.branch_logits(prediction)]).mean()

    def rename_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Heads hold their Linear one level deeper officially; that of a single branch, which is never trained, is dropped."""
        given = {name: value for name, value in state_dict.items() if self.branch_heads or not name.startswith("classifier.")}
        renamed = super().rename_official(given)
        return {name.replace(".fc.", ".") if name.startswith("branch_heads.") else name: t for name, t in renamed.items()}


def likeness(attention: Tensor) -> Tensor:
    """Mean cosine of the weights of two branches, over all pairs and heads. attention (heads, B, n) -> ()."""
    row = F.normalize(attention, dim=2, eps=1e-8)
    cosine = row @ row.mT  # (heads, B, B)
    first, second = torch.triu_indices(cosine.shape[1], cosine.shape[2], 1, device=cosine.device)
    return cosine[:, first, second].mean()
