"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import click

from milbench.config import Settings

PATH = click.Path(path_type=Path)

RESULTS = click.option(
    "--results",
    type=PATH,
    default=lambda: Settings.from_environment().results,
    show_default="MILBENCH_RESULTS, or results",
    help="Folder of the results store.",
)
PLUGIN = click.option(
    "--plugin", "plugin_files", multiple=True, metavar="FILE.py", help="A file that registers aggregators; may be repeated."
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
QUIET = click.option("--quiet", "-q", is_flag=True, help="Print errors only; the exit code says the rest.")
SUITE = click.option("--suite", metavar="SUITE", help="Only this suite: its name, or the TOML file that was run.")
DATA = click.option(
    "--data", "data_folder", type=PATH, help="Folder of the datasets you added. [default: MILBENCH_DATA, or data]"
)


def how_to_run(command: Callable[..., Any]) -> Callable[..., Any]:
    """Everything about which trials of a suite are run, and how: `milbench run` and `milbench work` take the same."""
    return reduce(lambda so_far, option: option(so_far), reversed(_HOW), command)


def numbers(_context: click.Context, option: click.Parameter, text: str | None) -> list[int] | None:
    """`0,1,2` as numbers; None where the option is not given.

    Raises:
        MilbenchError: something else than whole numbers from 0 up.
    """
    from milbench.errors import MilbenchError

    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < 10 for part in parts):
        raise MilbenchError(f"--{option.name} {text!r}: write whole numbers from 0 up, with commas between them, such as 0,1,2")
    return [int(part) for part in parts]


def _seconds(_context: click.Context, option: click.Parameter, text: str | None) -> float | None:
    """A duration such as `110m`, in seconds.

    Raises:
        MilbenchError: it is none.
    """
    from milbench.errors import MilbenchError
    from milbench.words import seconds

    try:
        return None if text is None else seconds(text)
    except ValueError as error:
        raise MilbenchError(f"--{(option.name or '').replace('_', '-')}: {error}") from error


def names(_context: click.Context, option: click.Parameter, text: str | None) -> str | None:
    """Names with commas between them, as they stand; None where the option is not given.

    Raises:
        MilbenchError: there is no name.
    """
    from milbench.errors import MilbenchError

    if text is not None and not text.strip(" ,"):
        raise MilbenchError(f"--{option.name} {text!r}: has no name; write names with commas between them, or leave it out")
    return text


UNTIL = click.option(
    "--until",
    metavar="TIME",
    callback=_seconds,
    help="Begin no trial that would not end within this time, such as 110m or 1:50:00, and then stop.",
)
_HOW = (
    click.option("--small", "size", flag_value="small", help="The suite's small form, where it has one: a first look."),
    click.option("--full", "size", flag_value="full", help="The suite's full form, where it has one: everything at full size."),
    click.option(
        "--aggregators",
        metavar="NAMES",
        callback=names,
        help="Only these rows of the suite, by name or label; others are added: mean,transmil[landmarks=32],...",
    ),
    click.option("--seeds", metavar="0,1,2", callback=numbers, help="Instead of the suite's."),
    click.option("--folds", metavar="0,1", callback=numbers, help="Only these folds."),
    click.option("--epochs", type=click.IntRange(min=1), help="Instead of the recipe's maximum."),
    click.option("--recipe", metavar="NAME", help="Instead of the suite's: paper, or official for each method's own."),
    click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda", "mps"]),
        default="auto",
        show_default=True,
        help="auto takes CUDA where there is one.",
    ),
    click.option(
        "--backend", "backends", multiple=True, metavar="[OP=]NAME", help="Use this backend or fail (milbench ls backends)."
    ),
    click.option(
        "--workers", type=click.IntRange(min=1), help="Trials at a time. [default: all cores on CPU, else --per-gpu on each GPU]"
    ),
    click.option("--gpus", metavar="0,1", callback=numbers, help="Use these GPUs; each worker sees one of them."),
    click.option(
        "--per-gpu", type=click.IntRange(min=1), default=1, show_default=True, help="Workers that share a GPU and its memory."
    ),
    click.option(
        "--threads",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="CPU threads of one trial; part of its identity.",
    ),
    click.option(
        "--keep-models",
        type=click.Choice(["none", "first-seed", "all"]),
        default="first-seed",
        show_default=True,
        help="Which weights are stored.",
    ),
    click.option("--retry-failed", is_flag=True, help="Run failed and out-of-memory trials again."),
    click.option(
        "--trial-timeout", metavar="TIME", callback=_seconds, help="End a trial that takes longer, such as 2h; it is then failed."
    ),
    click.option("--dtype", type=click.Choice(["float32", "float16"]), help="Of stored features, instead of the suite's."),
    click.option("--no-pack", is_flag=True, help="Read feature files directly instead of packing them into one."),
)
