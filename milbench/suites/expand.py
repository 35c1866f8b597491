"""From a suite to trials."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from pydantic import ValidationError

from milbench import datasets, plugins, recipes
from milbench.errors import MilbenchError, from_validation
from milbench.suites.model import Suite
from milbench.trials.plan import Cell, Plan
from milbench.trials.spec import TrialSpec


@dataclass(frozen=True)
class Job:
    """One trial to run: its identity, its names for tables, its place in a table."""

    spec: TrialSpec
    labels: dict[str, str]
    cell: Cell


def expand(
    suite: Suite,
    *,
    aggregators: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    folds: Sequence[int] | None = None,
    epochs: int | None = None,
    recipe: str | None = None,
    device: str = "cpu",
    threads: int = 1,
) -> tuple[Plan, list[Job]]:
    """Every trial of a suite with a grid, and the plan that lists them.

    Args:
        suite: what to run.
        aggregators, seeds, folds: instead of the suite's.
        epochs: instead of the recipe's maximum.
        recipe: instead of the suite's, without the suite's changes to it.
        device, threads: what each trial computes on.

    Raises:
        MilbenchError: an unknown aggregator, parameter, dataset, encoder, split, fold or recipe value, with near misses.
    """
    grid = suite.grid
    if grid is None:
        raise MilbenchError(f"suite {suite.name} has no grid of its own")
    variants = list({v.name: v for v in map(plugins.resolve, aggregators or grid.aggregator)}.values())
    implementations = {v.name: v.implementation for v in variants}  # reads and hashes files, so once and not per trial
    seeds = list(dict.fromkeys(seeds or grid.seed))
    asked: dict[str, Any] = {"name": recipe} if recipe else dict(suite.recipe)
    if epochs is not None:
        asked["max_epochs"] = epochs
    jobs, notes = [], []
    magnifications: list[int | None] = [*grid.magnification] or [None]
    patch_sizes: list[int | None] = [*grid.patch_size] or [None]
    for name, encoder, magnification, patch_size, split in product(
        grid.dataset, grid.encoder, magnifications, patch_sizes, grid.split
    ):
        dataset = datasets.load(name, encoder, magnification, patch_size)
        if dataset.task != suite.task:
            raise MilbenchError(f"suite {suite.name} is for {suite.task}, dataset {name} for {dataset.task}")
        notes.append(f"{dataset.label}: {len(dataset.samples)} {dataset.unit}s, {_counts(dataset)}")
        notes += [f"{dataset.label}: {note}" for note in dataset.notes]
        parts, split_fingerprint = dataset.folds(split), dataset.split_fingerprint(split)
        for fold in _folds(folds or grid.fold, len(parts), f"{name}, split {split}"):
            for variant, seed in product(variants, seeds):
                spec = TrialSpec(
                    dataset=name,
                    fingerprint=dataset.fingerprint,
                    unit=dataset.unit,
                    task=dataset.task,
                    encoder=encoder,
                    magnification=magnification,
                    patch_size=patch_size,
                    standardise=grid.standardise,
                    aggregator=variant.entry.name,
                    params=variant.params,
                    implementation=implementations[variant.name],
                    split=split,
                    split_fingerprint=split_fingerprint,
                    fold=fold,
                    seed=seed,
                    recipe=_recipe(asked, suite, variant, has_validation=bool(parts[fold].val)),
                    threads=threads,
                    device=device,
                )
                jobs.append(_job(spec, variant, dataset.label, spec.context(asked)))
    definition = suite.model_dump(mode="json")
    definition["grid"]["aggregator"] = [plugins.resolve(a).name for a in grid.aggregator]
    return Plan(suite=suite.name, definition=definition, notes=list(dict.fromkeys(notes)), cells=[job.cell for job in jobs]), jobs


def _job(spec: TrialSpec, variant: plugins.Variant, dataset_label: str, context: str) -> Job:
    cell = Cell(
        trial_id=spec.trial_id,
        context=context,
        aggregator=variant.name,
        label=variant.label,
        dataset=spec.dataset,
        dataset_label=dataset_label,
        encoder=spec.encoder,
        magnification=spec.magnification,
        patch_size=spec.patch_size,
        split=spec.split,
        fold=spec.fold,
        seed=spec.seed,
    )
    return Job(spec, {"aggregator": variant.label, "dataset": dataset_label, "encoder": spec.encoder}, cell)


def _recipe(asked: Mapping[str, Any], suite: Suite, variant: plugins.Variant, *, has_validation: bool) -> recipes.Recipe:
    changes = dict(asked)
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
    return ", ".join(f"{sum(s.label == i for s in dataset.samples)} {name}" for i, name in enumerate(dataset.classes))
