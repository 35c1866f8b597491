"""CSV files of scores per fold, or of predictions per case, that others published.

Columns are found by name, in any case and with `-`, `_`, `.` or blanks between words:

| what | names |
|---|---|
| model | model, method, aggregator |
| fold | fold, folds, split, run, seed |
| score of a fold | any name with auc, c-index, acc, accuracy, f1, kappa or score in it |
| case | case, case id, patient, patient id, slide, slide id |
| risk, higher is worse | risk, risk score, hazard |
| time | time, survival months, survival days, survival time, os time |
| outcome | event or status, 1 where it was seen; or censorship, censored or censor, 1 where it was not |
| class | target, label; its scores p0, p1, ... or p_0, prob_0, ... |

Tables of folds are grouped by other columns that rows have in common, predictions by cohort, dataset and encoder.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milbench import stats
from milbench.delimited import Delimited
from milbench.errors import MilbenchError, few
from milbench.followup import contradiction, missing, seen
from milbench.metrics import HARRELL, METRICS, Metric

MODEL = ("model", "method", "aggregator")
FOLD = ("fold", "folds", "split", "run", "seed")
SCORE = re.compile(r"auc|c ?index|\bacc|f1|kappa|score")
CASE = ("case", "case id", "patient", "patient id", "slide", "slide id")
RISK = ("risk", "risk score", "hazard")
TIME = ("time", "survival months", "survival days", "survival time", "os time")
EVENT = ("event", "status")
CENSORED = ("censorship", "censored", "censor")
TARGET = ("target", "label")
GROUPS = ("cohort", "dataset", "encoder")
SETTINGS = ("fraction", "magnification", "patch size")

_TRIED = 10_000  # choices of columns that may be groups

Head = tuple[str, str]  # group and score
Scores = dict[Head, dict[str, dict[str, float]]]  # -> model -> fold -> score
Columns = dict[str, NDArray[Any]]


def plain(name: str) -> str:
    """A name without the marks between its words, in small letters."""
    return re.sub(r"[-_.\s]+", " ", name).strip().lower()


@dataclass(frozen=True)
class Sheet:
    """A table of text, packed or not.

    Args:
        path: the file.
        names: of its columns.
        rows: column -> cell.
        numbers: of the rows in the file, from 1, with the header.
    """

    path: Path
    names: list[str]
    rows: list[dict[str, str]] = field(repr=False)
    numbers: list[int] = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> "Sheet":
        """Read a file.

        Raises:
            MilbenchError: it is not there, not such a file, without rows, or a row has more or fewer fields than the header.
        """
        table = Delimited.read(path)
        if table.short:
            raise MilbenchError(f"{path}, row {table.short[0]}: not {len(table.names)} fields as in the header")
        cells = [[cell.strip() for cell in row] for row in table.rows]
        return cls(path, list(table.names), [dict(zip(table.names, row, strict=True)) for row in cells], list(table.numbers))

    def find(self, what: str, known: Sequence[str]) -> str | None:
        """The column with one of these names.

        Raises:
            MilbenchError: several columns have one.
        """
        columns = [name for name in self.names if plain(name) in known]
        if len(columns) > 1:
            raise MilbenchError(f"{self.path}: {' and '.join(columns)} could both be the {what}; rename all but one")
        return columns[0] if columns else None

    def need(self, what: str, known: Sequence[str]) -> str:
        """The same for a column that the file must have.

        Raises:
            MilbenchError: it has no such column, or several.
        """
        column = self.find(what, known)
        if column is None:
            raise MilbenchError(
                f"{self.path}: no column for the {what}; name it {' or '.join(known)}. The columns are {few(self.names, 30)}"
            )
        return column

    def number(self, at: int, name: str) -> float:
        """A number of row `at`; NaN where the field is empty.

        Raises:
            MilbenchError: the field holds something else.
        """
        text = "" if missing(self.rows[at][name]) else self.rows[at][name]
        try:
            return float(text or "nan")
        except ValueError:
            raise MilbenchError(f"{self.where(at)}: {name} is {text!r}, not a number") from None

    def where(self, at: int) -> str:
        """Row `at` as a message names it."""
        return f"{self.path}, row {self.numbers[at]}"

    @property
    def stem(self) -> str:
        """File name for tables: letters, digits and hyphens."""
        return file_name(self.path.name.removesuffix(".gz").removesuffix(".csv"))

    def models(self) -> set[str]:
        """The models that the file is about.

        Raises:
            MilbenchError: there is no column for them.
        """
        column = self.need("model", MODEL)
        return {row[column] for row in self.rows}


def file_name(text: str) -> str:
    """Letters, digits and hyphens."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")


@dataclass(frozen=True)
class FoldScores:
    """Scores per model and fold.

    Args:
        scores: by group and name of the score; an empty group where the file has one only.
        names: group -> name for a file about it.
        unused: columns that are neither scores nor groups.
    """

    scores: Scores
    names: dict[str, str]
    unused: list[str]


def fold_scores(sheet: Sheet) -> FoldScores:
    """The scores of a file with a row per model and fold; it is grouped by the columns without which a model has a fold twice.

    Raises:
        MilbenchError: a column is missing, a number is none, or a model has a fold twice.
    """
    model, fold = sheet.need("model", MODEL), sheet.need("fold", FOLD)
    scores = [name for name in sheet.names if name not in (model, fold) and SCORE.search(plain(name))]
    if not scores:
        raise MilbenchError(
            f"{sheet.path}: no column with scores; its name must have auc, c-index, acc, f1, kappa or score in it. The columns "
            f"are {', '.join(sheet.names)}"
        )
    groups, unused = _groups(sheet, model, fold, scores)
    every = FoldScores({}, {}, unused)
    for at, row in enumerate(sheet.rows):
        group = ", ".join(row[name] if len(groups) == 1 else f"{name} {row[name]}" for name in groups)
        every.names[group] = file_name(" ".join([sheet.stem, *(row[name] for name in groups)]))
        for score in scores:
            of_model = every.scores.setdefault((group, score), {}).setdefault(row[model], {})
            if row[fold] in of_model:
                where = f" in {group}" if group else ""
                raise MilbenchError(f"{sheet.where(at)}: {row[model]} has fold {row[fold]} twice{where}")
            of_model[row[fold]] = sheet.number(at, score)
    return every


def _groups(sheet: Sheet, model: str, fold: str, scores: Sequence[str]) -> tuple[list[str], list[str]]:
    """Columns that group the rows, and columns that only say more of each: numbers and names of one row alone.

    Words that several rows share are groups, and so are fractions, magnifications and patch sizes. Of other numbers
    (`best_epoch` is none) the fewest are taken with which no model has a fold twice, of those the ones with the fewest values.
    """
    values = {name: [row[name] for row in sheet.rows] for name in sheet.names if name not in (model, fold, *scores)}
    differ = {name: cells for name, cells in values.items() if len(set(cells)) > 1}
    numbers = [name for name, cells in differ.items() if plain(name) not in SETTINGS and all(map(_number, cells))]
    words = [name for name, cells in differ.items() if name not in numbers and len(set(cells)) < len(cells)]

    def distinct(groups: Sequence[str]) -> bool:
        keys = zip(*([row[name] for row in sheet.rows] for name in (model, fold, *groups)), strict=True)
        return len(set(keys)) == len(sheet.rows)

    fewest = sorted(numbers, key=lambda name: len(set(differ[name])))
    some = (list(group) for size in range(len(numbers) + 1) for group in combinations(fewest, size))
    taken = next((group for group in islice(some, _TRIED) if distinct([*words, *group])), numbers)
    groups = [name for name in sheet.names if name in (*words, *taken)]
    return groups, [name for name in differ if name not in groups]


def _number(cell: str) -> bool:
    try:
        return missing(cell) or math.isfinite(float(cell))
    except ValueError:
        return False


@dataclass(frozen=True)
class Cases:
    """Predictions of one model for the test cases of one fold, in the order of their names.

    Args:
        group, model, fold: whose.
        predictions: slide (n,), the names; target and score, or time, event and risk.
    """

    group: str
    model: str
    fold: str
    predictions: Columns = field(repr=False)

    @property
    def identity(self) -> Hashable:
        """Whose predictions of which cases."""
        return self.group, self.model, self.fold, self.names.tobytes()

    @property
    def names(self) -> NDArray[np.str_]:
        """Of the cases (n,)."""
        return self.predictions["slide"]

    def only(self, names: NDArray[np.str_]) -> "Cases":
        """The predictions for these cases."""
        at = np.isin(self.names, names)
        return Cases(self.group, self.model, self.fold, {key: values[at] for key, values in self.predictions.items()})


@dataclass(frozen=True)
class Predictions:
    """Predictions per model, fold and case.

    Args:
        cases: (group, model) -> fold -> its cases.
        metrics: that can be computed of them.
    """

    cases: dict[tuple[str, str], dict[str, Cases]]
    metrics: list[Metric]

    def scores(self) -> Scores:
        """The metrics of every model and fold."""
        scores: Scores = defaultdict(lambda: defaultdict(dict))
        for (group, model), folds in self.cases.items():
            for metric in self.metrics:
                for fold, cases in folds.items():
                    value = stats.rounded(float(metric(cases.predictions)), step=stats.STEP)
                    scores[group, metric.name][model][fold] = value
        return scores


def predictions(sheet: Sheet) -> Predictions:
    """The predictions of a file with a row per model, fold and case; it is grouped by cohort, dataset and encoder.

    Raises:
        MilbenchError: a column is missing, a number is none, or a case comes twice.
    """
    risk = sheet.find("risk", RISK)
    read = _survival(sheet, risk) if risk else _subtyping(sheet)
    model, case, fold = sheet.need("model", MODEL), sheet.need("case", CASE), sheet.find("fold", FOLD)
    groups = [name for name in sheet.names if plain(name) in GROUPS]
    places: dict[tuple[str, str, str], dict[str, int]] = defaultdict(dict)  # group, model, fold -> case -> row
    for at, row in enumerate(sheet.rows):
        group = ", ".join(row[name] for name in groups)
        known = places[group, row[model], row[fold] if fold else "0"]
        if row[case] in known:
            raise MilbenchError(f"{sheet.where(at)}: case {row[case]} comes twice for one model and fold")
        known[row[case]] = at
    cases: dict[tuple[str, str], dict[str, Cases]] = defaultdict(dict)
    for (group, name, part), rows in places.items():
        names = sorted(rows)
        columns = {"slide": np.array(names), **read([rows[n] for n in names])}
        cases[group, name][part] = Cases(group, name, part, columns)
    metrics = [METRICS["c_index"], HARRELL] if risk else [METRICS["macro_auc"], METRICS["macro_f1"]]
    return Predictions(cases, metrics)


Reader = Callable[[list[int]], Columns]  # rows of the file -> what was predicted, and what happened


def _column(sheet: Sheet, name: str, rows: list[int]) -> NDArray[np.float64]:
    values = np.array([sheet.number(at, name) for at in rows])
    if np.isnan(values).any():
        raise MilbenchError(f"{sheet.where(rows[int(np.isnan(values).argmax())])}: {name} is missing")
    return values


def _survival(sheet: Sheet, risk: str) -> Reader:
    time, event, censored = sheet.need("time", TIME), sheet.find("event", EVENT), sheet.find("outcome", CENSORED)
    flag = event or censored or sheet.need("outcome", (*EVENT, *CENSORED))
    for at, row in enumerate(sheet.rows):
        if said := contradiction({name: row[name] for name in (event, censored) if name}, [censored] if censored else []):
            raise MilbenchError(f"{sheet.where(at)}: {said}; correct the file, or leave the wrong column out")

    def event_of(at: int) -> bool:
        cell = sheet.rows[at][flag]
        if missing(cell):
            raise MilbenchError(f"{sheet.where(at)}: {flag} is missing")
        if len(said := seen(cell, censorship=flag == censored)) != 1:
            raise MilbenchError(f"{sheet.where(at)}: {flag} is {cell}, it must be 0 or 1")
        return next(iter(said))

    def read(rows: list[int]) -> Columns:
        events = np.array([event_of(at) for at in rows])
        return {"time": _column(sheet, time, rows), "event": events, "risk": _column(sheet, risk, rows)}

    return read


def _subtyping(sheet: Sheet) -> Reader:
    classes = {int(m[1]): name for name in sheet.names if (m := re.fullmatch(r"(?:p|prob) ?(\d+)", plain(name)))}
    target = sheet.find("class", TARGET)
    if not target or sorted(classes) != list(range(max(2, len(classes)))):
        raise MilbenchError(
            f"{sheet.path}: no predictions; they are columns risk, time and event or censorship, or target and p0, p1, ... The "
            f"columns are {', '.join(sheet.names)}"
        )

    def read(rows: list[int]) -> Columns:
        y = _column(sheet, target, rows)
        if not np.isin(y, list(classes)).all():
            at = rows[int((~np.isin(y, list(classes))).argmax())]
            raise MilbenchError(
                f"{sheet.where(at)}: {target} is {sheet.rows[at][target]}, there are scores for 0 to {len(classes) - 1}"
            )
        return {"target": y.astype(int), "score": np.stack([_column(sheet, classes[c], rows) for c in sorted(classes)], axis=1)}

    return read
