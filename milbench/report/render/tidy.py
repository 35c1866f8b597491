"""The numbers of a table as CSV, one line each."""

import csv
import io

from milbench.numbers import cells, written
from milbench.report.model import Table


def table(table: Table) -> str:
    """The numbers to 6 significant digits, one line each; an undefined number is an empty field, and no text is a formula."""
    out = io.StringIO()
    if table.tidy:
        writer = csv.DictWriter(out, table.tidy[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(cells, written(table.tidy)))
    return out.getvalue()
