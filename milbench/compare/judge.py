"""What printed numbers and results say about each claim of a paper.

A difference is decided by the primary test that stands behind the tables, on printed means by Welch's test; :func:`decide`
holds the rules.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np

from milbench import stats
from milbench.compare import measurements
from milbench.compare.claims import PRINTED, Claim, PaperTable, load
from milbench.compare.evidence import Estimate, Measured, OnPaper, Place, Side
from milbench.compare.pairing import ALPHA
from milbench.metrics import METRICS, Column
from milbench.numbers import NONE, interval, number

Verdict = Literal["supported", "not supported", "inconclusive", "not run"]
DIFFERENCES = ("above", "not-below", "mixing")  # kinds of claims of which each part is a difference with its test
ABOUT = 1.5  # a printed "about k times" is met from k / ABOUT on


@dataclass
class Part:
    """One comparison of a claim; a claim holds where all of its parts do.

    Args:
        claim: whose part it is.
        line: the line of the table that it belongs to.
        where: table, column and metric, in words.
        against: what sets it apart from the other parts of its line, in words.
        estimate: the difference (upper less lower), or why there is none.
        effect: what was found in words, where it is no difference.
        tidy: what else the CSV says.
        printed: the printed difference with what its trainings say, or why there is none.
        p: of no difference, or of a difference of -margin; uncorrected.
        p_holm: the same, corrected over the parts of the claim; where any part may contradict it.
        p_printed: of the printed difference, corrected alike.
        power: chance that the uncorrected test finds the printed difference.
        verdict: see :func:`decide`.
    """

    claim: Claim
    line: str
    where: str
    against: str
    estimate: Estimate | str
    effect: str = ""
    tidy: dict[str, Any] = field(default_factory=dict)
    printed: Estimate | str = OnPaper.ABSENT
    p: float = math.nan
    p_holm: float = math.nan
    p_printed: float = math.nan
    power: float = math.nan
    verdict: Verdict = "not run"

    @property
    def possible(self) -> bool:
        """Whether it can be run at all; a method that refuses its parameters or lacks its weights is skipped, and cannot."""
        return not (isinstance(self.estimate, str) and self.estimate.startswith("skipped"))

    @property
    def claimed(self) -> float:
        """The printed difference; NaN where none is printed."""
        return math.nan if isinstance(self.printed, str) else self.printed.difference

    @property
    def strength(self) -> float:
        """Standard errors between the difference and the least that the claim needs: the weakest part has the fewest."""
        e = self.estimate
        if isinstance(e, str):
            return math.inf
        return (e.difference + self.claim.margin) / e.se if e.se > 0 else -math.inf


def decide(part: Part) -> Verdict:
    """The rules of a verdict on a difference, at the level of 5 %.

    Supported: the 95 % interval lies above 0, and p is below 0.05. For "no worse" both are against -margin instead of 0. A claim
    is supported where all of its parts are, so no part is corrected for the others: an intersection-union test has the level of
    its parts (Berger, Technometrics 1982).

    Not supported: the interval lies below that value. Or the interval does not lie above 0, and the difference is smaller than
    the printed one by more than what new trainings on the same slides explain (:meth:`Estimate.p_same`). A claim is not
    supported where any of its parts is not, so both p-values are corrected after Holm over its parts.

    Inconclusive: neither.

    Args:
        part: with its p-values.
    """
    e, needed = part.estimate, -part.claim.margin
    if isinstance(e, str):
        return "not run"
    if part.p < ALPHA and e.low > needed:
        return "supported"
    smaller = e.low <= 0 and e.difference < part.claimed and part.p_printed < ALPHA
    if (part.p_holm < ALPHA and e.high < needed) or smaller:
        return "not supported"
    return "inconclusive"


def together(verdicts: Iterable[Verdict]) -> Verdict:
    """Of several parts: supported where all are, not supported where one is not, not run where none is run, else inconclusive."""
    kinds = set(verdicts)
    if "not supported" in kinds:
        return "not supported"
    if len(kinds) == 1:
        return kinds.pop()
    return "inconclusive" if kinds else "not run"


def judge(
    claims: Sequence[Claim], evidence: Measured | OnPaper, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Part]:
    """Every part of the claims with its verdict, in their order; on printed numbers only what was printed."""
    parts: list[Part] = []
    for done, claim in enumerate(claims, start=1):
        own: list[Part] = []
        if claim.tables:
            about_tables = _differences(claim, evidence) if claim.is_difference else _anova(claim, evidence)
            own = [part for part in about_tables if isinstance(evidence, Measured) or part.estimate != OnPaper.ABSENT]
        elif isinstance(evidence, Measured):
            own = list(_measured(claim, evidence.store.root / "analysis"))
        if claim.kind in DIFFERENCES:
            decide_together(own)
        parts += own
        progress(done, len(claims))
    return parts


def decide_together(parts: Sequence[Part]) -> None:
    """The p-values of the parts of one claim, and the verdict on each."""
    tested = [(part, part.estimate) for part in parts if isinstance(part.estimate, Estimate)]
    for part, e in tested:
        part.p = e.p_against(-part.claim.margin)
        needed = part.claimed + part.claim.margin
        part.power = stats.power(needed, e.se, df=e.df) if needed > 0 else math.nan
    p_holm = stats.holm([part.p for part, _ in tested])
    p_printed = stats.holm([_p_printed(part, e) for part, e in tested])
    for (part, _), p, printed in zip(tested, p_holm.tolist(), p_printed.tolist(), strict=True):
        part.p_holm, part.p_printed = p, printed
        part.verdict = decide(part)


def _p_printed(part: Part, e: Estimate) -> float:
    """Of the printed difference, where it is what the claim says and results can be held against it."""
    if part.claim.kind != "above" or isinstance(part.printed, str) or not part.claimed > 0:
        return math.nan
    return e.p_same(part.printed)


def _differences(claim: Claim, evidence: Measured | OnPaper) -> Iterator[Part]:
    """Every comparison of a claim about a difference, in the columns and rows that the paper prints."""
    seen: set[tuple[str, Side, Side]] = set()
    for table in load().about(claim):
        columns = [column for column in table.columns if all(getattr(column, key) == value for key, value in claim.at.items())]
        for column, metric in product(columns, claim.metrics or table.metrics):
            for upper, lower in _sides(claim, table, column):
                if (metric, upper, lower) not in seen:
                    seen.add((metric, upper, lower))
                    yield _difference(claim, table, column, metric, upper, lower, evidence)


def _sides(claim: Claim, table: PaperTable, column: Column) -> Iterator[tuple[Side, Side]]:
    """The methods that are compared in a column, each where the claim puts it; the difference in another column is subtracted."""
    rows = table.rows(column)
    lowers = [row for row in rows if row != claim.upper] if claim.lower == ["*"] else claim.lower
    above, below = column._replace(**claim.upper_at), column._replace(**claim.lower_at)
    for upper, lower in claim.pairs or [(claim.upper, name) for name in lowers]:
        if upper in rows and lower in rows:
            more: tuple[Side, Side] = ((), ())
            if claim.less:
                more = (Place(lower, below._replace(**claim.less)),), (Place(upper, above._replace(**claim.less)),)
            yield (Place(upper, above), *more[0]), (Place(lower, below), *more[1])


def _difference(
    claim: Claim, table: PaperTable, column: Column, metric: str, upper: Side, lower: Side, evidence: Measured | OnPaper
) -> Part:
    """One comparison, before p-values are corrected."""
    first, second = upper[0].aggregator, lower[0].aggregator
    moved = bool(claim.upper_at or claim.lower_at or claim.less)
    where = ", ".join(filter(None, ["" if moved else load().words(table, column), METRICS[metric].label]))
    constant = len({other for _, other in claim.pairs}) == 1  # then the upper side tells the parts apart, else the lower
    printed = PRINTED.difference(table.source, metric, upper, lower)
    return Part(
        claim,
        line=table.printed if len(set(claim.tables)) > 1 else where,
        where=where,
        against=_label(first if constant else second),
        estimate=evidence.difference(table.source, metric, upper, lower),
        tidy={"table": table.id, "suite": table.suite, "metric": metric, "upper": _spelled(upper), "lower": _spelled(lower)},
        printed=printed,
    )


def _spelled(side: Side) -> str:
    """A side for the CSV: methods in columns, summed."""
    return " + ".join(f"{p.aggregator} @ {' '.join(str(v) for v in p.column if v not in (None, ''))}" for p in side)


def _label(aggregator: str) -> str:
    """How the paper calls a method."""
    printed = (number.method for number in PRINTED.paper.numbers if number.aggregator == aggregator)
    label = next(printed, aggregator).removesuffix(" (ours)")
    return f"LongMIL {label}" if label.startswith("+") else label


def _anova(claim: Claim, evidence: Measured | OnPaper) -> Iterator[Part]:
    """One-way analysis of variance over the runs of all methods, as the paper does it: unpaired."""
    for table in load().about(claim):
        if isinstance(evidence, OnPaper):
            p = evidence.paper.stated(claim.stated)
            e, verdict = Estimate.without_interval(p, NONE), _differs(p)
            yield Part(claim, "F1", "F1", "all methods", e, NONE, {"table": table.id}, p=p, verdict=verdict)
            continue
        for column, metric in product(table.columns, claim.metrics or table.metrics):
            yield _anova_of_runs(claim, table, column, metric, evidence)


def _anova_of_runs(claim: Claim, table: PaperTable, column: Column, metric: str, evidence: Measured) -> Part:
    where = ", ".join(filter(None, [load().words(table, column), METRICS[metric].label]))
    tidy = {"table": table.id, "suite": table.suite, "metric": metric}
    runs = [evidence.runs(table.source, Place(row, column)) for row in table.rows(column)]
    values = [[run.metric(metric) for run in of_method if run.status == "ok"] for of_method in runs]
    if min(map(len, values)) < 2:
        return Part(claim, where, where, "all methods", "not all methods have two runs", tidy=tidy)
    if np.isnan(np.concatenate(values)).any():
        return Part(claim, where, where, "all methods", f"{METRICS[metric].label} is undefined in some runs", tidy=tidy)
    test, n = stats.anova(values), sum(map(len, values))
    ratio = test.effect / (1 - test.effect) if test.effect < 1 else math.nan  # of variance between to within methods
    e = Estimate.without_interval(test.p, str(n))
    effect = f"F = {number(ratio * (n - len(values)) / (len(values) - 1), '.2f')}"
    return Part(claim, where, where, "all methods", e, effect, tidy, p=e.p, verdict=_differs(e.p))


def _differs(p: float) -> Verdict:
    return "supported" if p < ALPHA else "inconclusive"


def _measured(claim: Claim, folder: Path) -> Iterator[Part]:
    """The parts of a claim about costs, ranks or sparsity."""
    for quantity in claim.quantities:
        name_of, tidy = quantity.replace("_", " "), {"metric": quantity}
        match claim.kind:
            case "ratio":
                n = PRINTED.paper.stated(claim.n)
                for lower in claim.lower:
                    times = measurements.ratio(folder, quantity, claim.upper, lower, n)
                    yield _ratio(claim, f"{name_of}, {n:,.0f} patches", f"{_label(claim.upper)} / {_label(lower)}", times, tidy)
            case "exponent":
                for name in claim.lower:
                    yield _exponent(claim, name_of, _label(name), measurements.exponent(folder, quantity, name), tidy)
            case "mixing":
                for name in claim.lower:
                    e = measurements.mixing(folder, quantity, (claim.upper, claim.layers[0]), (name, claim.layers[1]))
                    share = name_of if quantity == "sparsity" else f"{name_of} / n"
                    yield Part(claim, share, share, _label(name), e, "", tidy)
            case "width":
                (name,) = claim.lower
                yield _counted(claim, name_of, _label(name), measurements.rank_at_most_width(folder, name), tidy)
            case "bands":
                yield _counted(claim, name_of, "n - b", measurements.bands_reach_bound(folder), tidy)


def _ratio(claim: Claim, where: str, against: str, times: float | str, tidy: dict[str, Any]) -> Part:
    """A cost is claimed to be larger, or larger by about a stated factor."""
    if isinstance(times, str):
        return Part(claim, where, where, against, times, tidy=tidy)
    least = PRINTED.paper.stated(claim.stated) / ABOUT if claim.stated else 1.0
    verdict: Verdict = "supported" if times > least else "not supported"
    e = Estimate.without_interval(math.nan, "1 machine", times)
    return Part(claim, where, where, against, e, f"{number(times, '.2f')} times", tidy, verdict=verdict)


def _exponent(claim: Claim, where: str, against: str, e: Estimate | str, tidy: dict[str, Any]) -> Part:
    """A cost is claimed to grow at most, or at least, with this power of n."""
    if isinstance(e, str):
        return Part(claim, where, where, against, e, tidy=tidy)
    if claim.at_most is not None:
        holds, fails = e.high <= claim.at_most, e.low > claim.at_most
    else:
        holds, fails = e.low >= (claim.at_least or 0), e.high < (claim.at_least or 0)
    verdict: Verdict = "supported" if holds else "not supported" if fails else "inconclusive"
    effect = f"n^{number(e.difference, '.2f')} {interval(e.low, e.high, '.2f')}"
    return Part(claim, where, where, against, e, effect, tidy, verdict=verdict)


def _counted(claim: Claim, where: str, against: str, counts: tuple[int, int, int] | str, tidy: dict[str, Any]) -> Part:
    """Every matrix is claimed to keep a bound."""
    if isinstance(counts, str):
        return Part(claim, where, where, against, counts, tidy=tidy)
    holds, fails, of = counts
    verdict: Verdict = "not supported" if fails else "supported" if holds == of else "inconclusive"
    e = Estimate.without_interval(math.nan, f"{of} matrices")
    return Part(claim, where, where, against, e, f"{holds} of {of} do", tidy, verdict=verdict)
