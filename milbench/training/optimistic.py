"""The optimistic protocol of DS-MIL's classic numbers, recorded beside the honest result. It selects nothing."""

from collections.abc import Callable
from typing import Any

import numpy as np

from milbench.aggregator import Aggregator
from milbench.stats import accuracy_at_best_thresholds
from milbench.tasks import Task
from milbench.training.checkpoint import CurveRow
from milbench.training.fit import predict
from milbench.training.loader import Bags


class HighestTestAccuracy:
    """Looks at the test part after each epoch, at the threshold that suits that part best, and keeps the highest accuracy.

    Called as `on_epoch` of :func:`milbench.training.fit`, it changes nothing that a training depends on: predictions are made in
    eval mode, which draws nothing.

    Args:
        model: in training.
        test: the bags that the honest result is measured on, too.
        task: subtyping.
        epochs: later ones are not looked at.
        then: called afterwards with the same arguments.

    Attributes:
        value: the highest accuracy so far, None before the first epoch and for a method without epochs.

    Source: binli123/dsmil-wsi, train_mil.py, which prints this number.
    """

    def __init__(self, model: Aggregator, test: Bags, task: Task, epochs: int, then: Callable[[int, CurveRow], None]) -> None:
        self._model, self._test, self._task, self._epochs, self._then = model, test, task, epochs, then
        self.value: float | None = None

    def __call__(self, epoch: int, row: CurveRow) -> None:
        """Note an epoch."""
        if epoch <= self._epochs:
            scores, _ = predict(self._model, self._test, self._task)
            target = np.array([sample.label for sample in self._test.samples])
            accuracy = accuracy_at_best_thresholds(target, scores, one_output=True)
            self.value = accuracy if self.value is None else max(self.value, accuracy)
        self._then(epoch, row)

    def state_dict(self) -> dict[str, Any]:
        """What the epochs so far have left."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Have that state."""
        self.value = state["value"]
