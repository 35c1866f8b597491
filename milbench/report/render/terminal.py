"""A table on the terminal."""

import textwrap

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from milbench.report.model import Table


def table(table: Table) -> RichTable:
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
