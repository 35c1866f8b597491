"""What each method can and cannot see: pass, partial or fail on every task of a suite that says beforehand what it expects.

Every task has a known level of guessing and a rule that solves it, so a number is judged without a rival: by the primary test
against a constant. It takes three trainings to say something of a method; of one, its models alone are known.
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
FEWEST = 3  # trainings: with fewer nothing is said of the method
ONCE, UNDECIDED = "seen once", "undecided"


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
        auc: mean over the runs.
        low, high: its 95 % interval for other patients and other trainings; with one training, for other patients and this model.
        p: against chance, corrected over the methods of the task; NaN with one training.
        loss: training loss of the last epoch over that of the first, mean over the runs; NaN for methods without epochs.
        verdict: "pass", "partial", "fail", "undecided" or "seen once"; empty without a finished run, or where the AUC is
        undefined. why: why there is no verdict: status of the runs, or that the AUC is undefined; and why it is undecided.
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
        return self.verdict in ("pass", "partial", "fail") and self.expected not in ("", "open")

    @property
    def surprise(self) -> bool:
        """Whether the verdict disagrees with the prediction."""
        return self.predicted and self.verdict not in ALLOWED[self.expected]

    @property
    def unlearnt(self) -> bool:
        """Whether not even the training slides were learnt: longer training, or another recipe, might teach it."""
        return self.verdict == UNDECIDED and self.loss > FALLEN

    def judge(self) -> None:
        """Set the verdict from interval, p-value and training loss; none where the AUC is undefined."""
        midway = self.known.midway
        if np.isnan([self.auc, self.low]).any():
            self.why = self.why or "the AUC is undefined"
        elif self.runs == 1:
            self.verdict = ONCE
        elif self.runs < FEWEST:
            self.verdict, self.why = UNDECIDED, f"{self.runs} trainings, {FEWEST} are needed"
        elif self.low >= midway:
            self.verdict = "pass"
        elif self.auc > self.known.chance and self.p < ALPHA:
            self.verdict = "partial"
        elif self.high < midway and not self.loss > FALLEN:
            self.verdict = "fail"
        else:
            self.verdict = UNDECIDED
            self.why = "the interval reaches midway" if self.high >= midway else "the training loss did not fall"


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
    test = stats.primary([fold.against(METRICS["macro_auc"], known.chance) for fold in Pairing.of([done]).folds])
    interval = test.fixed if len(done) == 1 else test
    # Where nothing varies the AUC is its own interval: a method that is always right passes.
    flat = interval.variance < stats.TINY**2
    ends = (test.difference, test.difference) if flat else (interval.low, interval.high)
    square.auc, square.low, square.high = (
        stats.rounded(float(np.clip(known.chance + x, 0, 1)), step=stats.STEP) for x in (test.difference, *ends)
    )
    square.p = test.p
    square.why = test.why if np.isnan(square.low) else ""
    square.loss = stats.rounded(float(np.mean([_fall(run) for run in done.values()])))
    return square


def _fall(run: Run) -> float:
    """Training loss of the last epoch over that of the first: a ratio, as some methods' losses have more than one term."""
    losses = [row["train_loss"] for row in run.result["curve"]]
    return losses[-1] / losses[0] if losses and losses[0] else float("nan")
