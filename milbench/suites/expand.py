"""From a suite to its trials, and the plan that lists them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, Literal

from milbench import datasets
from milbench.config import Settings
from milbench.datasets.splits import PUBLISHED, count
from milbench.errors import MilbenchError, NotHere
from milbench.suites.model import Grid, Suite
from milbench.suites.rows import Row, SuiteRecipes, SuiteRows
from milbench.trials.plan import Cell, Job, Plan
from milbench.trials.spec import TrialSpec, ids_of

Load = Callable[..., datasets.Dataset]
Dtype = Literal["float32", "float16"]
_Like = tuple[Row, TrialSpec, Callable[[int, int], str], dict[str, str]]  # a row; of its trials spec, id by fold and seed, labels


def expand(
    suite: Suite,
    *,
    aggregators: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    folds: Sequence[int] | None = None,
    epochs: int | None = None,
    recipe: str | None = None,
    dtype: Dtype | None = None,
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
        raise MilbenchError(f"suite {suite.name} has no grid")
    for what, given in (("aggregators", aggregators), ("seeds", seeds), ("folds", folds)):
        if given is not None and not given:
            raise MilbenchError(f"{what}: the list for suite {suite.name} is empty; leave it out, or name at least one")
    fitted = SuiteRecipes(suite, recipe, epochs)
    rows = SuiteRows(suite, fitted)
    trials = _Trials(
        suite=suite,
        grid=grid,
        fitted=fitted,
        rows=rows.chosen(aggregators),
        seeds=list(dict.fromkeys(seeds or grid.seed)),
        folds=folds or grid.fold,
        dtype=dtype or grid.dtype,
        device=device,
        threads=threads,
    )
    jobs: list[Job] = []
    notes: list[str] = []
    cells: list[Cell] = []
    for column in _columns(grid):
        try:
            dataset = _loaded(column, load, trials.dtype)
        except NotHere as absent:
            cells += trials.missing(column, _label(column["dataset"], settings), str(absent))
            continue
        # The only variant there is stands for the one that a suite leaves out, and stays so when there are more.
        column |= {key: column[key] or getattr(dataset, key) for key in ("magnification", "patch_size")}
        notes += trials.notes(dataset)
        of_column = list(trials.jobs(column, dataset))
        jobs += of_column
        cells += [job.cell for job in of_column]
    definition = _definition(suite, rows, fitted)
    return Plan(suite=suite.name, definition=definition, notes=list(dict.fromkeys(notes)), cells=cells), jobs


@dataclass(frozen=True)
class _Trials:
    """The trials of a suite, column by column."""

    suite: Suite
    grid: Grid
    fitted: SuiteRecipes
    rows: Sequence[Row]
    seeds: Sequence[int]
    folds: Sequence[int] | None
    dtype: Dtype
    device: str
    threads: int

    # Both read and hash files or try kernels: once for each row, not for each trial.
    @cached_property
    def _implementations(self) -> dict[str, str]:
        return {row.name: row.variant.implementation for row in self.rows}

    @cached_property
    def _kernels(self) -> dict[str, dict[str, str]]:
        from milbench.ops import backends  # loads torch, which a list of suites does not need

        return {row.name: backends.chosen(row.variant.entry.cls.ops, self.device) for row in self.rows}

    @cached_property
    def drawn(self) -> list[Row]:
        """Each row, once for every draw in a suite that searches."""
        search = self.suite.search
        return [draw for row in self.rows for draw in row.draws(search)] if search else list(self.rows)

    def missing(self, column: dict[str, Any], label: str, reason: str) -> Iterator[Cell]:
        """The cells of a column whose features are not here."""
        folds = self.folds or range(count(column["split"]))
        for fold, row, seed in product(folds, self.drawn, self.seeds):
            yield Cell(
                trial_id="", context="", aggregator=row.name, label=row.label, dataset_label=label, fold=fold, seed=seed,
                draw=row.draw, missing=reason,
                family=row.variant.entry.family, member=row.variant.entry.member, **column,
            )  # fmt: skip

    def notes(self, dataset: datasets.Dataset) -> list[str]:
        """What a reader of the dataset's tables must know."""
        unit = (self.suite.table and self.suite.table.unit) or dataset.unit
        return [
            f"{dataset.label}: {len(dataset.samples):,} {unit}s, {_counts(dataset)}",
            *(f"{dataset.label}: {note}" for note in dataset.notes),
        ]

    def jobs(self, column: dict[str, Any], dataset: datasets.Dataset) -> Iterator[Job]:
        """The trials of a column, fold by fold."""
        if dataset.task != self.suite.task:
            raise MilbenchError(f"suite {self.suite.name} is for {self.suite.task}, dataset {dataset.name} for {dataset.task}")
        name, split = column["dataset"], column["split"]
        recipe = self.fitted.values(name)
        if self.suite.search:
            recipe["search"] = self.suite.search.model_dump()
        parts = dataset.folds(split)
        likes: dict[bool, list[_Like]] = {}  # by whether the fold has a validation part
        for fold in _folds(self.folds, len(parts), f"{name}, split {split}"):
            some = likes.setdefault(bool(parts[fold].val), [])
            some += [] if some else self._likes(column, dataset, has_validation=bool(parts[fold].val))
            context = some[0][1].context(recipe)
            for (row, like, id_of, labels), seed in product(some, self.seeds):
                cell = Cell(
                    trial_id=id_of(fold, seed), context=context, aggregator=row.name, label=row.label,
                    dataset_label=dataset.label, fold=fold, seed=seed, draw=row.draw,
                    family=row.variant.entry.family, member=row.variant.entry.member, **column,
                )  # fmt: skip
                yield Job(like, labels, cell)

    def _likes(self, column: dict[str, Any], dataset: datasets.Dataset, *, has_validation: bool) -> list[_Like]:
        """Every row with what its trials in this column share."""
        encoder, found = column["encoder"], []
        split_fingerprint = dataset.split_fingerprint(column["split"])
        for row in self.drawn:
            spec = self._spec(column, dataset, split_fingerprint, row, has_validation)
            labels = {"aggregator": row.label, "dataset": dataset.label, "encoder": encoder}
            found.append((row, spec, ids_of(spec.model_dump()), labels))
        return found

    def _spec(
        self,
        column: dict[str, Any],
        dataset: datasets.Dataset,
        split_fingerprint: str,
        row: Row,
        has_validation: bool,
    ) -> TrialSpec:
        """Of the first of its trials."""
        standardise = self.grid.standardise
        return TrialSpec(
            **column,
            fingerprint=dataset.fingerprint,
            unit=dataset.unit,
            task=dataset.task,
            feature_dtype=self.dtype,
            standardise=column["dataset"] in standardise if isinstance(standardise, list) else standardise,
            aggregator=row.variant.entry.name,
            params=row.variant.params,
            implementation=self._implementations[row.name],
            split_fingerprint=split_fingerprint,
            fold=0,
            seed=0,
            recipe=self.fitted.of(row.variant, row.changes, dataset=column["dataset"], has_validation=has_validation),
            threads=self.threads,
            device=self.device,
            backends=self._kernels[row.name],
        )


def _columns(grid: Grid) -> Iterator[dict[str, Any]]:
    """Dataset, encoder, magnification, patch size and split of every column."""
    keys = ("dataset", "encoder", "magnification", "patch_size", "split")
    magnifications: list[int | None] = [*grid.magnification] or [None]
    patch_sizes: list[int | None] = [*grid.patch_size] or [None]
    for values in product(grid.dataset, grid.encoder, magnifications, patch_sizes, grid.split):
        yield dict(zip(keys, values, strict=True))


def _loaded(column: dict[str, Any], load: Load, dtype: Dtype) -> datasets.Dataset:
    """The dataset of a column.

    Raises:
        NotHere: its features or its split are not here.
    """
    *where, split = column.values()
    dataset = load(*where, dtype=dtype)
    if split not in dataset.splits and split in PUBLISHED:
        name = column["dataset"]
        if split.removesuffix("-grouped") in dataset.splits:
            raise NotHere(
                f"dataset {name} has no split {split}, as its patients are unknown; add a column of cases to its label table: "
                f"milbench data add {name} --labels CSV --replace"
            )
        raise NotHere(f"dataset {name} has no split {split}; add it with: milbench data add {name} --splits ...")
    return dataset


def _definition(suite: Suite, rows: SuiteRows, fitted: SuiteRecipes) -> dict[str, Any]:
    """The suite file's content, with rows under the names that cells have."""
    definition = suite.model_dump(mode="json")
    definition["grid"]["aggregator"] = [row.name for row in rows.listed]
    if suite.table:
        definition["table"] |= {
            "labels": rows.labels,
            "reference": fitted.row(suite.table.reference).name,
            "groups": [[fitted.row(end).name for end in ends] for ends in suite.table.groups],
        }
    definition["expect"] = {fitted.row(text).name: outcomes for text, outcomes in suite.expect.items()}
    return definition


def _label(dataset: str, settings: Settings | None) -> str:
    """How tables print a dataset whose files are not here."""
    return next((info.label for info in datasets.infos(settings) if info.name == dataset), dataset)


def _folds(wanted: Iterable[int] | None, available: int, where: str) -> list[int]:
    chosen = list(dict.fromkeys(range(available) if wanted is None else wanted))
    if outside := [f for f in chosen if not 0 <= f < available]:
        raise MilbenchError(f"{where} has folds 0 to {available - 1}, not {', '.join(map(str, outside))}")
    return chosen


def _counts(dataset: datasets.Dataset) -> str:
    if dataset.task == "survival":
        return f"{sum(bool(s.event) for s in dataset.samples)} events"
    return ", ".join(f"{sum(s.label == i for s in dataset.samples):,} {name}" for i, name in enumerate(dataset.classes))
