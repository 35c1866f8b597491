"""The verdicts on a paper's claims as tables: "What the results say" and "What the printed numbers say"."""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import groupby
from typing import Any

from milbench.compare.claims import PRINTED, load
from milbench.compare.evidence import Estimate, Measured
from milbench.compare.judge import ABOUT, Part, Verdict, judge, together
from milbench.compare.measurements import FITTED
from milbench.numbers import NONE, interval, number, p_value, signed
from milbench.report.model import Entry, Row, Table
from milbench.trials.store import Store


def build(
    store: Store | None, suites: Collection[str] | None = None, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Table]:
    """The tables of verdicts.

    Args:
        store: the results; without one there is the second table only.
        suites: only claims about tables that one of these suites fills; all claims unless given.
        progress: called with (claims done, all of them) while results are resampled.

    Raises:
        MilbenchError: a plan, a result or a measurement cannot be read.
    """
    wanted = None if suites is None else set(suites)
    about_tables = [c for c in load().claim if c.tables and (wanted is None or {t.suite for t in load().about(c)} & wanted)]
    chosen = [c for c in load().claim if c in about_tables or (not c.tables and (about_tables or "efficiency" in (wanted or ())))]
    tables = []
    if store is not None and chosen:
        parts = judge(chosen, Measured(store), progress)
        if wanted is not None and "efficiency" not in wanted:  # then measurements count where they are, and are not missed
            parts = [part for part in parts if part.claim.tables or part.verdict != "not run"]
        tables.append(_table("claims-results", "What the results say", parts, _on_results()))
    if printed := judge(chosen, PRINTED):
        tables.append(_table("claims-printed", "What the printed numbers say, on these slides only", printed, _ON_PRINT))
    return tables


_RULES = [
    "Supported: the 95 % interval lies above 0, or above minus the margin where a claim says no worse, and p is below 0.05. A "
    "claim needs all of its parts (an intersection-union test), so none is corrected for the others.",
    "k of m shown, j contradicted: of the m comparisons that the claim is about k are supported and j not supported. A claim is "
    "supported where all are, not supported where one is not, not run where none is run, else inconclusive. A line shows its "
    "weakest part: the one with the fewest standard errors between the difference and what the claim needs; the CSV holds every "
    "one, and why it is not run.",
    "Detectable: the true difference that this comparison would show with a chance of 80 %. Power: its chance to show the "
    "printed difference.",
]


def _on_results() -> list[str]:
    return [
        f"{_RULES[0]} Not supported: the interval lies below that value; or it does not lie above 0, and the difference is "
        "smaller than the printed one by more than trainings explain (t-test with the variance over trainings, ours and the "
        "printed one; the slides are the same). Any such part contradicts the claim, so these two are corrected after Holm over "
        "its parts. Inconclusive: neither.",
        "Differences: the test of the tables, for other patients and other trainings. n: trainings of both sides, summed over "
        "folds, and patients. Seen once: one training on one split decides nothing.",
        f'A printed "about k times" is met from k / {ABOUT:g} on; costs are of one machine and have no interval. Exponents: '
        f"slope over the {FITTED} largest sizes. Ranks: paired t-test over slides, trained models.",
        *_RULES[1:],
    ]


_ON_PRINT = [
    f"{_RULES[0]} Not supported: the interval lies below that value, with a p below 0.05 after Holm's correction over the parts "
    "of the claim. Inconclusive: neither.",
    "On these slides only: Welch's test of the printed means and deviations asks whether other trainings would differ on the "
    "same slides. It ignores patients: of two equally good methods it calls one better in 13 to 32 % of simulated tables. ± is "
    "taken as sample standard deviation over 5 seeds (BRACS), 5 folds (survival) or 10 folds (TCGA-BRCA subtyping). Runs are "
    "taken as independent: those on the same folds mostly show more when paired, so inconclusive means that the table does not "
    "show a difference, not that there is none.",
    "n: runs of both sides. Figures without printed means are left out.",
    *_RULES[1:],
]


def _table(name: str, title: str, parts: Sequence[Part], notes: list[str]) -> Table:
    lines: list[Row] = []
    absent: list[str] = []
    for claim, group in groupby(parts, key=lambda part: part.claim):
        members = list(group)
        margin = f", margin {claim.margin:g}" if claim.margin else ""
        if (verdict := _overall(members)) == "not run":
            absent.append(f"{claim.text} ({claim.where})")
            continue
        lines.append(Row(f"{claim.text} ({claim.where}{margin}): {verdict}, {_count(members)}", [], rule=bool(lines)))
        by_label = {label: [part for part in members if part.line == label] for label in dict.fromkeys(p.line for p in members)}
        waiting = {label for label, of_line in by_label.items() if _overall(of_line) == "not run"}
        lines += [line(label, of_line) for label, of_line in by_label.items() if label not in waiting]
        if waiting:
            lines.append(line(f"{len(waiting)} more", [part for part in members if part.line in waiting]))
    if absent:
        lines = lines or [Row("No claim has a result yet", [])]
        notes = [*notes, f"Not run, {len(absent)} claims: {'; '.join(absent)}."]
    heads = ("verdict", "weakest part", "difference [95 %]", "n", "p", "detectable", "power", "parts")
    return Table(name, title, [("", head) for head in heads], lines, notes, [tidy(part) for part in parts], corner="Claim")


def _overall(parts: Iterable[Part]) -> Verdict:
    return together(part.verdict for part in parts if part.possible)


def _count(parts: Sequence[Part]) -> str:
    """How many parts are shown, and how many contradicted, of those that can be run."""
    of = [part for part in parts if part.possible]
    kinds = [part.verdict for part in of]
    waiting = f", {kinds.count('not run')} not run" if "not run" in kinds else ""
    return f"{kinds.count('supported')} of {len(of)} shown, {kinds.count('not supported')} contradicted{waiting}"


def line(label: str, parts: Sequence[Part]) -> Row:
    """A line of the table: the verdict on these parts, the weakest of them, and how many are shown and contradicted."""
    run = [part for part in parts if isinstance(part.estimate, Estimate)]
    verdict, count = Entry(_overall(parts)), Entry(_count(parts))
    if not run:
        return Row(label, [verdict, *[Entry(NONE)] * 6, count])
    weakest = min(run, key=lambda part: (part.verdict != "not supported", part.strength))
    e = weakest.estimate
    assert isinstance(e, Estimate)
    against = weakest.against if label == weakest.where else f"{weakest.against}, {weakest.where}"
    difference = signed(e.difference) + ("" if math.isnan(e.low) else f" {interval(e.low, e.high)}")
    numbers = (p_value(weakest.p), number(e.detectable), number(weakest.power, ".2f"))
    return Row(label, [verdict, *map(Entry, (against, weakest.effect or difference, e.n, *numbers)), count])


def tidy(part: Part) -> dict[str, Any]:
    """A part as a line of the CSV file."""
    e = part.estimate if isinstance(part.estimate, Estimate) else Estimate.without_interval(math.nan, "")
    return {
        "claim": part.claim.id, "where": part.claim.where, "kind": part.claim.kind, "table": part.tidy.get("table", ""),
        "suite": part.tidy.get("suite", ""), "metric": part.tidy.get("metric", ""), "place": part.where, "against": part.against,
        "upper": part.tidy.get("upper", ""), "lower": part.tidy.get("lower", ""), "margin": part.claim.margin,
        "difference": e.difference, "low": e.low, "high": e.high, "effect": part.effect, "n": e.n,
        "p": part.p, "p_contradicted": part.p_holm, "published_difference": part.claimed,
        "p_published": part.p_printed, "detectable": e.detectable, "power": part.power, "verdict": part.verdict,
        "not_run": part.estimate if isinstance(part.estimate, str) else "",
    }  # fmt: skip
