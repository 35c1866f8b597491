"""Tables of delimited text as others write them: bytes -> encoding -> separator -> rows, each with its number.

What a column means is said elsewhere. Nothing is dropped here but rows without any text.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import StringIO
from itertools import islice
from pathlib import Path

from milbench.errors import MilbenchError, few, printable
from milbench.files import table_text

SEPARATORS = ("\t", ",", ";", "|")
WIDEST = 10_000  # columns; a table of slides has fewer
_SAMPLE = 300  # rows by which the separator is chosen
# cBioPortal describes its columns in lines that begin with #; a column that is called # alone is none of these.
_COMMENT = re.compile(r"#(?![\t,;|\r\n])[^\r\n]*(?:\r\n|\r|\n)")
_SAID = re.compile(r"sep=([,;\t|])(?:\r\n|\r|\n)")  # Excel's own line about the separator


@dataclass(frozen=True)
class Delimited:
    """A table of text.

    Args:
        path: the file.
        names: of its columns (k,), each once: `column 3` where the header names none, `label (2)` where it names one twice; `1`,
            `2`, ... in a table without a header.
        rows: its cells as they stand there, without blanks before them (n, k).
        numbers: of the rows, as a spreadsheet counts them: from 1, with the header (n,).
        short: numbers of the rows that have fewer fields than the header.
        separator: between two cells.
    """

    path: Path
    names: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...] = field(repr=False)
    numbers: tuple[int, ...] = field(repr=False)
    short: tuple[int, ...] = ()
    separator: str = ","

    @classmethod
    def read(cls, path: Path, encoding: str | None = None, *, header: bool = True) -> "Delimited":
        """Read a file, packed (.gz, .bz2, .xz) or not.

        Args:
            path: the file.
            encoding: of its text, where that is not UTF-8 and has no byte order mark.
            header: whether the first row names the columns.

        Raises:
            MilbenchError: no such file, no table in it, or a row with more fields than the header; says which.
        """
        try:
            text = table_text(path, encoding)
            skipped, separator = _start(text)
            separator = separator or _separator(text[skipped:])
            records = list(_records(text, skipped, separator))
        except OSError as error:
            raise MilbenchError(f"table {path} {error}") from error
        except ValueError as error:
            raise MilbenchError(f"{path}: not a table of comma- or tab-separated text ({printable(str(error))})") from error
        if len(records) <= header:
            why = "the table has no rows" if records else "not a table of comma- or tab-separated text (it is empty)"
            raise MilbenchError(f"{path}: {why}")
        width = len(_trimmed(records[0][1])) if header else max(len(_trimmed(cells)) for _, cells in records)
        names = _names(records[0][1][:width]) if header else tuple(map(str, range(1, width + 1)))
        body = records[1:] if header else records
        _refuse_long(path, body, width)
        rows = tuple(tuple([*cells, *[""] * (width - len(cells))][:width]) for _, cells in body)
        short = tuple(number for number, cells in body if len(cells) < width)
        return cls(path, names, rows, tuple(number for number, _ in body), short, separator)

    def column(self, name: str) -> list[str]:
        """The cells of a column, without blanks around them (n,)."""
        at = self.names.index(name)
        return [row[at].strip() for row in self.rows]


def _start(text: str) -> tuple[int, str | None]:
    """Where the header begins, after lines about the table, and the separator if one of them says it."""
    at, separator = 0, None
    if said := _SAID.match(text):
        at, separator = said.end(), said[1]
    while comment := _COMMENT.match(text, at):
        at = comment.end()
    return at, separator


def _records(text: str, skipped: int, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not empty, each with its number."""
    before = len(text[:skipped].splitlines())
    for number, cells in enumerate(_rows(text[skipped:], separator), start=before + 1):
        if len(cells) > WIDEST:
            raise ValueError(f"it has more than {WIDEST:,} columns")
        if any(cell.strip() for cell in cells):
            yield number, cells


def _rows(text: str, separator: str) -> Iterator[list[str]]:
    reader = csv.reader(StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    try:
        yield from reader
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}; is there a quote without its other?") from error


def _separator(text: str) -> str:
    """The separator by which the rows have as many fields as the header; of several, the one that makes most of them.

    A comma within words has a blank after it, which a separator seldom has.
    """
    best, chosen = (0.0, 0, 0.0), ","
    for separator in SEPARATORS:
        try:
            sample = [cells for cells in islice(_rows(text, separator), _SAMPLE) if any(cells)]
        except ValueError:
            continue
        width = len(_trimmed(sample[0])) if sample else 0
        fits = [len(cells) >= width and not any(cells[width:]) for cells in sample[1:]]
        share = sum(fits) / len(fits) if fits else 1.0
        head = text[:100_000]
        score = (round(share, 2), width, -head.count(f"{separator} ") / (head.count(separator) or 1))
        if width > 1 and score > best:
            best, chosen = score, separator
    return chosen


def _trimmed(cells: Sequence[str]) -> Sequence[str]:
    """The cells without the empty ones at the end."""
    end = len(cells)
    while end and not cells[end - 1].strip():
        end -= 1
    return cells[:end]


def _names(cells: Sequence[str]) -> tuple[str, ...]:
    """Names of columns, each once."""
    seen: Counter[str] = Counter()
    names = []
    for at, cell in enumerate(cells, start=1):
        name = cell.strip() or f"column {at}"
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return tuple(names)


def _refuse_long(path: Path, body: Sequence[tuple[int, Sequence[str]]], width: int) -> None:
    long = [(number, cells) for number, cells in body if any(cell.strip() for cell in cells[width:])]
    if not long:
        return
    number, cells = long[0]
    more = f" (and so have {len(long) - 1:,} more)" if len(long) > 1 else ""
    raise MilbenchError(
        f"{path}, row {number}: {len(_trimmed(cells)):,} fields, the header has {width:,}{more}: {few(cells)}; put cells that "
        "hold a separator into quotes, and give every column a name"
    )
