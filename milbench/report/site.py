"""A report's files: the document and each table in every format, and the figures."""

import shutil
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Literal

from milbench.errors import MilbenchError
from milbench.files import own_file, replacing, write_atomically
from milbench.names import checked, slug
from milbench.plots.figure import Saved
from milbench.report.model import Report, Table
from milbench.report.render import html, latex, markdown, tidy
from milbench.report.render.templates import Figures

Format = Literal["latex", "md", "html", "csv"]
FORMATS: tuple[Format, ...] = ("latex", "md", "html", "csv")
_TABLES: dict[Format, tuple[str, Callable[[Table], str]]] = {
    "latex": (".tex", latex.table), "md": (".md", markdown.table), "csv": (".csv", tidy.table),
}  # fmt: skip
_DOCUMENTS: dict[Format, tuple[str, Callable[[Report, Figures], str]]] = {
    "html": ("report.html", html.document), "latex": ("report.tex", latex.document), "md": ("report.md", markdown.document),
}  # fmt: skip


def write(report: Report, folder: Path, formats: Collection[Format] = FORMATS) -> list[Path]:
    """Write the document and each table in every format, and the figures; returns the paths, documents first.

    Raises:
        MilbenchError: two tables or two figures have the same name, or a saved figure lacks a file.
    """
    _distinct("table", [table.name for table in report.tables])
    figures = _figures(report, folder / "figures")
    written = [path for saved in figures.values() for path in (saved.pdf, saved.png, saved.csv)]
    for table in report.tables:
        for suffix, make in (_TABLES[name] for name in _TABLES if name in formats):
            path = folder / "tables" / f"{checked(table.name, 'table')}{suffix}"
            write_atomically(path, make(table))
            written.append(path)
    documents = []
    for file, render in (_DOCUMENTS[name] for name in _DOCUMENTS if name in formats):
        write_atomically(folder / file, render(report, figures))
        documents.append(folder / file)
    return documents + written


def _figures(report: Report, folder: Path) -> dict[str, Saved]:
    """Draw the sections' figures, and copy those of an analysis; by name."""
    drawn = [figure for section in report.sections for figure in section.figures]
    _distinct("figure", [figure.name for figure in drawn] + [slug(saved.name) for saved in report.figures])
    figures = {figure.name: figure.save(folder) for figure in drawn}
    for saved in report.figures:
        copy = Saved(slug(saved.name), saved.title, saved.caption, folder)
        for source, target in ((saved.pdf, copy.pdf), (saved.png, copy.png), (saved.csv, copy.csv)):
            if not source.is_file():
                raise MilbenchError(
                    f"figure {saved.name}: {source} is missing; make the figure again, or remove {saved.name}.json"
                )
            with replacing(target) as path:
                shutil.copyfile(own_file(source), path)
        figures[saved.name] = copy
    return figures


def _distinct(kind: str, names: list[str]) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise MilbenchError(f"two {kind}s of this report are named {twice[0]}; rename one of them")
