"""`milbench ls`: what there is."""

from __future__ import annotations

from pathlib import Path

import click

from milbench.cli import show
from milbench.cli.options import AS_JSON, DATA, PLUGIN, RESULTS, SUITE


@click.group()
def ls() -> None:
    """List what there is."""


@ls.command("aggregators")
@click.option("--params", is_flag=True, help="Their parameters instead: name, type and default.")
@click.argument("names", nargs=-1)
@PLUGIN
@AS_JSON
def ls_aggregators(names: tuple[str, ...], params: bool, plugin_files: tuple[str, ...], as_json: bool) -> None:
    """Every registered aggregator; with NAMES only these.

    coords: it needs coordinates. order: the order of instances changes its prediction. The last two columns count the parameters
    of a model for features 384 and 1024 wide, and three classes.
    """
    from milbench.api import lists

    if params:
        rows = lists.parameters(names, plugin_files)
        show.rows(rows, as_json, ["aggregator", "parameter", "type", "default"])
        return
    sizes = {f"parameters_{width}": f"at {width}" for width in lists.WIDTHS}
    shown = ["name", "label", "complexity", "needs_coords", "order_sensitive", "recipes", *sizes]
    heads = {"needs_coords": "coords", "order_sensitive": "order", **sizes}
    show.rows(lists.aggregators(names, plugin_files), as_json, shown, heads)


@ls.command("suites")
@AS_JSON
def ls_suites(as_json: bool) -> None:
    """Every built-in suite."""
    from milbench.api import lists

    show.rows(lists.suites(), as_json, ["name", "task", "reproduces", "title"])


@ls.command("trials")
@SUITE
@RESULTS
@AS_JSON
def ls_trials(suite: str | None, results: Path, as_json: bool) -> None:
    """Every trial of a suite, or of the whole results folder: what it is, how it ended, and its main metric.

    Other commands take a trial by its id, by the start of its id, or as METHOD:foldN:seedN.
    """
    from milbench.api import results as api

    trials = api.trials(suite, results=results)
    if as_json:
        show.json_rows([api.as_row(trial) for trial in trials])
        return
    lines = []
    for trial in trials:
        name, value = trial.headline or ("", None)
        metric = None if not name else f"{name.replace('_', ' ')} {'undefined' if value is None else f'{value:.3f}'}"
        place = [trial.cell.aggregator, trial.column, trial.cell.fold, trial.cell.seed]
        lines.append([trial.trial_id, *place, trial.status, metric])
    show.table(["id", "aggregator", "measured on", "fold", "seed", "status", "metric"], lines)


@ls.command("recipes")
@AS_JSON
def ls_recipes(as_json: bool) -> None:
    """Every recipe: how models are fitted."""
    from milbench.api import lists

    shown = ["name", "task", "optimiser", "lr", "weight_decay", "max_epochs", "patience", "select"]
    rows = lists.recipes()
    show.rows(rows, as_json, shown)
    if not as_json:
        click.echo("official is each method's own recipe; the line shows what a method without one gets.")


@ls.command("datasets")
@DATA
@AS_JSON
def ls_datasets(data_folder: Path | None, as_json: bool) -> None:
    """Every dataset known by name, and whether its files are here."""
    from milbench.api import lists

    show.rows(lists.datasets(data_folder), as_json, ["name", "label", "task", "encoders", "available", "why_not"])


@ls.command("encoders")
@AS_JSON
def ls_encoders(as_json: bool) -> None:
    """Patch encoders of the paper; any other name works too."""
    from milbench.api import lists

    show.rows(lists.encoders(), as_json, ["name", "width"])


@ls.command("backends")
@AS_JSON
def ls_backends(as_json: bool) -> None:
    """What operations compute with here, and why not with something faster."""
    from milbench.api import lists

    show.rows(lists.backends(), as_json, ["device", "op", "backend", "available", "chosen", "why_not"])
