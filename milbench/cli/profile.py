"""`milbench profile`: what things cost on this machine."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from milbench.cli import show
from milbench.cli.options import AS_JSON, DATA, PLUGIN, RESULTS

if TYPE_CHECKING:
    from milbench.api.profiles import Row


@click.group()
def profile() -> None:
    """Measure what things cost on this machine."""


@profile.command("ops")
@click.option("--small", is_flag=True, help="An eighth of the sizes: for the form of the table, not for its numbers.")
@click.option("--noisy", is_flag=True, help="Print ratios although something else is running.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. [default: all cores]")
@AS_JSON
def profile_ops(small: bool, noisy: bool, threads: int | None, as_json: bool) -> None:
    """Every operation beside its public alternatives, in one run, and the performance budget held against it.

    Times are medians after a warm-up. On a machine where something else is running, no ratio is printed.
    """
    from milbench.api import profiles

    costs = profiles.ops(small=small, noisy=noisy, threads=threads, say=_say(as_json))
    if as_json:
        click.echo(json.dumps(costs, indent=1))
        return
    shown = ["op", "contender", "n", "setting", "forward", "both", "extra_mib", "ratio", "note"]
    show.table(
        ["op", "contender", "n", "setting", "forward s", "fwd + bwd s", "extra MiB", "time / ours", "note"],
        [
            [f"{value:.3g}" if isinstance(value, float) else value for value in (row[name] for name in shown)]
            for row in costs["rows"]
        ],
    )
    click.echo(f"sgemm {costs['sgemm_gflops']:.0f} GF/s on {costs['threads']} threads, torch {costs['torch']}")
    for bar in costs["budget"]:
        value = "not measured" if bar["value"] is None else f"{bar['value']:.2f}"
        mark = {True: "ok  ", False: "FAIL", None: "-   "}[bar["holds"]]
        click.echo(f"{mark} {bar['what']}: {value} ({'at least' if bar['at_least'] else 'at most'} {bar['limit']:g})")
    if costs["noise"] and not noisy:
        click.echo(f"No ratios: {costs['noise']}. Try again on a quiet machine, or pass --noisy.", err=True)


@profile.command("data")
@click.option("--dataset", help="A dataset with features of its own files.")
@click.option("--encoder", help="Whose features.")
@click.option("--magnification", type=int)
@click.option("--patch-size", type=int)
@click.option("--synthetic", type=click.IntRange(min=1), metavar="N", help="Measure on N generated h5 files instead.")
@click.option("--epochs", type=click.IntRange(min=1), default=3, show_default=True, help="Median over so many.")
@click.option("--noisy", is_flag=True, help="Print the ratio although something else is running.")
@DATA
@AS_JSON
def profile_data(noisy: bool, data_folder: Path | None, as_json: bool, **measured: Any) -> None:
    """Reading a dataset again: from the packed store, and by opening each of its files.

    On one thread, as a trial has. On a machine where something else is running, no ratio is printed.
    """
    from milbench.api import profiles

    rows, noise = profiles.data(noisy=noisy, data=data_folder, **measured)
    if as_json:
        click.echo(json.dumps({"noise": noise, "rows": [dataclasses.asdict(row) for row in rows]}, indent=1))
        return
    show.table(
        [
            "files",
            "bags",
            "MB",
            "opening each, s",
            "from the pack, s",
            "ratio",
            "packing, s",
            "memory, MiB",
            "of the pack's, MiB",
        ],
        [
            [
                row.what,
                row.bags,
                f"{row.bytes / 1e6:.1f}",
                f"{row.direct_seconds:.3g}",
                f"{row.packed_seconds:.3g}",
                None if row.ratio is None else f"{row.ratio:.1f}",
                f"{row.build_seconds:.3g}",
                None if row.direct_mib is None else f"{row.direct_mib:.1f}",
                None if row.packed_mib is None else f"{row.packed_mib:.1f}",
            ]
            for row in rows
        ],
    )
    click.echo("One epoch reads every bag once, after one that warmed up. Memory: growth of the resident set in an epoch.")
    if noise and not noisy:
        click.echo(f"No ratio: {noise}. Try again on a quiet machine, or pass --noisy.", err=True)


@profile.command("harness")
@click.option("--small", is_flag=True, help="A few small trials: for the form of the table, not for its numbers.")
@click.option("--noisy", is_flag=True, help="Hold the numbers against their bars although something else is running.")
@AS_JSON
def profile_harness(small: bool, noisy: bool, as_json: bool) -> None:
    """What milbench costs around the training of a model: per step, per trial, per worker.

    A step is held against the loop that anybody would write with torch alone. Trials run on generated bags in a temporary folder.
    On a machine where something else is running, nothing is held against its bar.
    """
    from milbench.api import profiles

    costs, noise = profiles.harness(small=small, noisy=noisy)
    if as_json:
        rows = [{**dataclasses.asdict(each), "holds": each.holds} for each in costs]
        click.echo(json.dumps({"noise": noise, "rows": rows}, indent=1))
        return
    for each in costs:
        bar = "" if each.limit is None else f"  ({'at least' if each.at_least else 'at most'} {each.limit:g})"
        mark = {True: "ok  ", False: "FAIL", None: "-   "}[each.holds]
        click.echo(f"{mark} {each.what}: {each.value:.4g} {each.unit}{bar}")
    if noise and not noisy:
        click.echo(f"Not a quiet machine: {noise}. Try again, or pass --noisy.", err=True)


@profile.command("aggregators")
@click.option(
    "--aggregators", metavar="NAMES", help="Only these: mean,transmil[landmarks=32],... [default: every registered one]"
)
@click.option("--sizes", metavar="N,...", help="Instances of a bag. [default: 1024 to 65536, doubling]")
@click.option("--in-dim", type=click.IntRange(min=1), default=384, show_default=True, help="Width of the features.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=10,
    show_default=True,
    help="A method stops where a training step takes longer, or would by its growth so far.",
)
@click.option(
    "--memory",
    type=click.FloatRange(min=0, min_open=True),
    help="The same, in GiB of one training step. [default: three quarters of what is free]",
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. [default: all cores]")
@click.option("--noisy", is_flag=True, help="Measure although something else is running; captions say so.")
@RESULTS
@PLUGIN
@AS_JSON
def profile_aggregators(
    aggregators: str | None, sizes: str | None, results: Path, plugin_files: tuple[str, ...], as_json: bool, **setting: Any,
) -> None:  # fmt: skip
    """Time, memory and arithmetic of every aggregator as bags grow: efficiency.csv and its figures in RESULTS/analysis.

    Each method and size is measured in a process of its own, one at a time. The largest sizes of slow methods are left out, which
    is said. Nothing is measured on a machine where something else is running.
    """
    from milbench.api import profiles

    costs = profiles.aggregators(
        aggregators or (), sizes=None if sizes is None else _sizes(sizes), results=results, plugin=plugin_files,
        say=_say(as_json), **setting,
    )  # fmt: skip
    if as_json:
        click.echo(json.dumps(costs.plain(), indent=1))
    else:
        _show_cost(costs.rows, costs.exponents)
        for path in costs.paths:
            click.echo(path)
    if costs.noises:
        noise = "; ".join(f"{name}: {what}" for name, what in costs.noises.items())
        click.echo(f"Not a quiet machine ({noise}): do not quote these times.", err=True)


def _say(as_json: bool) -> Callable[[str], None]:
    """Shows how far it is, where somebody looks."""
    shown = not as_json and sys.stdout.isatty()
    return lambda text: click.echo(text, err=True) if shown else None


def _sizes(text: str) -> tuple[int, ...]:
    from milbench.errors import MilbenchError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise MilbenchError(f"--sizes {text!r}: write numbers of instances with commas between them, such as 1024,4096")
    return tuple(sorted({int(part) for part in parts}))


def _show_cost(rows: list[Row], slopes: dict[str, dict[str, float]]) -> None:
    """One line per method: what a training step takes at each size, and how it grows."""
    sizes = sorted({row.n for row in rows})
    lines = []
    for name in dict.fromkeys(row.aggregator for row in rows):
        of_name = {row.n: row for row in rows if row.aggregator == name}
        growth = [f"{slopes[q][name]:.2f}" if name in slopes[q] else None for q in ("train_seconds", "peak_bytes")]
        stopped = next((f"{row.stopped} (n = {row.n:,})" for row in of_name.values() if row.stopped), "")
        lines.append([name, *_cost(of_name, sizes), *growth, stopped])
    heads = [*(f"n = {n:,}: s" for n in sizes), "MiB", "GFLOP", "time ~ n^", "memory ~ n^", "stopped"]
    show.table(["aggregator", "parameters", *heads], lines)


def _cost(rows: Mapping[int, Row], sizes: Sequence[int]) -> list[Any]:
    """Parameters, seconds at each size, then memory and arithmetic at the largest that was measured."""
    seconds = [f"{rows[n].train_seconds:.3g}" if n in rows and rows[n].train_seconds is not None else None for n in sizes]
    last = max((row for row in rows.values() if row.train_seconds is not None), key=lambda row: row.n, default=None)
    if last is None:
        return [None, *seconds, None, None]
    memory = None if last.peak_bytes is None else f"{last.peak_bytes / 2**20:.0f} at {last.n:,}"
    flops = None if last.flops is None else f"{last.flops / 1e9:.3g} at {last.n:,}"
    return [last.parameters, *seconds, memory, flops]
