"""What each method can and cannot see: pass, partial or fail on every task of a suite that says beforehand what it expects.

Every task has a known level of guessing and a rule that solves it, so a number is judged without a rival.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from milbench import stats
from milbench.compare.pairing import ALPHA, Pairing, finished
from milbench.metrics import METRICS, Column
from milbench.reading import Run
from milbench.trials.plan import Plan

ALLOWED = {"pass": ("pass",), "partial": ("partial",), "fail": ("fail",), "sees": ("partial", "pass")}  # by each prediction
FALLEN = 0.9  # of the first epoch's training loss: where it stays above, the training slides were not learnt
REPLICATES = 2_000  # enough for an interval; its smallest p-value survives the correction over 50 methods


@dataclass(frozen=True)
class Known:
    """What is known of a task before any model is trained: AUC of guessing, the best possible, and that of its rule."""

    chance: float
    bayes: float
    oracle: float

    @property
    def midway(self) -> float:
        """Between chance and the rule."""
        return stats.rounded((self.chance + self.oracle) / 2)


@dataclass
class Square:
    """One method on one task.

    Args:
        known: of the task.
        expected: the prediction; empty where the suite makes none.
        runs: how many have a result.
        auc: mean over the runs. low, high: its 95 % interval. p: against chance, corrected over the methods of the task.
        loss: training loss of the last epoch over that of the first, mean over the runs; NaN for methods without epochs.
        verdict: "pass", "partial" or "fail"; empty without a finished run, and where the AUC is undefined.
        why: why there is no verdict: status of the runs, or that the AUC is undefined.
    """

    known: Known
    expected: str
    runs: int = 0
    auc: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    p: float = float("nan")
    loss: float = float("nan")
    verdict: str = ""
    why: str = ""

    @property
    def predicted(self) -> bool:
        """Whether there is a prediction that the verdict can be held against."""
        return bool(self.verdict) and self.expected not in ("", "open")

    @property
    def surprise(self) -> bool:
        """Whether the verdict disagrees with the prediction."""
        return self.predicted and self.verdict not in ALLOWED[self.expected]

    @property
    def unlearnt(self) -> bool:
        """Whether it fails on its own training slides as well: longer training, or another recipe, might teach it."""
        return self.verdict == "fail" and self.loss > FALLEN

    def judge(self) -> None:
        """Set the verdict from interval and p-value; none where the AUC is undefined."""
        if np.isnan([self.auc, self.low]).any():
            self.why = "the AUC is undefined"
        elif self.low >= self.known.midway:
            self.verdict = "pass"
        elif self.auc > self.known.chance and self.p < ALPHA:
            self.verdict = "partial"
        else:
            self.verdict = "fail"


@dataclass(frozen=True)
class Matrix:
    """Every method on every task.

    Args:
        rows: method -> its label.
        columns: the tasks.
        known: dataset -> what is known of it.
        squares: by method and task.
    """

    rows: dict[str, str]
    columns: list[Column]
    known: dict[str, Known]
    squares: dict[tuple[str, Column], Square]

    def row(self, method: str) -> list[Square]:
        """A method's squares, task by task."""
        return [self.squares[method, column] for column in self.columns]


def matrix(plan: Plan, runs: Sequence[Run]) -> Matrix:
    """Judge every method on every task; p-values are corrected over the methods of a task.

    Args:
        plan: of a suite with `expect`; `known` in its definition holds chance, Bayes and oracle of every dataset.
        runs: its trials.
    """
    columns = list(dict.fromkeys(run.column for run in runs))
    rows = {run.cell.aggregator: run.cell.label for run in runs}
    definition = plan.definition
    known = {name: Known(*(values[key] for key in ("chance", "bayes", "oracle"))) for name, values in definition["known"].items()}
    squares = {
        (name, column): _square(runs, name, column, known[column.dataset], _expected(definition, name, column.dataset))
        for name in rows
        for column in columns
    }
    for column in columns:
        judged = [square for (_, at), square in squares.items() if at == column and square.runs]
        for square, p in zip(judged, stats.holm([square.p for square in judged]), strict=True):
            square.p = float(p)
            square.judge()
    return Matrix(rows, columns, known, squares)


def _expected(definition: dict[str, Any], aggregator: str, dataset: str) -> str:
    by_dataset = definition["expect"].get(aggregator)
    return by_dataset[definition["grid"]["dataset"].index(dataset)] if by_dataset else ""


def _square(runs: Sequence[Run], aggregator: str, column: Column, known: Known, expected: str) -> Square:
    here = [run for run in runs if run.cell.aggregator == aggregator and run.column == column]
    done = finished(here)
    square = Square(known, expected, len(done))
    if not done:
        square.why = ", ".join(dict.fromkeys(run.status for run in here)) or "not asked for"
        return square
    against = Pairing.of([done], level=known.chance).bootstrap(
        METRICS["macro_auc"], seed=f"capability|{aggregator}|{tuple(column)}", replicates=REPLICATES
    )
    square.auc, square.low, square.high = (
        stats.rounded(known.chance + x, step=stats.STEP) for x in (against.difference, against.low, against.high)
    )
    square.p = against.p
    square.loss = stats.rounded(float(np.mean([_fall(run) for run in done.values()])))
    return square


def _fall(run: Run) -> float:
    """Training loss of the last epoch over that of the first: a ratio, as some methods' losses have more than one term."""
    losses = [row["train_loss"] for row in run.result["curve"]]
    return losses[-1] / losses[0] if losses and losses[0] else float("nan")
