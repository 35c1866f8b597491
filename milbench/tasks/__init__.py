"""Tasks: what is predicted, with its target, loss, scores and metrics. A new task is a file here and a line in `TASKS`."""

from collections.abc import Sequence

from milbench.datasets import Dataset
from milbench.tasks.base import Task, to_device
from milbench.tasks.subtyping import Subtyping
from milbench.tasks.survival import Survival, SurvivalTarget, survival_nll

__all__ = ["TASKS", "Subtyping", "Survival", "SurvivalTarget", "Task", "for_fold", "survival_nll", "to_device"]

TASKS: dict[str, type[Task]] = {task.name: task for task in (Subtyping, Survival)}


def for_fold(dataset: Dataset, train: Sequence[str]) -> Task:
    """The dataset's task, with what it must learn learnt from the samples `train` of the training part."""
    return TASKS[dataset.task].of_fold(dataset, train)
