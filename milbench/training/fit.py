"""Fit one model on one fold: batches of one bag, the epoch chosen on validation, never on test."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from milbench.aggregator import Aggregator
from milbench.bags import Bag
from milbench.errors import MilbenchError
from milbench.nn.optimisers import epochs_done, learning_rate, start_epoch
from milbench.recipes import Recipe
from milbench.seeds import derive_seed
from milbench.stats import STEP, accuracy_and_aucs, rounded
from milbench.tasks import Task, to_device
from milbench.training.checkpoint import Checkpoint, CurveRow
from milbench.training.loader import BagOrder, Bags
from milbench.training.selection import NOT_VALIDATED, BestEpoch, LastEpoch, Validation

_WATCHED = {"best val accuracy": "accuracy", "best val accuracy and AUCs": "accuracy_and_aucs"}  # else the task's own metric


@dataclass
class Fit:
    """What training one model gave.

    Args:
        curve: one row per epoch: epoch, train_loss, val_loss and the validation metric.
        epoch: the epoch whose weights the model now has; 0 for methods without epochs.
        selected_on: "val", or "none" where the last epoch is taken.
        seconds_per_step: mean over training steps.
    """

    curve: list[CurveRow] = field(default_factory=list)
    epoch: int = 0
    selected_on: str = "none"
    seconds_per_step: float | None = None


@torch.no_grad()
def predict(model: Aggregator, bags: Bags, task: Task) -> tuple[NDArray[np.float32], float]:
    """Scores (n, C) or risks (n,) in the order of the bags, and the mean of the task's loss on the logits.

    Raises:
        ArithmeticError: logits that are not finite.
    """
    model.eval()
    scores, losses = [], []
    for sample, bag in zip(bags.samples, bags, strict=True):
        prediction = model(bag)
        if not torch.isfinite(prediction.logits).all():
            raise ArithmeticError(f"slide {sample.id}: the model's logits are not finite; try a lower learning rate")
        scores.append(model.scores(prediction, task).float().cpu().numpy())
        losses.append(float(task.loss(prediction.logits.cpu(), task.target(sample))))
    return np.stack(scores), float(np.mean(losses))


def fit(
    model: Aggregator,
    train: Bags,
    val: Bags | None,
    task: Task,
    recipe: Recipe,
    axes: Sequence[object],
    on_epoch: Callable[[int, CurveRow], None] = lambda epoch, row: None,
    checkpoint: Checkpoint | None = None,
) -> Fit:
    """Train `model` in place and leave it with the weights of the chosen epoch.

    :mod:`milbench.training.selection` says which epoch that is, and when training ends.

    Args:
        model: fresh weights.
        train, val: bags; `val` None where the split has no validation part.
        task: gives loss and metric.
        recipe: optimiser, selection and stopping.
        axes: named axes that the order of bags is derived from.
        on_epoch: called after each epoch with its number and its row of the curve.
        checkpoint: keeps the training from time to time; where it has been kept before, it goes on with the next epoch.

    Raises:
        MilbenchError: the recipe selects on validation, and there is none.
        ArithmeticError: the loss or a prediction is not finite.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    targets = [to_device(task.target(sample), device) for sample in train.samples]
    model.prepare(train, torch.Generator().manual_seed(derive_seed(*axes, "prepare")))
    if not model.trained_by_gradient:
        model.fit(train, targets)
        return Fit()

    order = BagOrder([task.stratum(target) for target in targets], recipe, axes)
    steps = Steps(model, train, targets, task, recipe, order.epoch)
    if recipe.select != "last" and not val:
        raise MilbenchError(f"recipe {recipe.name} selects on validation, but this fold has no validation part")
    selection: LastEpoch | BestEpoch = LastEpoch() if recipe.select == "last" else BestEpoch(recipe)
    watched = _WATCHED.get(recipe.select, task.metric)
    curve: list[CurveRow] = []
    if checkpoint:
        curve = checkpoint.resume(model, steps.optimisers, {"steps": steps, "selection": selection}, device)
    for epoch in range(len(curve) + 1, recipe.max_epochs + 1):
        row: CurveRow = {"epoch": epoch, "train_loss": steps.epoch(epoch)}
        validation = NOT_VALIDATED
        if val:
            validation = _validate(model, val, task, watched)
            metric = None if math.isnan(validation.metric) else validation.metric
            row |= {"val_loss": validation.loss, f"val_{watched}": metric}
        curve.append(row)
        on_epoch(epoch, row)
        if selection.update(epoch, model, validation):
            break
        if checkpoint and epoch < recipe.max_epochs:
            checkpoint.after_epoch(curve)
    selection.restore(model)
    return Fit(curve, selection.epoch, selection.selected_on, steps.seconds / (len(curve) * order.shown))


class Steps:
    """The training steps, epoch by epoch.

    Args:
        model, task, recipe: as :func:`fit` takes them.
        train, targets: bags and what the loss compares them with.
        order: number of an epoch, from 1 -> which bags it shows, in order.

    Attributes:
        optimisers: those of the model.
        seconds: the time that all steps took so far.
    """

    def __init__(
        self,
        model: Aggregator,
        train: Sequence[Bag],
        targets: Sequence[Any],
        task: Task,
        recipe: Recipe,
        order: Callable[[int], Sequence[int]],
    ) -> None:
        self._model, self._train, self._targets, self._task, self._recipe = model, train, targets, task, recipe
        self.optimisers = model.optimisers(recipe)
        self._full_rates = [[group["lr"] for group in optimiser.param_groups] for optimiser in self.optimisers]
        self._order = order
        self.seconds = 0.0

    def epoch(self, number: int) -> float:
        """Show the bags of the epoch; returns the mean of their losses.

        Raises:
            ArithmeticError: the mean is not finite.
        """
        order = self._order(number)
        self._model.train()
        losses = []
        started = time.perf_counter()
        start_epoch(self.optimisers, len(order))
        for at, i in enumerate(order):
            share = learning_rate(self._recipe, epochs_done(self._recipe, number, at, len(order)))
            for optimiser, full_rates in zip(self.optimisers, self._full_rates, strict=True):
                for group, full_rate in zip(optimiser.param_groups, full_rates, strict=False):  # a method may add groups
                    group["lr"] = full_rate * share
            losses.append(self._model.training_step(self._train[i], self._targets[i], self._task, self.optimisers))
        loss = float(torch.stack(losses).mean())
        self.seconds += time.perf_counter() - started
        if not math.isfinite(loss):
            raise ArithmeticError(f"epoch {number}: the training loss is {loss}; try a lower learning rate")
        return loss

    def state_dict(self) -> dict[str, Any]:
        """What the steps so far have left, beside the model."""
        return {"seconds": self.seconds, "optimisers": [optimiser.state_dict() for optimiser in self.optimisers]}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Have that state."""
        self.seconds = state["seconds"]
        for optimiser, its in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(its)


def _validate(model: Aggregator, val: Bags, task: Task, watched: str) -> Validation:
    scores, loss = predict(model, val, task)
    if watched == "accuracy_and_aucs":
        metric = accuracy_and_aucs(np.array([sample.label for sample in val.samples]), scores)
    else:
        metric = task.metrics(val.samples, scores)[watched]
    return Validation(rounded(metric, step=STEP), loss)  # rounded, so that equal epochs tie on every machine
