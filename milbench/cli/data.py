"""`milbench data`: say where features, labels and splits are, and check them before the first epoch."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from milbench.cli import show
from milbench.cli.options import AS_JSON, DATA, PATH

if TYPE_CHECKING:
    from milbench.api.data import Examined, FeatureSet


@click.group()
def data() -> None:
    """Bring your own features, and check them."""


@data.command()
@click.argument("name")
@click.option("--features", type=PATH, metavar="DIR", help="CLAM's or TRIDENT's folder of features, or one of npz files.")
@click.option("--encoder", metavar="NAME", help="What the features are of: vits-lunit, uni, ... or a name of your own.")
@click.option("--magnification", type=click.IntRange(min=1), metavar="20", help="Of the patches.")
@click.option("--patch-size", type=click.IntRange(min=1), metavar="224", help="In pixels at that magnification.")
@click.option("--patches", type=PATH, metavar="DIR", help="CLAM's patches/, when it is not beside the features.")
@click.option(
    "--step",
    type=click.FloatRange(min=0, min_open=True),
    metavar="PIXELS",
    help="Level-0 pixels between patches, when no file says it.",
)
@click.option("--swap-xy", is_flag=True, help="Positions stand in the files as (y, x).")
@click.option("--labels", type=PATH, metavar="CSV", help="Table of labels, or of survival.")
@click.option("--slides", type=PATH, metavar="CSV", help="Table of the slides of cases, when --labels lists cases.")
@click.option("--columns", metavar="ROLE=COLUMN,...", help="Which column is slide, case, label, time, event or censorship.")
@click.option("--no-header", is_flag=True, help="The label table has no header; its columns are called 1, 2, ...")
@click.option("--encoding", metavar="NAME", help="Of the tables given here, when it is not UTF-8: gbk, utf-16-le, cp1252, ...")
@click.option(
    "--classes",
    metavar="A=x+y,B=z|FILE",
    help='Classes in the order of their index, and the labels that mean them; "HER2+" in quotes, or a TOML file.',
)
@click.option("--skip-incomplete", is_flag=True, help="Leave out rows without a label, a time or an event.")
@click.option("--splits", "split_tables", multiple=True, metavar="[NAME=]DIR|FILE", help="Split tables; may be repeated.")
@click.option(
    "--drop", type=click.Choice(["val", "test"]), help="Leave this part of --splits out, such as one that is another, too."
)
@click.option("--folds", type=click.IntRange(min=2), metavar="K", help="Add the generated split kfoldK; 5 and 10 are there.")
@click.option("--task", type=click.Choice(["subtyping", "survival"]), help="[default: subtyping]")
@click.option("--unit", type=click.Choice(["slide", "case"]), help="What is predicted. [default: slide; case for survival]")
@click.option("--label", metavar="TEXT", help="Name in tables. [default: NAME]")
@click.option("--published", metavar="COHORT", help="Compare with this cohort's published counts. [default: NAME, if it is one]")
@click.option("--exclude", metavar="IDS|FILE", help="Slides or cases to leave out, for every encoder.")
@click.option("--replace", is_flag=True, help="Take what is given instead of what was added before.")
@click.option("--no-check", is_flag=True, help="Do not look into the feature files now; the first run will.")
@DATA
def add(
    name: str, columns: str | None, classes: str | None, split_tables: tuple[str, ...], exclude: str | None, no_check: bool,
    no_header: bool, data_folder: Path | None, **given: Any,
) -> None:  # fmt: skip
    """Add features, labels or splits to the dataset NAME, all at once or one after the other.

    Writes a few lines to NAME.toml in the data folder; no data is copied. Everything is checked first, and nothing is written
    when there are errors. Each feature file is read once, so that a change of any byte is seen.

    \b
    milbench data add bracs --encoder uni --magnification 20 --patch-size 224 --features FEATURES \\
        --labels bracs.csv --splits bracs.csv
    """
    from milbench.api import data as api

    with api.Watch() as progress:
        added = api.add_dataset(
            name, columns=_columns(columns), classes=None if classes is None else api.parse_classes(classes),
            header=not no_header, splits=_splits(split_tables), exclude=_ids(exclude),
            check=not no_check, data=data_folder, progress=progress, **given,
        )  # fmt: skip
    _show(added.examined)
    if added.errors:
        click.echo(f"milbench: {len(added.errors)} error{'s' * (len(added.errors) > 1)}, nothing was written", err=True)
        raise SystemExit(1)
    click.echo(f"Written: {added.path}" if added.path else "Nothing new.")
    if not added.examined.lacking:
        click.echo(f"Next: milbench data check {name} --deep, which reads every feature")


@data.command()
@click.argument("name")
@click.option("--deep", is_flag=True, help="Look at every feature and position, and read files anew that were read before.")
@DATA
@AS_JSON
def check(name: str, deep: bool, data_folder: Path | None, as_json: bool) -> None:
    """Look at every file of the dataset NAME; exit code 1 when there are errors.

    Errors stop a run before its first epoch. Warnings are printed under its tables. Without --deep a file is known again by its
    size and times: only new ones and those that changed are read.
    """
    from milbench.api import data as api

    with api.Watch() as progress:
        examined = api.check_dataset(name, deep=deep, data=data_folder, progress=progress)
    if as_json:
        click.echo(json.dumps(api.summary(examined), indent=1))
    else:
        _show(examined)
    raise SystemExit(1 if examined.lacking or examined.of("error") else 0)


def _columns(text: str | None) -> dict[str, str]:
    from milbench.errors import MilbenchError

    columns: dict[str, str] = {}
    items = re.findall(r'((?:"[^"]*"|[^,"])+)', text or "")
    for item in filter(str.strip, items):
        role, equals, column = (part.strip().strip('"') for part in item.partition("="))
        if not role or not equals:
            raise MilbenchError(f'--columns: {item.strip()!r} is not of the form role=column; a column with a comma: role="a, b"')
        if role in columns:
            raise MilbenchError(f"--columns {text}: the same name stands there twice")
        columns[role] = column
    return columns


def _splits(given: tuple[str, ...]) -> dict[str, Path]:
    tables = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or os.path.exists(text):
            name, path = "", text
        tables[name] = Path(path)
    return tables


def _ids(text: str | None) -> list[str]:
    from milbench.api.data import parse_ids
    from milbench.errors import MilbenchError

    if text is None:
        return []
    if os.path.isfile(text):
        return [line.strip() for line in _lines(Path(text)) if line.strip()]
    if os.path.isabs(text) or text.lower().endswith((".txt", ".csv", ".tsv")):
        raise MilbenchError(f"--exclude: there is no file {text}")
    return parse_ids(text)


def _lines(path: Path) -> list[str]:
    from milbench.errors import MilbenchError
    from milbench.files import table_text

    try:
        return table_text(path).splitlines()
    except (OSError, ValueError) as error:
        raise MilbenchError(f"--exclude {path}: no list of ids ({error})") from error


def _show(examined: Examined) -> None:
    """What was understood, then what was found."""
    from milbench.errors import printable

    manifest, roster = examined.manifest, examined.roster
    for what, text in _understood(examined):
        click.echo(f"{what:9} {printable(text)}")
    for name, lines in _split_lines(examined).items():
        click.echo(f"{'split':9} {name}: {roster.forms[name]}")
        for line in lines:
            click.echo(f"{'':9}   {line}")
    marks = {"error": ("ERROR", "bold red"), "warning": ("warning", "yellow"), "note": ("note", "dim")}
    console = show.console()
    for finding in examined.findings:
        mark, style = marks[finding.severity]
        console.print(f"{mark:9} ", style=style, end="", highlight=False)
        console.print(str(finding), markup=False, highlight=False, soft_wrap=True)
    counts = [
        f"{len(some)} {kind}{'s' * (len(some) != 1)}"
        for kind in ("error", "warning")
        if (some := examined.of(kind)) or kind == "error"
    ]
    click.echo(f"{manifest.name}: {', '.join(counts)}" + (f"; {examined.lacking}" if examined.lacking else ""))


def _understood(examined: Examined) -> list[tuple[str, str]]:
    """What the manifest says, and what is in the files, in a few lines."""
    manifest = examined.manifest
    lines = [("dataset", f"{manifest.name} ({manifest.label}): {manifest.task} of {manifest.unit}s")]
    if manifest.labels:
        columns = ", ".join(f"{role} = {column}" for role, column in manifest.labels.columns.items())
        samples = examined.roster.samples
        cases = len({sample.case_id for sample in samples})
        who = f"{len(samples):,} {manifest.unit}s" + (f" of {cases:,} cases" if manifest.unit == "slide" else "")
        lines.append(("labels", f"{manifest.labels.file} ({columns}): {who}"))
        lines.append(("classes" if manifest.task == "subtyping" else "outcome", " · ".join(_strata(examined))))
    return lines + [("features", _features(features)) for features in examined.sets]


def _strata(examined: Examined) -> list[str]:
    """Each class with its index, the labels that mean it, and how many samples it has."""
    names = examined.roster.stratum_names(examined.manifest)
    lines = []
    for index, name in enumerate(names):
        labels = examined.manifest.labels.classes.get(name, [name]) if examined.manifest.labels else [name]
        merged = f" ({', '.join(labels)})" if labels != [name] else ""
        lines.append(f"{index} {name}{merged}: {sum(sample.stratum == index for sample in examined.roster.samples):,}")
    return lines


def _features(of: FeatureSet) -> str:
    """How many slides and patches a set of features has, how wide, and where it is."""
    sizes = "nothing to read"
    if of.facts:
        total = sum(facts.n for facts in of.facts.values())
        dtypes = ", ".join(sorted({facts.dtype for facts in of.facts.values()}))
        steps = sorted(set(of.steps.values()))
        to = f"to {steps[-1]:g} " if len(steps) > 1 else ""
        apart = f", patches {steps[0]:g} {to}px apart" if steps else ", no positions"
        sizes = f"{len(of.facts):,} slides, {of.in_dim} wide, {dtypes}, {total:,} patches{apart}"
    return f"{of.features.name}: {sizes} ({of.features.folder}, {of.features.format})"


def _split_lines(examined: Examined) -> dict[str, list[str]]:
    """Sizes of the parts, in all and by class; folds that have the same stand in one line."""
    from milbench.api.data import counts

    lines: dict[str, dict[str, list[int]]] = {}
    rows = counts(examined)
    for train, val, test in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        parts = (train, val, test)
        by_class = [f"{name} {'/'.join(str(part['classes'][name]) for part in parts)}" for name in train["classes"]]
        sizes = f"{'/'.join(str(part['samples']) for part in parts)} (train/val/test)   {' · '.join(by_class)}"
        lines.setdefault(train["split"], {}).setdefault(sizes, []).append(train["fold"])
    return {split: [f"fold{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}: {sizes}" for sizes, numbers in some.items()]
            for split, some in lines.items()}  # fmt: skip
