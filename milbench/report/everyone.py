"""Every method against every other: a table of who is told apart, the matrix of all pairs, and the places that each may take."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from milbench import reading
from milbench.compare import ALPHA
from milbench.compare.everyone import Everyone, Versus, everyone
from milbench.numbers import NONE, number, p_value, signed, tally, written
from milbench.plots.figure import PAGE, Figure, styles
from milbench.reading import Run
from milbench.report.figures import Place
from milbench.report.model import Entry, Row, Table
from milbench.trials.plan import Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

ROOMY = 8  # methods up to which every number of a pair stands in its field
FAINT = 0.005  # share of the resamples below which a place is not drawn


def build(plan: Plan, runs: Sequence[Run]) -> tuple[list[Table], list[Figure]]:
    """The table, and for each column the matrix of pairs and the places; nothing where no column has three methods.

    Compared is the suite's first metric.

    Args:
        plan, runs: what was asked for, and what came of it.
    """
    found = everyone(plan, runs, reading.metrics(plan)[0])
    if not found:
        return [], []
    columns = [each.column for each in found]
    where = [Place.of(plan, column, columns) for column in columns]
    looks = styles(run.cell for run in runs)
    figures = []
    for each, place in zip(found, where, strict=True):
        figures.append(_matrix(each, place))
        figures += [_places(each, place, looks)] if each.places.size and not np.isnan(each.places).any() else []
    return [_table(plan, found, where)], figures


def _table(plan: Plan, found: Sequence[Everyone], where: Sequence[Place]) -> Table:
    """Of each method how many others it is told apart from, and its places."""
    lines: list[Row] = []
    for each, place in zip(found, where, strict=True):
        if place.words:
            lines.append(Row(place.words.strip(" ()"), [], rule=bool(lines)))
        lines += [Row(label, _entries(each, name)) for name, label in each.labels.items()]
    name, metric = plan.definition["table"]["name"], found[0].metric
    notes = [
        f"Better and worse: the number of other methods from which it differs in {metric.label} by the primary test (p < "
        f"{ALPHA:g}, for other patients and other trainings), after Holm's correction over all pairs of a column.",
        "Places: which it takes when whole patients and trainings are drawn anew, 1,000 times: how often the first, and between "
        f"which it lies in 95 %. {NONE}: it lacks a fold of the column. A method that was trained once is drawn as it is.",
        "Methods stand in the order of their means. All pairs are in the figures and in the CSV file.",
    ]
    headers = [("other methods", head) for head in ("better than", "not told apart", "worse than")]
    headers += [("place", "first"), ("place", "95 % between")]
    tidy = [row for each in found for row in _tidy(each)]
    return Table(f"{name}-pairs", f"Every method against every other: {metric.label}", headers, lines, notes, tidy)


def _entries(each: Everyone, method: str) -> list[Entry]:
    counts = [Entry(str(count)) for count in each.told_apart(method)]
    if method not in each.ranked or not each.places.size or np.isnan(each.places).any():
        return [*counts, Entry(NONE), Entry(NONE)]
    first, last = each.between(method)
    between = f"{first} to {last}" if first < last else str(first)
    return [*counts, Entry(f"{each.places[each.ranked.index(method)][0]:.0%}"), Entry(between)]


def _tidy(each: Everyone) -> list[dict[str, Any]]:
    """Every pair, the better mean first."""
    return [
        {
            **each.column._asdict(), "metric": each.metric.name, "a": pair.a, "b": pair.b, "label_a": each.labels[pair.a],
            "label_b": each.labels[pair.b], "difference": pair.test.difference, "low": pair.test.low, "high": pair.test.high,
            **dict(zip(("wins", "ties", "losses"), pair.tally, strict=True)), "chance": pair.chance.chance,
            "chance_low": pair.chance.low, "chance_high": pair.chance.high, "p": pair.test.p, "p_holm": pair.p_holm,
        }
        for pair in each.pairs
    ]  # fmt: skip


def _matrix(each: Everyone, place: Place) -> Figure:
    """Above the diagonal differences, below it chances."""
    few = len(each.labels) <= ROOMY
    inside = ", wins/ties/losses over pairs of trainings, and p after Holm's correction" if few else ""
    caption = (
        f"Above the diagonal: the row's mean {each.metric.label} minus the column's, in hundredths{inside}; a frame "
        f"where p < {ALPHA:g} by the primary test after Holm's correction over the {len(each.pairs)} pairs. Below it: the "
        "chance in % that a new training of the row's method is better than one of the column's on these slides; 75 and more "
        "is called meaningful. Blue: the row is better; red: the column is. Methods stand in the order of their means."
    )
    title = f"All pairs of methods: {each.metric.label}{place.words}"
    return Figure(f"{place.name}-pairs", title, caption, _tidy(each), lambda: _draw_matrix(each, few=few))


def _draw_matrix(each: Everyone, *, few: bool) -> "Drawing":
    from matplotlib import pyplot as plt

    names = list(each.labels)
    largest = max((abs(pair.gain) for pair in each.pairs if not np.isnan(pair.gain)), default=0.0) or 1.0
    drawing, axes = plt.subplots(figsize=(PAGE, 1.5 + (0.55 if few else 0.19) * len(names)))
    for pair in each.pairs:
        row, column = names.index(pair.a), names.index(pair.b)
        _field(axes, row, column, pair.gain / largest, _upper(pair, few=few), few=few, framed=pair.better != "")
        chance = pair.chance.chance  # that a beats b; below the diagonal b is the row
        _field(axes, column, row, 0.6 * (1 - 2 * chance), number(100 * (1 - chance), ".0f"), few=few, framed=False)
    axes.set(xlim=(0, len(names)), ylim=(len(names), 0))
    size = 7 if len(names) <= 16 else 6
    labels = list(each.labels.values())
    axes.set_xticks(
        np.arange(len(names)) + 0.5, labels, rotation=45 if few else 90, ha="left" if few else "center", fontsize=size
    )
    axes.set_yticks(np.arange(len(names)) + 0.5, labels, fontsize=size)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return drawing


def _upper(pair: Versus, *, few: bool) -> str:
    text = signed(100 * pair.test.difference, ".1f")
    return f"{text}\n{tally(*pair.tally)}\np {p_value(pair.p_holm)}" if few else text


def _field(axes: "Axes", row: int, column: int, shade: float, text: str, *, few: bool, framed: bool) -> None:
    """A field of the matrix; `shade` from -1 (red) to 1 (blue)."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    face = "#F0F0F0" if np.isnan(shade) else colormaps["RdBu"](0.5 + 0.4 * float(np.clip(shade, -1, 1)))
    axes.add_patch(Rectangle((column, row), 1, 1, facecolor=face, edgecolor="white", linewidth=0.4))
    if framed:
        inset = Rectangle((column + 0.06, row + 0.06), 0.88, 0.88, fill=False, edgecolor="black", linewidth=0.7)
        axes.add_patch(inset)
    ink = "white" if abs(shade) > 0.75 else "black"
    size, weight = (6.0 if few else 4.2), ("bold" if framed and few else "normal")
    axes.text(
        column + 0.5, row + 0.5, text, ha="center", va="center", color=ink, fontsize=size, fontweight=weight, linespacing=1.1
    )


def _places(each: Everyone, place: Place, looks: dict[str, dict[str, Any]]) -> Figure:
    """The blob plot."""
    rows = [
        {"aggregator": name, "label": each.labels[name], "place": at + 1, "share": float(share)}
        for name, shares in zip(each.ranked, each.places, strict=True)
        for at, share in enumerate(shares)
    ]
    caption = (
        f"How often each method takes each place by {each.metric.label} when whole patients and trainings are drawn anew, "
        "1,000 times; the area of a circle is proportional to the share. A row of equal circles says nothing of the method's "
        "rank; one large circle, that other patients and trainings would give the same."
    )
    title = f"How stable are the ranks? {each.metric.label}{place.words}"
    return Figure(f"{place.name}-places", title, caption, rows, lambda: _draw_places(written(rows), looks))


def _draw_places(rows: list[dict[str, Any]], looks: dict[str, dict[str, Any]]) -> "Drawing":
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(row["aggregator"] for row in rows))
    labels = {row["aggregator"]: row["label"] for row in rows}
    height = 0.17 if len(names) > 16 else 0.25
    width = min(PAGE, 2.2 + 0.35 * len(names))
    drawing, axes = plt.subplots(figsize=(width, 0.8 + height * len(names)))
    largest = (0.92 * 72 * min(height, (width - 1.8) / len(names))) ** 2  # in square points, of the largest circle
    shown = [row for row in rows if row["share"] >= FAINT]
    most = max(row["share"] for row in shown)
    axes.scatter(
        [row["place"] for row in shown], [names.index(row["aggregator"]) for row in shown],
        s=[largest * row["share"] / most for row in shown], c=[looks[row["aggregator"]]["color"] for row in shown], linewidths=0,
    )  # fmt: skip
    axes.hlines(range(len(names)), 1, len(names), color="#E5E5E5", linewidth=0.5, zorder=0)
    axes.set(xlim=(0.4, len(names) + 0.6), ylim=(len(names) - 0.4, -0.6), xlabel="place")
    axes.set_yticks(range(len(names)), [labels[name] for name in names], fontsize=7 if len(names) <= 16 else 6)
    axes.set_xticks(range(1, len(names) + 1, 1 if len(names) <= 16 else 2))
    axes.tick_params(axis="y", length=0)
    return drawing
