"""Figures of a suite, from its results alone: how methods learn, where they break, what an ablation changes."""

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from milbench import stats
from milbench.report.collect import Run
from milbench.report.figure import COLUMN, OTHERS, PAGE, Figure, styles
from milbench.report.numbers import number, signed, written
from milbench.report.tables import ALPHA, METRICS, Table
from milbench.stats.metrics import concordance_by_case
from milbench.trials import plan as plans
from milbench.trials.plan import Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

Array = NDArray[np.float64]
SELECTS = {"subtyping": "macro_auc", "survival": "c_index"}  # the metric that chooses among the draws of a search
RESAMPLES = 1000
FEWEST = 8  # cases below which no trend is fitted
BINS = 5  # groups of equally many cases along the size of the bag
LOG_ABOVE = 20  # ratio of the largest to the smallest value of an ablation from which its axis is logarithmic


def suite_figures(plan: Plan, runs: Sequence[Run], paired: Table | None = None, *, predictions: bool = True) -> list[Figure]:
    """What the results of a suite can show.

    An ablation (one method, one parameter swept) gives its curves, a split by size its bars; every column of every suite gives
    performance against the size of the bag (where predictions say how large bags were) and learning curves.

    Args:
        plan: of the suite.
        runs: its trials; of a search, every draw or the chosen ones.
        paired: the comparison with its reference, whose intervals stand under the bars; None where there is none.
        predictions: False leaves out what must read the predictions of every trial.
    """
    runs = plans.select_draws(runs, SELECTS[plan.definition["task"]])
    done = [run for run in runs if run.status == "ok"]
    columns = list(dict.fromkeys(run.cell.column for run in done))
    figures = []
    for column in columns:
        here = [run for run in done if run.cell.column == column]
        place = _Place.of(plan, column, columns)
        figures += [ablation(plan, here, [r for r in runs if r.cell.column == column and r.status != "ok"], place)]
        figures += [against_size(here, place) if predictions else None, learning(here, place)]
    by_size = [run for run in done if run.cell.split.startswith("extrapolation")]
    if by_size:
        figures += [extrapolation(plan, by_size, paired, metric) for metric in plan.definition["table"]["metrics"]]
    return [figure for figure in figures if figure is not None]


@dataclass(frozen=True)
class _Place:
    """A column of a suite, in names and in words; empty words where the suite has only one."""

    name: str
    words: str

    @classmethod
    def of(cls, plan: Plan, column: tuple[object, ...], columns: Sequence[tuple[object, ...]]) -> "_Place":
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
    found: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        found[run.cell.aggregator, run.cell.label].append(run)
    return found


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


def _ticks_of_sizes(ax: "Axes", low: float, high: float) -> None:
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


def against_size(runs: Sequence[Run], place: _Place) -> Figure | None:
    """Where each method breaks: the outcome of every test case against the logarithm of its instances, with a line and its band.

    Args:
        runs: finished trials of one column.
    """
    if any("instances" not in run.predictions for run in runs):
        return None
    survival = "risk" in runs[0].predictions
    what = "share of pairs in the right order" if survival else "share correct"
    looks = styles(run.cell for run in runs)
    fitted = {method: fit for method, own in _methods(runs).items() if (fit := Trend.fit(own, place.name)) is not None}
    if not fitted:
        return None
    value = what.replace(" ", "_")
    rows: list[dict[str, Any]] = []
    for (name, label), fit in fitted.items():
        method = {"aggregator": name, "label": label, "cases": fit.cases}
        for kind, points in (("bin", fit.bins), ("line", fit.line)):
            rows += [{**method, "kind": kind, "instances": p.n, value: p.mean, "low": p.low, "high": p.high} for p in points]
        rows.append({**method, "kind": "slope per doubling", value: fit.slope, "low": fit.low, "high": fit.high})
    falls = [label for (_, label), fit in fitted.items() if fit.high < 0]
    rises = [label for (_, label), fit in fitted.items() if fit.low > 0]
    seen = [f"It falls for {', '.join(falls)}." if falls else "", f"It rises for {', '.join(rises)}." if rises else ""]
    unit = "pairs of test cases that hold the case" if survival else "the case's test predictions"
    caption = (
        f"Each test case counts with the {what} of {unit}, averaged over seeds, against its number of instances. Points: means "
        f"of {BINS} groups of like size, with their standard error. Line: least squares in the logarithm of the size, with a "
        "95 % band over resampled cases. Number: change per doubling of the bag; an asterisk where its 95 % interval excludes 0, "
        f"not corrected for the number of methods. {' '.join(filter(None, seen)) or 'No slope is told apart from 0.'} Large and "
        "small slides may differ in more than size, such as class."
    )

    def draw() -> "Drawing":
        stars = ["*" if fit.low > 0 or fit.high < 0 else "" for fit in fitted.values()]
        titles = [f"{label}\n{signed(fit.slope)}{star}" for ((_, label), fit), star in zip(fitted.items(), stars, strict=True)]
        drawing, axes = _panels(titles, "instances", what)
        for ax, (name, label) in zip(axes, fitted, strict=True):
            own = [row for row in written(rows) if (row["aggregator"], row["label"]) == (name, label)]
            bins, line = (
                np.array([[row[key] for key in ("instances", value, "low", "high")] for row in own if row["kind"] == kind])
                for kind in ("bin", "line")
            )  # (points, 4)
            look = looks[name]
            ax.fill_between(line[:, 0], line[:, 2], line[:, 3], color=look["color"], alpha=0.2, linewidth=0)
            ax.plot(line[:, 0], line[:, 1], color=look["color"])
            ax.errorbar(
                bins[:, 0], bins[:, 1], (bins[:, 1] - bins[:, 2], bins[:, 3] - bins[:, 1]), fmt=look["marker"],
                color=look["color"], markersize=3, elinewidth=0.8,
            )  # fmt: skip
            ax.set_ylim(0, 1.02)
            _ticks_of_sizes(ax, min(f.line[0].n for f in fitted.values()), max(f.line[-1].n for f in fitted.values()))
        return drawing

    return Figure(f"{place.name}-size", f"Performance against the size of the bag{place.words}", caption, rows, draw)


class Point(NamedTuple):
    """Of a trend: at n instances, the mean and the ends of its error bar or band."""

    n: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Trend(stats.Rounded):
    """Outcome against log2 of the instances.

    Args:
        slope, low, high: change per doubling, with its 95 % interval.
        bins: groups of cases of like size, with the standard error of their mean.
        line: the fit, with its 95 % band.
        cases: how many.
    """

    slope: float
    low: float
    high: float
    bins: list[Point]
    line: list[Point]
    cases: int

    @classmethod
    def fit(cls, runs: Sequence[Run], seed: str) -> "Trend | None":
        """Of one method's runs; None for too few cases, or cases of one size."""
        outcomes, sizes = defaultdict(list), {}
        for run in runs:
            p = run.predictions
            right = concordance_by_case(p["time"], p["event"], p["risk"]) if "risk" in p else _right(p["score"], p["target"])
            for slide, n, value in zip(p["slide"], p["instances"], right, strict=True):
                if not np.isnan(value):
                    outcomes[slide].append(float(value))
                    sizes[slide] = float(n)
        x = np.log2([sizes[slide] for slide in outcomes])  # (cases,)
        y = np.array([np.mean(values) for values in outcomes.values()])
        if len(x) < FEWEST or np.ptp(x) == 0:
            return None
        at = np.linspace(x.min(), x.max(), 21)
        slope, line = _lines(x, y, np.ones((1, len(x))), at)
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8]))
        slopes, lines = _lines(x, y, rng.multinomial(len(x), np.full(len(x), 1 / len(x)), size=RESAMPLES).astype(float), at)
        low, high = np.nanquantile(slopes, [0.025, 0.975])
        bands = np.nanquantile(lines, [0.025, 0.975], axis=0)  # (2, points)
        bins = []
        for part in np.array_split(x.argsort(kind="stable"), min(BINS, len(x) // 4)):
            mean, error = y[part].mean(), y[part].std(ddof=1) / math.sqrt(len(part))
            bins.append(_point(2 ** x[part].mean(), mean, mean - error, mean + error))
        points = [_point(2**a, *values) for a, *values in zip(at, line[0], *bands, strict=True)]
        return cls(float(slope[0]), float(low), float(high), bins, points, len(x))


def _point(n: float, *values: float) -> Point:
    return Point(stats.rounded(n), *(stats.rounded(value, step=stats.STEP) for value in values))


def _right(score: Array, target: NDArray[np.int64]) -> Array:
    """Whether each case is predicted right (n,); NaN where its scores are missing."""
    return np.where(np.isnan(score).any(1), np.nan, score.argmax(1) == target)


def _lines(x: Array, y: Array, counts: Array, at: Array) -> tuple[Array, Array]:
    """Least-squares slopes (B,), and the lines' values (B, points), with each case counted counts (B, n) times."""
    total = counts.sum(1)
    mean_x, mean_y = counts @ x / total, counts @ y / total
    away = x - mean_x[:, None]  # (B, n)
    with np.errstate(invalid="ignore"):
        slope = (counts * away * (y - mean_y[:, None])).sum(1) / (counts * away**2).sum(1)
    return slope, mean_y[:, None] + slope[:, None] * (at - mean_x[:, None])


def learning(runs: Sequence[Run], place: _Place) -> Figure | None:
    """Training and validation loss by epoch, a panel for each method."""
    looks = styles(run.cell for run in runs)
    methods = {method: own for method, own in _methods(runs).items() if any(run.result["curve"] for run in own)}
    rows: list[dict[str, Any]] = []
    for (name, label), own in methods.items():
        chosen = [run.result["selected"]["epoch"] for run in own]
        for epoch in range(1, max(len(run.result["curve"]) for run in own) + 1):
            still = [run.result["curve"][epoch - 1] for run in own if len(run.result["curve"]) >= epoch]
            row: dict[str, Any] = {"aggregator": name, "label": label, "epoch": epoch, "runs": len(still)}
            for part in ("train_loss", "val_loss"):
                if values := [r[part] for r in still if r.get(part) is not None]:
                    quartiles = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
                    row |= dict(zip((f"{part}_low", part, f"{part}_high"), quartiles, strict=True))
            rows.append({**row, "chosen": chosen.count(epoch)})
    if not rows:
        return None
    caption = (
        "Loss on training (solid) and validation (dashed) by epoch: median over folds and seeds with the quartiles around it, "
        "over the runs that still train. Ticks below: epochs whose model was tested, the higher the more runs. Validation loss "
        "that rises while training loss falls is overfitting; ticks at the right end mean that training was cut short."
    )

    def draw() -> "Drawing":
        drawing, axes = _panels([label for _, label in methods], "epoch", "loss")
        drawn = written(rows)
        top = np.nanquantile([row[key] for row in drawn for key in ("train_loss", "val_loss") if key in row], 0.99) * 1.15
        for ax, (name, label) in zip(axes, methods, strict=True):
            own = [row for row in drawn if (row["aggregator"], row["label"]) == (name, label)]
            colour = looks[name]["color"]
            for part, line in (("train_loss", "-"), ("val_loss", "--")):
                shown = [row for row in own if part in row]
                epochs = [row["epoch"] for row in shown]
                ax.plot(epochs, [row[part] for row in shown], line, color=colour, linewidth=1)
                low, high = ([row[f"{part}_{side}"] for row in shown] for side in ("low", "high"))
                ax.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
            most = max(row["chosen"] for row in own) or 1
            at = [row for row in own if row["chosen"]]
            ax.vlines([r["epoch"] for r in at], 0, [0.12 * top * r["chosen"] / most for r in at], color="black", linewidth=1)
            ax.set_ylim(0, top)
        return drawing

    return Figure(f"{place.name}-learning", f"Learning curves{place.words}", caption, rows, draw)


def ablation(plan: Plan, runs: Sequence[Run], others: Sequence[Run], place: _Place) -> Figure | None:
    """Metrics against the one parameter that the rows of the suite sweep; None for a suite that sweeps none.

    Args:
        runs: finished trials of one column.
        others: those without a result.
    """
    listed = plan.definition["grid"]["aggregator"]
    swept = {key for name in listed for key in _changes(name)}
    if len(listed) < 2 or len(swept) != 1 or len({name.split("[")[0] for name in listed}) > 1:
        return None
    (key,) = swept
    scope, _, name = key.rpartition(".")
    metrics, reference = plan.definition["table"]["metrics"], plan.definition["table"]["reference"]
    rows = []
    for (aggregator, _), own in _methods([run for run in runs if run.cell.aggregator in listed]).items():
        value = own[0].result["spec"]["recipe" if scope else "params"][name]
        for metric in metrics:
            found = np.array([run.metric(metric) for run in own])
            row = {key: value, "metric": metric, "mean": _mean(found), "sd": _sd(found), "runs": len(found)}
            rows.append({**row, "reference": aggregator == reference})
    if len({row[key] for row in rows}) < 2:
        return None
    numbers = all(isinstance(row[key], int | float) and not isinstance(row[key], bool) for row in rows)
    values = sorted({row[key] for row in rows}) if numbers else list(dict.fromkeys(row[key] for row in rows))
    missing = {_changes(run.cell.aggregator).get(key, "default"): run.status for run in others if run.cell.aggregator in listed}
    absent = f" Not shown: {', '.join(f'{value} ({why})' for value, why in missing.items())}." if missing else ""
    words = name.replace("_", " ")
    caption = (
        f"Mean and sample standard deviation over {max(row['runs'] for row in rows)} runs at each value of {words}. Dotted line "
        f"and open marker: the default. Does the curve leave the error bars of the default?{absent}"
    )

    def draw() -> "Drawing":
        from matplotlib import pyplot as plt

        drawing, ax = plt.subplots(figsize=(COLUMN, 2.4))
        at = {value: float(value) if numbers else float(i) for i, value in enumerate(values)}
        if numbers and values[0] > 0 and values[-1] / values[0] >= LOG_ABOVE:
            ax.set_xscale("log")
        for metric, colour, marker, line in zip(metrics, ("black", OTHERS, "#0072B2"), "osD", ("-", "--", ":"), strict=False):
            own = sorted((row for row in written(rows) if row["metric"] == metric), key=lambda row: at[row[key]])
            where, mean, sd = ([at[row[key]] for row in own], [row["mean"] for row in own], [row["sd"] or 0.0 for row in own])
            shown = {"color": colour, "marker": marker, "linestyle": line, "label": METRICS[metric][0]}
            ax.errorbar(where, mean, sd, capsize=2, elinewidth=0.8, **shown)  # type: ignore[arg-type]
            for row in own:
                if row["reference"]:
                    ax.axvline(at[row[key]], color=OTHERS, linewidth=0.8, linestyle=":", zorder=0)
                    ax.plot(at[row[key]], row["mean"], marker, color=colour, markerfacecolor="white", markersize=6, zorder=5)
        ax.set_xticks(list(at.values()), [f"{v:g}" if numbers else str(v) for v in values])
        ax.minorticks_off()
        if len(values) > 6:
            ax.tick_params(axis="x", rotation=45)
        ax.set_xlabel(words)
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(metrics))
        return drawing

    return Figure(f"{place.name}-curve", f"{plan.definition['title']}{place.words}", caption, rows, draw)


def _changes(name: str) -> dict[str, str]:
    """`longmil[heads=2]` -> {"heads": "2"}."""
    inside = re.search(r"\[(.*)\]", name)
    return dict(item.partition("=")[::2] for item in inside[1].split(",")) if inside else {}


def extrapolation(plan: Plan, done: Sequence[Run], paired: Table | None, metric: str) -> Figure:
    """Bars of a metric on splits by size, the one-way ANOVA over methods, and each method's paired difference to the reference.

    Args:
        done: finished trials on splits by size.
        paired: the comparison with the reference.
    """
    columns, looks = list(dict.fromkeys(run.cell.column for run in done)), styles(run.cell for run in done)
    axes = ("dataset", "encoder", "magnification", "patch_size", "split")
    paired_rows = [row for row in paired.tidy if row["metric"] == metric] if paired else []
    compared = {(*(row[axis] for axis in axes), row["aggregator"]): row for row in paired_rows}
    anova: dict[tuple[object, ...], float] = {}
    rows: list[dict[str, Any]] = []
    for column in columns:
        methods = _methods([run for run in done if run.cell.column == column])
        groups = [np.array([run.metric(metric) for run in own]) for own in methods.values()]
        tested = len(groups) > 1 and min(map(len, groups)) > 1 and not np.isnan(np.concatenate(groups)).any()
        anova[column] = stats.anova(groups).p if tested else math.nan
        for (name, label), group in zip(methods, groups, strict=True):
            found = compared.get((*column, name), {})
            rows.append({
                **dict(zip(axes, column, strict=True)), "aggregator": name, "label": label, "metric": metric,
                "mean": _mean(group), "sd": _sd(group), "runs": len(group),
                "difference": found.get("difference"), "low": found.get("low"), "high": found.get("high"),
                "p_holm": found.get("p_holm"), "anova_p": anova[column],
            })  # fmt: skip
    reference = next((row["label"] for row in rows if row["aggregator"] == plan.definition["table"]["reference"]), None)
    against = (
        f"Below: difference to {reference} on the same slides and seeds, with the 95 % interval of the paired bootstrap over "
        f"test slides; a filled marker where p < {ALPHA:g} after Holm's correction."
        if reference and compared
        else "There is no paired comparison."
    )
    caption = (
        f"{METRICS[metric][0]} on slides larger than any that was trained on. Bars: mean over runs with the sample standard "
        "deviation. The ANOVA is the unpaired one over methods, runs being repetitions, as printed in the paper; it does not "
        f"know that methods share slides and seeds. {against}"
    )

    def draw() -> "Drawing":
        from matplotlib import pyplot as plt

        drawing, grid = plt.subplots(
            2, len(columns), figsize=(PAGE if len(columns) > 1 else COLUMN, 3.6), sharey="row", sharex="col", squeeze=False,
            height_ratios=(1.3, 1),
        )  # fmt: skip
        for (top, low), column in zip(grid.T, columns, strict=True):
            own = [row for row in written(rows) if tuple(row[axis] for axis in axes) == column]
            for x, row in enumerate(own):
                look = looks[row["aggregator"]]
                top.bar(x, row["mean"], 0.7, yerr=row["sd"], color=look["color"], capsize=2, error_kw={"elinewidth": 0.8})
                if row["difference"] is not None:
                    fill = look["color"] if row["p_holm"] < ALPHA else "white"
                    low.vlines(
                        x, row["low"], row["high"], color=look["color"]
                    )  # a percentile interval need not hold the estimate
                    low.plot(x, row["difference"], color=look["color"], marker=look["marker"], markerfacecolor=fill)
            low.axhline(0, color="black", linewidth=0.6)
            low.set_xticks(range(len(own)), [row["label"] for row in own], rotation=35, ha="right")
            p = "two runs of each needed" if math.isnan(anova[column]) else f"p = {number(anova[column], '.2g')}"
            top.set_title(f"{column[-1]}\nANOVA (unpaired): {p}")
        grid[0, 0].set_ylabel(METRICS[metric][0])
        grid[1, 0].set_ylabel(f"difference to\n{reference or 'the reference'}")
        return drawing

    name = f"{plan.definition['table']['name']}-{metric.replace('_', '-')}-larger-slides"
    return Figure(name, f"Trained on small slides, tested on large ones: {METRICS[metric][0]}", caption, rows, draw)
