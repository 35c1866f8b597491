"""The templates of whole documents."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from milbench.plots.figure import Saved

Figures = Mapping[str, Saved]  # name -> its files in the report's folder


def environment(**options: Any) -> Environment:
    """Of the templates in this folder; a name that a template does not know is an error."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, **options,
    )  # fmt: skip
