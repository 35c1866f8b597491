"""predictions.csv: the scores of the tested slides or cases, and whether trial.json has the metrics that follow from them.

Ids that a spreadsheet would take for a formula stand behind an apostrophe (:func:`milbench.files.csv_cell`) and come back
without it.
"""

import csv
import math
import zipfile
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from milbench.errors import MilbenchError
from milbench.files import csv_cell, csv_text
from milbench.trials.store import PREDICTIONS, Store

TOLERANCE = 1e-9  # between a metric that was stored and the one that its predictions give
Columns = dict[str, NDArray[Any]]


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of equal keys; floats with nine digits, which give back every float32."""
    returns = any("\r" in value for row in rows for value in row.values() if isinstance(value, str))  # which csv forgets to quote
    with path.open("w", newline="") as file:
        quoting: Literal[0, 1] = csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n", quoting=quoting)
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.9g}" if isinstance(v, np.float32 | np.ndarray) else csv_cell(v) for k, v in row.items()})


def read(store: Store, result: Mapping[str, Any]) -> Columns:
    """The columns of a trial's predictions.csv, in the order of the slides, checked against its trial.json.

    Args:
        store: where the trial is.
        result: trial.json, as :meth:`Store.raw` gives it.

    Returns:
        slide, case and fold (n,), instances (n,) where the trial recorded the sizes of bags, and target (n,) with score (n, C),
        or time, event and risk (n,).

    Raises:
        MilbenchError: the file is missing, cannot be read, is not the one that the trial wrote, or gives other metrics.
    """
    path = store.verified(result, PREDICTIONS)
    again = f"remove the folder {path.parent} and run the suite again"
    try:
        columns = parsed(path)
    except (LookupError, ValueError, OverflowError, csv.Error) as error:
        raise MilbenchError(f"{path} cannot be read ({error!s:.80}); {again}") from error
    if wrong := disagreement(columns, result):
        raise MilbenchError(f"{path} and trial.json disagree: {wrong}; {again}")
    return columns


def parsed(path: Path | zipfile.Path, *, apostrophes: bool = True) -> Columns:
    """The columns of the file as they are, by slide.

    Args:
        path: the file.
        apostrophes: False where ids stand as they are, as results of schema 1 have them.

    Raises:
        LookupError, ValueError, OverflowError, csv.Error: the file is not a predictions.csv.
    """
    with path.open(newline="") as file:
        names, *rows = csv.reader(file)
    if len(set(names)) < len(names):
        raise ValueError("a column appears twice")
    columns = dict(zip(names, zip(*sorted(rows, key=itemgetter(names.index("slide"))), strict=True), strict=True))
    text = csv_text if apostrophes else str
    shared = {name: np.array([text(cell) for cell in columns[name]]) for name in ("slide", "case")}
    if len(set(shared["slide"].tolist())) < len(rows):
        raise ValueError("a slide appears twice")
    for name in ("fold", "instances") if "instances" in columns else ("fold",):
        shared[name] = np.array(columns[name]).astype(int)
    if "risk" in columns:
        time, risk = (np.array(columns[name]).astype(np.float64) for name in ("time", "risk"))
        return {**shared, "time": time, "event": np.array(columns["event"]) == "1", "risk": risk}
    classes = sum(name.startswith("p") and name[1:].isdigit() for name in names)
    score = np.array([columns[f"p{c}"] for c in range(classes)]).astype(np.float64).T  # (n, C)
    target = np.array(columns["target"]).astype(int)
    if not ((target >= 0) & (target < classes)).all():
        raise ValueError(f"a target is not one of {classes} classes")
    return {**shared, "target": target, "score": score}


def escaped(source: Path, target: Path) -> None:
    """Copy a file of schema 1, whose ids stand as they are: `target` has them as :func:`write` does."""
    with source.open(newline="") as file:
        names, *rows = csv.reader(file)
    ids = [names.index(name) for name in ("slide", "case")]
    with target.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([csv_cell(cell) if at in ids else cell for at, cell in enumerate(row)] for row in rows)


def metrics(columns: Columns, kind: type[np.floating] = np.float32) -> dict[str, Any]:
    """Every stored metric, computed again. Scores were float32, and are so again: equal predictions give equal numbers."""
    from milbench import stats  # takes a second, which `milbench status` does not have

    if "risk" in columns:
        return stats.of_survival(columns["time"], columns["event"], columns["risk"].astype(kind))
    return stats.of_subtyping(columns["target"], columns["score"].astype(kind))


def disagreement(columns: Columns, result: Mapping[str, Any]) -> str:
    """Where predictions and trial.json differ; empty where they agree."""
    fold = result["spec"]["fold"]
    if (columns["fold"] != fold).any():
        return f"trial.json is of fold {fold}, but some predictions are of another"
    if ("risk" in columns) != (result["spec"]["task"] == "survival"):
        return f"the columns are not those of {result['spec']['task']}"
    stored = result["metrics"].get("test", {})
    wrong = _differ(stored, metrics(columns))
    return wrong and _differ(stored, metrics(columns, np.float64))  # as text has them, when they were written elsewhere


def _differ(stored: Mapping[str, Any], again: Mapping[str, Any]) -> str:
    for name, value in again.items():
        if name in stored and not _equal(stored[name], value):
            return f"{name} is stored as {stored[name]!r:.40} and the predictions give {value!r:.40}"
    return ""


def _equal(stored: Any, again: Any) -> bool:
    if isinstance(stored, list) and isinstance(again, list):
        return len(stored) == len(again) and all(map(_equal, stored, again))
    if stored is None or isinstance(stored, list) or isinstance(again, list):
        return stored is None and not isinstance(again, list) and not math.isfinite(again)
    return abs(stored - again) <= TOLERANCE
