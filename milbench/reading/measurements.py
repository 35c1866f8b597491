"""What `milbench profile aggregators` and `milbench analyze rank` left in results/analysis, as far as claims rest on it.

Read: `efficiency.csv` (aggregator, n, train_seconds, peak_bytes), `rank*.csv` (aggregator, trial, slide, layer, head, when, n,
d, sparsity, and rank and effective_rank with their bounds `_low` and `_high`) and `bands*.csv` (n, b, rank). Other columns do not
matter; a file that is not there is something that was not run.
"""

import csv
import math
from pathlib import Path

from milbench.errors import MilbenchError
from milbench.files import csv_text, own_file, unusable
from milbench.spelling import canonical

ON_MATRICES = ("aggregator", "trial", "slide", "layer", "head", "when", "n", "d", "sparsity", "rank", "effective_rank")
_COUNTED = ("n", "d", "b")
_MEASURED = ("train_seconds", "peak_bytes", "sparsity", "rank", "effective_rank")
_NUMBERS = (*_COUNTED, *(f"{name}{end}" for name in _MEASURED for end in ("", "_low", "_high")))
_AGAIN = "make it again, or move it away"

Rows = list[dict[str, str]]


def costs(folder: Path, quantity: str, aggregator: str) -> dict[int, float]:
    """n -> seconds or bytes of a method, ascending.

    Args:
        folder: results/analysis.
        quantity: "train_seconds" or "peak_bytes".
        aggregator: the method, in any spelling.

    Raises:
        MilbenchError: a file cannot be read, lacks a column, or holds a number that is none; here and below.
    """
    wanted = canonical(aggregator)
    rows = _rows(folder, "efficiency.csv", ("aggregator", "n", quantity))
    curve = {int(row["n"]): float(row[quantity]) for row in rows if canonical(row["aggregator"]) == wanted and row[quantity]}
    return {n: curve[n] for n in sorted(curve) if curve[n] > 0}


def matrices(folder: Path, aggregator: str, layer: str = "") -> Rows:
    """Token-mixing matrices of the trained models of a method, each once; of its "first" or "last" layer, or of all."""
    rows = _rows(folder, "rank*.csv", ON_MATRICES)
    trained = [row for row in rows if row["aggregator"].split("[")[0] == aggregator and row["when"] == "trained"]
    layers = list(dict.fromkeys(row["layer"] for row in trained))
    wanted = layers[:1] if layer == "first" else layers[-1:] if layer == "last" else layers
    keys = ("aggregator", "trial", "slide", "layer", "head")
    return list({tuple(row[key] for key in keys): row for row in trained if row["layer"] in wanted}.values())


def bands(folder: Path) -> Rows:
    """1-D bands of n tokens and half-width b, with their ranks."""
    return _rows(folder, "bands*.csv", ("n", "b", "rank"))


def bounds(row: dict[str, str], quantity: str) -> tuple[float, float]:
    """The least and the most that the quantity can be."""
    return float(row.get(f"{quantity}_low") or row[quantity]), float(row.get(f"{quantity}_high") or row[quantity])


def _rows(folder: Path, pattern: str, needed: tuple[str, ...]) -> Rows:
    every = []
    for path in sorted(folder.glob(pattern)):
        try:
            with own_file(path).open(newline="") as file:
                reader = csv.DictReader(file, restval="")
                rows = [{name: csv_text(cell) for name, cell in row.items() if name} for row in reader]
        except OSError as error:
            raise unusable(path, error) from error
        except (ValueError, csv.Error) as error:
            raise MilbenchError(f"{path}: cannot be read ({error!s:.80}); {_AGAIN}") from error
        if missing := [name for name in needed if name not in (reader.fieldnames or ())]:
            columns = ", ".join(reader.fieldnames or ()) or "nothing"
            raise MilbenchError(f"{path}: no column {', '.join(missing)}; it has {columns:.200}; {_AGAIN}")
        for row in rows:
            _check_numbers(row, path)
        every += rows
    return every


def _check_numbers(row: dict[str, str], path: Path) -> None:
    """Refuse a row in which something else stands where a number belongs."""
    for name in _NUMBERS:
        value = row.get(name, "")
        try:
            wrong = value and not math.isfinite(int(value) if name in _COUNTED else float(value))
        except (ValueError, OverflowError):
            wrong = True
        if wrong:
            raise MilbenchError(f"{path}: {name} cannot be {value!r:.40}; {_AGAIN}")
