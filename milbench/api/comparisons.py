"""Two methods against each other: is the difference real? Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milbench.api.results import column, store_of, suite_name
from milbench.compare.methods import Difference, Method, differences, disagreement
from milbench.errors import MilbenchError
from milbench.numbers import interval, number, p_equals, signed

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Comparison:
    """Method a against method b.

    Args:
        a, b: how they are printed.
        columns: one comparison for each dataset, encoder, magnification, patch size and split.
        left_out: columns where both were run and cannot be compared, with the reason.
    """

    a: str
    b: str
    columns: tuple[Difference, ...]
    left_out: Mapping[str, str]

    def frame(self) -> DataFrame:
        """One row for each column: effect, intervals, p-value, variance split, chance, planning."""
        import pandas as pd

        return pd.DataFrame([self._row(each) for each in self.columns])

    def as_rows(self) -> list[dict[str, Any]]:
        """The same as plain data for JSON, with notes and the slides of most disagreement; None is undefined or infinite."""
        rows = []
        for each in self.columns:
            row = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in self._row(each).items()}
            slides = [{key: v for key, v in asdict(slide).items() if key != "column"} for slide in disagreement(each.slides)]
            rows.append({**row, "notes": list(each.notes), "slides": slides})
        return rows

    def _row(self, each: Difference) -> dict[str, Any]:
        return {**each.column._asdict(), "metric": each.metric.name, "a": self.a, "b": self.b, **each.as_row()}

    def __str__(self) -> str:
        """A line for each column."""
        lines = [f"{self.a} minus {self.b}, for other patients and other trainings"]
        for each in self.columns:
            test = each.test
            p = f"no p-value: {test.why}" if math.isnan(test.p) else f"p {p_equals(each.p_holm)}"
            lines.append(
                f"  {column(*each.column)}: {each.metric.label} {signed(test.difference)} {interval(test.low, test.high)}, {p}"
            )
        return "\n".join([*lines, *(f"  {where}: {why}" for where, why in self.left_out.items())])

    def _repr_html_(self) -> str:
        """The main columns of :meth:`frame`, for a notebook."""
        shown = ["dataset", "encoder", "split", "metric", "mean_a", "mean_b", "difference", "low", "high", "chance", "p_holm"]
        table = self.frame()[shown].rename(columns={"mean_a": self.a, "mean_b": self.b}).to_html(index=False, float_format=number)
        return f"<p>{escape(f'{self.a} minus {self.b}')}</p>{table}"


def compare(
    a: str,
    b: str,
    suite: str | Path | None = None,
    metric: str | None = None,
    *,
    results: str | Path | None = None,
    results_b: str | Path | None = None,
) -> Comparison:
    """Is the difference between two methods real: for other patients and other trainings?

    The primary test (:func:`milbench.stats.primary`) in each column where both have results. All finished trainings count; seeds
    need not pair. P-values are corrected over the columns of the call (Holm).

    Args:
        a, b: methods by name, with parameters in any spelling (`abmil[gated=false]`), or by label. `transmil` means
            `transmil[landmarks=32]` where that is the only variant that was run.
        suite: only the trials of this suite: its name or TOML file; those of every suite unless given.
        metric: macro_auc, macro_f1, balanced_accuracy, accuracy, brier or c_index. [default: macro_auc, c_index for survival]
        results: the results folder. [default: MILBENCH_RESULTS, or results]
        results_b: another folder, where the results of `b` are; `a` and `b` may then be the same method.

    Raises:
        MilbenchError: an unknown method or metric, with near misses; nothing that can be compared, with the reasons.

    Examples:
        >>> compare("abmil", "mean", suite="quickstart", results="nowhere")
        Traceback (most recent call last):
        ...
        milbench.errors.NothingYet: nothing was run into nowhere yet; start with: milbench run --suite quickstart

        compared = milbench.compare("longmil", "abmil", suite="bracs-encoders")
        print(compared)                          # a line for each encoder
        compared.frame()                         # everything, one row for each encoder
        compared.columns[0].slides[:5]           # where they disagree most
    """
    name = suite_name(suite) if suite else None
    stores = store_of(results), store_of(results if results_b is None else results_b)
    first, second = (Method.find(store, text, name) for store, text in zip(stores, (a, b), strict=True))
    if first.name == second.name and stores[0].root.resolve() == stores[1].root.resolve():
        raise MilbenchError(f"{a} and {b} are the same method, {first.name}; write another, or give a second results folder")
    columns, left_out = differences(first, second, metric)
    if not columns:
        reasons = "; ".join(f"{column(*where)}: {why}" for where, why in left_out.items())
        never = "they were never run on the same dataset, encoder, magnification, patch size and split"
        raise MilbenchError(f"{first.name} and {second.name} cannot be compared: {reasons or never}")
    labels = first.label, second.label
    if first.name == second.name:
        labels = f"{first.label} ({stores[0].root})", f"{second.label} ({stores[1].root})"
    elif first.label == second.label:
        labels = first.name, second.name
    return Comparison(*labels, tuple(columns), {column(*where): why for where, why in left_out.items()})
