"""Two methods by the primary test, wherever both have results: for other patients and other trainings."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milbench import reading, stats
from milbench.compare.pairing import OtherCasesError
from milbench.compare.primary import Contrast, contrast, trainings
from milbench.errors import MilbenchError, few, unknown
from milbench.metrics import METRICS, SELECTS, Column
from milbench.reading import Run
from milbench.spelling import canonical, parsed
from milbench.stats.metrics import concordance_by_case
from milbench.trials import plan as plans
from milbench.trials.plan import Cell
from milbench.trials.store import Store
from milbench.words import counted

Setting = tuple[str, bool]  # the context of a trial (data, recipe, threads, device), and whether validation chose its draw


@dataclass(frozen=True)
class Method:
    """A method and its runs.

    Args:
        name: in the spelling of the results.
        label: as printed.
        runs: in every column, finished or not.
    """

    name: str
    label: str
    runs: tuple[Run, ...] = field(repr=False)

    @classmethod
    def find(cls, store: Store, text: str, suite: str | None = None) -> "Method":
        """The method that a text means: a name with parameters in any spelling, a label, or the name of a method of which the
        results hold a single variant.

        Args:
            store: where to look.
            text: such as `abmil[gated=false]`.
            suite: look at its trials only; at those of every suite unless given.

        Raises:
            MilbenchError: there is no such method, or there are several; or a result cannot be read.
        """
        leaves = [leaf for name in plans.chosen(store, suite) for leaf in reading.leaves(store, name)]
        base = parsed(text)[0]

        def near(cell: Cell) -> bool:
            return text == cell.label or base == parsed(cell.aggregator)[0]

        narrow = {leaf.suite: leaf.model_copy(update={"cells": list(filter(near, leaf.cells))}) for leaf in leaves}
        read = [run for leaf in narrow.values() for run in reading.read(store, leaf)]
        # A trial that several suites list counts once.
        runs = {(run.identity or run.cell.place, run.cell.draw is not None): run for run in read}.values()
        names = _meant(text, list(runs))
        if not names:
            known = {cell.aggregator for leaf in leaves for cell in leaf.cells}
            raise unknown(f"method of {f'suite {suite}' if suite else store.root}", text, known)
        chosen = tuple(run for run in runs if run.cell.aggregator in names)
        return cls(names[0], chosen[0].cell.label, chosen)

    def in_columns(self) -> dict[Column, dict[Setting, list[Run]]]:
        """The runs by what they were tested on, and then by how they were trained."""
        columns: dict[Column, dict[Setting, list[Run]]] = defaultdict(lambda: defaultdict(list))
        for run in self.runs:
            if run.status != "absent":
                columns[run.column][run.cell.context, run.cell.draw is not None].append(run)
        return columns


def _meant(text: str, runs: Sequence[Run]) -> list[str]:
    """Names of the method that a text means, which differ in their spelling only."""
    labels = {run.cell.aggregator: run.cell.label for run in runs}
    usual = reading.usual(runs)
    wanted, *spellings = (canonical(name, usual.get(parsed(name)[0])) for name in (text, *labels))
    spelled = dict(zip(labels, spellings, strict=True))
    exact = [name for name in labels if spelled[name] == wanted]
    names = exact or [name for name in labels if labels[name] == text] or [name for name in labels if "[" not in text]
    if len({spelled[name] for name in names}) > 1:
        raise MilbenchError(f"{text} was run in several variants: {few(names)}; write one of them")
    return names


@dataclass(frozen=True)
class Slide(stats.Rounded):
    """What two methods make of one test slide.

    Args:
        slide, patient, column, fold: which.
        truth: its class, or its time and event.
        a, b: mean over trainings of the probability of the true class; of a risk the share of the comparable pairs with other
            cases that are in the right order.
        difference: a - b.
    """

    slide: str
    patient: str
    column: Column
    fold: int
    truth: str
    a: float
    b: float
    difference: float


@dataclass(frozen=True)
class Difference(Contrast):
    """Method a minus method b in one column.

    Args:
        column: what both were tested on.
        slides: every test slide of every fold, those with the largest disagreement first.
    """

    column: Column
    slides: tuple[Slide, ...] = field(repr=False)


def disagreement(slides: Sequence[Slide], most: int = 5) -> list[Slide]:
    """The slides with the largest disagreement, those of one patient together."""
    top = sorted(slides, key=_by_size)[:most]
    order = list(dict.fromkeys(slide.patient for slide in top))
    return sorted(top, key=lambda slide: order.index(slide.patient))


def _by_size(slide: Slide) -> tuple[float, str, int]:
    return -abs(slide.difference), slide.slide, slide.fold


def differences(a: Method, b: Method, metric: str | None = None) -> tuple[list[Difference], dict[Column, str]]:
    """Method a against method b in every column where both were run.

    Args:
        a, b: the methods; of two results folders they may be the same.
        metric: its name; the one that chooses epochs unless given (macro_auc, or c_index for survival).

    Returns:
        The columns that can be compared, with Holm's correction over all of them; and of the others why not.

    Raises:
        MilbenchError: there is no such metric, or a trial's predictions cannot be read.
    """
    if metric is not None and metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    others = b.in_columns()
    compared: list[Difference] = []
    left_out: dict[Column, str] = {}
    for column, settings in a.in_columns().items():
        if column not in others:
            continue
        sides = _same_setting(settings, others[column])
        try:
            if isinstance(sides, str):
                raise OtherCasesError(sides)
            compared.append(_difference(column, (a.label, b.label), sides, metric))
        except OtherCasesError as error:
            left_out[column] = str(error)
    corrected = stats.holm([each.test.p for each in compared]).tolist()
    return [replace(each, p_holm=p) for each, p in zip(compared, corrected, strict=True)], left_out


Sides = tuple[list[Run], list[Run]]


def _same_setting(a: dict[Setting, list[Run]], b: dict[Setting, list[Run]]) -> Sides | str:
    """The runs of both sides that were trained alike; of two that were trained otherwise, all. Or why there are none."""
    alike = [setting for setting in a if setting in b]
    if len(alike) > 1 or (not alike and len(a) * len(b) > 1):
        return "was run in several settings (recipe, search, data, threads or device differ); choose one with a suite"
    mine, other = (alike[0], alike[0]) if alike else (next(iter(a)), next(iter(b)))
    return a[mine], b[other]


def _difference(column: Column, labels: tuple[str, str], sides: Sides, metric: str | None) -> Difference:
    """The comparison in one column.

    Raises:
        OtherCasesError: there is nothing to compare; says why.
    """
    a, b = map(trainings, sides)
    for label, folds in zip(labels, (a, b), strict=True):
        if not folds:
            raise OtherCasesError(f"{label} has no finished training")
    some = next(run for run in sides[0] if run.status == "ok")
    task = some.result["spec"]["task"]
    wanted = METRICS[metric or SELECTS[task]]
    if wanted.task != task:
        raise OtherCasesError(f"{wanted.name} is a metric of {wanted.task}, this is {task}")
    tested = contrast(a, b, wanted)
    if tested is None:
        raise OtherCasesError("the methods were trained on different folds")
    first = tested.folds[0]
    notes = (*_unlike(a[first][0][0], b[first][0][0]), *_unfinished(labels, sides, tested.folds), *tested.notes)
    slides = _slides([([run for (run,) in a[fold]], [run for (run,) in b[fold]]) for fold in tested.folds])
    return Difference(**{**vars(tested), "notes": notes}, column=column, slides=slides)


def _unlike(a: Run, b: Run) -> list[str]:
    """What else differs between the sides than the method."""
    if a.cell.context == b.cell.context:
        return []
    method = {"aggregator", "params", "implementation", "backends", "fold", "seed"}
    specs = a.result["spec"], b.result["spec"]
    names = [name for name in specs[0] if name not in method and specs[0][name] != specs[1].get(name)]
    return [f"The sides differ in more than the method: {', '.join(names)}."] if names else []


def _unfinished(labels: tuple[str, str], sides: Sides, common: Sequence[int]) -> list[str]:
    """Folds that only one side has, and trainings without a result."""
    notes = []
    for label, runs in zip(labels, sides, strict=True):
        if waiting := Counter(run.status for run in runs if run.status != "ok"):
            said = ", ".join(f"{count} {status}" for status, count in sorted(waiting.items()))
            notes.append(f"{label}: {sum(waiting.values())} of {counted(len(runs), 'training')} without a result ({said}).")
    if single := sorted({run.cell.fold for runs in sides for run in runs if run.status == "ok"} - set(common)):
        notes.append(f"Left out, since only one side has them: fold{'s' * (len(single) > 1)} {', '.join(map(str, single))}.")
    return notes


def _slides(folds: Sequence[tuple[list[Run], list[Run]]]) -> tuple[Slide, ...]:
    """Every slide of every fold on which both sides have a value, those with the largest disagreement first."""
    slides = []
    for sides in folds:
        cell, first = sides[0][0].cell, sides[0][0].predictions
        a, b = (np.mean([_right(run.predictions) for run in side], axis=0) for side in sides)  # (n,)
        for i in np.flatnonzero(~np.isnan(a - b)).tolist():
            slide, patient = (str(first[name][i]) for name in ("slide", "case"))
            where, numbers = (cell.column, cell.fold), (float(a[i]), float(b[i]), float(a[i] - b[i]))
            slides.append(Slide(slide, patient or slide, *where, _truth(first, i), *numbers))
    return tuple(sorted(slides, key=_by_size))


def _right(predictions: dict[str, NDArray[Any]]) -> NDArray[np.float64]:
    """How right a run is on each slide (n,): the probability of the true class, or the share of pairs in the right order."""
    if "risk" in predictions:
        return concordance_by_case(predictions["time"], predictions["event"], predictions["risk"])
    target = predictions["target"]
    return np.asarray(predictions["score"][np.arange(len(target)), target])


def _truth(predictions: Any, i: int) -> str:
    if "risk" in predictions:
        return f"{'event' if predictions['event'][i] else 'censored'} at {predictions['time'][i]:g}"
    return f"class {predictions['target'][i]}"
