"""The contract of an aggregator: a bag goes in, one slide-level prediction comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from milbench.bags import Bag
from milbench.errors import MilbenchError
from milbench.nn.optimisers import Optimiser
from milbench.nn.optimisers import build as build_optimiser

if TYPE_CHECKING:
    from milbench.recipes import Recipe


class Task(Protocol):
    """What an aggregator may ask of the task it is trained for; see :mod:`milbench.tasks`."""

    name: ClassVar[str]
    n_out: int

    def loss(self, logits: Tensor, target: Any) -> Tensor:
        """The task's own loss of one bag. logits: (n_out,)."""

    def scores(self, logits: Tensor) -> Tensor:
        """What the metrics see: class probabilities (C,), or the risk ()."""


@dataclass
class Prediction:
    """The prediction for one bag.

    Args:
        logits: (n_out,), one per class, or per time bin for survival.
        attention: (n,) weight of each instance for the predicted class, or None where the method has no attention.
        extras: whatever the method's own loss or an analysis needs.
    """

    logits: Tensor
    attention: Tensor | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)


class Aggregator(nn.Module):
    """Base class of every aggregator. A subclass defines `__init__` and `forward`; the rest has defaults.

    Args:
        in_dim: width d of an instance.
        n_out: number of classes, or of time bins for survival.

    Parameters of a subclass are keyword-only with annotated simple types (int, float, bool, str, Literal, or None), so that
    `name[parameter=value]` can be checked and recorded.
    """

    # For the default parameters; a variant that differs sets its value in __init__.
    needs_coords: bool = False  # without coordinates a trial is recorded as skipped
    order_sensitive: bool = False  # True where permuting the bag changes the prediction
    ops: ClassVar[tuple[str, ...]] = ()  # the names in milbench.ops.OPERATIONS that any variant calls
    complexity: ClassVar[str] = "?"  # time in the number of instances, as a formula: "n", "n^2"
    # What a reader may look for among the parameters and nobody can set, such as "positions"; what is not here is none.
    fixed: ClassVar[Mapping[str, str]] = {}
    # Plain attributes that training changes, such as counters: numbers, text or tensors. Beside them only parameters, buffers and
    # torch's `get_extra_state` are kept when a trial is cut off and goes on.
    carried: ClassVar[tuple[str, ...]] = ()
    official_names: ClassVar[Mapping[str, str]] = {}  # prefix in the official state dict -> prefix in ours
    # task -> values of the method's own recipe; with them "params", the parameters that its script sets otherwise than our
    # defaults, "source", and what of the source is "not_followed".
    official_recipe: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init__(self, in_dim: int, n_out: int) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.n_out = n_out

    @classmethod
    def official(cls, params: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        """`official_recipe`, or another where these parameters make the model of another publication."""
        return cls.official_recipe

    def forward(self, bag: Bag) -> Prediction:
        """Predict one bag."""
        raise NotImplementedError

    def training_loss(self, prediction: Prediction, target: Any, task: Task) -> Tensor:
        """The loss to minimise; the task's own unless a method has another."""
        return task.loss(prediction.logits, target)

    def scores(self, prediction: Prediction, task: Task) -> Tensor:
        """What the metrics see of a prediction; the task's reading of the logits unless a method has another."""
        return task.scores(prediction.logits)

    def prepare(self, train_bags: Sequence[Bag], generator: torch.Generator) -> None:
        """Called once before training, with training bags only (clusters, codebooks)."""

    def fit(self, bags: Sequence[Bag], targets: Sequence[Any]) -> None:
        """For methods without gradients: learn from all training bags at once."""
        raise NotImplementedError

    @property
    def trained_by_gradient(self) -> bool:
        """False for a method that overrides :meth:`fit`."""
        return type(self).fit is Aggregator.fit

    def optimisers(self, recipe: Recipe) -> list[Optimiser]:
        """The optimisers of a recipe; one over all parameters unless a method needs more."""
        return [build_optimiser(recipe, self.parameters())]

    def training_step(self, bag: Bag, target: Any, task: Task, optimisers: Sequence[Optimiser]) -> Tensor:
        """One update from one bag; returns the loss before it, detached. Optimisers accumulate and clip by themselves."""
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss = self.training_loss(self(bag), target, task)
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
        return loss.detach()

    def load_official(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load weights trained with the method's official code.

        Raises:
            MilbenchError: listing every entry that is missing, unknown or of another shape.
        """
        renamed = self.rename_official(state_dict)
        ours = self.state_dict()
        wrong = [f"missing {name}" for name in ours.keys() - renamed.keys()]
        wrong += [f"unknown {name}" for name in renamed.keys() - ours.keys()]
        wrong += [
            f"{name} is {tuple(renamed[name].shape)}, expected {tuple(ours[name].shape)}"
            for name in ours.keys() & renamed.keys()
            if ours[name].shape != renamed[name].shape
        ]
        if wrong:
            raise MilbenchError(f"{type(self).__name__}: official weights do not fit: {'; '.join(sorted(wrong))}")
        self.load_state_dict(renamed)

    def rename_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Entries of an official state dict under our names: the longest prefix in `official_names` wins.

        A part `module` counts nowhere, neither in the entries nor in `official_names`: DataParallel puts it around whatever it
        wraps, a whole model or one layer.

        Raises:
            MilbenchError: two entries get one name.
        """
        known = {unwrapped(theirs): ours for theirs, ours in self.official_names.items()}
        renamed: dict[str, Tensor] = {}
        for entry, value in state_dict.items():
            name = unwrapped(entry)
            prefix = max((p for p in known if name == p or name.startswith(p + ".")), key=len, default=None)
            new = name if prefix is None else known[prefix] + name[len(prefix) :]
            if new in renamed:
                raise MilbenchError(f"{type(self).__name__}: several official weights are called {new} here, one of them {entry}")
            renamed[new] = value
        return renamed


def unwrapped(name: str) -> str:
    """A parameter's name without what DataParallel adds: `net.module.0.weight` is `net.0.weight`."""
    return ".".join(part for part in name.split(".") if part != "module")
