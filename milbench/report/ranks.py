"""Methods ranked over blocks (a block is a dataset, an encoder and a magnification): the table and the diagram."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from milbench.compare import ALPHA, blocks
from milbench.compare.blocks import Ranks
from milbench.metrics import Metric
from milbench.numbers import NONE, interval, number, p_equals, p_value, signed, tally, written
from milbench.plots.figure import PAGE, Figure, styles
from milbench.reading import Run
from milbench.report.model import Entry, Row, Table
from milbench.stats import Pair, Ranking

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


def ranks(name: str, runs: Sequence[Run], metric: Metric, reference: str) -> Table | None:
    """Friedman, Nemenyi and pairwise Wilcoxon tests over blocks; None where there are fewer than 5 blocks or 3 methods.

    Args:
        name: of the table, without "-ranks".
        runs: of one plan, or of several: a block is a dataset, an encoder and a magnification.
        metric: which one.
        reference: the method that the lines compare with; all other pairs are in the CSV.
    """
    ranked = blocks.ranks(runs, metric)
    if ranked is None:
        return None
    ranking, labels = ranked.ranking, ranked.labels
    f, cd = ranking.friedman, ranking.critical_difference
    notes = [
        f"Friedman: Kendall's W = {number(f.effect, '.2f')}, p {p_equals(f.p)} over {f.n} blocks and {len(labels)} methods; "
        f"{f.note}.",
        f"Nemenyi: mean ranks closer than {cd:.2f} do not differ at {ALPHA:g}; p and interval account for all pairs.",
        f"Wilcoxon: exact, with Holm's correction over all {len(ranking.pairs)} pairs. No p-value can be below the smallest one "
        "that so many blocks allow.",
        *_about_blocks(ranked),
    ]
    head = labels.get(reference, reference)
    against = f"against {head}" if reference in labels else f"{head} is not in every block"
    heads = ("difference", "95 % interval", "W/T/L", "p (Nemenyi)", "smallest p", "p (Wilcoxon)", "p (Holm)")
    headers = [("", "mean rank"), *((against, label) for label in heads)]
    title = f"Ranks over {f.n} blocks: {metric.label}"
    return Table(f"{name}-ranks-{metric.name.replace('_', '-')}", title, headers, _lines(ranked, reference), notes, _tidy(ranked))


def _lines(ranked: Ranks, reference: str) -> list[Row]:
    """Every method, best first, with its difference to the reference."""
    ranking = ranked.ranking
    with_reference = {
        pair.second if pair.first == reference else pair.first: pair
        for pair in ranking.pairs
        if reference in (pair.first, pair.second)
    }
    lines = []
    for method, rank in ranking.mean_rank.items():
        entries = [Entry(number(rank, ".2f"))]
        if pair := with_reference.get(method):
            entries += _against(
                pair, rank - ranking.mean_rank[reference], ranking.critical_difference, first=method == pair.first
            )
        else:
            entries += [Entry(NONE)] * 7
        lines.append(Row(ranked.labels[method], entries))
    return lines


def _against(pair: Pair, difference: float, cd: float, *, first: bool) -> list[Entry]:
    """A method against the reference; `first` says that it is the better one of the pair."""
    wins, losses = (pair.wins, pair.losses) if first else (pair.losses, pair.wins)
    return [
        Entry(signed(difference, ".2f")),
        Entry(interval(difference - cd, difference + cd, "+.2f")),
        Entry(tally(wins, pair.ties, losses)),
        Entry(p_value(pair.nemenyi), dagger=pair.nemenyi < ALPHA),
        Entry(p_value(pair.wilcoxon.smallest, digits=3)),
        Entry(p_value(pair.wilcoxon.p, digits=3)),
        Entry(p_value(pair.p_holm), dagger=pair.p_holm < ALPHA),
    ]


def _tidy(ranked: Ranks) -> list[dict[str, Any]]:
    """Every pair of methods."""
    ranking = ranked.ranking
    return [
        {
            "metric": ranked.metric.name, "first": pair.first, "second": pair.second,
            "mean_rank_first": ranking.mean_rank[pair.first], "mean_rank_second": ranking.mean_rank[pair.second],
            "rank_difference": pair.rank_difference, "critical_difference": ranking.critical_difference,
            "median_difference": pair.wilcoxon.effect, "wins": pair.wins, "ties": pair.ties, "losses": pair.losses,
            "blocks": ranking.friedman.n, "p_nemenyi": pair.nemenyi, "smallest_p_wilcoxon": pair.wilcoxon.smallest,
            "p_wilcoxon": pair.wilcoxon.p, "p_wilcoxon_holm": pair.p_holm,
        }
        for pair in ranking.pairs
    ]  # fmt: skip


def _about_blocks(ranked: Ranks) -> list[str]:
    """Which blocks there are, what they share, and which methods are left out."""
    notes = [f"Blocks: {'; '.join(ranked.blocks)}."]
    if ranked.datasets < len(ranked.blocks):
        notes.append(
            f"They rest on the slides of {ranked.datasets} dataset{'s' * (ranked.datasets > 1)} only, so they are NOT "
            "independent: as statements on other datasets these p-values are too small."
        )
    if ranked.left_out:
        notes.append(f"Left out, since not complete in every block: {', '.join(ranked.left_out)}.")
    return notes


def critical_difference(name: str, runs: Sequence[Run], metric: Metric) -> Figure | None:
    """The critical-difference diagram; None where there are fewer than 5 blocks or 3 methods.

    Source: Demsar, Statistical comparisons of classifiers over multiple data sets, JMLR 2006, figure 1.
    """
    ranked = blocks.ranks(runs, metric)
    if ranked is None:
        return None
    ranking, labels, looks = ranked.ranking, ranked.labels, styles(run.cell for run in runs)

    def draw() -> "Drawing":
        drawn = written(rows)
        mean_rank = {row["aggregator"]: row["mean_rank"] for row in drawn}
        return _diagram(ranking, labels, looks, mean_rank, drawn[0]["critical_difference"])

    rows = [
        {"aggregator": method, "label": labels[method], "mean_rank": rank, "critical_difference": ranking.critical_difference}
        for method, rank in ranking.mean_rank.items()
    ]
    caption = (
        f"Mean rank of each method by {metric.label} over {ranking.friedman.n} blocks (1 is best). Methods joined by a bar "
        f"do not differ by Nemenyi's test at {ALPHA:g}; CD is the difference it needs. Friedman: Kendall's W = "
        f"{number(ranking.friedman.effect, '.2f')}, p {p_equals(ranking.friedman.p)}. {' '.join(_about_blocks(ranked))}"
    )
    title = f"Critical differences: {metric.label}"
    return Figure(f"{name}-critical-difference-{metric.name.replace('_', '-')}", title, caption, rows, draw)


def _diagram(
    ranking: Ranking, labels: dict[str, str], looks: dict[str, dict[str, Any]], mean_rank: dict[str, float], distance: float
) -> "Drawing":
    import pandas as pd
    from matplotlib import pyplot as plt
    from scikit_posthocs import critical_difference_diagram

    count = Counter(labels.values())
    shown = {m: labels[m] if count[labels[m]] == 1 else f"{labels[m]} ({m})" for m in ranking.mean_rank}
    chance = pd.DataFrame(1.0, list(shown.values()), list(shown.values()))
    for pair in ranking.pairs:
        a, b = shown[pair.first], shown[pair.second]
        chance.loc[a, b] = chance.loc[b, a] = pair.nemenyi
    drawing, axes = plt.subplots(figsize=(PAGE, 0.9 + 0.16 * len(shown)))
    drawn = critical_difference_diagram(
        {shown[m]: rank for m, rank in mean_rank.items()}, chance, alpha=ranking.alpha, ax=axes,
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
    axes.text((1 + end) / 2, 1.3, f"CD = {number(ranking.critical_difference, '.2f')}", ha="center", va="bottom", fontsize=7)
    return drawing
