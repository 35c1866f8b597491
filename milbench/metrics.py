"""What the numbers of a table are: the metric, and the column of data that it is measured on.

One list for results, reports, papers and claims. Importing it costs nothing; the functions come from :mod:`milbench.stats` when
a metric is first computed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class Column(NamedTuple):
    """What a number is measured on. Of a paper's column, None is what the paper leaves open; a table of one split names none."""

    dataset: str
    encoder: str | None
    magnification: int | None
    patch_size: int | None
    split: str = ""


@dataclass(frozen=True)
class Metric:
    """A metric of the predictions of one test fold.

    Args:
        name: in results and suites.
        label: in tables.
        task: "subtyping" or "survival", whose predictions it takes.
        direction: 1 where higher is better, -1 where lower is.
        selects: on validation it chooses the epoch, and the draw of a search.
        function: of :mod:`milbench.stats`; the one of the same name unless given.
        options: what that function takes beside the predictions.
    """

    name: str
    label: str
    task: Literal["subtyping", "survival"] = "subtyping"
    direction: Literal[1, -1] = 1
    selects: bool = False
    function: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def head(self) -> str:
        """The label over a column of a table; an arrow says that lower is better."""
        return self.label + (" ↓" if self.direction < 0 else "")

    def __call__(self, predictions: Mapping[str, NDArray[Any]], counts: ArrayLike | None = None) -> Array:
        """The metric of a fold.

        Args:
            predictions: target (n,) and score (n, C), or time, event and risk (n,).
            counts: (..., n), how often each case counts; once unless given.

        Returns:
            (...), NaN where the metric is undefined.
        """
        from milbench import stats  # takes a second, which `milbench status` does not have

        data = (predictions[name] for name in _TAKES[self.task])
        return getattr(stats, self.function or self.name)(*data, counts, **self.options)

    def of(self, predictions: Mapping[str, NDArray[Any]]) -> Callable[[Array], Array]:
        """The metric of these predictions as a function of case counts (B, n) -> (B,)."""
        return lambda counts: self(predictions, counts)


_TAKES = {"subtyping": ("target", "score"), "survival": ("time", "event", "risk")}

METRICS = {
    metric.name: metric
    for metric in (
        Metric("macro_auc", "macro-AUC", selects=True),
        Metric("macro_f1", "macro-F1"),
        Metric("balanced_accuracy", "balanced accuracy"),
        Metric("accuracy", "accuracy"),
        Metric("brier", "Brier", direction=-1),
        Metric("c_index", "c-index", "survival", selects=True),
    )
}
SELECTS: dict[str, str] = {metric.task: metric.name for metric in METRICS.values() if metric.selects}  # task -> metric

# Two definitions of the c-index are in use. Where an event and a censored case have the same time, scikit-survival counts the
# pair, and with it most published tables and c_index above; Harrell did not.
HARRELL = Metric("c_index_harrell", "c-index (Harrell)", "survival", function="c_index", options={"equal_times": False})
