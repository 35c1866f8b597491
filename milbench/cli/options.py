"""Options that several commands share."""

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
