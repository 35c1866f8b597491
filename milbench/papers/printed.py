"""A printed table beside ours: which of its numbers belongs where, and what is wrong with it."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

from milbench.errors import unknown
from milbench.papers import published
from milbench.papers.published import Erratum
from milbench.spelling import canonical

_PLACE = ("dataset", "encoder", "magnification", "patch_size")


@dataclass(frozen=True)
class Printed:
    """A number of a paper.

    Args:
        place: what the paper says of dataset, encoder, magnification and patch size; None where it leaves that open.
        aggregator: the method in its canonical spelling, with parameters where they decide which row of ours it is.
        method: the row's name in the paper.
        metric: its name here.
        mean, sd: the numbers around ±.
        note: what a reader must know of this one.
    """

    place: tuple[str | None, ...]
    aggregator: str
    method: str
    metric: str
    mean: float
    sd: float
    note: str


class PrintedTable:
    """A table of a paper.

    Args:
        name: FILE/TABLE of results/published, such as `longmil_neurips2024/table1`, or FILE where there is one table only.
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
        table = name.partition("/")[2]
        self._errata = [erratum for erratum in published.errata() if erratum.table == table]

    def get(self, aggregator: str, column: tuple[Any, ...], metric: str) -> Printed | None:
        """The number printed for a method in a column, or None.

        Args:
            aggregator: `name` or `name[parameters]`; a number without parameters is that of the name, whatever they are.
            column: dataset, encoder, magnification, patch size; what follows does not count.
            metric: its name.
        """
        names = _names(aggregator)
        # Papers do not tell a cohort's survival data from the rest; their tables do that.
        own = (str(column[0]).removesuffix("-survival"), *map(str, column[1:4]))
        return next(
            (
                number
                for number in self.numbers
                if number.aggregator in names
                and number.metric == metric
                and all(said is None or said == here for said, here in zip(number.place, own, strict=True))
            ),
            None,
        )

    def label(self, aggregator: str) -> str | None:
        """How the paper calls the method."""
        return next((number.method for number in self.numbers if number.aggregator in _names(aggregator)), None)

    def note(self, aggregator: str, head: str, number: Printed | None) -> str:
        """What is wrong with one number, or with its absence; empty where nothing is.

        Args:
            aggregator: the row.
            head: the column's heads, from the top down, as printed.
            number: what :meth:`get` gave.
        """
        row = self.label(aggregator)
        says = [f"erratum: {e.says}" for e in self._errata if e.row and e.row == row and head.startswith(e.column)]
        return " ".join(says) or (number.note if number else "")

    def errata(self, heads: list[str]) -> list[Erratum]:
        """What is wrong with the whole table, as far as it concerns columns with these heads."""
        return [e for e in self._errata if not e.row and any(head.startswith(e.column) for head in heads)]


def _names(aggregator: str) -> tuple[str, str]:
    """A method with its parameters, in the canonical spelling, and without."""
    return canonical(aggregator), aggregator.partition("[")[0].strip()


@cache
def _tables() -> dict[str, list[Printed]]:
    """Every table of results/published."""
    found: dict[str, list[Printed]] = {}
    for paper in sorted(files("milbench_published").iterdir(), key=lambda path: path.name):
        if not (path := paper / "numbers.csv").is_file():
            continue
        for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines()):
            name = paper.name + (f"/{row['table']}" if "table" in row else "")
            found.setdefault(name, []).append(_number(row))
    return found


def _number(row: dict[str, str]) -> Printed:
    place = tuple(row.get(name) or None for name in _PLACE)
    said = [row.get("note", "")]
    if "plus_minus" in row:
        said = [
            row["source"],
            f"± is the {row['plus_minus_is']}" if row["plus_minus_is"] != "not said" else "it does not say what ± is",
        ]
        said += ["not checked against the paper"] if row["verified"] != "yes" else []
    sd = row.get("sd") or row.get("plus_minus") or "nan"
    return Printed(
        place,
        canonical(row["aggregator"]),
        row["method"],
        row["metric"],
        float(row["mean"]),
        float(sd),
        "; ".join(filter(None, said)),
    )
