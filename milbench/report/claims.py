"""What the paper claims, and what its printed numbers and the results say about each claim.

The claims and their tests are listed in claims.toml. A difference is decided by the paired bootstrap that stands behind the
tables, on printed means by Welch's test; :func:`decide` holds the rules.
"""

import math
import re
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from itertools import groupby, product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from milbench import stats
from milbench.errors import from_validation
from milbench.numbers import NONE, interval, number, p_value, signed
from milbench.papers import published
from milbench.report import measurements
from milbench.report.evidence import PRINTED, Column, Estimate, Measured, Place, Printed, Side, Source
from milbench.report.tables import ALPHA, METRICS, REPLICATES, Entry, Row, Table
from milbench.spelling import canonical
from milbench.trials.store import Store

Verdict = Literal["supported", "not supported", "inconclusive", "not run"]
OURS = "longmil"  # the reference of the tables' daggers
ABOUT = 1.5  # a printed "about k times" is met from k / ABOUT on


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PaperTable(_Form):
    """A printed table or figure, or its half on one dataset; the suite that reproduces it; the runs behind each mean."""

    id: str
    suite: str
    runs: int = Field(ge=2)
    dataset: str = ""

    @property
    def source(self) -> Source:
        """For evidence."""
        return Source(self.id, self.suite, self.runs)

    @property
    def printed(self) -> str:
        """ "Table 1" for table1."""
        return re.sub(r"(\d+)", r" \1", self.id).capitalize()


class Claim(_Form):
    """One claim and its test; claims.toml says what the keys mean."""

    id: str
    where: str
    text: str
    kind: Literal["above", "not-below", "anova", "ratio", "exponent", "mixing", "width", "bands"]
    tables: list[str] = []
    metrics: list[str] = []
    upper: str = ""
    lower: list[str] = []
    pairs: list[tuple[str, str]] = []
    at: dict[str, Any] = {}
    upper_at: dict[str, Any] = {}
    lower_at: dict[str, Any] = {}
    less: dict[str, Any] = {}
    margin: float = Field(0.0, ge=0)
    stated: str = ""
    quantities: list[str] = []
    n: str = ""
    at_least: float | None = None
    at_most: float | None = None
    layers: tuple[str, str] = ("first", "first")

    @field_validator("upper", "lower", "pairs")
    @classmethod
    def _canonical(cls, names: Any) -> Any:
        """Methods in the one spelling in which they are compared."""
        return canonical(names) if isinstance(names, str) else type(names)(map(cls._canonical, names))

    @model_validator(mode="after")
    def _complete(self) -> "Claim":
        if self.is_difference and not self.pairs and not (self.upper and self.lower):
            raise ValueError("a difference needs upper and lower, or pairs")
        if (self.kind == "not-below") != (self.margin > 0):
            raise ValueError("not-below needs a margin, the other kinds have none")
        if (self.is_difference or self.kind == "anova") != bool(self.tables):
            raise ValueError("claims about tables name them, claims about measurements do not")
        if not self.tables and not self.quantities:
            raise ValueError("a claim about measurements names its quantities")
        if self.kind == "exponent" and (self.at_least is None) == (self.at_most is None):
            raise ValueError("an exponent is at_least or at_most something")
        return self

    @property
    def is_difference(self) -> bool:
        """Whether it is about a difference of metrics."""
        return self.kind in ("above", "not-below")


class Claims(_Form):
    """The whole of claims.toml."""

    table: list[PaperTable]
    claim: list[Claim]

    @model_validator(mode="after")
    def _known(self) -> "Claims":
        known = {table.id for table in self.table}
        for claim in self.claim:
            if missing := set(claim.tables) - known:
                raise ValueError(f"claim {claim.id} names {', '.join(sorted(missing))}, which no [[table]] has")
        if len({claim.id for claim in self.claim}) < len(self.claim):
            raise ValueError("two claims have the same id")
        return self

    def about(self, claim: Claim) -> list[PaperTable]:
        """The tables of a claim, in its order."""
        return [table for id in claim.tables for table in self.table if table.id == id]


@cache
def load() -> Claims:
    """The claims.

    Raises:
        MilbenchError: claims.toml is wrong; says where.
    """
    path = files("milbench_published") / published.PAPER / "claims.toml"
    try:
        return Claims.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise from_validation(error, "claims.toml") from error


@cache
def _suite(name: str) -> dict[str, Any]:
    """A built-in suite's file as it stands; milbench.suites would bring torch with it."""
    return tomllib.loads((files("milbench") / "suites" / f"{name}.toml").read_text(encoding="utf-8"))


def _columns(table: PaperTable) -> list[Column]:
    """The columns of a printed table, those of the suite where no means are printed."""
    printed = [c for c in PRINTED.columns(table.id) if table.dataset in ("", c.dataset)]
    if printed:
        return printed
    grid = _suite(table.suite)["grid"]
    axes = (grid.get(name) or [None] for name in Column._fields)
    return [Column(*values) for values in product(*axes)]


def _metrics(table: PaperTable) -> list[str]:
    return PRINTED.metrics(table.id) or list(_suite(table.suite)["table"]["metrics"])


def _rows(table: PaperTable, column: Column) -> list[str]:
    """The methods that the paper prints in a column, those of the suite where no means are printed."""
    return PRINTED.rows(table.source, column) or [canonical(row) for row in _suite(table.suite)["grid"]["aggregator"]]


def _label(aggregator: str) -> str:
    """How the paper calls a method."""
    printed = (n.method for n in published.numbers() if n.aggregator == aggregator)
    label = next(printed, aggregator).removesuffix(" (ours)")
    return f"LongMIL {label}" if label.startswith("+") else label


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
        printed: the printed difference; NaN where none is printed.
        family, pair: Holm's family, and which comparison of it this is.
        p_holm: corrected p-value of no difference, or of a difference of -margin.
        p_printed: corrected p-value of the printed difference.
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
    printed: float = math.nan
    family: tuple[Any, ...] = ()
    pair: frozenset[Side] = frozenset()
    p_holm: float = math.nan
    p_printed: float = math.nan
    power: float = math.nan
    verdict: Verdict = "not run"

    @property
    def possible(self) -> bool:
        """Whether it can be run at all; a method that refuses its parameters or lacks its weights is skipped, and cannot."""
        return not (isinstance(self.estimate, str) and self.estimate.startswith("skipped"))

    @property
    def strength(self) -> float:
        """Standard errors between the difference and the least that the claim needs: the weakest part has the fewest."""
        e = self.estimate
        if isinstance(e, str):
            return math.inf
        return (e.difference + self.claim.margin) / e.se if e.se > 0 else -math.inf


def decide(claim: Claim, e: Estimate, p_holm: float, printed: float = math.nan, p_printed: float = math.nan) -> Verdict:
    """The rules of a verdict on a difference, at the level of 5 %; p-values are corrected after Holm in one table and metric.

    Supported: the 95 % interval lies above 0 and the corrected p is below 0.05. For "no worse" both are against -margin
    instead of 0.

    Not supported: the interval lies below that value, with a corrected p below 0.05. Or the interval holds 0 but lies below the
    printed difference, with a corrected p of the printed difference below 0.05: what there may be is less than what was claimed.

    Inconclusive: neither.

    Args:
        claim: what is claimed.
        e: the difference.
        p_holm: corrected p-value of no difference, or of -margin.
        printed: the printed difference.
        p_printed: corrected p-value of the printed difference; NaN where that rule does not apply.
    """
    needed = -claim.margin
    if p_holm < ALPHA and e.low > needed:
        return "supported"
    if (p_holm < ALPHA and e.high < needed) or (p_printed < ALPHA and e.low <= 0 and e.high < printed):
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


def verdicts(
    store: Store | None, suites: Collection[str] | None = None, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Table]:
    """The verdicts as tables: "What the results say" and "What the printed numbers say".

    Args:
        store: the results; without one there is the second table only.
        suites: only claims about tables that one of these suites fills; all claims unless given.
        progress: told (claims done, all of them) while results are resampled.

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
        tables.append(_table("claims-results", "What the results say", parts, _MEASURED))
    if printed := judge(chosen, PRINTED):
        tables.append(_table("claims-printed", "What the printed numbers say", printed, _WELCH))
    return tables


def judge(
    claims: Sequence[Claim], evidence: Measured | Printed, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Part]:
    """Every part of the claims with its verdict, in their order; on printed numbers only what was printed."""
    parts: list[Part] = []
    for done, claim in enumerate(claims, start=1):
        if claim.tables:
            found = _differences(claim, evidence) if claim.is_difference else _anova(claim, evidence)
            parts += [part for part in found if evidence is not PRINTED or part.estimate != Printed.ABSENT]
        elif isinstance(evidence, Measured):
            parts += _measured(claim, evidence.store.root / "analysis")
        progress(done, len(claims))
    families: dict[tuple[Any, ...], list[Part]] = {}
    for part in parts:
        if part.family and not isinstance(part.estimate, str):
            families.setdefault(part.family, []).append(part)
    for family in families.values():
        _decide_together(family, evidence)
    return parts


def _decide_together(family: Sequence[Part], evidence: Measured | Printed) -> None:
    """Correct the p-values of a family, and decide each part. Claims may share a comparison; it counts once."""
    estimates = {part.pair: part.estimate for part in family if isinstance(part.estimate, Estimate)}
    margin = family[0].claim.margin
    p = {pair: e.p_against(-margin) for pair, e in estimates.items()}
    for pair, e in _unclaimed(family[0], evidence):
        p.setdefault(pair, e.p)
    holm = dict(zip(p, stats.holm(list(p.values())), strict=True))
    tested = {
        part.pair: estimates[part.pair].p_against(part.printed)
        for part in family
        if part.claim.kind == "above" and part.printed > 0 and evidence is not PRINTED
    }
    holm_printed = dict(zip(tested, stats.holm(list(tested.values())), strict=True))
    for part in family:
        e, needed = estimates[part.pair], part.printed + margin
        part.p_holm, part.p_printed = float(holm[part.pair]), float(holm_printed.get(part.pair, math.nan))
        part.power = stats.power(needed, e.se, df=e.df) if needed > 0 else math.nan
        part.verdict = decide(part.claim, e, part.p_holm, part.printed, part.p_printed)


def _unclaimed(part: Part, evidence: Measured | Printed) -> Iterator[tuple[frozenset[Side], Estimate]]:
    """Comparisons with LongMIL that no claim names: they count in the family of the tables' daggers, which is the same."""
    if not part.family or part.family[-1] != OURS or part.claim.kind != "above":
        return
    id, metric = part.family[:2]
    for table in (table for table in load().table if table.id == id):
        for column in _columns(table):
            for row in evidence.rows(table.source, column):
                upper, lower = (Place(OURS, column),), (Place(row, column),)
                if row != OURS and isinstance(e := evidence.difference(table.source, metric, upper, lower), Estimate):
                    yield frozenset((upper, lower)), e


def _differences(claim: Claim, evidence: Measured | Printed) -> Iterator[Part]:
    """Every comparison of a claim about a difference, in the columns and rows that the paper prints."""
    tables = load().about(claim)
    constant = len({other for _, other in claim.pairs}) == 1  # then the upper side tells the parts apart, else the lower
    seen: set[tuple[str, Side, Side]] = set()
    for table in tables:
        columns = [c for c in _columns(table) if all(getattr(c, key) == value for key, value in claim.at.items())]
        for column, metric in product(columns, claim.metrics or _metrics(table)):
            above, below = column._replace(**claim.upper_at), column._replace(**claim.lower_at)
            rows = _rows(table, column)
            for one, other in claim.pairs or [(claim.upper, lower) for lower in _spelled(claim, rows)]:
                if one not in rows or other not in rows:
                    continue
                upper: Side = (Place(one, above),)
                lower: Side = (Place(other, below),)
                if claim.less:
                    upper, lower = (
                        (*upper, Place(other, below._replace(**claim.less))),
                        (*lower, Place(one, above._replace(**claim.less))),
                    )
                if (metric, upper, lower) in seen:
                    continue
                seen.add((metric, upper, lower))
                moved = bool(claim.upper_at or claim.lower_at or claim.less)
                where = ", ".join(filter(None, ["" if moved else _words(table, column), METRICS[metric][0]]))
                yield Part(
                    claim,
                    line=table.printed if len({t.id for t in tables}) > 1 else where,
                    where=where,
                    against=_label(one if constant else other),
                    estimate=evidence.difference(table.source, metric, upper, lower),
                    tidy={
                        "table": table.id,
                        "suite": table.suite,
                        "metric": metric,
                        "upper": _spell(upper),
                        "lower": _spell(lower),
                    },
                    printed=stats.rounded(
                        PRINTED.mean(table.source, metric, upper) - PRINTED.mean(table.source, metric, lower), step=stats.STEP
                    ),
                    family=(
                        table.id,
                        metric,
                        claim.kind,
                        claim.margin,
                        moved,
                        OURS if OURS in (one, other) and not moved else one,
                    ),
                    pair=frozenset((upper, lower)),
                )


def _spelled(claim: Claim, rows: Sequence[str]) -> list[str]:
    return [row for row in rows if row != claim.upper] if claim.lower == ["*"] else claim.lower


def _spell(side: Side) -> str:
    """A side for the CSV: methods in columns, summed."""
    return " + ".join(f"{p.aggregator} @ {' '.join(str(v) for v in p.column if v not in (None, ''))}" for p in side)


def _words(table: PaperTable, column: Column) -> str:
    """What sets a column apart from the others of its table, in the table's words."""
    heads = {k: v for t in load().table if t.id == table.id for k, v in _suite(t.suite)["table"].get("heads", {}).items()}
    others = [c for t in load().table if t.id == table.id for c in _columns(t)]
    units, told = {"magnification": "x", "patch_size": " px"}, []
    for name, value in column._asdict().items():
        alike = [c for c in others if getattr(c, name) == value]
        if len(alike) < len(others):
            plain = str(value).upper() if name == "dataset" else f"{value}{units.get(name, '')}"
            told.append(heads.get(str(value)) or heads.get(f"{value}-survival") or plain)
        others = alike
    return ", ".join(told)


def _anova(claim: Claim, evidence: Measured | Printed) -> Iterator[Part]:
    """One-way analysis of variance over the runs of all methods, as the paper does it: unpaired."""
    for table in load().about(claim):
        if evidence is PRINTED:
            p = published.stated(claim.stated)
            e, verdict = Estimate.without_interval(p, NONE), _differs(p)
            yield Part(claim, "F1", "F1", "all methods", e, NONE, {"table": table.id}, p_holm=p, verdict=verdict)
            continue
        assert isinstance(evidence, Measured)
        for column, metric in product(_columns(table), claim.metrics or _metrics(table)):
            where = ", ".join(filter(None, [_words(table, column), METRICS[metric][0]]))
            tidy = {"table": table.id, "suite": table.suite, "metric": metric}
            runs = [evidence.runs(table.source, Place(row, column)) for row in _rows(table, column)]
            values = [[run.metric(metric) for run in own if run.status == "ok"] for own in runs]
            if min(map(len, values)) < 2:
                yield Part(claim, where, where, "all methods", "not all methods have two runs", tidy=tidy)
                continue
            if np.isnan(np.concatenate(values)).any():
                yield Part(claim, where, where, "all methods", f"{METRICS[metric][0]} is undefined in some runs", tidy=tidy)
                continue
            test, n = stats.anova(values), sum(map(len, values))
            ratio = test.effect / (1 - test.effect) if test.effect < 1 else math.nan  # of variance between to within methods
            e = Estimate.without_interval(test.p, str(n))
            found = f"F = {number(ratio * (n - len(values)) / (len(values) - 1), '.2f')}"
            yield Part(claim, where, where, "all methods", e, found, tidy, p_holm=e.p, verdict=_differs(e.p))


def _differs(p: float) -> Verdict:
    return "supported" if p < ALPHA else "inconclusive"


def _measured(claim: Claim, folder: Path) -> Iterator[Part]:
    """The parts of a claim about costs, ranks or sparsity."""
    for quantity in claim.quantities:
        name_of, tidy = quantity.replace("_", " "), {"metric": quantity}
        match claim.kind:
            case "ratio":
                n = published.stated(claim.n)
                for lower in claim.lower:
                    found = measurements.ratio(folder, quantity, claim.upper, lower, n)
                    yield _ratio(claim, f"{name_of}, {n:,.0f} patches", f"{_label(claim.upper)} / {_label(lower)}", found, tidy)
            case "exponent":
                for name in claim.lower:
                    yield _exponent(claim, name_of, _label(name), measurements.exponent(folder, quantity, name), tidy)
            case "mixing":
                for name in claim.lower:
                    e = measurements.mixing(folder, quantity, (claim.upper, claim.layers[0]), (name, claim.layers[1]))
                    share = name_of if quantity == "sparsity" else f"{name_of} / n"
                    pair = frozenset([(Place(name, Column("", "", None, None)),)])
                    yield Part(claim, share, share, _label(name), e, "", tidy, family=(claim.id, quantity), pair=pair)
            case "width":
                yield _counted(
                    claim, name_of, _label(claim.lower[0]), measurements.rank_at_most_width(folder, claim.lower[0]), tidy
                )
            case "bands":
                yield _counted(claim, name_of, "n - b", measurements.bands_reach_bound(folder), tidy)


def _ratio(claim: Claim, where: str, against: str, found: float | str, tidy: dict[str, Any]) -> Part:
    """A cost is claimed to be larger, or larger by about a stated factor."""
    if isinstance(found, str):
        return Part(claim, where, where, against, found, tidy=tidy)
    least = published.stated(claim.stated) / ABOUT if claim.stated else 1.0
    verdict: Verdict = "supported" if found > least else "not supported"
    e = Estimate.without_interval(math.nan, "1 machine", found)
    return Part(claim, where, where, against, e, f"{number(found, '.2f')} times", tidy, verdict=verdict)


def _exponent(claim: Claim, where: str, against: str, e: Estimate | str, tidy: dict[str, Any]) -> Part:
    """A cost is claimed to grow at most, or at least, with this power of n."""
    if isinstance(e, str):
        return Part(claim, where, where, against, e, tidy=tidy)
    if claim.at_most is not None:
        holds, fails = e.high <= claim.at_most, e.low > claim.at_most
    else:
        holds, fails = e.low >= (claim.at_least or 0), e.high < (claim.at_least or 0)
    verdict: Verdict = "supported" if holds else "not supported" if fails else "inconclusive"
    return Part(
        claim,
        where,
        where,
        against,
        e,
        f"n^{number(e.difference, '.2f')} {interval(e.low, e.high, '.2f')}",
        tidy,
        verdict=verdict,
    )


def _counted(claim: Claim, where: str, against: str, found: tuple[int, int, int] | str, tidy: dict[str, Any]) -> Part:
    """Every matrix is claimed to keep a bound."""
    if isinstance(found, str):
        return Part(claim, where, where, against, found, tidy=tidy)
    holds, fails, of = found
    verdict: Verdict = "not supported" if fails else "supported" if holds == of else "inconclusive"
    e = Estimate.without_interval(math.nan, f"{of} matrices")
    return Part(claim, where, where, against, e, f"{holds} of {of} do", tidy, verdict=verdict)


_RULES = [
    "Supported: the 95 % interval lies above 0, or above minus the margin where a claim says no worse, and p is below 0.05 after "
    "Holm's correction.",
    "A claim with several parts is supported where all are, not supported where one is not, not run where none is run, else "
    "inconclusive. A line shows its weakest part: the one with the fewest standard errors between the difference and what the "
    "claim needs. Parts: how many are supported / run / claimed; the CSV holds every one, and why it is not run.",
    "Power: the chance that this comparison, uncorrected, finds the printed difference.",
]
_MEASURED = [
    _RULES[0]
    + " Not supported: the same below that value; or the interval holds 0 and excludes the printed difference, also with a "
    "corrected p. Inconclusive: neither.",
    f"n: cases x seeds. Differences: bootstrap over cases, stratified by class, drawn in each fold, {REPLICATES:,} resamples, "
    "the same for both methods; Holm within one table and metric, comparisons with LongMIL being those of the tables' daggers.",
    f'A printed "about k times" is met from k / {ABOUT:g} on; costs are of one machine and have no interval. Exponents: slope '
    f"over the {measurements.FITTED} largest sizes. Ranks: paired t-test over slides, trained models.",
    *_RULES[1:],
]
_WELCH = [
    _RULES[0] + " Not supported: the same below that value. Inconclusive: neither.",
    "n: runs of both sides. Welch's test of the printed means and deviations, ± taken as sample standard deviation over 5 seeds "
    "(BRACS), 5 folds (survival) or 10 folds (TCGA-BRCA subtyping). It takes runs as independent: runs on the same folds mostly "
    "show more when paired, so inconclusive means that the table does not show a difference, not that there is none.",
    "Holm within one table and metric. Figures without printed means are left out.",
    *_RULES[1:],
]


def _table(name: str, title: str, parts: Sequence[Part], notes: list[str]) -> Table:
    lines: list[Row] = []
    absent: list[str] = []
    for claim, own in groupby(parts, key=lambda part: part.claim):
        members = list(own)
        margin = f", margin {claim.margin:g}" if claim.margin else ""
        if (verdict := _overall(members)) == "not run":
            absent.append(f"{claim.text} ({claim.where})")
            continue
        lines.append(Row(f"{claim.text} ({claim.where}{margin}): {verdict}", [], rule=bool(lines)))
        by_line = {line: [part for part in members if part.line == line] for line in dict.fromkeys(part.line for part in members)}
        waiting = {line for line, some in by_line.items() if _overall(some) == "not run"}
        lines += [_line(line, some) for line, some in by_line.items() if line not in waiting]
        if waiting:
            lines.append(_line(f"{len(waiting)} more", [part for part in members if part.line in waiting]))
    if absent:
        lines = lines or [Row("No claim has a result yet", [])]
        notes = [*notes, f"Not run, {len(absent)} claims: {'; '.join(absent)}."]
    heads = ("verdict", "weakest part", "difference [95 %]", "n", "p (Holm)", "power", "parts")
    return Table(name, title, [("", head) for head in heads], lines, notes, [_tidy(part) for part in parts], corner="Claim")


def _overall(parts: Iterable[Part]) -> Verdict:
    return together(part.verdict for part in parts if part.possible)


def _line(label: str, parts: Sequence[Part]) -> Row:
    run = [part for part in parts if isinstance(part.estimate, Estimate)]
    verdict = Entry(_overall(parts))
    count = Entry(f"{sum(part.verdict == 'supported' for part in parts)}/{len(run)}/{sum(part.possible for part in parts)}")
    if not run:
        return Row(label, [verdict, *[Entry(NONE)] * 5, count])
    weakest = min(run, key=lambda part: (part.verdict != "not supported", part.strength))
    e = weakest.estimate
    assert isinstance(e, Estimate)
    against = weakest.against if label == weakest.where else f"{weakest.against}, {weakest.where}"
    difference = signed(e.difference) + ("" if math.isnan(e.low) else f" {interval(e.low, e.high)}")
    p = p_value(e.p_against(-weakest.claim.margin)) + ("" if math.isnan(weakest.p_holm) else f" ({p_value(weakest.p_holm)})")
    power = number(weakest.power, ".2f")
    return Row(label, [verdict, *map(Entry, (against, weakest.effect or difference, e.n, p, power)), count])


def _tidy(part: Part) -> dict[str, Any]:
    e = part.estimate if isinstance(part.estimate, Estimate) else Estimate.without_interval(math.nan, "")
    return {
        "claim": part.claim.id, "where": part.claim.where, "kind": part.claim.kind, "table": part.tidy.get("table", ""),
        "suite": part.tidy.get("suite", ""), "metric": part.tidy.get("metric", ""), "place": part.where, "against": part.against,
        "upper": part.tidy.get("upper", ""), "lower": part.tidy.get("lower", ""), "margin": part.claim.margin,
        "difference": e.difference, "low": e.low, "high": e.high, "effect": part.effect, "n": e.n,
        "p": e.p_against(-part.claim.margin), "p_holm": part.p_holm, "published_difference": part.printed,
        "p_published_holm": part.p_printed, "power": part.power, "verdict": part.verdict,
        "not_run": part.estimate if isinstance(part.estimate, str) else "",
    }  # fmt: skip
