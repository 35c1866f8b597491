"""From a suite to trials."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pydantic import ValidationError

from milbench import datasets, plugins, recipes
from milbench.config import Settings
from milbench.datasets.splits import PUBLISHED, count
from milbench.errors import MilbenchError, NotHere, from_validation, unknown
from milbench.files import csv_cell, write_atomically
from milbench.ops import backends
from milbench.spelling import literal, spelled
from milbench.suites.model import Search, Suite
from milbench.trials.plan import Cell, Plan
from milbench.trials.spec import TrialSpec
from milbench.trials.store import Store

Load = Callable[..., datasets.Dataset]


@dataclass(frozen=True)
class Job:
    """One trial to run: its identity, its names for tables, its place in a table."""

    spec: TrialSpec
    labels: dict[str, str]
    cell: Cell


@dataclass(frozen=True)
class Row:
    """A row of a suite's table: an aggregator, and what its recipe has instead of the suite's values.

    Args:
        name, label: as in plans and in tables.
        variant: the aggregator with its parameters.
        changes: values of the recipe.
        draw: number of the draw, in a suite that searches.
    """

    name: str
    label: str
    variant: plugins.Variant = field(hash=False)
    changes: Mapping[str, Any] = field(default_factory=dict, hash=False)
    draw: int | None = None


def row(text: str, recipe: Callable[..., recipes.Recipe]) -> Row:
    """Read `name[parameter=value,recipe.lr=value]`. A recipe value that the suite has anyway changes nothing, not even the name.

    Args:
        text: as a suite or the command line gives it.
        recipe: variant and changes -> the recipe they are fitted with.

    Raises:
        MilbenchError: unknown aggregator, parameter or recipe value, with near misses.
    """
    name, _, inside = text.strip().partition("[")
    items = [item.strip() for item in inside.removesuffix("]").split(",")]
    own = [item for item in items if not item.startswith("recipe.")]
    if len(own) == len(items):
        variant = plugins.resolve(text)
        return Row(variant.name, variant.label, variant)
    variant = plugins.resolve(f"{name}[{','.join(own)}]")
    asked: dict[str, Any] = {}
    for item in items:
        if item not in own:
            key, equals, value = (part.strip() for part in item.removeprefix("recipe.").partition("="))
            if not equals or not value:
                raise MilbenchError(f"cannot read {item!r} in {text!r}; write recipe.{key or 'lr'}=value")
            if key not in recipes.Recipe.model_fields:
                raise unknown(f"recipe value in {text!r}", key, recipes.Recipe.model_fields)
            asked[key] = literal(value)
    usual, changed = recipe(variant), recipe(variant, asked)
    changes = {key: getattr(changed, key) for key in asked if getattr(changed, key) != getattr(usual, key)}
    return Row(
        spelled(variant.entry.name, variant.changes | {f"recipe.{key}": value for key, value in changes.items()}),
        spelled(variant.entry.label, variant.changes | changes, " (", ", ", ")"),
        variant,
        changes,
    )


def _draws(row: Row, search: Search) -> Iterator[Row]:
    """The row with the values of each draw; what the row itself says is not searched."""
    for draw in range(search.draws):
        values = search.values(draw)
        dropout = values.pop("dropout")
        variant = row.variant
        if "dropout" in variant.params and "dropout" not in variant.changes:
            variant = replace(variant, params={**variant.params, "dropout": dropout})
        yield replace(row, variant=variant, changes={**values, **row.changes}, draw=draw)


def _asked(suite: Suite, recipe: str | None, epochs: int | None) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The values of the recipe that are asked for, and those of single datasets."""
    asked: dict[str, Any] = {"name": recipe} if recipe else dict(suite.recipe)
    own_values = asked.pop("on", {})
    known = suite.grid.dataset if suite.grid else []
    if strangers := own_values.keys() - set(known):
        raise unknown(f"dataset in recipe.on of suite {suite.name}", min(strangers), known)
    if epochs is not None:
        asked["max_epochs"] = epochs
        own_values = {dataset: {**values, "max_epochs": epochs} for dataset, values in own_values.items()}
    return asked, own_values


def _rows(suite: Suite, fitted: Callable[..., recipes.Recipe]) -> tuple[list[Row], dict[str, str]]:
    """The rows that the suite lists, as it prints them, and its own labels by their names."""
    listed = [row(text, fitted) for text in suite.grid.aggregator] if suite.grid else []
    labels = {row(text, fitted).name: label for text, label in (suite.table.labels if suite.table else {}).items()}
    for name in labels.keys() - {r.name for r in listed}:
        raise unknown(f"row in suite {suite.name}, table.labels", name, [r.name for r in listed])
    return [replace(r, label=labels.get(r.name, r.label)) for r in listed], labels


def narrowed(
    suites: Sequence[Suite], wanted: Sequence[str] | None, *, recipe: str | None = None, epochs: int | None = None
) -> list[tuple[Suite, list[str] | None]]:
    """Which rows each of the suites runs when only some are wanted.

    A name or label that is a row of some of the suites stays in those, and no table gets a row that it did not have. What is a
    row of none is added to all. A suite of which nothing is wanted is left out.

    Args:
        suites: each with a grid.
        wanted: names, or labels as the tables print them; None leaves everything as it is.
        recipe, epochs: as :func:`expand` takes them; they decide how rows with recipe values of their own are called.

    Raises:
        MilbenchError: a name that is neither a row nor an aggregator, with near misses.
    """
    if wanted is None:
        return [(suite, None) for suite in suites]
    fits = [partial(_recipe, _asked(suite, recipe, epochs)[0], suite) for suite in suites]
    rows = [_rows(suite, fitted)[0] for suite, fitted in zip(suites, fits, strict=True)]
    found: list[list[str]] = [[] for _ in suites]
    for text in wanted:
        own = [_rows_of(text, listed, fitted) for listed, fitted in zip(rows, fits, strict=True)]
        for names, here in zip(found, own, strict=True):
            names += here if any(own) else [text]
    return [(suite, names) for suite, names in zip(suites, found, strict=True) if names]


def _rows_of(text: str, listed: Sequence[Row], fitted: Callable[..., recipes.Recipe]) -> list[str]:
    """The listed rows of this label or name."""
    labelled = [r.name for r in listed if r.label == text]
    if labelled or not re.match(r"[a-z]", text):
        return labelled
    name = row(text, fitted).name
    return [r.name for r in listed if r.name == name]


def expand(
    suite: Suite,
    *,
    aggregators: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    folds: Sequence[int] | None = None,
    epochs: int | None = None,
    recipe: str | None = None,
    dtype: Literal["float32", "float16"] | None = None,
    device: str = "cpu",
    threads: int = 1,
    load: Load = datasets.load,
    settings: Settings | None = None,
) -> tuple[Plan, list[Job]]:
    """Every trial of a suite with a grid, and the plan that lists them.

    Features that are not here have cells in the plan that say so, and no trials.

    Args:
        suite: what to run.
        aggregators, seeds, folds: instead of the suite's.
        epochs: instead of the recipe's maximum.
        recipe: instead of the suite's, without the suite's changes to it.
        dtype: of stored features, instead of the suite's.
        device, threads: what each trial computes on.
        load: gives the datasets, as :func:`milbench.datasets.load` does.
        settings: where datasets are; what the environment says unless given.

    Raises:
        MilbenchError: an unknown aggregator, parameter, dataset, encoder, split, fold or recipe value, with near misses; an
            operation that cannot be computed here.
    """
    grid = suite.grid
    if grid is None:
        raise MilbenchError(f"suite {suite.name} has no grid of its own")
    for what, given in (("aggregators", aggregators), ("seeds", seeds), ("folds", folds)):
        if given is not None and not given:
            raise MilbenchError(f"{what}: none is given for suite {suite.name}; leave it out, or name at least one")
    asked, own_values = _asked(suite, recipe, epochs)
    fitted = partial(_recipe, asked, suite)
    listed, labels = _rows(suite, fitted)
    named = listed if aggregators is None else [row(text, fitted) for text in aggregators]
    rows = list({r.name: replace(r, label=labels.get(r.name, r.label)) for r in named}.values())
    implementations = {r.name: r.variant.implementation for r in rows}  # reads and hashes files, so once and not per trial
    kernels = {r.name: backends.chosen(r.variant.entry.cls.ops, device) for r in rows}
    tried = [draw for r in rows for draw in _draws(r, suite.search)] if suite.search else rows
    seeds, stored = list(dict.fromkeys(seeds or grid.seed)), dtype or grid.dtype
    jobs, notes, cells = [], [], []
    magnifications: list[int | None] = [*grid.magnification] or [None]
    patch_sizes: list[int | None] = [*grid.patch_size] or [None]
    for name, encoder, magnification, patch_size, split in product(
        grid.dataset, grid.encoder, magnifications, patch_sizes, grid.split
    ):
        column: dict[str, Any] = {
            "dataset": name, "encoder": encoder, "magnification": magnification, "patch_size": patch_size, "split": split,
        }  # fmt: skip
        try:
            dataset = load(name, encoder, magnification, patch_size, dtype=stored)
            if split not in dataset.splits and split in PUBLISHED:
                raise NotHere(f"dataset {name} has no split {split}; add it with: milbench data add {name} --splits ...")
        except NotHere as absent:
            label = _label(name, settings)
            cells += [
                Cell(
                    trial_id="", context="", aggregator=r.name, label=r.label, dataset_label=label, fold=fold, seed=seed,
                    draw=r.draw, missing=str(absent), family=r.variant.entry.family,
                    member=r.variant.entry.member, **column,
                )
                for fold, r, seed in product(folds or grid.fold or range(count(split)), tried, seeds)
            ]  # fmt: skip
            continue
        if dataset.task != suite.task:
            raise MilbenchError(f"suite {suite.name} is for {suite.task}, dataset {name} for {dataset.task}")
        unit = (suite.table and suite.table.unit) or dataset.unit
        notes.append(f"{dataset.label}: {len(dataset.samples):,} {unit}s, {_counts(dataset)}")
        notes += [f"{dataset.label}: {note}" for note in dataset.notes]
        here = {**asked, **own_values.get(name, {})}
        fitted_here = partial(_recipe, here, suite)
        shared = {**here, "search": suite.search.model_dump()} if suite.search else here
        parts, split_fingerprint = dataset.folds(split), dataset.split_fingerprint(split)
        for fold in _folds(folds or grid.fold, len(parts), f"{name}, split {split}"):
            for r, seed in product(tried, seeds):
                spec = TrialSpec(
                    **column,
                    fingerprint=dataset.fingerprint,
                    unit=dataset.unit,
                    task=dataset.task,
                    feature_dtype=stored,
                    standardise=name in grid.standardise if isinstance(grid.standardise, list) else grid.standardise,
                    aggregator=r.variant.entry.name,
                    params=r.variant.params,
                    implementation=implementations[r.name],
                    split_fingerprint=split_fingerprint,
                    fold=fold,
                    seed=seed,
                    recipe=fitted_here(r.variant, r.changes, has_validation=bool(parts[fold].val)),
                    threads=threads,
                    device=device,
                    backends=kernels[r.name],
                )
                cell = Cell(
                    trial_id=spec.trial_id, context=spec.context(shared), aggregator=r.name, label=r.label,
                    dataset_label=dataset.label, fold=fold, seed=seed, draw=r.draw,
                    family=r.variant.entry.family, member=r.variant.entry.member, **column,
                )  # fmt: skip
                jobs.append(Job(spec, {"aggregator": r.label, "dataset": dataset.label, "encoder": encoder}, cell))
                cells.append(cell)
    definition = suite.model_dump(mode="json")
    definition["grid"]["aggregator"] = [r.name for r in listed]
    if suite.table:
        layout = {"labels": labels, "reference": row(suite.table.reference, fitted).name}
        definition["table"] |= layout | {"groups": [[row(end, fitted).name for end in ends] for ends in suite.table.groups]}
    definition["expect"] = {row(text, fitted).name: said for text, said in suite.expect.items()}
    return Plan(suite=suite.name, definition=definition, notes=list(dict.fromkeys(notes)), cells=cells), jobs


def pack(jobs: Iterable[Job], tell: Callable[[str], None], load: Load = datasets.load) -> None:
    """Write the packed store of every dataset behind `jobs` that lacks it, so that no trial fails or waits for it.

    Args:
        jobs: what is about to run.
        tell: is told of each that is written.
        load: gives the datasets, as :func:`milbench.datasets.load` does.

    Raises:
        MilbenchError: the disk is too small, or a bag cannot be read.
    """
    for dataset in _datasets((job.spec for job in jobs), load):
        if isinstance(dataset.read, datasets.Pack):
            dataset.read.build(tell)


def with_known(plan: Plan) -> Plan:
    """The plan with what is known of its tasks before anything is run, so that a report can print it beside the models.

    Generated datasets only, of suites with predictions; other plans stay as they are.
    """
    if not plan.definition.get("expect"):
        return plan
    known = {name: datasets.known(name) for name in plan.definition["grid"]["dataset"]}
    return plan.model_copy(update={"definition": {**plan.definition, "known": known}})


def save_splits(jobs: Iterable[Job], store: Store, load: Load = datasets.load) -> list[Path]:
    """Write who is trained on and tested, once for each split behind `jobs`: `splits/<dataset>-<split>-<fingerprint>.csv`.

    Columns fold, part, id, case. A file that is there is left alone: its name says what is in it.

    Returns:
        The files of these splits.
    """
    paths: dict[Path, TrialSpec] = {}
    for job in jobs:
        s = job.spec
        paths.setdefault(store.root / "splits" / f"{s.dataset}-{s.split}-{s.split_fingerprint.removeprefix('sha256:')}.csv", s)
    for path, s in paths.items():
        if path.exists():
            continue
        (dataset,) = _datasets([s], load)
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["fold", "part", "id", "case"])
        for number, fold in enumerate(dataset.folds(s.split)):
            for part, ids in zip(("train", "val", "test"), fold, strict=True):
                writer.writerows([number, part, csv_cell(id), csv_cell(dataset.sample(id).case_id)] for id in ids)
        write_atomically(path, out.getvalue())
    return list(paths)


def _datasets(specs: Iterable[TrialSpec], load: Load) -> Iterator[datasets.Dataset]:
    """The datasets of these trials, each once."""
    for *where, dtype in dict.fromkeys((s.dataset, s.encoder, s.magnification, s.patch_size, s.feature_dtype) for s in specs):
        yield load(*where, dtype=dtype)


def _label(dataset: str, settings: Settings | None) -> str:
    """How tables print the dataset, whose files are not here."""
    return next((info.label for info in datasets.infos(settings) if info.name == dataset), dataset)


def _recipe(
    asked: Mapping[str, Any],
    suite: Suite,
    variant: plugins.Variant,
    own: Mapping[str, Any] = MappingProxyType({}),
    *,
    has_validation: bool = True,
) -> recipes.Recipe:
    """The suite's recipe with what this row has of its own."""
    changes = {**asked, **own}
    name = changes.pop("name")
    official = variant.entry.cls.official_recipe
    try:
        return recipes.get(name, suite.task, has_validation=has_validation, official=official, **changes)
    except ValidationError as error:
        raise from_validation(error, f"suite {suite.name}: recipe") from error


def _folds(wanted: Iterable[int] | None, available: int, where: str) -> list[int]:
    chosen = list(dict.fromkeys(range(available) if wanted is None else wanted))
    if outside := [f for f in chosen if not 0 <= f < available]:
        raise MilbenchError(f"{where} has folds 0 to {available - 1}, not {', '.join(map(str, outside))}")
    return chosen


def _counts(dataset: datasets.Dataset) -> str:
    if dataset.task == "survival":
        return f"{sum(bool(s.event) for s in dataset.samples)} events"
    return ", ".join(f"{sum(s.label == i for s in dataset.samples):,} {name}" for i, name in enumerate(dataset.classes))
