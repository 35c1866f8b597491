"""From a recipe to optimisers: what torch has, paced by gradient accumulation, with Lookahead where a method asks for it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, Protocol

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

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on beside parameters and gradients."""

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Have that state; `param_groups` may be other objects afterwards."""


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

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with the slow weights in the order of the parameters."""
        slow = [self.slow.get(fast) for group in self.param_groups for fast in group["params"]]
        return {"inner": self.inner.state_dict(), "steps": self.steps, "slow": slow}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Have that state."""
        self.inner.load_state_dict(state["inner"])
        self.param_groups, self.steps = self.inner.param_groups, state["steps"]
        fast = [fast for group in self.param_groups for fast in group["params"]]
        self.slow = {p: slow for p, slow in zip(fast, state["slow"], strict=True) if slow is not None}


class Paced:
    """An optimiser that steps once per `every` calls, on the sum of their gradients divided by `every`, clipped to a norm.

    Args:
        inner: the optimiser.
        every: calls per step.
        clip: largest norm of that gradient over all parameters of this optimiser, or None.
        left_over: what becomes of the calls after the last full step of an epoch, see :class:`milbench.recipes.Recipe`.

    Source: "restart" is the loop of mahmoodlab/Patch-GCN and HIPT (survival) and of prov-gigapath, "flush" that of
    pytorch-lightning, which TransMIL trains with.
    """

    def __init__(
        self,
        inner: Optimiser,
        every: int = 1,
        clip: float | None = None,
        left_over: Literal["carry", "restart", "flush"] = "carry",
    ) -> None:
        self.inner, self.every, self.clip, self.left_over = inner, every, clip, left_over
        self.param_groups = inner.param_groups
        self.calls, self._last, self._stepped = 0, -1, True

    def start_epoch(self, bags: int) -> None:
        """Called before the first bag of an epoch, which shows so many."""
        if self.left_over != "carry":
            self.calls = 0
        self._last = bags if self.left_over == "flush" else -1

    def zero_grad(self) -> None:
        """Forget gradients that made a step; those that still wait for one stay."""
        if self._stepped:
            self.inner.zero_grad()
            self._stepped = False

    def step(self) -> None:
        """Count the call; on every `every`-th one, and with "flush" on the epoch's last, divide, clip and step."""
        self.calls += 1
        if self.calls % self.every and self.calls != self._last:
            return
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if self.every > 1:
            for p in parameters:
                p.grad /= self.every
        if self.clip is not None:
            nn.utils.clip_grad_norm_(parameters, self.clip)
        self.inner.step()
        self._stepped = True

    def state_dict(self) -> dict[str, Any]:
        """As torch's; the gradients that wait are the parameters'."""
        return {"inner": self.inner.state_dict(), "calls": self.calls, "stepped": self._stepped}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Have that state."""
        self.inner.load_state_dict(state["inner"])
        self.param_groups = self.inner.param_groups
        self.calls, self._stepped = state["calls"], state["stepped"]


def build(recipe: Recipe, parameters: Iterable[nn.Parameter]) -> Optimiser:
    """The recipe's optimiser over `parameters`."""
    parameters = list(parameters)
    groups: list[dict[str, Any]] = [{"params": parameters, "weight_decay": recipe.weight_decay}]
    if not recipe.decay_vectors:
        vectors = [p for p in parameters if p.ndim <= 1]
        matrices = [p for p in parameters if p.ndim > 1]
        groups = [{"params": vectors, "weight_decay": 0.0}, {"params": matrices, "weight_decay": recipe.weight_decay}]
    groups = [group for group in groups if group["params"]]
    usual: dict[str, Any] = {"lr": recipe.lr, "betas": recipe.betas} | ({} if recipe.eps is None else {"eps": recipe.eps})
    inner: Optimiser
    match recipe.optimiser:
        case "adamw":
            inner = torch.optim.AdamW(groups, **usual)
        case "adam":
            inner = torch.optim.Adam(groups, **usual)
        case "sgd":
            inner = torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9)
        case "lookahead-radam":
            inner = Lookahead(torch.optim.RAdam(groups, decoupled_weight_decay=True, **usual))
    if recipe.accumulate == 1 and recipe.clip is None:
        return inner
    return Paced(inner, recipe.accumulate, recipe.clip, recipe.left_over)


def start_epoch(optimisers: Iterable[Optimiser], bags: int) -> None:
    """Tell those that collect gradients that an epoch of so many bags begins."""
    for optimiser in optimisers:
        if isinstance(optimiser, Paced):
            optimiser.start_epoch(bags)


def epochs_done(recipe: Recipe, epoch: int, at: int, bags: int) -> float:
    """How many epochs are done, as :func:`learning_rate` takes it.

    By steps, the learning rate is that of the first bag whose gradient is in the step, as prov-gigapath sets it.

    Args:
        epoch: from 1.
        at: bags of this epoch shown before, from 0.
        bags: of an epoch.
    """
    if recipe.schedule != "cosine-per-step":
        return epoch - 1
    shown = (epoch - 1) * bags + at
    counted = shown if recipe.left_over == "carry" else at
    return (shown - counted % recipe.accumulate) / bags


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
