"""A report in Markdown, as GitHub shows it."""

import re

from milbench.report.model import DELTA, PAPER, Entry, Report, Row, Table
from milbench.report.render.templates import Figures, environment


def document(report: Report, figures: Figures) -> str:
    """A page that shows figures/*.png beside it."""
    made = environment()
    made.filters |= {"plain": plain, "table": table}
    return made.get_template("report.md.j2").render(report=report, figures=figures)


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
