"""What the paper prints: the cells of its tables, the numbers in its text, and where they disagree with their sources."""

import csv
import math
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from milbench.errors import unknown
from milbench.spelling import canonical

PAPER = "longmil_neurips2024"


@dataclass(frozen=True)
class Number:
    """One number of a printed table.

    Args:
        table: "table1" to "table9".
        dataset, encoder, magnification, patch_size: the column, in the names of suites.
        method, aggregator: the row, as printed and as named here.
        metric: as in METRICS of the tables.
        mean, sd: the numbers around ±.
        note: what is wrong with it; mostly empty.
    """

    table: str
    dataset: str
    encoder: str
    magnification: int
    patch_size: int
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


def _rows(name: str) -> list[dict[str, str]]:
    text = (files("milbench_published") / PAPER / name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


@cache
def numbers() -> tuple[Number, ...]:
    """Every number of Tables 1 to 9, in the order of print."""
    return tuple(
        Number(
            **{key: row[key] for key in ("table", "dataset", "encoder", "method", "metric", "note")},
            aggregator=canonical(row["aggregator"]),
            magnification=int(row["magnification"]),
            patch_size=int(row["patch_size"]),
            mean=float(row["mean"]),
            sd=float(row["sd"] or math.nan),
        )
        for row in _rows("numbers.csv")
    )


@cache
def errata() -> tuple[Erratum, ...]:
    """The errata, in the order of the file."""
    return tuple(Erratum(**row) for row in _rows("errata.csv"))


@cache
def stated(id: str) -> float:
    """A number from the paper's text or figures.

    Raises:
        MilbenchError: no such number.
    """
    known = {row["id"]: float(row["value"]) for row in _rows("text.csv")}
    if id not in known:
        raise unknown("number of the paper's text", id, known)
    return known[id]
