"""What a suite's tables are made of: a block of runs for each row, column and metric, with what is printed and compared there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milbench import reading, stats
from milbench.compare import Comparison, Comparisons
from milbench.metrics import Column, Metric
from milbench.papers import Printed, PrintedTable
from milbench.reading import Run
from milbench.report.model import Beside
from milbench.trials.plan import Plan


@dataclass
class Block:
    """All runs of one row in one column, with one metric.

    Args:
        aggregator, label: the row.
        column, metric: what the numbers are of.
        runs: those that were asked for.
        expected: how many the column has of any method.
        values: the metric of those that are finished.
        printed, printed_note: the paper's number, and what is wrong with it.
        comparison: with the reference; None where nothing was compared.
    """

    aggregator: str
    label: str
    column: Column
    metric: Metric
    runs: list[Run]
    expected: int
    values: NDArray[np.float64]
    printed: Printed | None = None
    printed_note: str = ""
    comparison: Comparison | None = None

    @property
    def complete(self) -> bool:
        """Whether every run has a value."""
        return len(self.values) == self.expected and not np.isnan(self.values).any()

    @property
    def mean(self) -> float:
        """Of the finished runs."""
        return stats.rounded(self.values.mean(), step=stats.STEP) if len(self.values) else math.nan

    @property
    def sd(self) -> float:
        """Sample standard deviation."""
        return stats.rounded(self.values.std(ddof=1), step=stats.STEP) if len(self.values) > 1 else math.nan

    @property
    def above_printed(self) -> float:
        """Our mean less the printed one."""
        return stats.rounded(self.mean - self.printed.mean, step=stats.STEP) if self.printed else math.nan

    @property
    def place(self) -> dict[str, Any]:
        """Row, column and metric for the CSV."""
        return {"aggregator": self.aggregator, "label": self.label, **self.column._asdict(), "metric": self.metric.name}


@dataclass
class Content:
    """What a suite's tables are made of: a block for each row, column and metric.

    Args:
        plan, runs: what was asked for, and what came of it.
        layout: the suite's [table].
        rows: method -> its label, from the top down.
        columns, metrics: from left to right; each column has every metric.
        blocks: by method, column and name of the metric.
        printed: the paper's table beside them.
        compared: with the reference.
        tests: False where the report was made without comparisons.
    """

    plan: Plan
    runs: Sequence[Run]
    layout: dict[str, Any]
    rows: dict[str, str]
    columns: list[Column]
    metrics: list[Metric]
    blocks: dict[tuple[str, Column, str], Block]
    printed: PrintedTable | None
    compared: Comparisons | None
    tests: bool

    @property
    def heads(self) -> list[tuple[Column, Metric]]:
        """The table's columns, from left to right."""
        return [(column, metric) for column in self.columns for metric in self.metrics]

    def below(self, column: Column, metric: Metric) -> list[Block]:
        """The blocks of a column, from the top down."""
        return [self.blocks[method, column, metric.name] for method in self.rows]

    def head(self, column: Column, metric: Metric) -> tuple[str, str]:
        """(group, label) of a column; a metric that the suite leaves without a head leaves the label to the rest."""
        values, heads = column._asdict(), self.plan.heads
        names = (str(values[name]) for name in self.layout["columns"] if name != "metric")
        group = ", ".join(heads.get(name, name) for name in names)
        label = heads.get(metric.name, metric.head)
        return (group, label) if label else ("", group)

    def words(self, column: Column, metric: Metric) -> str:
        """A column in a sentence."""
        return ", ".join(filter(None, self.head(column, metric)))


def gather(
    plan: Plan, runs: Sequence[Run], compared: Comparisons | None = None, published: Beside = "side", *, tests: bool = True
) -> Content:
    """The content of a suite's tables; arguments as in :func:`milbench.report.tables.build`.

    Raises:
        MilbenchError: the suite asks for a metric that is none, or for a printed table that is not there.
    """
    layout, metrics = plan.definition["table"], reading.metrics(plan)
    wanted = published != "off" and layout.get("published")
    printed = PrintedTable(wanted, reading.usual(runs)) if wanted else None
    listed = plan.definition["grid"]["aggregator"]
    labels = {run.cell.aggregator: run.cell.label for run in runs}
    if printed:  # its rows all stand in the table, whether they were asked for here or not
        given = layout.get("labels", {})
        labels = {name: given.get(name) or printed.label(name) or name for name in listed} | labels
    places: dict[tuple[str, Column], list[Run]] = {}
    repeats: dict[Column, set[tuple[int, int]]] = {}
    for run in runs:
        places.setdefault((run.cell.aggregator, run.column), []).append(run)
        repeats.setdefault(run.column, set()).add((run.cell.fold, run.cell.seed))
    rows = {name: labels[name] for name in reading.in_order(plan, labels)}
    content = Content(plan, runs, layout, rows, list(repeats), metrics, {}, printed, compared, tests)
    for name, label in rows.items():
        for column, expected in repeats.items():
            here = places.get((name, column), [])
            for metric in metrics:
                values = np.array([run.metric(metric.name) for run in here if run.status == "ok"])
                block = Block(name, label, column, metric, here, len(expected), values)
                content.blocks[name, column, metric.name] = block
                if printed and name in listed:
                    block.printed = printed.get(name, column, metric.name)
                    head = " ".join(content.head(column, metric)).strip()
                    block.printed_note = printed.note(name, head, block.printed)
    for comparison in compared.every if compared else ():
        content.blocks[comparison.aggregator, comparison.column, comparison.metric.name].comparison = comparison
    return content
