"""Does each test keep its level where a method meets itself? Disjoint groups of trainings of one method are compared."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Generic

import numpy as np

from milbench import stats
from milbench.compare.methods import Method, Setting
from milbench.compare.outcomes import outcomes
from milbench.compare.pairing import Pairing, Repeat, Shared, T, Tested
from milbench.errors import MilbenchError
from milbench.metrics import METRICS, SELECTS, Column, Metric
from milbench.papers.sheets import Predictions, Sheet
from milbench.reading import Run

REPLICATES = 1_000  # resamples and swaps: enough to see on which side of 0.05 a p-value lies
SIZES = (5, 1)  # trainings a group
PRIMARY, FIXED = "primary", "these models"


@dataclass(frozen=True)
class Trainings(Generic[T]):
    """Trainings of one method on the same slides.

    Args:
        data: what they were trained on, in words.
        method: which it is, as printed; empty where a file does not say.
        runs: (fold, seed) -> run; every seed has every fold.
        metrics: that are compared.
    """

    data: str
    method: str
    runs: Mapping[Repeat, T]
    metrics: tuple[Metric, ...]

    @property
    def folds(self) -> list[object]:
        """Which there are."""
        return list(dict.fromkeys(fold for fold, _ in self.runs))

    @property
    def seeds(self) -> list[object]:
        """Which there are, in order."""
        return list(dict.fromkeys(seed for _, seed in self.runs))

    def meet(self, a: Sequence[int], b: Sequence[int]) -> Pairing[T]:
        """Two groups of seeds, by their places in the list, as two sides of a comparison."""
        seeds, folds = self.seeds, self.folds
        sides = [{(fold, at): self.runs[fold, seeds[i]] for fold in folds for at, i in enumerate(side)} for side in (a, b)]
        return Pairing.of(*([side] for side in sides))


@dataclass(frozen=True)
class Calibrated:
    """How often each test calls the method different from itself.

    Args:
        metric: compared.
        size: trainings a group.
        tests: by the name of the test, as in :func:`milbench.compare.outcomes.outcomes`, and "primary", "these models" (the
            jackknife over patients), "anova" and "welch". None where no pair has a p-value.
    """

    metric: Metric
    size: int
    tests: Mapping[str, stats.Calibration | None]


def of_suite(method: Method, seeds: int | None) -> list[Trainings[Run]]:
    """The trainings of a method in each column where it was run, the smallest seeds first.

    Args:
        method: with its runs.
        seeds: how many are taken; all that finished every fold unless given.

    Raises:
        MilbenchError: a column holds fewer, or runs of several settings.
    """
    return [_complete(method, column, settings, seeds) for column, settings in method.in_columns().items()]


def _complete(method: Method, column: Column, settings: Mapping[Setting, list[Run]], seeds: int | None) -> Trainings[Run]:
    place = f"{method.label} on {column.dataset}, {column.encoder}, {column.split}"
    if len(settings) > 1:
        raise MilbenchError(f"{place}: was run in several settings (recipe, data or device differ); choose a suite that has one")
    (runs,) = settings.values()
    folds = sorted({run.cell.fold for run in runs})
    done = {(run.cell.fold, run.cell.seed): run for run in runs if run.status == "ok"}
    complete = [seed for seed in sorted({seed for _, seed in done}) if all((fold, seed) in done for fold in folds)]
    if len(complete) < (seeds or 0):
        raise MilbenchError(
            f"{place}: {len(complete)} seeds finished every fold, {seeds} were asked for; run more, or ask for less"
        )
    chosen = complete[:seeds]
    if not chosen:
        raise MilbenchError(f"{place}: no seed finished every fold; run the suite first")
    metrics = _metrics(SELECTS[done[folds[0], chosen[0]].result["spec"]["task"]])
    return Trainings(
        runs[0].cell.dataset_label, method.label, {(fold, seed): done[fold, seed] for fold in folds for seed in chosen}, metrics
    )


def of_sheet(sheet: Sheet, predictions: Predictions, seeds: int | None) -> list[Trainings[Tested]]:
    """The trainings in a file of predictions, whose models are trainings of one method.

    Raises:
        MilbenchError: a model lacks a fold, or there are fewer than `seeds`.
    """
    found = []
    for group in dict.fromkeys(group for group, _ in predictions.cases):
        models = {model: folds for (of, model), folds in predictions.cases.items() if of == group}
        every = list(dict.fromkeys(fold for folds in models.values() for fold in folds))
        if lacking := [model for model, folds in models.items() if len(folds) < len(every)]:
            raise MilbenchError(f"{sheet.path}: {lacking[0]} lacks one of the {len(every)} folds; every training needs all")
        if len(models) < (seeds or 0):
            raise MilbenchError(f"{sheet.path}: {len(models)} trainings (models), {seeds} were asked for; ask for fewer")
        chosen = list(models)[:seeds]
        runs: dict[Repeat, Tested] = {(fold, model): models[model][fold] for fold in every for model in chosen}
        label = ", ".join(filter(None, [sheet.stem.replace("-", " "), group]))
        found.append(Trainings(label, "", runs, _metrics(predictions.metrics[0].name)))
    return found


def _metrics(selects: str) -> tuple[Metric, ...]:
    return tuple(METRICS[name] for name in ("macro_auc", "macro_f1")) if selects == "macro_auc" else (METRICS[selects],)


def every(trainings: Trainings[T], progress: Callable[[str, int, int], None]) -> list[Calibrated]:
    """The trainings by each metric, five against five and one against one.

    `progress` is called with what meets, the number of pairs that are done, and of all.
    """
    return [
        calibrate(trainings, metric, size, partial(progress, f"{trainings.data}, {metric.label}, {size} against {size}"))
        for metric in trainings.metrics
        for size in SIZES
    ]


def calibrate(
    trainings: Trainings[T], metric: Metric, size: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> Calibrated:
    """Every two disjoint groups of trainings, by every test.

    Args:
        trainings: of one method.
        metric: compared.
        size: trainings a group.
        progress: called with (pairs done, all of them).

    Raises:
        MilbenchError: the trainings do not fill three groups.
        OtherCasesError: trainings of one fold test different slides.
    """
    shared, groups = Shared(), len(trainings.seeds) // size
    total, done = groups * (groups - 1) // 2, [0]

    @cache
    def p_values(a: tuple[int, ...], b: tuple[int, ...]) -> dict[str, float]:
        done[0] += 1
        progress(done[0], total)
        return _p_values(trainings.meet(a, b), metric, shared)

    names = p_values(tuple(range(size)), tuple(range(size, 2 * size))) if groups > 1 else {}

    def by(name: str) -> Callable[[Sequence[int], Sequence[int]], float]:
        return lambda a, b: p_values(tuple(a), tuple(b))[name]

    found = stats.calibration(len(trainings.seeds), size, {name: by(name) for name in names})
    return Calibrated(metric, size, {each.test: each if each.undefined < each.pairs else None for each in found})


def _p_values(sides: Pairing[T], metric: Metric, shared: Shared) -> dict[str, float]:
    """What every test says of two groups of trainings, by its name."""
    primary = stats.primary([
        stats.Fold([shared(p.method[0], metric) for p in fold.pairs], [shared(p.reference[0], metric) for p in fold.pairs],
                   fold.strata, fold.patients)
        for fold in sides.folds
    ])  # fmt: skip
    others = outcomes(sides, metric, seed="calibration", fill=shared, replicates=REPLICATES)
    values = [[float(metric(getattr(pair, side)[0].predictions)) for pair in sides.pairs] for side in ("method", "reference")]
    p = {PRIMARY: primary.p, FIXED: primary.fixed.p, **{name: outcome.p for name, outcome in others.items()}}
    if len(values[0]) > 1 and not np.isnan(values).any():
        p["anova"] = stats.anova(values).p
        (a, sd_a), (b, sd_b) = ((float(np.mean(v)), float(np.std(v, ddof=1))) for v in values)
        p["welch"] = stats.welch_from_summary(a, sd_a, len(values[0]), b, sd_b, len(values[1])).p
    elif len(values[0]) > 1:
        p |= {"anova": math.nan, "welch": math.nan}
    return p
