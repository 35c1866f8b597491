"""A method against itself: how often each test calls it different, as a page of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from milbench.compare.calibration import FIXED, PRIMARY, Calibrated, Trainings
from milbench.compare.pairing import ALPHA
from milbench.numbers import NONE, written
from milbench.plots.figure import PAGE, Figure
from milbench.report.model import Entry, Row, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

TITLE = "A method against itself: how often is it called different?"
_LABELS = {
    PRIMARY: "primary test: other patients, other trainings",
    FIXED: "jackknife over patients, these models",
    "paired-bootstrap": "paired bootstrap, these models",
    "permutation": "permutation, these models",
    "delong": "DeLong, these models",
    "mcnemar": "McNemar (accuracy), these models",
    "wilcoxon": "Wilcoxon over runs",
    "nadeau-bengio": "Nadeau-Bengio over folds",
    "anova": "ANOVA over runs, unpaired",
    "welch": "Welch on means ± sd, as printed",
}
_COLOURS = {5: "#0072B2", 1: "#D55E00"}


@dataclass(frozen=True)
class Met:
    """What was found for the trainings of one method on one data set.

    Args:
        trainings: that met.
        found: by metric and size of the groups.
    """

    trainings: Trainings[Any]
    found: Sequence[Calibrated]

    @property
    def words(self) -> str:
        """What met whom, for a footnote."""
        folds = self.trainings.meet([0], [1]).folds
        slides = sum(len(fold.cases) for fold in folds)
        known = [fold.patients for fold in folds]
        patients = sum(len(set(of.tolist())) for of in known if of is not None)
        whose = f"of {patients} patients" if patients else "(no patient is named: each counts as one)"
        over = f" in {len(folds)} folds" if len(folds) > 1 else " on one split"
        of = f" of {self.trainings.method}" if self.trainings.method else ""
        return f"{len(self.trainings.seeds)} trainings{of}{over}, {slides} test slides {whose}"


def table(met: Sequence[Met], name: str = "calibration") -> Table:
    """A row for each test, a column for each data set, metric and size of groups."""
    heads = [(of, each) for of in met for each in of.found]
    tests = [name for name in _LABELS if any(name in each.tests for _, each in heads)]
    rows = [Row(_LABELS[test], [_entry(each, test) for _, each in heads], rule=at == 1) for at, test in enumerate(tests)]
    notes = [
        f"Share of pairs of disjoint groups of trainings of ONE method with p < {ALPHA:g}: near {ALPHA:.0%} for a test that "
        "keeps its level. ± is the Monte-Carlo error: by leaving out one group at a time, as pairs share trainings, and never "
        "below that of independent pairs. Pairs without a p-value count as not different; a dash: no pair has one.",
        "Tests for these models answer whether the very models differ on other patients; two trainings of a method do differ, so "
        "these tests find more the more trainings differ. Read as statements on methods they are wrong that often.",
        *(f"{of.trainings.data}: {of.words}; {_pairs(of)}." for of in met),
    ]
    headers = [(of.trainings.data, f"{each.metric.label}, {each.size} v {each.size}") for of, each in heads]
    return Table(name, TITLE, headers, rows, notes, tidy(met), corner="Test")


def _entry(each: Calibrated, test: str) -> Entry:
    found = each.tests.get(test)
    return Entry(f"{found.share:.0%} ± {found.se:.0%}" if found else NONE)


def _pairs(of: Met) -> str:
    pairs = {each.size: found.pairs for each in of.found for found in each.tests.values() if found}
    return ", ".join(f"{count} pairs of {size} against {size}" for size, count in pairs.items())


def tidy(met: Sequence[Met]) -> list[dict[str, Any]]:
    """A row for each data set, metric, size of groups and test that has p-values."""
    return [
        {
            "data": of.trainings.data, "method": of.trainings.method, "metric": each.metric.name, "trainings_a_side": each.size,
            "test": test, "share": found.share, "se": found.se, "groups": found.groups, "pairs": found.pairs,
            "undefined": found.undefined,
        }
        for of in met
        for each in of.found
        for test, found in each.tests.items()
        if found
    ]  # fmt: skip


def figure(met: Sequence[Met], name: str = "calibration") -> Figure:
    """The same as points with their errors, a panel for each data set and metric."""
    rows = tidy(met)
    caption = (
        f"Share of pairs of disjoint groups of trainings of one method with p < {ALPHA:g}, with its Monte-Carlo error. The "
        f"line is {ALPHA:.0%}: where a test that keeps its level stands."
    )
    return Figure(name, TITLE, caption, rows, lambda: _draw(rows))


def _draw(rows: list[dict[str, Any]]) -> "Drawing":
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D

    panels = list(dict.fromkeys((row["data"], row["metric"]) for row in rows))
    tests = [name for name in _LABELS if any(row["test"] == name for row in rows)]
    drawing, grid = plt.subplots(
        1, len(panels), figsize=(PAGE, 0.9 + 0.24 * len(tests)), sharey=True, sharex=True, squeeze=False
    )  # fmt: skip
    for ax, panel in zip(grid[0], panels, strict=True):
        for row in (row for row in written(rows) if (row["data"], row["metric"]) == panel):
            size = row["trainings_a_side"]
            y = tests.index(row["test"]) + (0.15 if size == 1 else -0.15)
            low, high = min(row["se"], row["share"]), row["se"]
            ax.errorbar(
                row["share"], y, xerr=[[low], [high]], fmt="s" if size == 1 else "o", color=_COLOURS.get(size), elinewidth=0.8
            )
        ax.axvline(ALPHA, color="black", linewidth=0.6, linestyle=":")
        ax.set_title(f"{panel[0]}\n{panel[1].replace('_', ' ')}", fontsize=7)
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    grid[0, 0].set_yticks(range(len(tests)), [_LABELS[name] for name in tests])
    grid[0, 0].set_ylim(len(tests) - 0.5, -0.5)
    sizes = list(dict.fromkeys(row["trainings_a_side"] for row in rows))
    keys = [
        Line2D([], [], color=_COLOURS.get(size), marker="s" if size == 1 else "o", linestyle="", label=f"{size} against {size}")
        for size in sizes
    ]
    drawing.legend(handles=keys, loc="outside upper center", ncols=len(keys))
    drawing.supxlabel("called different", fontsize=8)
    return drawing
