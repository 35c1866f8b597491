"""Numbers as a report prints them: one rule for zeros, gaps and ties in every table, figure and file.

What has no value is an en dash. A zero has no minus, and a difference of zero is +0.000. Values that print alike rank alike.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from milbench.files import csv_cell

NONE = "–"
DIGITS = 6  # of a number in a CSV file, and of what a figure draws

Style = Literal["best", "second", "quiet"]


def number(value: float, form: str = ".3f") -> str:
    """As printed; an en dash where there is none. A zero has no minus, also one that is zero only as printed."""
    sign = "+" if form.startswith("+") else ""
    return NONE if math.isnan(value) else format(value, f"{sign}z{form.removeprefix('+')}")


def signed(value: float, form: str = ".3f") -> str:
    """A difference."""
    return number(value, f"+{form}")


def interval(low: float, high: float, form: str = "+.3f") -> str:
    """An interval; an en dash where it has no ends."""
    return NONE if math.isnan(low) else f"[{number(low, form)}, {number(high, form)}]"


def spread(mean: float, sd: float) -> str:
    """A mean, with its standard deviation where there is one."""
    return number(mean) + ("" if math.isnan(sd) else f" ± {number(sd)}")


def p_value(p: float, digits: int = 0) -> str:
    """A p-value; to so many significant digits where a test allows few p-values, of which the small ones matter."""
    if digits:
        return number(p, f".{digits}g")
    return "< 0.001" if p < 0.001 else number(p)


def p_equals(p: float) -> str:
    """A p-value in a sentence."""
    return p_value(p) if p < 0.001 else f"= {p_value(p)}"


def tally(wins: int, ties: int, losses: int, undefined: int = 0) -> str:
    """Wins, ties and losses; an en dash where some runs could not be compared, since these would not count all."""
    return NONE if undefined else f"{wins}/{ties}/{losses}"


def styles(means: Sequence[float], sign: int = 1) -> list[Style | None]:
    """Who of a column is best and who second, as printed; nobody where all print alike.

    Args:
        means: of each row; NaN is not ranked.
        sign: -1 where lower is better.
    """
    printed = [sign * float(number(mean)) if not math.isnan(mean) else math.nan for mean in means]
    ranked = sorted({value for value in printed if not math.isnan(value)}, reverse=True)
    if len(ranked) < 2:
        return [None] * len(printed)
    return ["best" if value == ranked[0] else "second" if value == ranked[1] else None for value in printed]


def written(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with every number as a file holds it and a figure draws it: to 6 significant digits."""
    return [
        {key: _short(float(value)) if isinstance(value, float | np.floating) else value for key, value in row.items()}
        for row in rows
    ]


def _short(value: float) -> float:
    return math.nan if math.isnan(value) else float(f"{value:z.{DIGITS - 1}e}")


def cells(row: dict[str, Any]) -> dict[str, Any]:
    """A row for a CSV file; an undefined number is an empty field, and no text is a formula."""
    return {key: "" if v is None or (isinstance(v, float) and math.isnan(v)) else csv_cell(v) for key, v in row.items()}
