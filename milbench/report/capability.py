"""What each method can and cannot see: pass, partial or fail on every task of a suite that says beforehand what it expects.

Every task has a known chance level and a rule that solves it, so a number needs no rival to be judged.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from milbench import stats
from milbench.numbers import NONE, number
from milbench.plots.figure import PAGE, Figure
from milbench.reading import Run
from milbench.report.tables import ALPHA, Entry, Row, Table, with_data
from milbench.stats.paired import Metric
from milbench.trials.plan import Plan

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

ALLOWED = {"pass": ("pass",), "partial": ("partial",), "fail": ("fail",), "sees": ("partial", "pass")}  # by each prediction
SURPRISE, UNLEARNT = "s", "u"
FALLEN = 0.9  # of the first epoch's training loss: what has not fallen below was not learnt
REPLICATES = 2_000  # enough for an interval; its smallest p-value survives the correction over 50 methods
_COLOURS = {"pass": "#0072B2", "partial": "#E69F00", "fail": "#E5E5E5", "": "#FFFFFF"}
_HATCH = "////"  # fails that were not even learnt
_TISSUE = {"o": "#D0D0D0", "A": "#D55E00", "B": "#0072B2", "C": "#009E73"}

Column = tuple[object, ...]


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
        auc: mean over the runs. low, high: its 95 % interval. p: against chance, corrected over the methods of the task.
        loss: training loss of the last epoch over that of the first, mean over the runs; NaN for methods without epochs.
        verdict: "pass", "partial" or "fail"; empty without a finished run, and where the AUC is undefined.
        expected: the prediction; empty where the suite makes none.
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
    def told(self) -> bool:
        """Whether there is a prediction that the verdict can be held against."""
        return bool(self.verdict) and self.expected not in ("", "open")

    @property
    def surprise(self) -> bool:
        """Whether the verdict disagrees with the prediction."""
        return self.told and self.verdict not in ALLOWED[self.expected]

    @property
    def unlearnt(self) -> bool:
        """Whether it fails on its own training slides as well: longer training, or another, might teach it."""
        return self.verdict == "fail" and self.loss > FALLEN

    @property
    def mark(self) -> str:
        """Letters of the footnotes."""
        return SURPRISE * self.surprise + UNLEARNT * self.unlearnt

    def judge(self) -> None:
        """Give the verdict from interval and p-value; none where the AUC is undefined."""
        if np.isnan([self.auc, self.low]).any():
            self.why = "the AUC is undefined"
        elif self.low >= self.known.midway:
            self.verdict = "pass"
        elif self.auc > self.known.chance and self.p < ALPHA:
            self.verdict = "partial"
        else:
            self.verdict = "fail"


def build(plan: Plan, runs: Sequence[Run]) -> tuple[list[Table], list[Figure]]:
    """The capability matrix and the predictions it is held against, as tables; the matrix and examples of the tasks as figures.

    Args:
        plan: of a suite with `expect`; `known` in its definition holds chance, Bayes, oracle and examples of every dataset.
        runs: its trials.
    """
    definition = plan.definition
    columns: list[Column] = list(dict.fromkeys(run.cell.column for run in runs))
    rows = {run.cell.aggregator: run.cell.label for run in runs}
    known = {name: Known(*(values[key] for key in ("chance", "bayes", "oracle"))) for name, values in definition["known"].items()}
    squares = {
        (name, column): _square(runs, name, column, known[str(column[0])], _expected(definition, name, str(column[0])))
        for name in rows
        for column in columns
    }
    for column in columns:
        judged = [s for (_, at), s in squares.items() if at == column and s.runs]
        for square, p in zip(judged, stats.holm([s.p for s in judged]), strict=True):
            square.p = float(p)
            square.judge()
    matrix = _Matrix(plan, rows, columns, _heads(runs, columns), known, squares)
    figures = [matrix.figure()] if any(s.verdict for s in squares.values()) else []
    return [matrix.table(), matrix.predictions()], [*figures, _examples(plan, runs)]


def _expected(definition: dict[str, Any], aggregator: str, dataset: str) -> str:
    said = definition["expect"].get(aggregator)
    return said[definition["grid"]["dataset"].index(dataset)] if said else ""


def _heads(runs: Sequence[Run], columns: Sequence[Column]) -> dict[Column, str]:
    """How a task is printed, with its encoder where there are several."""
    labels = {run.cell.column: run.cell.dataset_label for run in runs}
    several = len({column[1] for column in columns}) > 1
    return {column: labels[column] + (f", {column[1]}" if several else "") for column in columns}


def _square(runs: Sequence[Run], aggregator: str, column: Column, known: Known, expected: str) -> Square:
    own = [run for run in runs if run.cell.aggregator == aggregator and run.cell.column == column]
    done = [run for run in own if run.status == "ok"]
    square = Square(known, expected, len(done))
    if not done:
        square.why = ", ".join(dict.fromkeys(run.status for run in own)) or "not asked for"
        return square
    by_fold: dict[int, list[Run]] = defaultdict(list)
    for run in done:
        by_fold[run.cell.fold].append(run)
    against = stats.paired_bootstrap(
        [
            (some[0].predictions["target"], [(with_data(run, "macro_auc"), _constant(known.chance)) for run in some])
            for some in by_fold.values()
        ],
        replicates=REPLICATES,
        seed=f"capability|{aggregator}|{column}",
    )
    square.auc, square.low, square.high = (
        stats.rounded(known.chance + x, step=stats.STEP) for x in (against.difference, against.low, against.high)
    )
    square.p = against.p
    square.loss = stats.rounded(float(np.mean([_fall(run) for run in done])))
    return square


def _fall(run: Run) -> float:
    """Training loss of the last epoch over that of the first: a ratio, as some methods' losses have more than one term."""
    losses = [row["train_loss"] for row in run.result["curve"]]
    return losses[-1] / losses[0] if losses and losses[0] else float("nan")


def _constant(value: float) -> Metric:
    return lambda counts: np.full(len(counts), value)


@dataclass
class _Matrix:
    """All squares, and how rows and columns are printed."""

    plan: Plan
    rows: dict[str, str]
    columns: list[Column]
    heads: dict[Column, str]
    known: dict[str, Known]
    squares: dict[tuple[str, Column], Square]

    @property
    def name(self) -> str:
        return f"{self.plan.suite}-capability"

    def table(self) -> Table:
        """Verdict and AUC of each method on each task, under what is known of the task."""
        references = [
            Row(
                label, [Entry(number(getattr(self.known[str(column[0])], key), ".2f")) for column in self.columns] + [Entry(NONE)]
            )
            for key, label in (("chance", "Chance"), ("bayes", "Bayes (types known)"), ("oracle", "Oracle (the rule)"))
        ]
        lines, tidy = [], []
        for name, label in self.rows.items():
            own = [self.squares[name, column] for column in self.columns]
            entries = [
                Entry(f"{s.verdict} {number(s.auc, '.2f')}", mark=s.mark) if s.verdict else Entry(f"{NONE} ({s.why})")
                for s in own
            ]
            told = [s for s in own if s.told]
            lines.append(Row(label, [*entries, Entry(f"{sum(not s.surprise for s in told)} of {len(told)}" if told else NONE)]))
            tidy += [self._tidy(name, label, column) for column in self.columns]
        lines[0].rule = True
        return Table(
            name=self.name,
            title="What each method sees: verdict and AUC on the test slides",
            headers=[("", self.heads[column]) for column in self.columns] + [("", "as predicted")],
            rows=[*references, *lines],
            notes=[
                "pass: the 95 % interval of the AUC (bootstrap over test slides, stratified by class) lies above the middle"
                " between chance and oracle. partial: above chance (same bootstrap, p < 0.05 after Holm's correction over the"
                " methods of the task), but not so far. fail: not shown to be above chance.",
                f"{SURPRISE}: a surprise, other than the suite's file predicted.",
                f"{UNLEARNT}: not learnt: the training loss of the last epoch is above {FALLEN:.0%} of the first's. The method,"
                " or this recipe, fails on the training slides too; a fail without it learnt what does not carry over.",
                "Bayes: the best score of anything that knows types and places. Oracle: the task's rule, applied to the types and"
                " places of the same test slides.",
                "The interval says what other test slides would have shown, not what another training would.",
            ],
            tidy=tidy,
        )  # fmt: skip

    def _tidy(self, name: str, label: str, column: Column) -> dict[str, Any]:
        s = self.squares[name, column]
        agreed = ("surprise" if s.surprise else "as expected") if s.told else ""
        return {
            "dataset": column[0], "encoder": column[1], "aggregator": name, "label": label, "runs": s.runs, "auc": s.auc,
            "low": s.low, "high": s.high, "p_holm": s.p, "loss_ratio": s.loss, "verdict": s.verdict, "expected": s.expected,
            "agreed": agreed, "why": s.why, "chance": s.known.chance, "bayes": s.known.bayes, "oracle": s.known.oracle,
        }  # fmt: skip

    def predictions(self) -> Table:
        """What the suite's file says beforehand."""
        lines = []
        for name, label in self.rows.items():
            own = [self.squares[name, column] for column in self.columns]
            lines.append(Row(label, [Entry(s.expected or NONE, mark=SURPRISE if s.surprise else "") for s in own]))
        return Table(
            name=f"{self.plan.suite}-predictions",
            title="What was predicted",
            headers=[("", self.heads[column]) for column in self.columns],
            rows=lines,
            notes=[
                "Written into the suite's file from the definitions of the methods. sees: partial or pass. open: no prediction.",
                f"{SURPRISE}: measured otherwise.",
            ],
            tidy=[
                {"dataset": column[0], "aggregator": name, "label": label, "expected": self.squares[name, column].expected}
                for name, label in self.rows.items()
                for column in self.columns
            ],
        )

    def figure(self) -> Figure:
        """The matrix in colours."""

        def draw() -> "Drawing":
            from matplotlib import pyplot as plt
            from matplotlib.lines import Line2D
            from matplotlib.patches import Patch, Rectangle

            figure, axes = plt.subplots(figsize=(PAGE, 1.1 + 0.27 * len(self.rows)))
            for y, name in enumerate(self.rows):
                for x, column in enumerate(self.columns):
                    s = self.squares[name, column]
                    hatch = _HATCH if s.unlearnt else None
                    axes.add_patch(Rectangle((x, y), 1, 1, facecolor=_COLOURS[s.verdict], edgecolor="white", hatch=hatch))
                    ink = "white" if s.verdict == "pass" else "black"
                    text = number(s.auc, ".2f") + (" !" if s.surprise else "")  # as in the table
                    weight = "bold" if s.surprise else "normal"
                    axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", color=ink, fontsize=7, fontweight=weight)
            axes.set(xlim=(0, len(self.columns)), ylim=(len(self.rows), 0))
            axes.set_xticks(np.arange(len(self.columns)) + 0.5, [self.heads[c] for c in self.columns], rotation=30, ha="left")
            axes.set_yticks(np.arange(len(self.rows)) + 0.5, list(self.rows.values()))
            axes.xaxis.tick_top()
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            keys: list[Patch | Line2D] = [Patch(facecolor=_COLOURS[v], label=v) for v in ("pass", "partial", "fail")]
            keys.append(Patch(facecolor=_COLOURS["fail"], edgecolor="white", hatch=_HATCH, label="fail, not even learnt"))
            keys.append(Line2D([], [], color="black", marker="$!$", linestyle="", label="other than predicted"))
            axes.legend(handles=keys, loc="upper center", bbox_to_anchor=(0.5, -0.01), ncol=5)
            return figure

        return Figure(
            name=self.name,
            title="What each method sees",
            caption="AUC on the test slides of each task; 0.5 is chance, 1 is the rule. Colours are the verdicts of the table; "
            "hatched: the training slides were not learnt either; ! marks what the suite's file predicted otherwise.",
            rows=[self._tidy(name, label, column) for name, label in self.rows.items() for column in self.columns],
            draw=draw,
        )


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
