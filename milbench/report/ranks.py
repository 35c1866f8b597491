"""Methods ranked over blocks (a block is a dataset, an encoder and a magnification): the table and the diagram."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from milbench import stats
from milbench.report.collect import Run
from milbench.report.figure import PAGE, Figure, styles
from milbench.report.numbers import NONE, interval, number, p_value, signed, tally, written
from milbench.report.tables import ALPHA, METRICS, Entry, Row, Table
from milbench.stats import Ranking
from milbench.stats.over_blocks import FEWEST

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


def ranks(name: str, runs: Sequence[Run], metric: str, reference: str) -> Table | None:
    """Friedman, Nemenyi and pairwise Wilcoxon tests over blocks; None where there are fewer than 5 blocks or 3 methods.

    Args:
        name: of the table, without "-ranks".
        runs: of one plan, or of several: a block is a dataset, an encoder and a magnification.
        metric: which one.
        reference: the method that the lines compare with; all other pairs are in the CSV.
    """
    made = _ranking(runs, metric)
    if made is None:
        return None
    found, labels, told = made
    cd, with_reference = found.critical_difference, {}
    for pair in found.pairs:
        if reference in (pair.first, pair.second):
            other = pair.second if pair.first == reference else pair.first
            won = (pair.losses, pair.ties, pair.wins) if pair.first == reference else (pair.wins, pair.ties, pair.losses)
            with_reference[other] = (won, pair)
    lines = []
    for method, rank in found.mean_rank.items():
        entries = [Entry(number(rank, ".2f"))]
        if method not in with_reference:
            lines.append(Row(labels[method], [*entries, *[Entry(NONE)] * 7]))
            continue
        won, pair = with_reference[method]
        difference = rank - found.mean_rank[reference]
        lines.append(Row(labels[method], [
            *entries, Entry(signed(difference, ".2f")), Entry(interval(difference - cd, difference + cd, "+.2f")),
            Entry(tally(*won)),
            Entry(p_value(pair.nemenyi), dagger=pair.nemenyi < ALPHA), Entry(number(pair.wilcoxon.smallest, ".3g")),
            Entry(number(pair.wilcoxon.p, ".3g")), Entry(p_value(pair.p_holm), dagger=pair.p_holm < ALPHA),
        ]))  # fmt: skip
    tidy = [
        {
            "metric": metric, "first": pair.first, "second": pair.second, "mean_rank_first": found.mean_rank[pair.first],
            "mean_rank_second": found.mean_rank[pair.second], "rank_difference": pair.rank_difference, "critical_difference": cd,
            "median_difference": pair.wilcoxon.effect, "wins": pair.wins, "ties": pair.ties, "losses": pair.losses,
            "blocks": found.friedman.n, "p_nemenyi": pair.nemenyi, "smallest_p_wilcoxon": pair.wilcoxon.smallest,
            "p_wilcoxon": pair.wilcoxon.p, "p_wilcoxon_holm": pair.p_holm,
        }
        for pair in found.pairs
    ]  # fmt: skip
    f = found.friedman
    notes = [
        f"Friedman: Kendall's W = {number(f.effect, '.2f')}, p {_equals(f.p)} over {f.n} blocks and {len(labels)} methods; "
        f"{f.note}.",
        f"Nemenyi: mean ranks closer than {cd:.2f} do not differ at {ALPHA:g}; p and interval account for all pairs.",
        f"Wilcoxon: exact, with Holm's correction over all {len(found.pairs)} pairs. No p-value can be below the smallest one "
        "that so many blocks allow.",
        *told,
    ]
    head = labels.get(reference, reference)
    against = f"against {head}" if reference in labels else f"{head} is not in every block"
    heads = ("difference", "95 % interval", "W/T/L", "p (Nemenyi)", "smallest p", "p (Wilcoxon)", "p (Holm)")
    headers = [("", "mean rank"), *((against, label) for label in heads)]
    title = f"Ranks over {f.n} blocks: {METRICS[metric][0]}"
    return Table(f"{name}-ranks-{metric.replace('_', '-')}", title, headers, lines, notes, tidy)


def critical_difference(name: str, runs: Sequence[Run], metric: str) -> Figure | None:
    """The critical-difference diagram; None where there are fewer than 5 blocks or 3 methods.

    Source: Demsar, Statistical comparisons of classifiers over multiple data sets, JMLR 2006, figure 1.
    """
    made = _ranking(runs, metric)
    if made is None:
        return None
    found, labels, told = made

    def draw() -> "Drawing":
        drawn = written(rows)
        mean_rank = {row["aggregator"]: row["mean_rank"] for row in drawn}
        return _diagram(found, labels, styles(run.cell for run in runs), mean_rank, drawn[0]["critical_difference"])

    rows = [
        {"aggregator": method, "label": labels[method], "mean_rank": rank, "critical_difference": found.critical_difference}
        for method, rank in found.mean_rank.items()
    ]
    caption = (
        f"Mean rank of each method by {METRICS[metric][0]} over {found.friedman.n} blocks (1 is best). Methods joined by a bar "
        f"do not differ by Nemenyi's test at {ALPHA:g}; CD is the difference it needs. Friedman: Kendall's W = "
        f"{number(found.friedman.effect, '.2f')}, p {_equals(found.friedman.p)}. {' '.join(told)}"
    )
    title = f"Critical differences: {METRICS[metric][0]}"
    return Figure(f"{name}-critical-difference-{metric.replace('_', '-')}", title, caption, rows, draw)


def _diagram(
    found: Ranking, labels: dict[str, str], looks: dict[str, dict[str, Any]], mean_rank: dict[str, float], distance: float
) -> "Drawing":
    import pandas as pd
    from matplotlib import pyplot as plt
    from scikit_posthocs import critical_difference_diagram

    count = Counter(labels.values())
    shown = {m: labels[m] if count[labels[m]] == 1 else f"{labels[m]} ({m})" for m in found.mean_rank}
    chance = pd.DataFrame(1.0, list(shown.values()), list(shown.values()))
    for pair in found.pairs:
        a, b = shown[pair.first], shown[pair.second]
        chance.loc[a, b] = chance.loc[b, a] = pair.nemenyi
    drawing, axes = plt.subplots(figsize=(PAGE, 0.9 + 0.16 * len(shown)))
    drawn = critical_difference_diagram(
        {shown[m]: rank for m, rank in mean_rank.items()}, chance, alpha=found.alpha, ax=axes,
        color_palette={shown[m]: looks[m]["color"] for m in shown}, text_h_margin=0.2,
        label_fmt_left="{label} ({rank:.2f}) ", label_fmt_right=" ({rank:.2f}) {label}",
        marker_props={"s": 16}, label_props={"fontsize": 7, "parse_math": False}, elbow_props={"linewidth": 0.9},
        crossbar_props={"linewidth": 2.2, "color": "#444444"},
    )  # fmt: skip
    for bar in (line for lines in drawn["crossbars"] for line in lines):
        bar.set_xdata(sorted(bar.get_xdata()))  # they come in the order of a set, which differs from run to run
    for text in drawn["labels"]:
        text.set_color("black")  # the method's colour is on its line; light ones are hard to read as text
    axes.spines["top"].set_visible(True)
    axes.set_xticks(range(1, len(shown) + 1))
    end = 1 + distance
    axes.set_xlim(1, max(len(shown), end))
    axes.plot([1, end], [1.1, 1.1], color="black", linewidth=2.2, clip_on=False)
    axes.text((1 + end) / 2, 1.3, f"CD = {number(found.critical_difference, '.2f')}", ha="center", va="bottom", fontsize=7)
    return drawing


def _ranking(runs: Sequence[Run], metric: str) -> tuple[Ranking, dict[str, str], list[str]] | None:
    """The ranking, the label of each ranked method, and what must be told: which blocks, what they share, who is left out."""
    blocks: dict[tuple, dict[tuple, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        blocks[run.cell.column[:3]][run.cell.column].append(run)
    means = {}
    for block, columns in blocks.items():
        # A block with several patch sizes or splits counts once, with the one that most methods finished, of equals the first.
        best = max((_complete(of_column, metric) for of_column in columns.values()), key=len)
        if len(best) > 2:
            means[block] = best
    everywhere = [m for m in dict.fromkeys(run.cell.aggregator for run in runs) if means and all(m in x for x in means.values())]
    if len(means) < FEWEST or len(everywhere) < 3:
        return None
    values = [[x[method] for method in everywhere] for x in means.values()]
    found = stats.ranking(everywhere, values, larger_is_better=METRICS[metric][2] > 0, alpha=ALPHA)
    cells = {run.cell.aggregator: run.cell for run in reversed(runs)}
    datasets = {run.cell.dataset: run.cell.dataset_label for run in runs}
    named = [", ".join([datasets[str(d)], str(e), *([f"{m}x"] if m else [])]) for d, e, m in means]
    slides = len({block[0] for block in means})
    told = [f"Blocks: {'; '.join(named)}."]
    if slides < len(means):
        told.append(
            f"They rest on the slides of {slides} dataset{'s' * (slides > 1)} only, so they are NOT independent: as statements "
            "on other datasets these p-values are too small."
        )
    if out := [cells[m].label for m in cells if m not in everywhere]:
        told.append(f"Left out, since not complete in every block: {', '.join(sorted(set(out)))}.")
    return found, {method: cells[method].label for method in everywhere}, told


def _complete(runs: Sequence[Run], metric: str) -> dict[str, float]:
    """Mean of each method that has all folds and seeds of this column."""
    expected = {(run.cell.fold, run.cell.seed) for run in runs}
    values: dict[str, dict[tuple[int, int], float]] = defaultdict(dict)
    for run in runs:
        if run.status == "ok":
            values[run.cell.aggregator][run.cell.fold, run.cell.seed] = run.metric(metric)
    means = {method: float(np.mean(list(of.values()))) for method, of in values.items() if of.keys() == expected}
    return {method: stats.rounded(mean, step=stats.STEP) for method, mean in means.items() if not math.isnan(mean)}


def _equals(p: float) -> str:
    return p_value(p) if p < 0.001 else f"= {p_value(p)}"
