"""The command `milbench`: parse, call, show. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from milbench import __version__
from milbench.cli import show
from milbench.cli.analyze import analyze
from milbench.cli.data import data
from milbench.cli.options import AS_JSON, PLUGIN, RESULTS
from milbench.cli.profile import profile
from milbench.cli.report import report

if TYPE_CHECKING:
    from milbench.plugins import Variant
    from milbench.suites import Job, Suite
    from milbench.trials.plan import Plan

WIDTHS = (384, 1024)  # of features, for which `ls aggregators` counts parameters


class _Commands(click.Group):
    """Turns an error that the user can mend into one line and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        from milbench.errors import MilbenchError

        try:
            return super().invoke(ctx)
        except MilbenchError as error:
            click.echo(f"milbench: {error}", err=True)
            ctx.exit(2)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of use, not of the alphabet


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def main() -> None:
    """Which MIL aggregator should I use, and is the difference real?

    \b
    milbench run --suite quickstart       train and test; stops and continues at will
    milbench report --suite quickstart    tables in LaTeX, Markdown and CSV, with paired tests
    """


def _numbers(text: str | None, option: str) -> list[int] | None:
    from milbench.errors import MilbenchError

    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise MilbenchError(f"--{option} {text!r}: write whole numbers from 0 up, with commas between them, such as 0,1,2")
    return [int(part) for part in parts]


@click.command()
@click.option("--suite", required=True, help="A built-in suite (milbench ls suites) or a TOML file.")
@click.option("--small", "size", flag_value="small", help="The suite's small form, where it has one: a first look.")
@click.option("--full", "size", flag_value="full", help="The suite's full form, where it has one: everything at full size.")
@click.option("--aggregators", metavar="NAMES", help="Instead of the suite's: mean,transmil[landmarks=32],...")
@click.option("--seeds", metavar="0,1,2", help="Instead of the suite's.")
@click.option("--folds", metavar="0,1", help="Only these folds.")
@click.option("--epochs", type=click.IntRange(min=1), help="Instead of the recipe's maximum.")
@click.option("--recipe", metavar="NAME", help="Instead of the suite's: paper, or official for each method's own.")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    default="auto",
    show_default=True,
    help="auto takes CUDA where there is one.",
)
@click.option("--backend", "forced", multiple=True, metavar="[OP=]NAME", help="Use this backend or fail (milbench ls backends).")
@click.option("--workers", type=click.IntRange(min=1), help="Trials at a time. [default: all cores on CPU, else 1]")
@click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="CPU threads of one trial; part of its identity."
)
@click.option(
    "--keep-models",
    type=click.Choice(["none", "first-seed", "all"]),
    default="first-seed",
    show_default=True,
    help="Which weights are stored.",
)
@click.option("--retry-failed", is_flag=True, help="Run failed and out-of-memory trials again.")
@click.option("--no-pack", is_flag=True, help="Read feature files directly instead of packing them into one.")
@click.option("--dry-run", is_flag=True, help="Show the grid, what is done and what is not; run nothing.")
@click.option("--rehearse", is_flag=True, help="A few steps of every model on stand-in bags; says what the real run would need.")
@click.option(
    "--rehearse-scale", type=click.FloatRange(min=1), default=8, show_default=True, help="Stand-in bags are this much smaller."
)
@RESULTS
@PLUGIN
def run(
    suite: str, size: str | None, aggregators: str | None, seeds: str | None, folds: str | None, epochs: int | None,
    recipe: str | None, device: str, workers: int | None, threads: int, keep_models: str, retry_failed: bool, dry_run: bool,
    results: Path,
    forced: tuple[str, ...], plugin_files: tuple[str, ...], no_pack: bool, rehearse: bool, rehearse_scale: float,
) -> None:  # fmt: skip
    """Run every trial of a suite that has no result yet.

    Interrupt it whenever you like: the next run continues. Finished trials are never run again, whichever suite asked for them.
    """
    wanted_seeds, wanted_folds = _numbers(seeds, "seeds"), _numbers(folds, "folds")
    if no_pack:
        os.environ["MILBENCH_NO_PACK"] = "1"  # reaches the workers

    from milbench import datasets, plugins
    from milbench.errors import MilbenchError
    from milbench.ops import backends
    from milbench.suites import expand, load, save_splits, sized, with_known
    from milbench.suites.model import whole, with_includes
    from milbench.trials import plan as plans
    from milbench.trials.store import Store

    plugins.discover(plugin_files)
    device = _device(device)
    backends.force(forced)
    backends.check_forced(device)
    suite = sized(suite, size)
    asked = load(suite)
    names = plugins.split_list(aggregators) if aggregators is not None else None
    give = datasets.load
    if rehearse:
        from milbench.cli import rehearsal

        give = rehearsal.load(rehearse_scale)
    expanded = [
        expand(
            leaf,
            aggregators=names,
            seeds=wanted_seeds,
            folds=wanted_folds,
            epochs=epochs,
            recipe=recipe,
            device=device,
            threads=threads,
            load=give,
        )
        for leaf in with_includes(asked)
    ]
    for other in whole(asked):
        if other.made_by:
            click.echo(f"{other.name}: {other.title}; made by: {other.made_by}")
    jobs = list({job.spec.trial_id: job for _, some in expanded for job in some}.values())
    _show_missing([plan for plan, _ in expanded])
    if not jobs:
        if not expanded:
            return
        raise MilbenchError(
            f"suite {asked.name}: none of its data is here; add features with: milbench data add (--help tells how)"
        )
    workers = workers or (max(1, (os.cpu_count() or 1) // threads) if device == "cpu" else 1)
    files = [Path(file).resolve() for file in plugin_files]
    if rehearse:
        raise SystemExit(
            rehearsal.run(
                jobs, results, suite=asked.name, scale=rehearse_scale, workers=workers, plugins=files, backends=forced,
                retry_failed=retry_failed, dry_run=dry_run,
            )
        )  # fmt: skip
    store = Store(results)
    plans.refuse_rehearsal(store)
    state = {job.spec.trial_id: store.status(job.spec.trial_id) for job in jobs}
    if dry_run:
        _show_grid(jobs, state)
        return
    for plan in _plans(asked, [plan for plan, _ in expanded]):
        plans.merge(store, with_known(plan))
    save_splits(jobs, store)
    again = {"pending", "failed", "oom"} if retry_failed else {"pending"}
    todo = [job for job in jobs if state[job.spec.trial_id] in again]

    from milbench.cli import progress

    seeds_run = {job.spec.seed for job in jobs}
    kept_seeds = {"none": set(), "first-seed": {min(seeds_run)}, "all": seeds_run}[keep_models]
    code = progress.run(
        todo,
        store,
        workers=min(workers, len(todo)),
        plugins=files,
        backends=forced,
        keep_model=lambda job: job.spec.seed in kept_seeds,
        already=len(jobs) - len(todo),
    )
    if code == 130:
        raise SystemExit(130)
    raise SystemExit(progress.summary(jobs, store, ran=len(todo), suite=suite, results=results))


def _show_missing(expanded: list[Plan]) -> None:
    """One line for each dataset, encoder and magnification that a suite asks for and that is not here."""
    missing = {cell.column: cell.missing for plan in expanded for cell in plan.cells if cell.missing}
    trials = {column: len({c.place for plan in expanded for c in plan.cells if c.column == column}) for column in missing}
    for column, why in missing.items():
        click.echo(f"not here: {_column(column)} ({trials[column]} trials): {why}")


def _column(column: tuple[object, ...]) -> str:
    dataset, encoder, magnification, patch_size, split = column
    parts = [dataset, encoder, f"{magnification}x" if magnification else "", f"{patch_size} px" if patch_size else "", split]
    return " · ".join(str(part) for part in parts if part)


def _device(wanted: str) -> str:
    import torch

    from milbench.errors import MilbenchError

    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return "cuda" if here["cuda"] else "cpu"
    if not here[wanted]:
        raise MilbenchError(
            f"--device {wanted}: not available here; available: {', '.join(name for name, yes in here.items() if yes)}"
        )
    return wanted


def _plans(whole: Suite, leaves: list[Plan]) -> list[Plan]:
    """The plans of the suites with a grid, and of the suite that includes them."""
    from milbench.trials.plan import Plan

    if whole.grid is not None:
        return leaves
    return [*leaves, Plan(suite=whole.name, definition=whole.model_dump(mode="json"))]


def _show_grid(jobs: list[Job], state: Mapping[str, str]) -> None:
    from rich.table import Table

    from milbench.cli.progress import MARKS

    for column in dict.fromkeys(job.cell.column for job in jobs):
        own = [job for job in jobs if job.cell.column == column]
        seeds = sorted({job.spec.seed for job in own})
        named = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
        table = Table(title=f"{_column(column)} · {named}", title_justify="left")
        folds = sorted({job.spec.fold for job in own})
        table.add_column("aggregator", no_wrap=True)
        for fold in folds:
            table.add_column(f"fold {fold}", justify="center")
        for label in dict.fromkeys(job.cell.label for job in own):
            here = [[state[job.spec.trial_id] for job in own if (job.cell.label, job.spec.fold) == (label, f)] for f in folds]
            table.add_row(label, *(", ".join(_told(some, MARKS)) for some in here))
        show.console().print(table)
    counts = {s: list(state.values()).count(s) for s in MARKS if s in state.values()}
    click.echo(f"{len(jobs)} trials: " + ", ".join(f"{count} {name}" for name, count in counts.items()) + ". Nothing was run.")


def _told(states: list[str], marks: Mapping[str, str]) -> list[str]:
    """What the trials of one place are: a mark for one, numbers for several seeds or draws."""
    if len(states) == 1:
        return [marks[states[0]]]
    return [f"{states.count(s)} {marks[s]}" for s in dict.fromkeys(states)]


@click.command()
@click.option("--suite", help="Only this suite.")
@RESULTS
@AS_JSON
def status(suite: str | None, results: Path, as_json: bool) -> None:
    """How far every suite is, and what went wrong."""
    from milbench.report.collect import leaves
    from milbench.trials import plan as plans
    from milbench.trials.store import Store

    store = Store(results)
    rows, troubles = [], []
    for name in plans.chosen(store, suite):
        cells = {cell.place: cell for leaf in leaves(store, name) for cell in leaf.cells}.values()
        here = {cell.trial_id: cell for cell in cells if not cell.missing}
        found = {trial_id: store.raw(trial_id) for trial_id in here}
        state = {trial_id: result["status"] if result else "pending" for trial_id, result in found.items()}
        counts = {s: list(state.values()).count(s) for s in ("ok", "failed", "oom", "skipped", "pending")}
        rows.append({"suite": name, "trials": len(here), **counts, "not_here": sum(bool(cell.missing) for cell in cells)})
        for trial_id, c in here.items():
            if state[trial_id] in ("failed", "oom", "skipped"):
                place = {
                    "suite": name,
                    "aggregator": c.aggregator,
                    "dataset": c.dataset,
                    "encoder": c.encoder,
                    "fold": c.fold,
                    "seed": c.seed,
                }
                reason = (found[trial_id] or {})["reason"]
                troubles.append({**place, "trial_id": trial_id, "status": state[trial_id], "reason": reason})
    if as_json:
        click.echo(json.dumps({"suites": rows, "not_ok": troubles}, indent=1))
        return
    show.table(["suite", "trials", *counts, "not here"], [list(row.values()) for row in rows])
    for t in troubles:
        where = f"{t['aggregator']} on {t['dataset']}, fold {t['fold']}, seed {t['seed']} ({t['trial_id']})"
        click.echo(f"{t['status']:8} {where}: {t['reason']}")


@click.group()
def ls() -> None:
    """List what there is."""


@ls.command("aggregators")
@PLUGIN
@AS_JSON
def ls_aggregators(plugin_files: tuple[str, ...], as_json: bool) -> None:
    """Every registered aggregator."""
    from milbench import plugins

    plugins.discover(plugin_files)
    rows = []
    for entry in plugins.entries():
        variant = plugins.resolve(entry.name)
        rows.append({
            "name": entry.name,
            "label": entry.label,
            "cite": entry.cite,
            "complexity": f"O({entry.complexity})",
            "needs_coords": entry.cls.needs_coords,
            "order_sensitive": entry.cls.order_sensitive,
            "recipes": ["paper"] + (["official"] if entry.cls.official_recipe else []),
            **{f"parameters_{width}": _size(variant, width) for width in WIDTHS},
            "implementation": entry.implementation,
            "parameters": variant.params,
        })  # fmt: skip
    shown = [
        "name",
        "label",
        "cite",
        "complexity",
        "needs_coords",
        "order_sensitive",
        "recipes",
        *(f"parameters_{width}" for width in WIDTHS),
    ]
    show.rows(rows, as_json, shown)


def _size(variant: Variant, width: int) -> int | None:
    """Parameters of a model for features of that width and three classes; None for one that needs weights it does not have."""
    import torch

    from milbench.errors import SkipTrial

    try:
        with torch.device("meta"):
            return sum(p.numel() for p in variant.build(width, 3).parameters())
    except SkipTrial:
        return None


@ls.command("suites")
@AS_JSON
def ls_suites(as_json: bool) -> None:
    """Every built-in suite."""
    from milbench.suites import load, names

    rows = []
    for name in names():
        suite = load(name)
        rows.append(
            {"name": name, "task": suite.task, "reproduces": suite.reproduces, "title": suite.title, "includes": suite.includes}
        )
    show.rows(rows, as_json, ["name", "task", "reproduces", "title"])


@ls.command("datasets")
@AS_JSON
def ls_datasets(as_json: bool) -> None:
    """Every dataset known by name, and whether its files are here."""
    from dataclasses import asdict

    from milbench.datasets import infos

    rows = [asdict(info) for info in infos()]
    show.rows(rows, as_json, ["name", "label", "task", "encoders", "available", "why_not"])


@ls.command("encoders")
@AS_JSON
def ls_encoders(as_json: bool) -> None:
    """Patch encoders of the paper; any other name works too."""
    from milbench.datasets import ENCODERS

    show.rows([{"name": name, "width": width} for name, width in ENCODERS.items()], as_json, ["name", "width"])


@ls.command("backends")
@AS_JSON
def ls_backends(as_json: bool) -> None:
    """What operations compute with here, and why not with something faster."""
    import torch

    from milbench.ops import backends

    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    rows = [{"device": device, **row} for device in devices for row in backends.table(device)]
    show.rows(rows, as_json, ["device", "op", "backend", "available", "chosen", "why_not"])


@click.group()
def check() -> None:
    """Check something before you rely on it."""


@check.command("aggregator")
@click.argument("name")
@PLUGIN
def check_aggregator(name: str, plugin_files: tuple[str, ...]) -> None:
    """Hold the aggregator NAME against the contract: the same checks that the test suite runs."""
    from milbench import contract, plugins
    from milbench.errors import MilbenchError, SkipTrial

    plugins.discover(plugin_files)
    variant = plugins.resolve(name)
    broken = 0
    for one in contract.CHECKS:
        try:
            one.run(variant)
        except SkipTrial as skip:
            raise MilbenchError(f"{variant.name} cannot be checked here: {skip}") from skip
        except Exception as error:
            broken += 1
            click.echo(
                f"FAIL  {one.name}: {error if isinstance(error, contract.ContractError) else f'{type(error).__name__}: {error}'}"
            )
        else:
            click.echo(f"ok    {one.name}: {one.says}")
    click.echo(f"{variant.name}: {len(contract.CHECKS) - broken} of {len(contract.CHECKS)} checks hold")
    raise SystemExit(1 if broken else 0)


@click.group()
def new() -> None:
    """Begin something of your own."""


@new.command("aggregator")
@click.argument("name")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), default=".", help="Where the file goes.")
def new_aggregator(name: str, folder: Path) -> None:
    """Write NAME.py: a working aggregator of forty lines to start from."""
    from milbench.cli import template

    path = template.write(name, folder)
    click.echo(f"{path}\nNext: milbench check aggregator {name} --plugin {path}")


# In the order of `milbench --help`.
for _command in (run, status, report, ls, data, check, analyze, profile, new):
    main.add_command(_command)
