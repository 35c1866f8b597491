"""Numbers that papers print, and what is wrong with them: `results/published`."""

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from milbench.errors import MilbenchError, unknown

Column = tuple[Any, ...]  # dataset, encoder, magnification, patch size, as in a plan's cells; what follows does not count


@dataclass(frozen=True)
class Printed:
    """One number of a paper.

    Args:
        method: the row's name in the paper.
        mean, sd: as printed; what ± means is the paper's affair.
        note: what a reader must know of this number.
    """

    method: str
    mean: float
    sd: float
    note: str


class PrintedTable:
    """A table of a paper.

    Args:
        name: FILE/TABLE, such as `longmil_neurips2024/table1`.

    Raises:
        MilbenchError: there is no such file or table.
    """

    def __init__(self, name: str) -> None:
        paper, _, table = name.partition("/")
        rows = _rows(f"{paper}.csv")
        tables = list(dict.fromkeys(row["table"] for row in rows))
        if table not in tables:
            raise unknown("published table", name, [f"{paper}/{known}" for known in tables])
        self.numbers = {
            (row["dataset"], row["encoder"], row["magnification"], row["patch_size"], row["aggregator"], row["metric"]): Printed(
                row["method"], float(row["mean"]), float(row["sd"]), row["note"]
            )
            for row in rows
            if row["table"] == table
        }
        self._errata = [row for row in _rows(f"{paper}_errata.csv") if row["table"] == table]

    def get(self, aggregator: str, column: Column, metric: str) -> Printed | None:
        """The number printed for a method, whatever its parameters, or None."""
        dataset, encoder, magnification, patch_size = map(str, column[:4])
        return self.numbers.get((_cohort(dataset), encoder, magnification, patch_size, aggregator.split("[")[0], metric))

    def label(self, aggregator: str) -> str | None:
        """How the paper calls the method."""
        name = aggregator.split("[")[0]
        return next((printed.method for key, printed in self.numbers.items() if key[4] == name), None)

    def errata(self, datasets: set[str]) -> list[str]:
        """What is wrong with the table, as far as it concerns these datasets."""
        cohorts = set(map(_cohort, datasets))
        return list(dict.fromkeys(row["erratum"] for row in self._errata if row["dataset"] in cohorts))


def _cohort(dataset: str) -> str:
    """Papers do not tell a cohort's survival data from the rest; the table does that."""
    return dataset.removesuffix("-survival")


@cache
def _rows(file: str) -> list[dict[str, str]]:
    path = files("milbench_published") / file
    if not path.is_file():
        known = sorted(p.name for p in files("milbench_published").iterdir() if p.name.endswith(".csv"))
        raise MilbenchError(f"published numbers {file} do not exist; there are {', '.join(known)}")
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
