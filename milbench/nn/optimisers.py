"""From a recipe to optimisers: what torch has, paced by gradient accumulation, with Lookahead where a method asks for it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from milbench.recipes import Recipe


class Optimiser(Protocol):
    """What training asks of an optimiser."""

    param_groups: list[dict[str, Any]]

    def zero_grad(self) -> None:
        """Forget gradients."""

    def step(self) -> Any:
        """Change the parameters."""


class Lookahead:
    """Every `k` steps the fast weights go back half way to the slow ones: slow += alpha (fast - slow), fast = slow.

    The slow weights begin as a copy of the fast ones at the FIRST synchronisation, so that one changes nothing, as in the code
    that TransMIL uses.

    Args:
        inner: the optimiser of the fast weights.
        alpha: how far the slow weights follow.
        k: steps between synchronisations.

    Source: Zhang et al. 2019; szc19990412/TransMIL.
    """

    def __init__(self, inner: torch.optim.Optimizer, alpha: float = 0.5, k: int = 6) -> None:
        self.inner, self.alpha, self.k, self.steps = inner, alpha, k, 0
        self.param_groups = inner.param_groups
        self.slow: dict[Tensor, Tensor] = {}

    def zero_grad(self) -> None:
        """Forget gradients."""
        self.inner.zero_grad(set_to_none=True)

    @torch.no_grad()
    def step(self) -> None:
        """One step of the fast weights, and a synchronisation every k-th time."""
        with torch.enable_grad():
            self.inner.step()
        self.steps += 1
        if self.steps % self.k:
            return
        for group in self.param_groups:
            for fast in group["params"]:
                slow = self.slow.setdefault(fast, fast.detach().clone())
                slow += self.alpha * (fast - slow)
                fast.copy_(slow)


class Paced:
    """An optimiser that steps once per `every` calls, on the mean of their gradients, clipped to a norm.

    Calls left over at the end of an epoch carry into the next, as in the published loops.

    Args:
        inner: the optimiser.
        every: calls per step.
        clip: largest norm of the mean gradient over all parameters of this optimiser, or None.
    """

    def __init__(self, inner: Optimiser, every: int = 1, clip: float | None = None) -> None:
        self.inner, self.every, self.clip, self.calls = inner, every, clip, 0
        self.param_groups = inner.param_groups

    def zero_grad(self) -> None:
        """Forget gradients, unless they are still being collected."""
        if self.calls % self.every == 0:
            self.inner.zero_grad()

    def step(self) -> None:
        """Count the call; on every `every`-th one, average, clip and step."""
        self.calls += 1
        if self.calls % self.every:
            return
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if self.every > 1:
            for p in parameters:
                p.grad /= self.every
        if self.clip is not None:
            nn.utils.clip_grad_norm_(parameters, self.clip)
        self.inner.step()


def build(recipe: Recipe, parameters: Iterable[nn.Parameter]) -> Optimiser:
    """The recipe's optimiser over `parameters`."""
    parameters = list(parameters)
    groups: list[dict[str, Any]] = [{"params": parameters, "weight_decay": recipe.weight_decay}]
    if not recipe.decay_vectors:
        vectors = [p for p in parameters if p.ndim <= 1]
        matrices = [p for p in parameters if p.ndim > 1]
        groups = [{"params": vectors, "weight_decay": 0.0}, {"params": matrices, "weight_decay": recipe.weight_decay}]
    groups = [group for group in groups if group["params"]]
    inner: Optimiser
    match recipe.optimiser:
        case "adamw":
            inner = torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas)
        case "adam":
            inner = torch.optim.Adam(groups, lr=recipe.lr, betas=recipe.betas)
        case "sgd":
            inner = torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9)
        case "lookahead-radam":
            inner = Lookahead(torch.optim.RAdam(groups, lr=recipe.lr, betas=recipe.betas, decoupled_weight_decay=True))
    return Paced(inner, recipe.accumulate, recipe.clip) if recipe.accumulate > 1 or recipe.clip is not None else inner


def learning_rate(recipe: Recipe, progress: float) -> float:
    """The learning rate as a share of the recipe's.

    Args:
        progress: epochs done; whole numbers, except with the schedule "cosine-per-step".
    """
    if progress < recipe.warmup_epochs:
        return progress / recipe.warmup_epochs
    match recipe.schedule:
        case "multistep":
            return recipe.gamma ** sum(progress >= milestone for milestone in recipe.milestones)
        case "cosine" | "cosine-per-step":
            done = (progress - recipe.warmup_epochs) / max(1, recipe.max_epochs - recipe.warmup_epochs)
            low = recipe.final_lr / recipe.lr
            return low + (1 - low) * (1 + math.cos(math.pi * done)) / 2
        case _:
            return 1.0
