"""DTFD-MIL: a slide is split at random into pseudo-bags, whose features a second attention pools (Zhang et al., CVPR 2022).

The shuffle is derived from the slide's name and from what the instances hold, so neither storage order nor position matters.
"""

import hashlib
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from milbench import Aggregator, Bag, MilbenchError, Prediction, register
from milbench.aggregator import Task
from milbench.bags import row_hash
from milbench.nn import AttentionScore
from milbench.nn.optimisers import Optimiser, build
from milbench.recipes import Recipe


def shuffled(x: Tensor, seed: str) -> Tensor:
    """A random order (n,) of the rows of x (n, d) that follows the rows wherever they are stored.

    Rows are sorted by a hash of their bits: a random linear form modulo 2^64, then two rounds of mixing. It is exact, so it
    cannot depend on the order of a sum; rows that hold the same are interchangeable.
    """
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8]) >> 1)
    return row_hash(x, generator).argsort(stable=True)


def pseudo_bags(order: Tensor, groups: int) -> Tensor:
    """The pseudo-bag (n,) of each instance: `order` (n,) cut into `groups` pieces whose lengths differ by at most one.

    The longer pieces come first; with n < groups there are n pieces.
    """
    n = len(order)
    groups = min(groups, n)
    at = torch.arange(groups, device=order.device)
    group = torch.empty_like(order)
    group[order] = at.repeat_interleave(n // groups + (at < n % groups).long())
    return group


class _Tier(nn.Module):
    """Gated attention inside each group and a classifier on the pooled vectors."""

    def __init__(self, hidden: int, attention_dim: int, n_out: int) -> None:
        super().__init__()
        self.score = AttentionScore(hidden, attention_dim)
        self.head = nn.Linear(hidden, n_out)

    def forward(self, h: Tensor, member: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """h (n, hidden), member (groups, n) bool -> logits (groups, n_out), attention (groups, n), pooled (groups, hidden)."""
        attention = torch.where(member, self.score(h).T, -torch.inf).softmax(dim=1)
        pooled = attention @ h
        return self.head(pooled), attention, pooled


method = partial(register, cite="zhang2022", family="distillation")


@method("dtfd-maxs", label="DTFD-MIL (MaxS)", member=1, preset={"distil": "maxs"})
@method("dtfd-maxmins", label="DTFD-MIL (MaxMinS)", member=2, preset={"distil": "maxmins"})
@method("dtfd-afs", label="DTFD-MIL (AFS)", member=0, preset={"distil": "afs"})
class DTFD(Aggregator):
    """Double-tier feature distillation.

    h = relu(W x). Tier 1 pools each pseudo-bag with attention a and predicts the slide's label from each; tier 2 pools what is
    distilled from them. loss = mean over pseudo-bags of the task's loss + the task's loss of tier 2. Tier 2 sees its input
    detached, so it never trains tier 1, and one backward pass gives each tier the gradient of its own loss.

    Args:
        in_dim: width d of an instance.
        n_out: number of classes, or of time bins for survival.
        hidden: width of a projected instance.
        attention_dim: width of both scoring networks.
        groups: pseudo-bags per slide. 4 is the official script's, the paper's tables say 3.
        instances_per_group: how many instances are distilled from each end of a pseudo-bag's ranking.
        distil: "afs", the pooled vector of each pseudo-bag; "maxs", its highest ranked instances; "maxmins", highest and lowest;
            "mas", those of the highest attention (in the paper, not in the official code).
        rank_class: instances are ranked by the probability of this class in softmax over classes of (a_i h_i) . W, without bias:
            "last", the official choice made for two classes (in survival the last time bin), or "argmax", the class that tier 1
            gives the pseudo-bag. The true class cannot be used: it is unknown at test time.

    Source: hrzhang1123/DTFD-MIL, without residual blocks and dropout, as its script runs it. Traps: (1) the official tier-2
    gradient also lands on tier 1 and is zeroed before it is applied; detaching is the same and lets AFS run at all. (2) The
    official script shuffles with an unseeded generator, also at test time. (3) With fewer than k instances per pseudo-bag all of
    them are distilled, with fewer than 2k "maxmins" takes some twice (official behaviour). Deviations: shuffles are seeded by
    slide, in training also by a counter; n < groups gives n pseudo-bags (officially NaN); k is given and at least 1 (officially
    total // groups, where 0 selects all or none).
    Checkpoints: what the official script saves, one state dict per module, or their flat union.
    """

    carried = ("_draws",)
    complexity = "n"
    official_names = {
        "dimReduction.fc1": "project.0",
        "dim_reduction.fc1": "project.0",
        "classifier.fc": "tier1.head",
        **{
            f"{theirs}.attention_{branch}": f"{ours}.score.{name}"
            for theirs, ours in (("attention", "tier1"), ("attCls.attention", "tier2"), ("att_classifier.attention", "tier2"))
            for branch, name in (("V.0", "tanh_branch"), ("U.0", "sigmoid_branch"), ("weights", "out"))
        },
        "attCls.classifier.fc": "tier2.head",
        "att_classifier.classifier.fc": "tier2.head",
    }
    official_recipe = {
        "subtyping": {
            "optimiser": "adam", "lr": 1e-4, "weight_decay": 1e-4, "schedule": "multistep", "milestones": (100,), "gamma": 0.2,
            "clip": 5.0, "max_epochs": 200, "patience": None, "select_after": 161,
            "ties": "first", "source": "hrzhang1123/DTFD-MIL, Main_DTFD_MIL.py",
            "not_followed": "shuffles into pseudo-bags are seeded",
        }
    }  # fmt: skip

    def __init__(
        self,
        in_dim: int,
        n_out: int,
        *,
        hidden: int = 512,
        attention_dim: int = 128,
        groups: int = 4,
        instances_per_group: int = 1,
        distil: Literal["maxs", "maxmins", "afs", "mas"] = "afs",
        rank_class: Literal["last", "argmax"] = "last",
    ) -> None:
        super().__init__(in_dim, n_out)
        if groups < 1 or instances_per_group < 1:
            raise MilbenchError(f"groups and instances_per_group must be at least 1, got {groups} and {instances_per_group}")
        self.groups, self.k, self.distil, self.rank_class = groups, instances_per_group, distil, rank_class
        self.project = nn.Sequential(nn.Linear(in_dim, hidden, bias=False), nn.ReLU())
        self.tier1 = _Tier(hidden, attention_dim, n_out)
        self.tier2 = _Tier(hidden, attention_dim, n_out)
        self._draws, self._salt = 0, int(torch.randint(2**31, (), device="cpu"))  # another seed shuffles otherwise in training

    def order(self, bag: Bag) -> Tensor:
        """The order (n,) that is cut into pseudo-bags: always the same in eval mode, a new one at each call in training mode."""
        self._draws += self.training
        return shuffled(bag.features, f"{bag.slide_id}|{f'{self._salt}|{self._draws}' if self.training else 'eval'}")

    def forward(self, bag: Bag) -> Prediction:
        """Predict one bag. The attention holds the weights of the instances in tier 2's bag vector.

        extras: tier1 (groups, n_out) logits of the pseudo-bags, pseudo_bag (n,), pseudo_attention (n,) within them.
        """
        h = self.project(bag.features)  # (n, hidden)
        group = pseudo_bags(self.order(bag), self.groups)  # (n,)
        member = group == torch.arange(min(self.groups, len(h)), device=h.device)[:, None]  # (groups, n)
        tier1, within, pooled = self.tier1(h, member)
        if self.distil == "afs":
            chosen, rows = None, pooled  # (groups, hidden)
        else:
            chosen = self.choose(h, within, member, tier1)  # (rows,)
            rows = h[chosen]  # (rows, hidden)
        logits, among, _ = self.tier2(rows.detach(), member.new_ones(1, len(rows)))  # among: (1, rows)
        attention = (among @ within)[0] if chosen is None else among.new_zeros(len(h)).index_add(0, chosen, among[0])  # (n,)
        extras = {"tier1": tier1, "pseudo_bag": group, "pseudo_attention": within.sum(dim=0)}
        return Prediction(logits=logits[0], attention=attention, extras=extras)

    @torch.no_grad()
    def choose(self, h: Tensor, within: Tensor, member: Tensor, tier1: Tensor) -> Tensor:
        """Indices (rows,) of the instances that are distilled."""
        rank = a = within.sum(dim=0)  # (n,)
        if self.distil != "mas":
            activation = (a[:, None] * F.linear(h, self.tier1.head.weight)).softmax(dim=1)  # (n, n_out)
            rank = activation[:, -1] if self.rank_class == "last" else activation.T[tier1.argmax(dim=1)]  # (n,) or (groups, n)
        k = min(self.k, int(member.sum(dim=1).max()))
        signs = (1, -1) if self.distil == "maxmins" else (1,)
        best = [torch.where(member, sign * rank, -torch.inf).topk(k, dim=1) for sign in signs]
        return torch.cat([top.indices[top.values > -torch.inf] for top in best])  # a shorter pseudo-bag may hold fewer than k

    def training_loss(self, prediction: Prediction, target: Any, task: Task) -> Tensor:
        """The task's loss on both tiers; every pseudo-bag has the slide's label."""
        first: Tensor = torch.vmap(lambda logits: task.loss(logits, target))(prediction.extras["tier1"])  # (groups,)
        return first.mean() + task.loss(prediction.logits, target)

    def optimisers(self, recipe: Recipe) -> list[Optimiser]:
        """One per module, since the official loop clips each module's gradient on its own: three of tier 1, one of tier 2."""
        return [build(recipe, m.parameters()) for m in (self.project, self.tier1.score, self.tier1.head, self.tier2)]

    def rename_official(self, state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
        """Accepts flat names, and the saved file of the official script: one state dict per module."""
        flat: dict[str, Tensor] = {}
        for name, value in state_dict.items():
            flat |= {f"{name}.{inner}": v for inner, v in value.items()} if isinstance(value, Mapping) else {name: value}
        return super().rename_official(flat)
