"""Figures of a suite, from its results alone: how methods learn, where they break, what an ablation changes."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from milbench import reading, stats
from milbench.compare import ALPHA, Comparisons
from milbench.compare.trend import BINS, Trend, trend
from milbench.metrics import SELECTS, Column, Metric
from milbench.numbers import p_value, signed, written
from milbench.plots.figure import COLUMN, OTHERS, PAGE, Figure, styles
from milbench.reading import Run, draws
from milbench.trials.plan import Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

Array = NDArray[np.float64]
Numbers = list[dict[str, Any]]  # what a figure plots, and its file holds
Looks = dict[str, dict[str, Any]]  # method -> matplotlib's keywords
LOG_ABOVE = 20  # ratio of the largest to the smallest value of an ablation from which its axis is logarithmic


def suite_figures(
    plan: Plan, runs: Sequence[Run], compared: Comparisons | None = None, *, predictions: bool = True
) -> list[Figure]:
    """What the results of a suite can show.

    An ablation (one method, one parameter swept) gives its curves, a split by size its bars; every column of every suite gives
    performance against the size of the bag (where predictions say how large bags were) and learning curves.

    Args:
        plan: of the suite.
        runs: its trials; of a search, every draw or the chosen ones.
        compared: the methods with the reference, whose intervals stand under the bars; None where there is no comparison.
        predictions: False leaves out what must read the predictions of every trial.
    """
    runs = draws.chosen(runs, SELECTS[plan.definition["task"]])
    done = [run for run in runs if run.status == "ok"]
    columns = list(dict.fromkeys(run.column for run in done))
    figures: list[Figure | None] = []
    for column in columns:
        here = [run for run in done if run.column == column]
        place = Place.of(plan, column, columns)
        figures += [ablation(plan, here, [r for r in runs if r.column == column and r.status != "ok"], place)]
        figures += [against_size(here, place) if predictions else None, learning(here, place)]
    by_size = [run for run in done if run.cell.split.startswith("extrapolation")]
    if by_size:
        figures += [extrapolation(plan, by_size, compared, metric) for metric in reading.metrics(plan)]
    return [figure for figure in figures if figure is not None]


@dataclass(frozen=True)
class Place:
    """A column of a suite, in names and in words; empty words where the suite has only one."""

    name: str
    words: str

    @classmethod
    def of(cls, plan: Plan, column: Column, columns: Sequence[Column]) -> "Place":
        """The column by what tells it from the others."""
        name, heads, units = plan.definition["table"]["name"], plan.heads, {2: "x", 3: " px"}
        different = {at: str(value) for at, value in enumerate(column) if len({other[at] for other in columns}) > 1}
        words = [heads.get(value, f"{value}{units.get(at, '')}") for at, value in different.items()]
        names = [value.removeprefix(f"{name}-") for value in different.values()]
        return cls("-".join([name, *names]), f" ({', '.join(words)})" if words else "")


def _sd(values: Array) -> float | None:
    """Sample standard deviation; None of a single value."""
    return stats.rounded(values.std(ddof=1), step=stats.STEP) if len(values) > 1 else None


def _mean(values: Array) -> float:
    return stats.rounded(values.mean(), step=stats.STEP)


def _methods(runs: Sequence[Run]) -> dict[tuple[str, str], list[Run]]:
    """(aggregator, label) -> its runs, in the order of the table."""
    methods: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        methods[run.cell.aggregator, run.cell.label].append(run)
    return methods


def _of_method(rows: Numbers, method: tuple[str, str]) -> Numbers:
    """The rows of a method as the file holds them."""
    return [row for row in written(rows) if (row["aggregator"], row["label"]) == method]


def _panels(labels: Sequence[str], x: str, y: str) -> tuple["Drawing", list["Axes"]]:
    """One small panel for each label, with common axes."""
    from matplotlib import pyplot as plt

    across = min(4, len(labels))
    down = -(-len(labels) // across)
    size = (PAGE if across > 2 else COLUMN, 0.5 + 1.25 * down)
    drawing, axes = plt.subplots(down, across, figsize=size, sharex=True, sharey=True, squeeze=False)
    every = list(axes.flat)
    for ax, label in zip(every, labels, strict=False):
        ax.set_title(label, fontsize=7)
    for at in range(len(labels), len(every)):
        every[at].set_visible(False)
        every[at - across].tick_params(labelbottom=True)  # the lowest visible panel of its column
    drawing.supxlabel(x, fontsize=8)
    drawing.supylabel(y, fontsize=8)
    return drawing, every[: len(labels)]


def ticks_of_sizes(ax: "Axes", low: float, high: float) -> None:
    """Two to four numbers on a logarithmic axis: round ones, or where there is no place for two of them its ends and middle."""
    from matplotlib.ticker import NullFormatter

    ax.set_xscale("log")
    steps: list[tuple[int, ...]] = [(1, 2, 3, 4, 5, 6, 8), (1, 2, 5), (1, 3), (1,)]
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    options = [[m * 10**k for k in powers for m in step if low <= m * 10**k <= high] for step in steps]
    fewer = options[-1][:: -(-len(options[-1]) // 4) or 1]
    ends = [round(low), round(math.sqrt(low * high)), round(high)]
    ticks = next((some for some in (*options, fewer) if 2 <= len(some) <= 4), ends)
    ax.set_xticks(ticks, [f"{t:,}" if t < 1000 or t % 1000 else f"{t // 1000:,}k" for t in ticks])
    ax.xaxis.set_minor_formatter(NullFormatter())


def against_size(runs: Sequence[Run], place: Place) -> Figure | None:
    """Where each method breaks: the outcome of every test case against the logarithm of its instances, with a line and its band.

    Args:
        runs: finished trials of one column.
        place: the column.
    """
    if any("instances" not in run.predictions for run in runs):
        return None
    survival = "risk" in runs[0].predictions
    what = "share of pairs in the right order" if survival else "share correct"
    looks = styles(run.cell for run in runs)
    fitted = {method: fit for method, of in _methods(runs).items() if (fit := trend(of, place.name)) is not None}
    if not fitted:
        return None
    value = what.replace(" ", "_")
    rows: Numbers = []
    for (name, label), fit in fitted.items():
        method = {"aggregator": name, "label": label, "cases": fit.cases, "patients": fit.patients}
        for kind, points in (("bin", fit.bins), ("line", fit.line)):
            rows += [{**method, "kind": kind, "instances": p.n, value: p.mean, "low": p.low, "high": p.high} for p in points]
        rows.append({**method, "kind": "slope per doubling", value: fit.slope, "low": fit.low, "high": fit.high})
    unit = "pairs of test cases that hold the case" if survival else "the case's test predictions"
    caption = (
        f"Each test case counts with the {what} of {unit}, averaged over seeds, against its number of instances. Points: means "
        f"of {BINS} groups of like size, with their standard error. Line: least squares in the logarithm of the size, with a "
        "95 % band over resampled patients. Number: change per doubling of the bag; an asterisk where its 95 % interval "
        f"excludes 0, not corrected for the number of methods. {_slopes(fitted)} Large and small slides may differ in more "
        "than size, such as class."
    )
    return Figure(
        f"{place.name}-size", f"Performance against the size of the bag{place.words}", caption, rows,
        lambda: _draw_sizes(fitted, looks, rows, what),
    )  # fmt: skip


def _slopes(fitted: dict[tuple[str, str], Trend]) -> str:
    """For whom performance falls and for whom it rises."""
    falls = [label for (_, label), fit in fitted.items() if fit.high < 0]
    rises = [label for (_, label), fit in fitted.items() if fit.low > 0]
    seen = [f"It falls for {', '.join(falls)}." if falls else "", f"It rises for {', '.join(rises)}." if rises else ""]
    return " ".join(filter(None, seen)) or "No slope is told apart from 0."


def _draw_sizes(fitted: dict[tuple[str, str], Trend], looks: Looks, rows: Numbers, what: str) -> "Drawing":
    stars = ["*" if fit.low > 0 or fit.high < 0 else "" for fit in fitted.values()]
    titles = [f"{label}\n{signed(fit.slope)}{star}" for ((_, label), fit), star in zip(fitted.items(), stars, strict=True)]
    drawing, axes = _panels(titles, "instances", what)
    keys = ("instances", what.replace(" ", "_"), "low", "high")
    for ax, method in zip(axes, fitted, strict=True):
        of_method = _of_method(rows, method)
        bins, line = (
            np.array([[row[key] for key in keys] for row in of_method if row["kind"] == kind]) for kind in ("bin", "line")
        )  # (points, 4)
        look = looks[method[0]]
        ax.fill_between(line[:, 0], line[:, 2], line[:, 3], color=look["color"], alpha=0.2, linewidth=0)
        ax.plot(line[:, 0], line[:, 1], color=look["color"])
        ax.errorbar(
            bins[:, 0], bins[:, 1], (bins[:, 1] - bins[:, 2], bins[:, 3] - bins[:, 1]), fmt=look["marker"],
            color=look["color"], markersize=3, elinewidth=0.8,
        )  # fmt: skip
        ax.set_ylim(0, 1.02)
        ticks_of_sizes(ax, min(f.line[0].n for f in fitted.values()), max(f.line[-1].n for f in fitted.values()))
    return drawing


def learning(runs: Sequence[Run], place: Place) -> Figure | None:
    """Training and validation loss by epoch, a panel for each method."""
    methods = {method: of for method, of in _methods(runs).items() if any(run.result["curve"] for run in of)}
    rows = [row for (name, label), of in methods.items() for row in _epochs({"aggregator": name, "label": label}, of)]
    if not rows:
        return None
    caption = (
        "Loss on training (solid) and validation (dashed) by epoch: median over folds and seeds with the quartiles around it, "
        "over the runs that still train. Ticks below: epochs whose model was tested, the higher the more runs. Validation loss "
        "that rises while training loss falls is overfitting; ticks at the right end mean that training was cut short."
    )
    if alone := [label for (name, label) in methods if sum(row["aggregator"] == name for row in rows) == 1]:
        caption += f" Of a single epoch ({', '.join(alone)}) there is a dot, open on validation."
    title, looks = f"Learning curves{place.words}", styles(run.cell for run in runs)
    return Figure(f"{place.name}-learning", title, caption, rows, lambda: _draw_learning(list(methods), looks, rows))


def _epochs(method: dict[str, str], runs: Sequence[Run]) -> Numbers:
    """Of each epoch the quartiles of the losses over the runs that reach it, and how many runs chose it."""
    rows = []
    chosen = Counter(run.result["selected"]["epoch"] for run in runs)
    curves = [run.result["curve"] for run in runs]
    for epoch in range(1, max(map(len, curves)) + 1):
        still = [curve[epoch - 1] for curve in curves if len(curve) >= epoch]
        row: dict[str, Any] = {**method, "epoch": epoch, "runs": len(still)}
        for part in ("train_loss", "val_loss"):
            if values := [r[part] for r in still if r.get(part) is not None]:
                quartiles = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
                row |= dict(zip((f"{part}_low", part, f"{part}_high"), quartiles, strict=True))
        rows.append({**row, "chosen": chosen[epoch]})
    return rows


def _draw_learning(methods: Sequence[tuple[str, str]], looks: Looks, rows: Numbers) -> "Drawing":
    drawing, axes = _panels([label for _, label in methods], "epoch", "loss")
    losses = [row[key] for row in written(rows) for key in ("train_loss", "val_loss") if key in row]
    top = np.nanquantile(losses, 0.99) * 1.15
    for ax, method in zip(axes, methods, strict=True):
        of_method, colour = _of_method(rows, method), looks[method[0]]["color"]
        for part, line, inside in (("train_loss", "-", colour), ("val_loss", "--", "white")):
            shown = [row for row in of_method if part in row]
            epochs = [row["epoch"] for row in shown]
            dot = "o" if len(epochs) == 1 else ""  # a line of one point is not seen
            look = {"color": colour, "linewidth": 1, "markersize": 3, "markerfacecolor": inside}
            ax.plot(epochs, [row[part] for row in shown], line, marker=dot, **look)
            low, high = ([row[f"{part}_{side}"] for row in shown] for side in ("low", "high"))
            ax.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
        most = max(row["chosen"] for row in of_method) or 1
        at = [row for row in of_method if row["chosen"]]
        ax.vlines([r["epoch"] for r in at], 0, [0.12 * top * r["chosen"] / most for r in at], color="black", linewidth=1)
        ax.set_ylim(0, top)
    return drawing


class _Sweep(NamedTuple):
    """The one parameter that the rows of a suite sweep, such as `recipe.lr` or `radius`."""

    key: str

    @classmethod
    def of(cls, listed: Sequence[str]) -> "_Sweep | None":
        """None where rows are several methods, or change several parameters."""
        swept = {key for name in listed for key in _changes(name)}
        if len(listed) < 2 or len(swept) != 1 or len({name.split("[")[0] for name in listed}) > 1:
            return None
        return cls(*swept)

    @property
    def words(self) -> str:
        return self.key.rpartition(".")[2].replace("_", " ")

    def value(self, run: Run) -> Any:
        """Its value in a finished trial."""
        scope, _, name = self.key.rpartition(".")
        return run.result["spec"]["recipe" if scope else "params"][name]


def ablation(plan: Plan, runs: Sequence[Run], others: Sequence[Run], place: Place) -> Figure | None:
    """Metrics against the one parameter that the rows of the suite sweep; None for a suite that sweeps none.

    Args:
        plan: of the suite.
        runs: finished trials of one column.
        others: those without a result.
        place: the column.
    """
    listed = plan.definition["grid"]["aggregator"]
    sweep = _Sweep.of(listed)
    if sweep is None:
        return None
    key, metrics, reference = sweep.key, reading.metrics(plan), plan.definition["table"]["reference"]
    rows: Numbers = []
    for (aggregator, _), of in _methods([run for run in runs if run.cell.aggregator in listed]).items():
        for metric in metrics:
            values = np.array([run.metric(metric.name) for run in of])
            row = {key: sweep.value(of[0]), "metric": metric.name, "mean": _mean(values), "sd": _sd(values), "runs": len(values)}
            rows.append({**row, "reference": aggregator == reference})
    if len({row[key] for row in rows}) < 2:
        return None
    missing = {_changes(run.cell.aggregator).get(key, "default"): run.status for run in others if run.cell.aggregator in listed}
    absent = f" Not shown: {', '.join(f'{value} ({why})' for value, why in missing.items())}." if missing else ""
    caption = (
        f"Mean and sample standard deviation over {max(row['runs'] for row in rows)} runs at each value of {sweep.words}. Dotted "
        f"line and open marker: the default. Does the curve leave the error bars of the default?{absent}"
    )
    title = f"{plan.definition['title']}{place.words}"
    return Figure(f"{place.name}-curve", title, caption, rows, lambda: _draw_sweep(sweep, metrics, rows))


def _draw_sweep(sweep: _Sweep, metrics: Sequence[Metric], rows: Numbers) -> "Drawing":
    from matplotlib import pyplot as plt

    key = sweep.key
    numbers = all(isinstance(row[key], int | float) and not isinstance(row[key], bool) for row in rows)
    values = sorted({row[key] for row in rows}) if numbers else list(dict.fromkeys(row[key] for row in rows))
    at = {value: float(value) if numbers else float(i) for i, value in enumerate(values)}
    drawing, ax = plt.subplots(figsize=(COLUMN, 2.4))
    if numbers and values[0] > 0 and values[-1] / values[0] >= LOG_ABOVE:
        ax.set_xscale("log")
    for metric, colour, marker, line in zip(metrics, ("black", OTHERS, "#0072B2"), "osD", ("-", "--", ":"), strict=False):
        of_metric = sorted((row for row in written(rows) if row["metric"] == metric.name), key=lambda row: at[row[key]])
        where, mean = [at[row[key]] for row in of_metric], [row["mean"] for row in of_metric]
        sd = [row["sd"] or 0.0 for row in of_metric]
        shown = {"color": colour, "marker": marker, "linestyle": line, "label": metric.label}
        ax.errorbar(where, mean, sd, capsize=2, elinewidth=0.8, **shown)  # type: ignore[arg-type]
        for row in (row for row in of_metric if row["reference"]):
            ax.axvline(at[row[key]], color=OTHERS, linewidth=0.8, linestyle=":", zorder=0)
            ax.plot(at[row[key]], row["mean"], marker, color=colour, markerfacecolor="white", markersize=6, zorder=5)
    ax.set_xticks(list(at.values()), [f"{v:g}" if numbers else str(v) for v in values])
    ax.minorticks_off()
    if len(values) > 6:
        ax.tick_params(axis="x", rotation=45)
    ax.set_xlabel(sweep.words)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(metrics))
    return drawing


def _changes(name: str) -> dict[str, str]:
    """`longmil[heads=2]` -> {"heads": "2"}."""
    inside = re.search(r"\[(.*)\]", name)
    return dict(item.partition("=")[::2] for item in inside[1].split(",")) if inside else {}


def extrapolation(plan: Plan, done: Sequence[Run], compared: Comparisons | None, metric: Metric) -> Figure:
    """Bars of a metric on splits by size, the one-way ANOVA over methods, and each method's paired difference to the reference.

    Args:
        plan: of the suite.
        done: finished trials on splits by size.
        compared: the methods with the reference.
        metric: which one.
    """
    intervals = {(c.column, c.aggregator): c for c in compared.about(metric)} if compared else {}
    rows: Numbers = []
    for column in dict.fromkeys(run.column for run in done):
        methods = _methods([run for run in done if run.column == column])
        groups = [np.array([run.metric(metric.name) for run in of]) for of in methods.values()]
        tested = len(groups) > 1 and min(map(len, groups)) > 1 and not np.isnan(np.concatenate(groups)).any()
        anova = stats.anova(groups).p if tested else math.nan
        for (name, label), group in zip(methods, groups, strict=True):
            c = intervals.get((column, name))
            rows.append({
                **column._asdict(), "aggregator": name, "label": label, "metric": metric.name, "mean": _mean(group),
                "sd": _sd(group), "runs": len(group), "difference": c.test.difference if c else None,
                "low": c.test.low if c else None, "high": c.test.high if c else None, "p_holm": c.p_holm if c else None,
                "anova_p": anova,
            })  # fmt: skip
    reference = next((row["label"] for row in rows if row["aggregator"] == plan.definition["table"]["reference"]), None)
    against = (
        f"Below: difference to {reference} on the same slides, with the 95 % interval for other patients and other trainings, "
        f"none where a side was trained once; a filled marker where p < {ALPHA:g} after Holm's correction."
        if reference and intervals
        else "There is no paired comparison."
    )
    caption = (
        f"{metric.label} on slides larger than any that was trained on. Bars: mean over runs with the sample standard "
        "deviation. The ANOVA is the unpaired one over methods, runs being repetitions, as printed in the paper; it does not "
        f"know that methods share slides. {against}"
    )
    name = f"{plan.definition['table']['name']}-{metric.name.replace('_', '-')}-larger-slides"
    title = f"Trained on small slides, tested on large ones: {metric.label}"
    looks = styles(run.cell for run in done)
    return Figure(name, title, caption, rows, lambda: _draw_bars(rows, looks, metric, reference or "the reference"))


def _draw_bars(rows: Numbers, looks: Looks, metric: Metric, reference: str) -> "Drawing":
    from matplotlib import pyplot as plt

    columns = list(dict.fromkeys(_column(row) for row in rows))
    drawing, grid = plt.subplots(
        2, len(columns), figsize=(PAGE if len(columns) > 1 else COLUMN, 3.6), sharey="row", sharex="col", squeeze=False,
        height_ratios=(1.3, 1),
    )  # fmt: skip
    for (top, low), column in zip(grid.T, columns, strict=True):
        here = [row for row in written(rows) if _column(row) == column]
        for x, row in enumerate(here):
            look = looks[row["aggregator"]]
            top.bar(x, row["mean"], 0.7, yerr=row["sd"], color=look["color"], capsize=2, error_kw={"elinewidth": 0.8})
            if row["difference"] is not None:
                fill = look["color"] if row["p_holm"] < ALPHA else "white"
                low.vlines(x, row["low"], row["high"], color=look["color"])
                low.plot(x, row["difference"], color=look["color"], marker=look["marker"], markerfacecolor=fill)
        low.axhline(0, color="black", linewidth=0.6)
        low.set_xticks(range(len(here)), [row["label"] for row in here], rotation=35, ha="right")
        anova = next(row["anova_p"] for row in rows if _column(row) == column)
        p = "two runs of each needed" if math.isnan(anova) else f"p = {p_value(anova, digits=2)}"
        top.set_title(f"{column.split}\nANOVA (unpaired): {p}")
    grid[0, 0].set_ylabel(metric.label)
    grid[1, 0].set_ylabel(f"difference to\n{reference}")
    return drawing


def _column(row: dict[str, Any]) -> Column:
    return Column(*(row[name] for name in Column._fields))
