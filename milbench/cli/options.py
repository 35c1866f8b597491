"""Options that several commands share."""

from pathlib import Path

import click

from milbench.config import Settings

RESULTS = click.option(
    "--results",
    type=click.Path(path_type=Path),
    default=lambda: Settings.from_environment().results,
    show_default="MILBENCH_RESULTS, or results",
    help="Folder of the results store.",
)
PLUGIN = click.option(
    "--plugin", "plugin_files", multiple=True, metavar="FILE.py", help="A file that registers aggregators; may be repeated."
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


DATA = click.option(
    "--data",
    "data_folder",
    type=click.Path(path_type=Path),
    help="Folder of the datasets you added. [default: MILBENCH_DATA, or data]",
)
