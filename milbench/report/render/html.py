"""A report as one HTML page that needs no other file: tables that sort, figures inside, nothing loaded from anywhere."""

import re
import struct
from base64 import b64encode
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from milbench.report.model import Report, Row, Table
from milbench.report.render import latex, tidy
from milbench.report.render.templates import Figures, environment

VERDICTS = {"supported", "not supported", "inconclusive", "not run"}


def document(report: Report, figures: Figures) -> str:
    """The whole page."""
    made = environment(autoescape=True)
    made.filters |= {
        "spans": _spans, "bodies": _bodies, "sort_key": _sort_key, "verdict": _verdict, "note": _note, "minus": _minus,
        "data_uri": _data_uri, "shown_width": _shown_width, "slug": _slug,
    }  # fmt: skip
    made.globals |= {"csv_of": tidy.table, "latex_of": latex.table}
    return made.get_template("report.html.j2").render(report=report, figures=figures)


def _spans(headers: Sequence[tuple[str, str]]) -> list[tuple[str, int]]:
    """Neighbours of the same group and how many columns they span."""
    return [(group, len(list(some))) for group, some in groupby(headers, key=lambda head: head[0])]


def _bodies(table: Table) -> Iterator[tuple[str, list[Row]]]:
    """(heading, rows): a heading and the rows below it sort by themselves."""
    heading, rows = "", list[Row]()
    for row in table.rows:
        if row.entries:
            rows.append(row)
        else:
            if heading or rows:
                yield heading, rows
            heading, rows = row.label, []
    yield heading, rows


def _sort_key(text: str) -> str:
    """The first number of a cell; empty without one, which sorts last."""
    number = re.search(r"(?<![\w.])[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?", text.replace("−", "-").replace(",", ""))
    if not number:
        return ""
    return str(float(number[0]) - 1e-9) if text.lstrip().startswith("<") else number[0]


def _minus(text: str) -> str:
    """A minus before a number, where a hyphen was."""
    return re.sub(r"(?<![\w.)\]])-(?=\d)", "−", text)


def _verdict(text: str) -> str:
    return text.replace(" ", "-") if text in VERDICTS else ""


def _note(note: str) -> tuple[str, str]:
    """A footnote's letter, empty without one, and its text."""
    letter = re.match(r"\(([a-z]{1,2})\) ", note)
    return (letter[1], note[letter.end() :]) if letter else ("", note)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "-", text)


def _data_uri(content: str | Path, kind: str) -> str:
    raw = content.read_bytes() if isinstance(content, Path) else content.encode()
    return f"data:{kind};base64,{b64encode(raw).decode()}"


def _shown_width(png: Path) -> int:
    """Pixels across a page: a figure of 200 dots per inch is shown at 140, so that it is sharp on any screen."""
    width, _ = struct.unpack(">II", png.read_bytes()[16:24])
    return round(int(width) * 0.7)
