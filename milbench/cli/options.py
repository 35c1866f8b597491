"""Options that several commands share."""

import os
from pathlib import Path

import click

RESULTS = click.option(
    "--results",
    type=click.Path(path_type=Path),
    default="results",
    envvar="MILBENCH_RESULTS",
    show_default=True,
    help="Folder of the results store.",
)
PLUGIN = click.option(
    "--plugin", "plugin_files", multiple=True, metavar="FILE.py", help="A file that registers aggregators; may be repeated."
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def _use_data_folder(context: click.Context, parameter: click.Parameter, value: Path | None) -> None:
    if value is not None:
        os.environ["MILBENCH_DATA"] = str(value)  # reaches the workers


DATA = click.option(
    "--data",
    type=click.Path(path_type=Path),
    callback=_use_data_folder,
    expose_value=False,
    help="Folder of the datasets you added. [default: MILBENCH_DATA, or data]",
)
