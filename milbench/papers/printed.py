"""What a paper prints: the cells of its tables, the numbers in its text, and where they disagree with their sources.

Each paper has a folder of results/published: numbers.csv, and text.csv, errata.csv and claims.toml where there are any.
"""

import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.resources import files
from typing import Any

from milbench.errors import unknown
from milbench.metrics import Column
from milbench.spelling import canonical

_FOLDER = files("milbench_published")


@dataclass(frozen=True)
class Printed:
    """A number of a table.

    Args:
        table: "table1"; empty where the paper has one table only.
        column: what it is measured on; None where the paper leaves that open.
        method, aggregator: the row, as printed and in the canonical spelling of the name here; the parameters are those that
            decide which row of ours it is.
        metric: its name here.
        mean, sd: the numbers around ±; NaN where only the mean is printed.
        note: what a reader must know of this number; mostly empty.
    """

    table: str
    column: Column
    method: str
    aggregator: str
    metric: str
    mean: float
    sd: float
    note: str


@dataclass(frozen=True)
class Erratum:
    """Where a printed number or count disagrees with its source. An empty row or column means all of them."""

    table: str
    row: str
    column: str
    printed: str
    says: str
    source: str


class Paper:
    """One paper's folder; :func:`paper` reads each once.

    Args:
        name: of the folder.

    Raises:
        MilbenchError: there is no such folder.
    """

    def __init__(self, name: str) -> None:
        if name not in names():
            raise unknown("paper in results/published", name, names())
        self.name = name

    def text(self, file: str) -> str:
        """The content of one of its files; empty where the paper has none of that name."""
        path = _FOLDER / self.name / file
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    def _rows(self, file: str) -> Iterator[dict[str, str]]:
        return csv.DictReader(self.text(file).splitlines())

    @cached_property
    def numbers(self) -> tuple[Printed, ...]:
        """Every number of its tables, in the order of print."""
        return tuple(map(_number, self._rows("numbers.csv")))

    @cached_property
    def errata(self) -> tuple[Erratum, ...]:
        """What is wrong with them, in the order of the file."""
        return tuple(Erratum(**row) for row in self._rows("errata.csv"))

    @cached_property
    def _stated(self) -> dict[str, float]:
        return {row["id"]: float(row["value"]) for row in self._rows("text.csv")}

    def stated(self, id: str) -> float:
        """A number from the paper's text or figures.

        Raises:
            MilbenchError: no such number.
        """
        if id not in self._stated:
            raise unknown("number of the paper's text", id, self._stated)
        return self._stated[id]


@cache
def names() -> list[str]:
    """The papers of results/published."""
    return sorted(folder.name for folder in _FOLDER.iterdir() if (folder / "numbers.csv").is_file())


@cache
def paper(name: str) -> Paper:
    """The paper of that name, read once.

    Raises:
        MilbenchError: there is no such folder.
    """
    return Paper(name)


def _number(row: dict[str, str]) -> Printed:
    """A line of numbers.csv. A paper that prints its own ± says in `plus_minus_is` what that stands for."""
    notes = [row.get("note", "")]
    if "plus_minus" in row:
        meaning = row["plus_minus_is"]
        notes = [row["source"], "it does not say what ± is" if meaning == "not said" else f"± is the {meaning}"]
        notes += ["not checked against the paper"] if row["verified"] != "yes" else []
    return Printed(
        row.get("table", ""),
        Column(row["dataset"], row.get("encoder") or None, _whole(row.get("magnification")), _whole(row.get("patch_size"))),
        row["method"],
        canonical(row["aggregator"]),
        row["metric"],
        float(row["mean"]),
        float(row.get("sd") or row.get("plus_minus") or math.nan),
        "; ".join(filter(None, notes)),
    )


def _whole(text: str | None) -> int | None:
    return int(text) if text else None


class PrintedTable:
    """A table of a paper.

    Args:
        name: PAPER/TABLE of results/published, such as `longmil_neurips2024/table1`, or PAPER where there is one table only.
        usual: of each method the parameters that its name stands for here: a number of the paper that says them is the name's.

    Raises:
        MilbenchError: there is no such table.
    """

    def __init__(self, name: str, usual: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        if name not in _tables():
            raise unknown("published table", name, _tables())
        known = usual or {}
        self.numbers = [
            replace(number, aggregator=canonical(number.aggregator, known.get(number.aggregator.split("[")[0])))
            for number in _tables()[name]
        ]
        source, _, table = name.partition("/")
        self._errata = [erratum for erratum in paper(source).errata if erratum.table == table]

    def get(self, aggregator: str, column: tuple[Any, ...], metric: str) -> Printed | None:
        """The number printed for a method in a column, or None.

        Args:
            aggregator: `name` or `name[parameters]`; a number without parameters is that of the name, whatever they are.
            column: dataset, encoder, magnification, patch size; what follows does not count.
            metric: its name.
        """
        methods = _spellings(aggregator)
        # Papers do not tell a cohort's survival data from the rest; their tables do that.
        here = (str(column[0]).removesuffix("-survival"), *column[1:4])
        for number in self.numbers:
            place = zip(number.column[:4], here, strict=True)
            if number.aggregator in methods and number.metric == metric and all(said in (None, ours) for said, ours in place):
                return number
        return None

    def label(self, aggregator: str) -> str | None:
        """How the paper calls the method."""
        return next((number.method for number in self.numbers if number.aggregator in _spellings(aggregator)), None)

    def note(self, aggregator: str, head: str, number: Printed | None) -> str:
        """What is wrong with one number, or with its absence; empty where nothing is.

        Args:
            aggregator: the row.
            head: the column's heads, from the top down, as printed.
            number: what :meth:`get` gave.
        """
        row = self.label(aggregator)
        errata = [f"erratum: {e.says}" for e in self._errata if e.row and e.row == row and head.startswith(e.column)]
        return " ".join(errata) or (number.note if number else "")

    def errata(self, heads: list[str]) -> list[Erratum]:
        """What is wrong with the whole table, as far as it concerns columns with these heads."""
        return [e for e in self._errata if not e.row and any(head.startswith(e.column) for head in heads)]


def _spellings(aggregator: str) -> tuple[str, str]:
    """A method with its parameters, in the canonical spelling, and without."""
    return canonical(aggregator), aggregator.partition("[")[0].strip()


@cache
def _tables() -> dict[str, list[Printed]]:
    """Every table of results/published."""
    tables: dict[str, list[Printed]] = {}
    for name in names():
        for number in paper(name).numbers:
            tables.setdefault(name + (f"/{number.table}" if number.table else ""), []).append(number)
    return tables
