"""Reports: the tables and figures of a suite, written to files. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from milbench.api.results import store_of, suite_name
from milbench.report.build import build
from milbench.report.model import Report, Table
from milbench.report.render import terminal
from milbench.report.site import FORMATS, Format, write

if TYPE_CHECKING:
    from rich.console import RenderableType

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Written:
    """A report and its files.

    Args:
        report: its tables and figures as data.
        paths: documents first, then tables and figures.
    """

    report: Report = field(repr=False)
    paths: list[Path]

    @property
    def tables(self) -> list[Table]:
        """What a terminal shows: the verdicts, then each suite's tables; the appendix stands in the files only."""
        made = self.report
        return [*made.verdicts, *made.others, *(table for section in made.sections for table in section.tables)]

    def drawn(self, table: Table) -> RenderableType:
        """The table as rich prints it."""
        return terminal.table(table)


def report(
    suite: str | Path,
    *,
    results: str | Path | None = None,
    reports: str | Path = "reports",
    formats: Collection[Format] = FORMATS,
    published: Literal["side", "below", "off"] = "side",
    tests: bool = True,
    progress: Progress = lambda table, done, total: None,
) -> Written:
    """Make the tables and figures of a suite from its results, and write them to REPORTS/SUITE.

    Args:
        suite: a suite that was run: its name, or the TOML file that was run.
        results: the results folder. [default: MILBENCH_RESULTS, or results]
        reports: the folder to write to.
        formats: of "latex", "md", "html" and "csv" those that are written.
        published: where the paper's numbers stand: beside ours, below them, or nowhere.
        tests: False leaves out the paired comparisons, which take most of the time.
        progress: is called with the name of a table, the number of comparisons that are done, and of all.

    Raises:
        MilbenchError: the suite was not run into that folder, or a result cannot be read.

    Examples:
        >>> report("quickstart", results="nowhere")
        Traceback (most recent call last):
        ...
        milbench.errors.NothingYet: nothing was run into nowhere yet; start with: milbench run --suite quickstart
    """
    name = suite_name(suite)
    made = build(store_of(results), name, published=published, tests=tests, progress=progress)
    return Written(made, write(made, Path(reports) / name, formats))


def report_published(
    folds: Iterable[str | Path] = (),
    predictions: Iterable[str | Path] = (),
    *,
    reference: str | None = None,
    reports: str | Path = "reports",
    formats: Collection[Format] = FORMATS,
    tests: bool = True,
) -> Written:
    """The same tables and tests for what others published, written to REPORTS/published.

    Args:
        folds: CSV files of scores per model and fold.
        predictions: CSV files (may be .gz) of predictions per model, fold and case.
        reference: the model that the others are compared with.
        reports: the folder to write to.
        formats: of "latex", "md", "html" and "csv" those that are written.
        tests: False leaves out the paired comparisons.

    Raises:
        MilbenchError: a file cannot be read or lacks a column.
    """
    from milbench.report import from_published

    made = from_published.report(map(Path, folds), map(Path, predictions), reference=reference, tests=tests)
    return Written(made, write(made, Path(reports) / "published", formats))
