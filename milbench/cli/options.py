"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

from milbench.config import Settings

PATH = click.Path(path_type=Path)

RESULTS = click.option(
    "--results",
    type=PATH,
    default=lambda: Settings.from_environment().results,
    show_default="MILBENCH_RESULTS, or results",
    help="Folder of the results store.",
)
PLUGIN = click.option(
    "--plugin", "plugin_files", multiple=True, metavar="FILE.py", help="A file that registers aggregators; may be repeated."
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
QUIET = click.option("--quiet", "-q", is_flag=True, help="Print errors only; the exit code says the rest.")
SUITE = click.option("--suite", metavar="SUITE", help="Only this suite: its name, or the TOML file that was run.")
DATA = click.option(
    "--data", "data_folder", type=PATH, help="Folder of the datasets you added. [default: MILBENCH_DATA, or data]"
)


def numbers(_context: click.Context, option: click.Parameter, text: str | None) -> list[int] | None:
    """`0,1,2` as numbers; None where the option is not given.

    Raises:
        MilbenchError: something else than whole numbers from 0 up.
    """
    from milbench.errors import MilbenchError

    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < 10 for part in parts):
        raise MilbenchError(f"--{option.name} {text!r}: write whole numbers from 0 up, with commas between them, such as 0,1,2")
    return [int(part) for part in parts]


def names(_context: click.Context, option: click.Parameter, text: str | None) -> str | None:
    """Names with commas between them, as they stand; None where the option is not given.

    Raises:
        MilbenchError: there is no name.
    """
    from milbench.errors import MilbenchError

    if text is not None and not text.strip(" ,"):
        raise MilbenchError(f"--{option.name} {text!r}: has no name; write names with commas between them, or leave it out")
    return text
