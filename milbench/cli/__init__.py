"""The command `milbench`: parse, call, show. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from milbench import __version__, interrupt
from milbench.cli import show
from milbench.cli.analyze import analyze
from milbench.cli.data import data
from milbench.cli.options import AS_JSON, DATA, PLUGIN, RESULTS
from milbench.cli.profile import profile
from milbench.cli.report import report
from milbench.cli.results import results

if TYPE_CHECKING:
    from milbench.plugins import Variant
    from milbench.suites import Suite
    from milbench.trials.plan import Plan

WIDTHS = (384, 1024)  # of features, for which `ls aggregators` counts parameters


# Errors of a folder that takes no more, not of the program.
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


class _Commands(click.Group):
    """Turns an error that the user can mend into one line and exit code 2, and obeys signals."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        with interrupt.obeyed():
            return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        from milbench.errors import MilbenchError
        from milbench.files import unusable

        try:
            return super().invoke(ctx)
        except MilbenchError as error:
            _refuse(ctx, error)
        except OSError as error:
            if error.filename is None and error.errno not in _UNWRITABLE:
                raise
            _refuse(ctx, unusable(error.filename or "a file", error))

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of use, not of the alphabet


def _refuse(ctx: click.Context, error: Exception) -> None:
    """The error in one line, of a length that can be read whatever was quoted in it."""
    from milbench.errors import printable

    text = "; ".join(map(printable, str(error).splitlines()))
    click.echo(f"milbench: {text if len(text) <= 1200 else f'{text[:700]} ... {text[-400:]}'}", err=True)
    ctx.exit(2)


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
    if not all(part.isdecimal() and len(part) < 10 for part in parts):
        raise MilbenchError(f"--{option} {text!r}: write whole numbers from 0 up, with commas between them, such as 0,1,2")
    return [int(part) for part in parts]


@click.command()
@click.option("--suite", required=True, help="A built-in suite (milbench ls suites) or a TOML file.")
@click.option("--small", "size", flag_value="small", help="The suite's small form, where it has one: a first look.")
@click.option("--full", "size", flag_value="full", help="The suite's full form, where it has one: everything at full size.")
@click.option(
    "--aggregators",
    metavar="NAMES",
    help="Only these rows of the suite, by name or label; others are added: mean,transmil[landmarks=32],...",
)
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
@click.option("--dtype", type=click.Choice(["float32", "float16"]), help="Of stored features, instead of the suite's.")
@click.option("--no-pack", is_flag=True, help="Read feature files directly instead of packing them into one.")
@click.option("--dry-run", is_flag=True, help="Show the grid, what is done and what is not; run nothing.")
@click.option("--rehearse", is_flag=True, help="A few steps of every model on stand-in bags; says what the real run would need.")
@click.option(
    "--rehearse-scale", type=click.FloatRange(min=1), default=8, show_default=True, help="Stand-in bags are this much smaller."
)
@RESULTS
@DATA
@PLUGIN
def run(
    suite: str, size: str | None, aggregators: str | None, seeds: str | None, folds: str | None, epochs: int | None,
    recipe: str | None, device: str, workers: int | None, threads: int, keep_models: str, retry_failed: bool, dry_run: bool,
    results: Path,
    forced: tuple[str, ...], plugin_files: tuple[str, ...], no_pack: bool, rehearse: bool, rehearse_scale: float,
    dtype: Literal["float32", "float16"] | None, data_folder: Path | None,
) -> None:  # fmt: skip
    """Run every trial of a suite that has no result yet.

    Interrupt it whenever you like: the next run continues. Finished trials are never run again, whichever suite asked for them.
    """
    wanted_seeds, wanted_folds = _numbers(seeds, "seeds"), _numbers(folds, "folds")
    from milbench import datasets, plugins
    from milbench.config import Settings
    from milbench.errors import MilbenchError
    from milbench.ops import backends
    from milbench.suites import expand, load, pack, save_splits, sized, with_known
    from milbench.suites.expand import Load, narrowed
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
    if names == []:
        raise MilbenchError(
            f"--aggregators {aggregators!r}: names no aggregator; write names with commas between them, or leave it out"
        )
    settings = Settings.from_environment(data=data_folder, results=results, pack=False if no_pack else None)
    give: Load = cache(partial(datasets.load, settings=settings))
    if rehearse:
        from milbench.cli import rehearsal

        give = rehearsal.load(rehearse_scale, settings)
    expanded = [
        expand(
            leaf,
            aggregators=rows,
            seeds=wanted_seeds,
            folds=wanted_folds,
            epochs=epochs,
            recipe=recipe,
            dtype=dtype,
            device=device,
            threads=threads,
            load=give,
            settings=settings,
        )
        for leaf, rows in narrowed(with_includes(asked), names, recipe=recipe, epochs=epochs)
    ]
    for other in whole(asked):
        if other.made_by:
            click.echo(f"{other.name}: {other.title}; made by: {other.made_by}")
    jobs = list({job.spec.trial_id: job for _, some in expanded for job in some}.values())
    grids = [plan for plan, _ in expanded]
    if not grids:
        return
    _show_missing(grids)
    store = Store(results)
    if not rehearse:
        plans.refuse_rehearsal(store)
    if dry_run and not rehearse:
        _show_grids(grids, {job.spec.trial_id: store.status(job.spec.trial_id) for job in jobs})
        return
    if not jobs:
        raise MilbenchError(
            f"suite {asked.name}: none of its data is here; add features with: milbench data add (--help tells how)"
        )
    workers = workers or (max(1, (os.cpu_count() or 1) // threads) if device == "cpu" else 1)
    files = [Path(file).resolve() for file in plugin_files]
    if rehearse:
        raise SystemExit(
            rehearsal.run(
                jobs, settings, suite=asked.name, scale=rehearse_scale, workers=workers, plugins=files, backends=forced,
                retry_failed=retry_failed, dry_run=dry_run,
            )
        )  # fmt: skip
    again = {"pending", "failed", "oom"} if retry_failed else {"pending"}
    todo = [job for job in jobs if store.status(job.spec.trial_id) in again]
    pack(todo, click.echo, give)
    for plan in [*grids, *_composed(whole(asked))]:
        plans.merge(store, with_known(plan))
    save_splits(jobs, store, give)

    from milbench.cli import progress

    seeds_run = {job.spec.seed for job in jobs}
    kept_seeds = {"none": set(), "first-seed": {min(seeds_run)}, "all": seeds_run}[keep_models]
    progress.run(
        todo,
        store,
        settings=settings,
        workers=min(workers, len(todo)),
        plugins=files,
        backends=forced,
        keep_model=lambda job: job.spec.seed in kept_seeds,
        already=len(jobs) - len(todo),
    )
    raise SystemExit(progress.summary(jobs, store, ran=len(todo), suite=suite, results=results))


def _missing(plans: list[Plan]) -> list[dict[str, Any]]:
    """One entry for each dataset, encoder, magnification, patch size and split that suites ask for and that is not here."""
    cells = {cell.place: cell for plan in plans for cell in plan.cells if cell.missing}.values()
    keys = ("dataset", "encoder", "magnification", "patch_size", "split")
    trials = Counter(cell.column for cell in cells)
    reasons = {cell.column: cell.missing for cell in cells}
    return [{**dict(zip(keys, column, strict=True)), "trials": trials[column], "reason": why} for column, why in reasons.items()]


def _show_missing(plans: list[Plan]) -> None:
    for one in _missing(plans):
        *column, trials, reason = one.values()
        click.echo(f"not here: {_column(tuple(column))} ({trials} trials): {reason}")


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


def _composed(suites: list[Suite]) -> list[Plan]:
    """Plans of those suites that have no grid: what they include is all they say."""
    from milbench.trials.plan import Plan

    return [Plan(suite=one.name, definition=one.model_dump(mode="json")) for one in suites if one.grid is None]


def _show_grids(grids: list[Plan], state: Mapping[str, str]) -> None:
    """Each suite as a table like its report's: how many trials of a row and column are done, and how many are not."""
    from milbench.cli.progress import MARKS

    for plan in grids:
        columns = list(dict.fromkeys(cell.column for cell in plan.cells))
        # What differs between columns heads them, what does not stands above.
        differs = [len({column[i] for column in columns}) > 1 for i in range(len(columns[0]))]
        shared = _column(tuple(None if d else part for part, d in zip(columns[0], differs, strict=True)))
        heads = [_column(tuple(part if d else None for part, d in zip(column, differs, strict=True))) for column in columns]
        seeds, folds = ({getattr(cell, what) for cell in plan.cells} for what in ("seed", "fold"))
        repeats = " x ".join(f"{len(some)} {name}{'s' * (len(some) > 1)}" for some, name in ((folds, "fold"), (seeds, "seed")))
        click.echo(f"\n{plan.suite}: {plan.definition['title']}\n{shared} · {repeats}")
        told: dict[tuple[str, Any], list[str]] = {}
        for cell in plan.cells:
            mark = MARKS["absent" if cell.missing else state[cell.trial_id]]
            told.setdefault((cell.label, cell.column), []).append(mark)
        rows = [
            [label, *(", ".join(f"{some.count(mark)} {mark}" for mark in dict.fromkeys(some)) for some in across)]
            for label in dict.fromkeys(cell.label for cell in plan.cells)
            if (across := [told.get((label, column), []) for column in columns])
        ]
        show.table(["aggregator", *(heads if any(differs) else ["trials"])], rows)
    counts = {mark: list(state.values()).count(name) for name, mark in MARKS.items()}
    counts[MARKS["absent"]] = len({cell.place for plan in grids for cell in plan.cells if cell.missing})
    every = sum(counts.values())
    click.echo(
        f"{every:,} trials: " + ", ".join(f"{count:,} {mark}" for mark, count in counts.items() if count) + ". Nothing was run."
    )


@click.command()
@click.option("--suite", help="Only this suite.")
@RESULTS
@AS_JSON
def status(suite: str | None, results: Path, as_json: bool) -> None:
    """How far every suite is, and what went wrong."""
    from milbench.trials import plan as plans
    from milbench.trials.definition import leaves
    from milbench.trials.store import Store

    store = Store(results)
    rows, troubles, grids = [], [], []
    for name in plans.chosen(store, suite):
        grids += (of_suite := leaves(store, name))
        cells = {cell.place: cell for leaf in of_suite for cell in leaf.cells}.values()
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
        click.echo(json.dumps({"suites": rows, "not_ok": troubles, "not_here": _missing(grids)}, indent=1))
        return
    show.table(["suite", "trials", *counts, "not here"], [list(row.values()) for row in rows])
    for t in troubles:
        where = f"{t['aggregator']} on {t['dataset']}, fold {t['fold']}, seed {t['seed']} ({t['trial_id']})"
        click.echo(f"{t['status']:8} {where}: {t['reason']}")
    _show_missing(grids)


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
@DATA
@AS_JSON
def ls_datasets(data_folder: Path | None, as_json: bool) -> None:
    """Every dataset known by name, and whether its files are here."""
    from dataclasses import asdict

    from milbench.config import Settings
    from milbench.datasets import infos

    rows = [asdict(info) for info in infos(Settings.from_environment(data=data_folder))]
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
    from milbench.api import templates

    path = templates.write(name, folder)
    click.echo(f"{path}\nNext: milbench check aggregator {name} --plugin {path}")


# In the order of `milbench --help`.
for _command in (run, status, report, results, ls, data, check, analyze, profile, new):
    main.add_command(_command)
