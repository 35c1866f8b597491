"""One table in Markdown, CSV and on the terminal; LaTeX and HTML have rooms of their own."""

import csv
import io
import re
import textwrap

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from milbench.numbers import cells, written
from milbench.report.tables import DELTA, PAPER, Entry, Row, Table


def plain(text: str) -> str:
    """Text that Markdown shows as it stands inside a line, whatever characters it holds."""
    text = " ".join(text.split())
    text = re.sub(r"&(?=#?\w+;)", "&amp;", text)
    text = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text)
    text = re.sub(r"([\\`*~$|])", r"\\\1", text)
    text = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)
    return re.sub(r"(?<=\])(?=[(\[:])", r"\\", text)


def paragraph(text: str) -> str:
    """The same at the start of a line, where more has a meaning."""
    return re.sub(r"^(?=[>#+\-=])|^(\d+)(?=[.)])", r"\1\\", plain(text))


def table(table: Table) -> str:
    """A GitHub table; underlined numbers use HTML, since Markdown has no underline."""

    def cell(entry: Entry) -> str:
        text = plain(entry.text)
        text = f"**{text}**" if entry.style == "best" else f"<u>{text}</u>" if entry.style == "second" else text
        return text + ("†" if entry.dagger else "") + (f"<sup>{entry.mark}</sup>" if entry.mark else "")

    def label(row: Row) -> str:
        text = plain(row.label)
        return f"&nbsp;&nbsp;{text}" if row.below else text if row.entries else f"*{text}*"

    heads = [plain(f"{group}: {label}" if group and label not in (PAPER, DELTA) else label) for group, label in table.headers]
    lines = [f"**{plain(table.title)}**", ""]
    if table.partial:
        lines += [f"**Partial:** {plain(table.partial)}.", ""]
    if table.rows:
        lines += [f"| {table.corner} | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for row in table.rows:
        cells = list(map(cell, row.entries)) or [""] * len(heads)
        lines.append(f"| {label(row)} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"- {paragraph(note)}" for note in table.notes)]) + "\n"


def tidy_csv(table: Table) -> str:
    """The numbers to 6 significant digits, one line each; an undefined number is an empty field, and no text is a formula."""
    out = io.StringIO()
    if table.tidy:
        writer = csv.DictWriter(out, table.tidy[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(cells, written(table.tidy)))
    return out.getvalue()


def terminal(table: Table) -> RichTable:
    """The same table for a terminal, without its title and notes."""
    styles = {"best": "bold", "second": "underline", "quiet": "dim", None: ""}
    out = RichTable(header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    out.add_column(table.corner, no_wrap=True)
    width = max([40, *(len(row.label) + 2 for row in table.rows if row.entries)])  # headings wrap before they widen the column
    for group, head in table.headers:
        out.add_column(Text(f"{group}\n{head}" if group else head), justify="right", no_wrap=True)
    for i, row in enumerate(table.rows):
        cells = []
        for entry in row.entries:
            text = Text(entry.text, style=styles[entry.style])
            cells.append(text.append("†" if entry.dagger else "").append(f" ({entry.mark})" if entry.mark else ""))
        label = Text(f"  {row.label}", style="dim") if row.below else Text(row.label)
        if not row.entries:
            label = Text(textwrap.fill(row.label, width), style="italic")
        following = table.rows[i + 1 : i + 2]
        out.add_row(label, *cells, end_section=bool(following) and following[0].rule)
    return out
