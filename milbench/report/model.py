"""What a report consists of: plain data, which :mod:`milbench.report.render` writes in every format."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from milbench.numbers import Style
from milbench.words import duration

if TYPE_CHECKING:
    from milbench.plots.figure import Figure, Saved
    from milbench.trials.plan import Plan

PAPER, DELTA = "paper", "Δ"  # heads of the columns that hold printed numbers
Beside = Literal["side", "below", "off"]  # where printed numbers stand


@dataclass
class Entry:
    """What stands in one place of a table.

    Args:
        text: as printed; an en dash where there is no number.
        style: "best" is bold, "second" underlined, "quiet" grey: a printed number or what belongs to it.
        dagger: the difference to the reference is significant after correction.
        mark: letter of the footnote that belongs to it.
    """

    text: str
    style: Style | None = None
    dagger: bool = False
    mark: str = ""


@dataclass
class Row:
    """A line of a table; `rule` draws a line above it. Without entries it is a heading over the lines below.

    `below` says that it belongs to the line above and stays with it.
    """

    label: str
    entries: list[Entry]
    rule: bool = False
    below: bool = False


@dataclass
class Table:
    """A table, ready to be rendered.

    Args:
        name: file name.
        title: what it shows, with the number of slides.
        headers: (group, label) of each column; neighbours of the same group share a heading.
        rows: the lines.
        notes: footnotes, one sentence or more each.
        tidy: the same numbers to 12 digits, one dict per entry, for CSV.
        top: a heading over all columns.
        corner: head of the first column.
        partial: what is missing, empty where nothing is.
    """

    name: str
    title: str
    headers: list[tuple[str, str]]
    rows: list[Row]
    notes: list[str]
    tidy: list[dict[str, Any]] = field(repr=False)
    top: str = ""
    corner: str = "Method"
    partial: str = ""


@dataclass
class Section:
    """One suite with a table of its own, or several that fill one table.

    Args:
        plan: what was asked for.
        table: its numbers.
        paired: the comparison with the reference, None where there is none.
        made_with: versions and machine behind the numbers -> trials made with them -> seconds that each took.
        more: what else this suite has to say, such as what its methods can and cannot see.
        appendix: tests and details that stand after everything else.
        figures: drawn from these results.
    """

    plan: Plan
    table: Table
    paired: Table | None
    made_with: dict[str, dict[str, float]]
    more: list[Table] = field(default_factory=list)
    appendix: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)

    @property
    def tables(self) -> list[Table]:
        """What else the suite has to say, its table, then the comparison."""
        return [*self.more, self.table, *([self.paired] if self.paired else [])]


@dataclass
class Report:
    """Everything a report says.

    Args:
        suite: its name.
        title: one line.
        sections: suite by suite.
        not_run: suites that belong to it and were never run here.
        verdicts: what the results say about the paper's claims; stand first.
        figures: made by `milbench analyze` and `milbench profile`; stand last.
        others: what others published, where the report is about that.
    """

    suite: str
    title: str
    sections: list[Section]
    not_run: list[str] = field(default_factory=list)
    verdicts: list[Table] = field(default_factory=list)
    figures: list[Saved] = field(default_factory=list)
    others: list[Table] = field(default_factory=list)

    @property
    def trials(self) -> int:
        """How many trials the tables rest on; what two sections share counts once."""
        return len({cell.trial_id or cell.place for section in self.sections for cell in section.plan.cells})

    @property
    def made_with(self) -> list[str]:
        """Versions and machines behind the numbers, with how many trials were made there and how long they took."""
        together: dict[str, dict[str, float]] = {}
        for section in self.sections:
            for line, seconds in section.made_with.items():
                together.setdefault(line, {}).update(seconds)  # sections may share trials
        return [
            f"{line}: {len(seconds):,} trial{'s' * (len(seconds) > 1)}, {duration(sum(seconds.values()))} one after the other"
            for line, seconds in sorted(together.items())
        ]

    @property
    def tables(self) -> list[Table]:
        """Every table, in the order of the document."""
        return [
            *self.verdicts,
            *self.others,
            *(t for s in self.sections for t in s.tables),
            *(t for s in self.sections for t in s.appendix),
        ]
