"""Which epoch's weights are kept, and when training ends before its last epoch. Never looks at the test part."""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

from torch import Tensor, nn

from milbench.recipes import Recipe


class Validation(NamedTuple):
    """What an epoch reached on the validation part.

    Args:
        metric: higher is better; NaN where it is undefined.
        loss: mean over the bags.
    """

    metric: float
    loss: float


NOT_VALIDATED = Validation(math.nan, math.nan)  # of a fold without a validation part


class LastEpoch:
    """Keeps the weights of the last epoch, and never ends training early."""

    selected_on = "none"

    def __init__(self) -> None:
        self.epoch = 0

    def update(self, epoch: int, model: nn.Module, validation: Validation) -> bool:
        """Note an epoch; returns whether training ends with it."""
        self.epoch = epoch
        return False

    def restore(self, model: nn.Module) -> None:
        """Give `model` the weights of the chosen epoch, which it has."""

    def state_dict(self) -> dict[str, Any]:
        """What the epochs so far have left."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Have that state."""
        self.epoch = state["epoch"]


class BestEpoch:
    """Keeps the weights of the best epoch: highest metric or lowest loss, and of equals the one that the recipe's `ties` says.

    An undefined metric ranks last, and where no epoch has one the lowest loss decides.

    Args:
        recipe: gives `select`, `ties`, `select_after` and what ends training.
    """

    selected_on = "val"

    def __init__(self, recipe: Recipe) -> None:
        self.epoch = 0
        self._by_metric, self._ties = recipe.select != "best val loss", recipe.ties
        self._first = recipe.select_after + 1 if recipe.select_after < recipe.max_epochs else 1
        self._stopping = Stopping(recipe)
        self._best = (-math.inf, -math.inf)
        self._weights: dict[str, Tensor] = {}

    def update(self, epoch: int, model: nn.Module, validation: Validation) -> bool:
        """Note an epoch and copy the weights if it is the best so far; returns whether training ends with it."""
        if epoch < self._first:
            return False
        known = self._by_metric and not math.isnan(validation.metric)
        by_loss = self._ties == "lower loss" or not known
        rank = (validation.metric if known else -math.inf, -validation.loss if by_loss else 0.0)
        better = not self.epoch or rank > self._best or (rank == self._best and self._ties == "last")
        if better:
            self._best, self.epoch = rank, epoch
            self._weights = copy.deepcopy(model.state_dict())
        return self._stopping.update(epoch, better, validation.metric)

    def restore(self, model: nn.Module) -> None:
        """Give `model` the weights of the chosen epoch."""
        weights = model.state_dict()  # with the versions of its layers, which torch keeps beside the weights
        weights.update(self._weights)
        model.load_state_dict(weights)

    def state_dict(self) -> dict[str, Any]:
        """What the epochs so far have left."""
        return {"epoch": self.epoch, "best": self._best, "weights": self._weights, "waited": self._stopping.waited}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Have that state."""
        self.epoch, self._best, self._weights = state["epoch"], state["best"], state["weights"]
        self._stopping.waited = state["waited"]


class Stopping:
    """Ends training after `patience` epochs in a row without a better one, or once the metric is `enough`.

    Neither ends it before `min_epochs`.

    Attributes:
        waited: epochs in a row without a better one.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._patience, self._min_epochs, self._enough = recipe.patience, recipe.min_epochs, recipe.enough
        self.waited = 0

    def update(self, epoch: int, better: bool, metric: float) -> bool:
        """Note an epoch that can be selected; returns whether training ends with it."""
        self.waited = 0 if better else self.waited + 1
        if epoch < self._min_epochs:
            return False
        impatient = self._patience is not None and self.waited >= self._patience
        return impatient or (self._enough is not None and metric >= self._enough)
