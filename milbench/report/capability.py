"""What each method can and cannot see, as tables and figures: the capability matrix, its predictions, examples of the tasks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from milbench.compare.capability import FALLEN, FEWEST, ONCE, UNDECIDED, Matrix, Square, matrix
from milbench.metrics import Column
from milbench.numbers import NONE, interval, number
from milbench.plots.figure import PAGE, Figure
from milbench.reading import Run
from milbench.report.model import Entry, Row, Table
from milbench.trials.plan import Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

SURPRISE, UNLEARNT = "s", "u"  # letters of the footnotes
_COLOURS = {"pass": "#0072B2", "partial": "#E69F00", "fail": "#E5E5E5", UNDECIDED: "#E5E5E5", ONCE: "#FFFFFF", "": "#FFFFFF"}
_HATCH = "////"  # undecided
_TISSUE = {"o": "#D0D0D0", "A": "#D55E00", "B": "#0072B2", "C": "#009E73"}


def build(plan: Plan, runs: Sequence[Run]) -> tuple[list[Table], list[Figure]]:
    """The capability matrix and the predictions it is held against, as tables; the matrix and examples of the tasks as figures.

    Args:
        plan: of a suite with `expect`; `known` in its definition holds chance, Bayes, oracle and examples of every dataset.
        runs: its trials.
    """
    judged = matrix(plan, runs)
    layout = _Layout(plan, judged, _heads(runs, judged.columns))
    figures = [layout.figure()] if any(square.verdict for square in judged.squares.values()) else []
    return [layout.table(), layout.predictions()], [*figures, _examples(plan, runs)]


def mark(square: Square) -> str:
    """Letters of a square's footnotes."""
    return SURPRISE * square.surprise + UNLEARNT * square.unlearnt


def _heads(runs: Sequence[Run], columns: Sequence[Column]) -> dict[Column, str]:
    """How a task is printed, with its encoder where there are several."""
    labels = {run.column: run.cell.dataset_label for run in runs}
    several = len({column.encoder for column in columns}) > 1
    return {column: labels[column] + (f", {column.encoder}" if several else "") for column in columns}


@dataclass
class _Layout:
    """How the squares are printed."""

    plan: Plan
    matrix: Matrix
    heads: dict[Column, str]

    @property
    def name(self) -> str:
        return f"{self.plan.suite}-capability"

    def table(self) -> Table:
        """Verdict and AUC of each method on each task, under what is known of the task."""
        columns, known = self.matrix.columns, self.matrix.known
        references = [
            Row(label, [*(Entry(number(getattr(known[column.dataset], key), ".2f")) for column in columns), Entry(NONE)])
            for key, label in (("chance", "Chance"), ("bayes", "Bayes (types known)"), ("oracle", "Oracle (the rule)"))
        ]
        lines = []
        for name, label in self.matrix.rows.items():
            squares = self.matrix.row(name)
            predicted = [square for square in squares if square.predicted]
            agree = f"{sum(not square.surprise for square in predicted)} of {len(predicted)}" if predicted else NONE
            lines.append(Row(label, [*map(_entry, squares), Entry(agree)]))
        lines[0].rule = True
        return Table(
            name=self.name,
            title="What each method sees: verdict and AUC on the test slides",
            headers=[("", self.heads[column]) for column in columns] + [("", "as predicted")],
            rows=[*references, *lines],
            notes=[
                "pass: the 95 % interval of the AUC lies above the middle between chance and oracle. partial: above chance (p "
                "< 0.05 after Holm's correction over the methods of the task), but not shown to be so far. fail: not shown to "
                "be above chance, the interval lies below the middle, and the training slides were learnt. undecided: none of "
                "these.",
                f"{SURPRISE}: a surprise, other than the suite's file predicted.",
                f"{UNLEARNT}: not learnt: the training loss of the last epoch is above {FALLEN:.0%} of the first's. The method,"
                " or this recipe, fails on the training slides too; that says nothing of what it could see.",
                "Bayes: the best score of anything that knows types and places. Oracle: the task's rule, applied to the types and"
                " places of the same test slides.",
                "Interval and p: the primary test against chance, for other slides and other trainings. A verdict on a method "
                f"needs {FEWEST} trainings or more.",
                *self.once(),
            ],
            tidy=self.tidy(),
        )  # fmt: skip

    def once(self) -> list[str]:
        """What is said where a method was trained once."""
        seen = any(square.verdict == ONCE for square in self.matrix.squares.values())
        says = "a single training: the AUC of this very model with its 95 % interval over other slides; no verdict on the method."
        return [f"Without a word ({ONCE}): {says}"] if seen else []

    def tidy(self) -> list[dict[str, Any]]:
        """Every square, for the CSV of the table and of the figure."""
        return [
            _tidy(self.matrix.squares[name, column], name, label, column)
            for name, label in self.matrix.rows.items()
            for column in self.matrix.columns
        ]

    def predictions(self) -> Table:
        """What the suite's file says beforehand."""
        rows, columns = self.matrix.rows, self.matrix.columns
        lines = []
        for name, label in rows.items():
            squares = self.matrix.row(name)
            lines.append(Row(label, [Entry(s.expected or NONE, mark=SURPRISE if s.surprise else "") for s in squares]))
        return Table(
            name=f"{self.plan.suite}-predictions",
            title="What was predicted",
            headers=[("", self.heads[column]) for column in columns],
            rows=lines,
            notes=[
                "Written into the suite's file from the definitions of the methods. sees: partial or pass. open: no prediction.",
                f"{SURPRISE}: measured otherwise.",
            ],
            tidy=[
                {
                    "dataset": column.dataset, "aggregator": name, "label": label,
                    "expected": self.matrix.squares[name, column].expected,
                }
                for name, label in rows.items()
                for column in columns
            ],
        )  # fmt: skip

    def figure(self) -> Figure:
        """The matrix in colours."""
        return Figure(
            name=self.name,
            title="What each method sees",
            caption="AUC on the test slides of each task; 0.5 is chance, 1 is the rule. Colours are the verdicts of the table; "
            "hatched: undecided; framed: seen once, with the interval over other slides for this very model; ! marks what the "
            "suite's file predicted otherwise.",
            rows=self.tidy(),
            draw=self._draw,
        )

    def _draw(self) -> "Drawing":
        from matplotlib import pyplot as plt
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch

        columns, rows = self.matrix.columns, self.matrix.rows
        figure, axes = plt.subplots(figsize=(PAGE, 1.1 + 0.27 * len(rows)))
        for y, name in enumerate(rows):
            for x, square in enumerate(self.matrix.row(name)):
                _draw_square(axes, x, y, square)
        axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
        axes.set_xticks(np.arange(len(columns)) + 0.5, [self.heads[c] for c in columns], rotation=30, ha="left")
        axes.set_yticks(np.arange(len(rows)) + 0.5, list(rows.values()))
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        keys: list[Patch | Line2D] = [Patch(facecolor=_COLOURS[v], label=v) for v in ("pass", "partial", "fail")]
        keys.append(Patch(facecolor=_COLOURS[UNDECIDED], edgecolor="white", hatch=_HATCH, label=UNDECIDED))
        keys.append(Patch(facecolor=_COLOURS[ONCE], edgecolor="#B0B0B0", label=ONCE))
        keys.append(Line2D([], [], color="black", marker="$!$", linestyle="", label="other than predicted"))
        axes.legend(handles=keys, loc="upper center", bbox_to_anchor=(0.5, -0.01), ncol=6)
        return figure


def _entry(square: Square) -> Entry:
    if not square.verdict:
        return Entry(f"{NONE} ({square.why})")
    if square.verdict == ONCE:
        return Entry(f"{number(square.auc, '.2f')} {interval(square.low, square.high, '.2f')}")
    return Entry(f"{square.verdict} {number(square.auc, '.2f')}", mark=mark(square))


def _tidy(square: Square, name: str, label: str, column: Column) -> dict[str, Any]:
    agreed = ("surprise" if square.surprise else "as expected") if square.predicted else ""
    known = square.known
    return {
        "dataset": column.dataset, "encoder": column.encoder, "aggregator": name, "label": label, "runs": square.runs,
        "auc": square.auc, "low": square.low, "high": square.high, "p_holm": square.p, "loss_ratio": square.loss,
        "verdict": square.verdict, "expected": square.expected, "agreed": agreed, "why": square.why, "chance": known.chance,
        "bayes": known.bayes, "oracle": known.oracle,
    }  # fmt: skip


def _draw_square(axes: "Axes", x: int, y: int, square: Square) -> None:
    from matplotlib.patches import Rectangle

    hatch, once = _HATCH if square.verdict == UNDECIDED else None, square.verdict == ONCE
    edge = "#B0B0B0" if once else "white"
    axes.add_patch(Rectangle((x, y), 1, 1, facecolor=_COLOURS[square.verdict], edgecolor=edge, hatch=hatch))
    ink = "white" if square.verdict == "pass" else "black"
    text = number(square.auc, ".2f") + (" !" if square.surprise else "")  # as in the table
    weight = "bold" if square.surprise else "normal"
    if once:
        axes.text(x + 0.5, y + 0.78, interval(square.low, square.high, ".2f"), ha="center", va="center", fontsize=5)
    axes.text(x + 0.5, y + (0.38 if once else 0.5), text, ha="center", va="center", color=ink, fontsize=7, fontweight=weight)


def _examples(plan: Plan, runs: Sequence[Run]) -> Figure:
    """A slide of either class for every task, patches coloured by type."""
    labels = {run.cell.dataset: run.cell.dataset_label for run in runs}
    maps = {name: plan.definition["known"][name]["examples"] for name in labels}

    def draw() -> "Drawing":
        from matplotlib import pyplot as plt
        from matplotlib.colors import to_rgb
        from matplotlib.patches import Patch

        across = min(4, len(maps))
        bands = -(-len(maps) // across)
        figure, grid = plt.subplots(2 * bands, across, figsize=(PAGE, 2.5 * bands), squeeze=False)
        for axes in grid.flat:
            axes.axis("off")
        for at, (name, pair) in enumerate(maps.items()):
            for which, lines in enumerate(pair):
                axes = grid[2 * (at // across) + which, at % across]
                ink = {".": (1.0, 1.0, 1.0)} | {kind: to_rgb(colour) for kind, colour in _TISSUE.items()}
                axes.imshow([[ink[kind] for kind in line] for line in lines], interpolation="nearest")
                axes.set_title(f"{labels[name]}: {('negative', 'positive')[which]}", fontsize=7, pad=2)
        shown = {kind for pair in maps.values() for lines in pair for line in lines for kind in line}
        key_types = [Patch(facecolor=_TISSUE[k], label="other" if k == "o" else k) for k in _TISSUE if k in shown]
        figure.legend(handles=key_types, loc="outside lower center", ncol=len(key_types))
        return figure

    return Figure(
        name=f"{plan.suite}-examples",
        title="What the tasks look like",
        caption="A compact test slide of either class of every task. One square is one patch; A, B and C are the types that its "
        "rule is about. An aggregator sees a feature vector for each patch, not its type.",
        rows=[
            {"dataset": name, "positive": which, "row": row, "patches": line}
            for name, pair in maps.items()
            for which, lines in enumerate(pair)
            for row, line in enumerate(lines)
        ],
        draw=draw,
    )
