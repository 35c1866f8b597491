"""`milbench ls`: what there is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from milbench.cli import show
from milbench.cli.options import AS_JSON, DATA, PLUGIN, RESULTS, SUITE

if TYPE_CHECKING:
    from milbench.api.results import Trial


@click.group()
def ls() -> None:
    """List what there is."""


@ls.command("aggregators")
@click.option("--params", is_flag=True, help="Their parameters instead: name, type and default.")
@click.argument("names", nargs=-1)
@PLUGIN
@AS_JSON
def ls_aggregators(names: tuple[str, ...], params: bool, plugin_files: tuple[str, ...], as_json: bool) -> None:
    """Every registered aggregator, by family and year; with NAMES only these.

    needs: coordinates of instances, or their order. official: it has a recipe of its own. M: millions of parameters of a model
    for features 384 wide and three classes; --json has more.
    """
    from milbench.api import lists

    if params:
        rows = lists.parameters(names, plugin_files)
        if not as_json:
            rows = [{**row, "default": json.dumps(row["default"]).strip('"')} for row in rows]
        show.rows(rows, as_json, ["aggregator", "parameter", "type", "default"])
        return
    rows = lists.aggregators(names, plugin_files)
    if as_json:
        show.json_rows(rows)
        return
    show.table(["family", "year", "name", "label", "time", "needs", "official", "M"], list(map(_aggregator, rows)), names=3)


def _aggregator(row: dict[str, Any]) -> list[Any]:
    needs = [word for word, key in (("coords", "needs_coords"), ("order", "order_sensitive")) if row[key]]
    count = row["parameters_384"]
    millions = None if count is None else f"{count / 1e6:.2f}"
    year = None if row["year"] is None else str(row["year"])  # a number would get a comma
    return [row["family"], year, row["name"], row["label"], row["complexity"], needs, "official" in row["recipes"], millions]


@ls.command("suites")
@AS_JSON
def ls_suites(as_json: bool) -> None:
    """Every built-in suite."""
    from milbench.api import lists

    show.rows(lists.suites(), as_json, ["name", "reproduces", "title"])


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
    columns = {trial.column for trial in trials}
    several = len(columns) > 1
    if len(columns) == 1:
        click.echo(columns.pop())
    heads = ["id", "trial", *(["measured on"] if several else []), "status", "metric"]
    show.table(heads, [_trial(trial, several=several) for trial in trials], names=2)


def _trial(trial: Trial, *, several: bool) -> list[Any]:
    name, value = trial.headline or ("", None)
    metric = None if not name else f"{name.replace('_', ' ')} {'undefined' if value is None else f'{value:.3f}'}"
    draw = "" if trial.cell.draw is None else f":draw{trial.cell.draw}"
    return [trial.trial_id, trial.name + draw, *([trial.column] if several else []), trial.status, metric]


@ls.command("recipes")
@PLUGIN
@AS_JSON
def ls_recipes(plugin_files: tuple[str, ...], as_json: bool) -> None:
    """Every recipe: how models are fitted, where that comes from, and what of it is not followed; --json has every value."""
    from milbench.api import lists

    rows = lists.recipes(plugin_files)
    if as_json:
        show.json_rows(rows)
        return
    heads = ["name", "task", "method", "optimiser", "lr", "decay", "step", "epochs", "select", "source", "not followed"]
    show.table(heads, list(map(_recipe, rows)), names=3)
    click.echo("A method without a recipe of its own is fitted with paper where official is asked for.")


def _recipe(row: dict[str, Any]) -> list[Any]:
    every, left_over = row["accumulate"], row.get("left_over", "carry")
    step = "every bag" if every == 1 else f"every {every}, {left_over}"
    at_least = f"{row['min_epochs']} to " if row["min_epochs"] else ""
    epochs = f"{at_least}{row['max_epochs']}" + (f", patience {row['patience']}" if row["patience"] else "")
    after = f" after {row['select_after']}" if row["select_after"] else ""
    start = [row["name"], row["task"], row["method"], row["optimiser"], f"{row['lr']:g}", f"{row['weight_decay']:g}"]
    return [*start, step, epochs, row["select"] + after, row["source"], row["not_followed"] or "nothing"]


@ls.command("datasets")
@DATA
@AS_JSON
def ls_datasets(data_folder: Path | None, as_json: bool) -> None:
    """Every dataset known by name, and whether its files are here."""
    from milbench.api import lists

    show.rows(lists.datasets(data_folder), as_json, ["name", "label", "encoders", "available", "why_not"], {"available": "here"})


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

    show.rows(lists.backends(), as_json, ["device", "op", "backend", "available", "chosen", "why_not"], {"available": "here"})
