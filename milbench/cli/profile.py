"""`milbench profile`: what things cost on this machine."""

from __future__ import annotations

import dataclasses
import json
import os
import sys

import click

from milbench.cli import show
from milbench.cli.options import AS_JSON


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

    from milbench.analysis import measure
    from milbench.analysis import profile_ops as ops

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
@AS_JSON
def profile_data(
    dataset: str | None, encoder: str | None, magnification: int | None, patch_size: int | None, synthetic: int | None,
    epochs: int, noisy: bool, as_json: bool,
) -> None:  # fmt: skip
    """Reading a dataset again: from the packed store, and by opening each of its files.

    On one thread, as a trial has. On a machine where something else is running, no ratio is printed.
    """
    import torch

    from milbench.analysis import measure, profile_data
    from milbench.errors import MilbenchError

    if (synthetic is None) == (dataset is None) or (dataset is None) != (encoder is None):
        raise MilbenchError("profile data needs --dataset NAME and --encoder NAME, or --synthetic N")
    torch.set_num_threads(1)
    noise = measure.others()
    if synthetic is not None:
        told = profile_data.synthetic(synthetic, epochs=epochs)
    else:
        told = profile_data.dataset(str(dataset), str(encoder), magnification, patch_size, epochs=epochs)
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
