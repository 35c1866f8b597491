"""The whole report as one document: LaTeX, Markdown, and an HTML page that needs no other file."""

from __future__ import annotations

import re
import struct
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from milbench.report import latex, render
from milbench.report.figure import Saved
from milbench.report.tables import Row, Table
from milbench.words import duration

if TYPE_CHECKING:
    from milbench.report.build import Report

HERE = Path(__file__).parent
Figures = Mapping[str, Saved]  # name -> its files in the report's folder
VERDICTS = {"supported", "not supported", "inconclusive", "not run"}


def tex(report: Report, figures: Figures) -> str:
    """A document for pdflatex, which reads tables/*.tex and figures/*.pdf beside it."""
    made = _environment(
        block_start_string="<%", block_end_string="%>", variable_start_string="<<", variable_end_string=">>",
        comment_start_string="<#", comment_end_string="#>",
    )  # fmt: skip
    made.filters |= {"escape": latex.escape, "breakable": latex.breakable}
    return made.get_template("report.tex.j2").render(_content(report, figures))


def markdown(report: Report, figures: Figures) -> str:
    """A page for GitHub, which shows figures/*.png beside it."""
    made = _environment()
    made.filters |= {"plain": render.plain, "table": render.markdown}
    return made.get_template("report.md.j2").render(_content(report, figures))


def html(report: Report, figures: Figures) -> str:
    """One self-contained page: tables that sort, figures inside, nothing loaded from anywhere."""
    made = _environment(autoescape=True)
    made.filters |= {
        "spans": _spans,
        "bodies": _bodies,
        "sort_key": _sort_key,
        "verdict": _verdict,
        "note": _note,
        "minus": _minus,
    }
    made.filters |= {"data_uri": _data_uri, "shown_width": _shown_width, "slug": _slug}
    made.globals |= {"csv_of": render.tidy_csv, "latex_of": latex.table}
    return made.get_template("report.html.j2").render(_content(report, figures))


def _environment(**options: Any) -> Environment:
    return Environment(
        loader=FileSystemLoader(HERE), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, **options,
    )  # fmt: skip


def _content(report: Report, figures: Figures) -> dict[str, Any]:
    trials = {run.trial_id or run.place for section in report.sections for run in section.plan.cells}
    made: dict[str, dict[str, float]] = {}
    for section in report.sections:
        for line, took in section.made_with.items():
            made.setdefault(line, {}).update(took)  # sections may share trials
    made_with = [
        f"{line}: {len(took):,} trial{'s' * (len(took) > 1)}, {duration(sum(took.values()))} one after the other"
        for line, took in sorted(made.items())
    ]
    return {"report": report, "figures": figures, "trials": len(trials), "made_with": made_with}


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
