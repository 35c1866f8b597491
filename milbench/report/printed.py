"""A printed table beside ours: which of its numbers belongs where, and what is wrong with it."""

from typing import Any

from milbench.errors import unknown
from milbench.report import published
from milbench.report.published import Erratum, Number


class PrintedTable:
    """A table of a paper.

    Args:
        name: FILE/TABLE of results/published, such as `longmil_neurips2024/table1`.

    Raises:
        MilbenchError: there is no such table.
    """

    def __init__(self, name: str) -> None:
        known = list(dict.fromkeys(f"{published.PAPER}/{number.table}" for number in published.numbers()))
        if name not in known:
            raise unknown("published table", name, known)
        table = name.rpartition("/")[2]
        self.numbers = {_place(n.aggregator, _column(n), n.metric): n for n in published.numbers() if n.table == table}
        self._errata = [erratum for erratum in published.errata() if erratum.table == table]

    def get(self, aggregator: str, column: tuple[Any, ...], metric: str) -> Number | None:
        """The number printed for a method, whatever its parameters, or None.

        Args:
            aggregator: `name` or `name[parameters]`.
            column: dataset, encoder, magnification, patch size; what follows does not count.
            metric: its name.
        """
        return self.numbers.get(_place(aggregator, column, metric))

    def label(self, aggregator: str) -> str | None:
        """How the paper calls the method."""
        name = aggregator.split("[")[0]
        return next((number.method for number in self.numbers.values() if number.aggregator == name), None)

    def note(self, aggregator: str, head: str, number: Number | None) -> str:
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


def _column(number: Number) -> tuple[Any, ...]:
    return (number.dataset, number.encoder, number.magnification, number.patch_size)


def _place(aggregator: str, column: tuple[Any, ...], metric: str) -> tuple[Any, ...]:
    """Where a number meets ours. Papers do not tell a cohort's survival data from the rest; their tables do that."""
    dataset, *rest = column[:4]
    return (aggregator.split("[")[0], dataset.removesuffix("-survival"), *rest, metric)
