"""`milbench profile`: what things cost on this machine."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from milbench.cli import show
from milbench.cli.options import AS_JSON, DATA, PLUGIN, RESULTS

if TYPE_CHECKING:
    from milbench.profiling.aggregators import Row


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
    import torch

    from milbench.profiling import measure, ops

    torch.set_num_threads(threads or os.cpu_count() or 1)
    noise = measure.others()
    rate = ops.sgemm_rate()
    measured = []
    for row in ops.rows(small=small):
        measured.append(row)
        if not as_json and sys.stdout.isatty():
            click.echo(f"{row.op}, {row.contender}, n = {row.n}", err=True)
    noise = noise or measure.others()
    quiet = noise is None or noisy
    measured = ops.with_ratios(measured)
    if not quiet:
        measured = [dataclasses.replace(row, ratio=None) for row in measured]
    told = ops.report(measured, rate, noise)
    if not quiet or small:  # the budget is for full sizes
        told["budget"] = []
    if as_json:
        click.echo(json.dumps(told, indent=1))
        return
    shown = ["op", "contender", "n", "setting", "forward", "both", "extra_mib", "ratio", "note"]
    show.table(
        ["op", "contender", "n", "setting", "forward s", "fwd + bwd s", "extra MiB", "time / ours", "note"],
        [
            [f"{value:.3g}" if isinstance(value, float) else value for value in (row[name] for name in shown)]
            for row in told["rows"]
        ],
    )
    click.echo(f"sgemm {rate / 1e9:.0f} GF/s on {told['threads']} threads, torch {told['torch']}")
    for bar in told["budget"]:
        value = "not measured" if bar["value"] is None else f"{bar['value']:.2f}"
        mark = {True: "ok  ", False: "FAIL", None: "-   "}[bar["holds"]]
        click.echo(f"{mark} {bar['what']}: {value} ({'at least' if bar['at_least'] else 'at most'} {bar['limit']:g})")
    if not quiet:
        click.echo(f"No ratios: {noise}. Try again on a quiet machine, or pass --noisy.", err=True)


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
def profile_data(
    dataset: str | None, encoder: str | None, magnification: int | None, patch_size: int | None, synthetic: int | None,
    epochs: int, noisy: bool, data_folder: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Reading a dataset again: from the packed store, and by opening each of its files.

    On one thread, as a trial has. On a machine where something else is running, no ratio is printed.
    """
    import torch

    from milbench.config import Settings
    from milbench.errors import MilbenchError
    from milbench.profiling import data as reading
    from milbench.profiling import measure

    if (synthetic is None) == (dataset is None) or (dataset is None) != (encoder is None):
        raise MilbenchError("profile data needs --dataset NAME and --encoder NAME, or --synthetic N")
    torch.set_num_threads(1)
    noise = measure.others()
    if synthetic is not None:
        told = reading.synthetic(synthetic, epochs=epochs)
    else:
        settings = Settings.from_environment(data=data_folder)
        told = reading.dataset(str(dataset), str(encoder), magnification, patch_size, epochs=epochs, settings=settings)
    noise = noise or measure.others()
    if noise and not noisy:
        told = [dataclasses.replace(row, ratio=None) for row in told]
    if as_json:
        click.echo(json.dumps({"noise": noise, "rows": [dataclasses.asdict(row) for row in told]}, indent=1))
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
            for row in told
        ],
    )
    click.echo("One epoch reads every bag once, after one that warmed up. Memory: growth of the resident set in an epoch.")
    if noise and not noisy:
        click.echo(f"No ratio: {noise}. Try again on a quiet machine, or pass --noisy.", err=True)


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
    aggregators: str | None, sizes: str | None, in_dim: int, seconds: float, memory: float | None, device: str,
    threads: int | None, noisy: bool, results: Path, plugin_files: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Time, memory and arithmetic of every aggregator as bags grow: efficiency.csv and its figures in RESULTS/analysis.

    Each method and size is measured in a process of its own, one at a time. The largest sizes of slow methods are left out, which
    is said. Nothing is measured on a machine where something else is running.
    """
    from milbench import plugins
    from milbench.errors import MilbenchError
    from milbench.files import write_atomically
    from milbench.machine import provenance
    from milbench.profiling import aggregators as cost
    from milbench.profiling import measure

    plugins.discover(plugin_files)
    names = [plugins.resolve(name).name for name in plugins.split_list(aggregators or "")] or [e.name for e in plugins.entries()]
    wanted = cost.SIZES if sizes is None else _sizes(sizes)
    if device == "cuda" and not provenance()["gpu"]:
        raise MilbenchError("--device cuda: not available here; leave it out for the CPU")
    if (noise := measure.others()) and not noisy:
        raise MilbenchError(f"nothing was measured: {noise}; try again on a quiet machine, or pass --noisy")
    limit = memory * 2**30 if memory else 0.75 * cost.free_memory() if device == "cpu" else math.inf
    setting = cost.Setting(in_dim, seconds, limit, device, threads or os.cpu_count() or 1, tuple(plugin_files))
    rows, noises = [], {"before": noise} if noise else {}
    for name in names:
        for row in cost.profile([name], wanted, setting):
            rows.append(row)
            if not as_json and sys.stdout.isatty():
                click.echo(f"{row.aggregator}, n = {row.n:,}{': ' + row.stopped if row.stopped else ''}", err=True)
        if found := measure.others():
            noises[name] = found
    told = provenance()
    hardware = told["gpu"] if device == "cuda" else told["cpu"]
    machine = f"{hardware}, torch {told['torch']}, milbench {told['milbench']}."
    if noises:
        machine += f" NOT A QUIET MACHINE: something else ran beside {', '.join(noises)}."
    folder = results / "analysis"
    write_atomically(folder / "efficiency.csv", cost.table(rows))
    saved = [figure.save(folder) for figure in cost.figures(rows, setting, machine)]
    slopes = {
        quantity: cost.exponents(rows, quantity) for quantity in ("train_seconds", "predict_seconds", "peak_bytes", "flops")
    }
    if as_json:
        measured = [dataclasses.asdict(row) for row in rows]
        values = {**dataclasses.asdict(setting), "memory": limit if math.isfinite(limit) else None}
        click.echo(json.dumps({"rows": measured, "exponents": slopes, "setting": values, "noise": noises, **told}, indent=1))
    else:
        _show_cost(rows, slopes)
        for path in (folder / "efficiency.csv", *(path for one in saved for path in (one.pdf, one.png, one.csv))):
            click.echo(path)
    if noises:
        click.echo(
            f"Not a quiet machine ({'; '.join(f'{k}: {v}' for k, v in noises.items())}): do not quote these times.", err=True
        )


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
        own = {row.n: row for row in rows if row.aggregator == name}
        seconds = [f"{own[n].train_seconds:.3g}" if n in own and own[n].train_seconds is not None else None for n in sizes]
        last = max((row for row in own.values() if row.train_seconds is not None), key=lambda row: row.n, default=None)
        memory = f"{last.peak_bytes / 2**20:.0f} at {last.n:,}" if last and last.peak_bytes is not None else None
        flops = f"{last.flops / 1e9:.3g} at {last.n:,}" if last and last.flops is not None else None
        growth = [f"{slopes[q][name]:.2f}" if name in slopes[q] else None for q in ("train_seconds", "peak_bytes")]
        stopped = next((f"{row.stopped} (n = {row.n:,})" for row in own.values() if row.stopped), "")
        lines.append([name, last and last.parameters, *seconds, memory, flops, *growth, stopped])
    heads = [*(f"n = {n:,}: s" for n in sizes), "MiB", "GFLOP", "time ~ n^", "memory ~ n^", "stopped"]
    show.table(["aggregator", "parameters", *heads], lines)
