"""Fit one model on one fold: batches of one bag, the epoch chosen on validation, never on test."""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from milbench.aggregator import Aggregator
from milbench.bags import Bag
from milbench.datasets import Dataset, Fold, Sample
from milbench.errors import MilbenchError
from milbench.nn.optimisers import learning_rate
from milbench.recipes import Recipe
from milbench.stats import STEP, rounded
from milbench.tasks import Subtyping, Survival, SurvivalTarget


def derive_seed(*axes: object) -> int:
    """A seed from named axes, so that equal axes mean equal draws whatever else differs.

    All aggregators share dataset, split, fold and seed, hence the order of bags: comparisons are paired.
    """
    return int.from_bytes(hashlib.sha256("|".join(map(str, axes)).encode()).digest()[:8]) >> 1


class Standardiser:
    """Zero mean and unit variance per feature, learnt from training bags only.

    Args:
        mean: (d,). scale: (d,), 1 where a feature is constant.
    """

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        self.mean, self.scale = mean, scale

    @classmethod
    def from_bags(cls, bags: Iterator[Bag]) -> Standardiser:
        """Two sums in float64 over every instance of the bags; O(d) memory."""
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for bag in bags:
            x = bag.features.double()
            count, total, squares = count + len(x), total + x.sum(0), squares + (x * x).sum(0)
        mean = total / count
        std = (squares / count - mean**2).clamp(min=0).sqrt()
        return cls(mean.float(), torch.where(std > 1e-6 * mean.abs().clamp(min=1e-6), std, 1.0).float())

    def __call__(self, features: Tensor) -> Tensor:
        """(n, d) -> (n, d)."""
        return (features - self.mean) / self.scale


class Bags(Sequence[Bag]):
    """The bags of one part of a fold, read when asked for, checked the first time; `instances` are the sizes of those read."""

    def __init__(
        self, dataset: Dataset, ids: Sequence[str], *, device: str = "cpu", standardise: Standardiser | None = None
    ) -> None:
        self.samples = [dataset.sample(id) for id in ids]
        self._dataset, self._device, self._standardise = dataset, device, standardise
        self.instances: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        id = self.samples[index].id
        bag = self._dataset.read(id)
        if id not in self.instances:
            self.instances[id] = len(bag.check(self._dataset.in_dim))
        if self._standardise is not None:
            bag = bag.with_features(self._standardise(bag.features))
        return bag.to(self._device)


@dataclass
class Fit:
    """What training one model gave.

    Args:
        curve: one row per epoch: epoch, train_loss, val_loss and the validation metric.
        epoch: the epoch whose weights the model now has; 0 for methods without epochs.
        selected_on: "val", or "none" where the last epoch is taken.
        seconds_per_step: mean over training steps.
    """

    curve: list[dict[str, float | None]] = field(default_factory=list)
    epoch: int = 0
    selected_on: str = "none"
    seconds_per_step: float | None = None


@torch.no_grad()
def predict(model: Aggregator, bags: Bags, task: Subtyping | Survival) -> tuple[NDArray[np.float32], float]:
    """Scores (n, C) or risks (n,) in the order of the bags, and the mean of the task's loss on the logits."""
    model.eval()
    scores, losses = [], []
    for sample, bag in zip(bags.samples, bags, strict=True):
        prediction = model(bag)
        if not torch.isfinite(prediction.logits).all():
            raise ArithmeticError(f"slide {sample.id}: the model's logits are not finite; try a lower learning rate")
        scores.append(model.scores(prediction, task).float().cpu().numpy())
        losses.append(float(task.loss(prediction.logits.cpu(), task.target(sample))))  # type: ignore[arg-type]
    return np.stack(scores), float(np.mean(losses))


def fit(
    model: Aggregator,
    train: Bags,
    val: Bags | None,
    task: Subtyping | Survival,
    recipe: Recipe,
    axes: Sequence[object],
    on_epoch: Callable[[int, dict[str, float | None]], None] = lambda epoch, row: None,
) -> Fit:
    """Train `model` in place and leave it with the weights of the chosen epoch.

    The best epoch has the highest validation metric (or accuracy, as the recipe says), of equals the lowest validation loss. An
    undefined metric (a validation part with one class) ranks last, so that the loss decides.

    Args:
        model: fresh weights.
        train, val: bags; `val` None where the split has no validation part.
        task: gives loss and metric.
        recipe: optimiser and stopping.
        axes: named axes that the order of bags is derived from.
        on_epoch: called after each epoch with its number and its row of the curve.

    Raises:
        ArithmeticError: the loss or a prediction is not finite.
    """
    targets = [task.target(sample) for sample in train.samples]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    targets = [_to(target, device) for target in targets]
    model.prepare(train, torch.Generator().manual_seed(derive_seed(*axes, "prepare")))
    if not model.trained_by_gradient:
        model.fit(train, targets)
        return Fit()

    optimisers = model.optimisers(recipe)
    full_rates = [(group, group["lr"]) for optimiser in optimisers for group in optimiser.param_groups]
    selecting = recipe.select != "last"
    watched = "accuracy" if recipe.select == "best val accuracy" else task.metric
    if selecting and not val:
        raise MilbenchError(f"recipe {recipe.name} selects on validation, but this fold has no validation part")
    result, best, waited, stepping = Fit(selected_on="val" if selecting else "none"), (-math.inf, -math.inf), 0, 0.0
    kept: dict[str, Tensor] = {}
    shown = recipe.epoch_bags or len(train)
    for epoch in range(1, recipe.max_epochs + 1):
        order = _orders(train.samples, targets, recipe, axes, slice((epoch - 1) * shown, epoch * shown))
        model.train()
        losses = []
        started = time.perf_counter()
        for at, i in enumerate(order):
            progress = epoch - 1 + (at / len(order) if recipe.schedule == "cosine-per-step" else 0)
            for group, full_rate in full_rates:
                group["lr"] = full_rate * learning_rate(recipe, progress)
            losses.append(model.training_step(train[i], targets[i], task, optimisers))
        train_loss = float(torch.stack(losses).mean())
        stepping += time.perf_counter() - started
        if not math.isfinite(train_loss):
            raise ArithmeticError(f"epoch {epoch}: the training loss is {train_loss}; try a lower learning rate")
        row: dict[str, float | None] = {"epoch": epoch, "train_loss": train_loss}
        if val:
            scores, val_loss = predict(model, val, task)
            metric = rounded(task.metrics(val.samples, scores)[watched], step=STEP)  # equal epochs tie on every machine
            row |= {"val_loss": val_loss, f"val_{watched}": None if math.isnan(metric) else metric}
            by_metric = recipe.select != "best val loss" and not math.isnan(metric)
            rank = (metric if by_metric else -math.inf, -val_loss)
        result.curve.append(row)
        on_epoch(epoch, row)
        if not selecting or epoch <= recipe.select_after < recipe.max_epochs:
            continue
        if rank > best:
            best, result.epoch, waited = rank, epoch, 0
            kept = copy.deepcopy(model.state_dict())
        else:
            waited += 1
            if recipe.patience is not None and waited >= recipe.patience and epoch >= recipe.min_epochs:
                break
        if recipe.enough is not None and metric >= recipe.enough and epoch >= recipe.min_epochs:
            break
    if selecting:
        model.load_state_dict(kept)
    else:
        result.epoch = len(result.curve)
    result.seconds_per_step = stepping / (len(result.curve) * shown)
    return result


def _orders(samples: Sequence[Sample], targets: Sequence[Any], recipe: Recipe, axes: Sequence[object], part: slice) -> list[int]:
    """A part of what is shown when the bags are gone through again and again, each time in an order of its own."""
    n = len(samples)
    first = part.start // n
    passes = [torch.Generator().manual_seed(derive_seed(*axes, "order", at + 1)) for at in range(first, -(-part.stop // n))]
    order = [i for generator in passes for i in _order(samples, targets, recipe, generator)]
    return order[part.start - first * n : part.stop - first * n]


def _order(samples: Sequence[Sample], targets: Sequence[Any], recipe: Recipe, generator: torch.Generator) -> list[int]:
    """Which bags one pass shows, in order."""
    if recipe.sampling == "shuffle":
        return torch.randperm(len(samples), generator=generator).tolist()
    kinds = [(int(t.bin), int(t.event)) if isinstance(t, SurvivalTarget) else int(t) for t in targets]
    weight = torch.tensor([1 / kinds.count(kind) for kind in kinds])
    return torch.multinomial(weight, len(samples), replacement=True, generator=generator).tolist()


def _to(target: Any, device: torch.device) -> Any:
    return target.to(device) if isinstance(target, Tensor) else type(target)(*(t.to(device) for t in target))


_last: dict[Hashable, Standardiser] = {}  # the statistics of the last fold


def fold_bags(
    dataset: Dataset, fold: Fold, *, standardise: bool, device: str = "cpu", same: Hashable = None
) -> tuple[Bags, Bags | None, Bags]:
    """Train, validation (None where empty) and test bags of a fold; statistics for `standardise` come from train only.

    Args:
        dataset, fold: which bags.
        standardise: zero mean and unit variance per feature.
        device: where bags go when they are read.
        same: says which data these are. A call that says the same as the one before takes over its statistics, so that the many
            trials of a fold read all training bags once.
    """
    scaler = None
    if standardise:
        scaler = _last.get(same) or Standardiser.from_bags(dataset.read(id) for id in fold.train)
        _last.clear()
        if same is not None:
            _last[same] = scaler
    train, val, test = (Bags(dataset, ids, device=device, standardise=scaler) for ids in fold)
    return train, (val if len(val) else None), test
