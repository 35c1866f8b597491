"""The appendix: every other test that a reader may ask for, beside the primary one, and what each assumes."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from milbench import reading, stats
from milbench.compare import ALPHA, Comparison, Comparisons, pairing
from milbench.compare.outcomes import outcomes
from milbench.metrics import Column, Metric
from milbench.numbers import NONE, interval, number, p_value, signed, tally
from milbench.reading import Run
from milbench.report.model import Entry, Row, Table
from milbench.report.ranks import ranks
from milbench.stats import Outcome
from milbench.trials.plan import Plan

# How each test is called in the heads, and which of its numbers stand before its p-value.
_TESTS = {
    "paired-bootstrap": ("bootstrap", ("95 % interval", "smallest p")),
    "delong": ("DeLong", ("95 % interval",)),
    "permutation": ("permutation", ()),
    "mcnemar": ("McNemar", ("difference", "95 % interval")),
    "nadeau-bengio": ("Nadeau-Bengio", ("95 % interval",)),
    "wilcoxon": ("Wilcoxon", ("smallest p",)),
}
_SAYS = {
    "paired-bootstrap": "Bootstrap, paired: whole patients are drawn inside each fold, inside the classes where each patient "
    "has slides of one, the same for both methods; {replicates:,} resamples, and more where p is near the smallest they can "
    "give, which stands beside it. It says what other patients would have shown to THESE models, not what another training "
    "would.",
    "delong": "DeLong: AUC of two classes, each seed's own probabilities (not seed-mean ones); placements are averaged over "
    "seeds, folds are taken as independent; normal approximation. Placements are summed over the slides of a patient "
    "(Obuchowski). It says what other patients would have shown to these models.",
    "permutation": "Permutation: each seed's own predictions (not seed-mean ones) of a patient are swapped between the "
    "methods, all slides and seeds together; for the AUC ranks within each method are swapped. All swaps where they are few, "
    "else {replicates:,} random ones. Its null hypothesis is stronger than equal metrics: the methods are exchangeable case "
    "by case.",
    "mcnemar": "McNemar, exact: SEED-MEAN probabilities, over the cases of all folds. It tests the accuracy, whose difference it "
    "shows, not the metric of this table. Of a patient with several slides the discordant ones are balanced first; the "
    "interval is that of the share of patients who favour the method, given the sizes of their balances.",
    "nadeau-bengio": "Nadeau-Bengio: Student's t over folds (seeds averaged first), the variance multiplied by 1/J + "
    "n_test/n_train because training sets overlap; n counts patients. It assumes normal differences and speaks of other "
    "training sets too.",
    "wilcoxon": "Wilcoxon signed rank, exact, over {unit}. It takes pairs as independent, which {unit} that share {shared} are "
    "not, and knows nothing of patients. No p-value can be below the smallest one that so many pairs allow, which stands "
    "beside it.",
}


def build(plan: Plan, runs: Sequence[Run], compared: Comparisons) -> list[Table]:
    """The appendix of a suite: planning, other tests against the same reference, ANOVA, and ranks where there are 5 blocks.

    Args:
        plan, runs: as for the suite's table.
        compared: its comparisons with the reference: the other tests take the same pairs of runs.
    """
    metrics = reading.metrics(plan)
    ranked = [ranks(_name(plan), runs, metric, compared.reference) for metric in metrics]
    tests = [_tests(plan, compared, metric, folds=len({run.cell.fold for run in runs}) > 1) for metric in metrics]
    return [*_planning(plan, compared), *tests, _anova(plan, runs), *(table for table in ranked if table)]


def _planning(plan: Plan, compared: Comparisons) -> Iterator[Table]:
    """What the variance of each comparison comes from, and what more would show; none where each side has one training."""
    lines: list[Row] = []
    tidy = []
    heading = ""
    for c in (c for c in compared.every if c.shares):
        head = ", ".join(filter(None, [_heading(plan, c.column), c.metric.label]))
        lines += [Row(head, [], rule=bool(lines))] if head != heading else []
        heading = head
        lines.append(_planned(c))
        place = {"aggregator": c.aggregator, "label": c.label, **c.column._asdict(), "metric": c.metric.name}
        numbers = c.as_row()
        tidy.append({**place, "reference": compared.reference, **{name: numbers[name] for name in _PLANNED}})
    if lines:
        headers = [("95 % interval", "rests on"), ("95 % interval", "df")]
        headers += [("share of the variance", name) for name in ("patients", "trainings", "interaction")]
        headers += [("half-width", head) for head in ("now", "2 x trainings", "2 x patients")]
        headers += [("", "detectable"), ("more needed", "trainings"), ("more needed", "patients")]
        title = f"Variance and planning of the comparisons with {compared.label}"
        lacking = ", ".join(dict.fromkeys(c.label for c in compared.every if not c.shares))
        why = f"Not known in every column: {lacking}, where a side has one training on a fold, or no interval."
        yield Table(f"{_name(plan)}-planning", title, headers, lines, [*_PLANNING, *[why] * bool(lacking)], tidy)


_PLANNED = (
    "difference", "rule", "df", "variance", "variance_patients", "variance_trainings", "variance_interaction", "folds",
    "trainings_a", "trainings_b", "patients", "half_width", "half_width_twice_the_trainings", "half_width_twice_the_patients",
    "detectable", "more_trainings", "more_patients",
)  # fmt: skip
_PLANNING = [
    "Rests on: the largest of three estimates of the variance, and its degrees of freedom (df): by trainings and patients, by "
    "patients alone, or by how much folds differ.",
    "Patients: which are tested, alike for all trainings. Trainings: which seed, alike for all patients. Interaction: which "
    "training does well on which patient. Shares are of these three; how much folds differ beyond them is no part.",
    "Half-width: of the 95 % interval, as it is, with twice the trainings of both sides, and with twice the patients in each "
    "test fold. Detectable: the true difference that would be significant (p < 0.05, uncorrected) with a chance of 80 %.",
    "More needed: how many more trainings of either side on each fold, or more patients in each test fold, would show a true "
    "difference as large as the one found with a chance of 80 %; 0 where there are enough, ∞ where no number is.",
]


def _planned(c: Comparison) -> Row:
    plan = c.planning
    texts = [c.test.rule, number(c.test.df, ".1f"), *(f"{100 * share:.0f} %" for share in c.shares.values())]
    texts += [number(some.half_width) for some in (plan.now, plan.seeds, plan.patients)]
    texts += [number(plan.now.detectable), _count(plan.needed.trainings), _count(plan.needed.patients)]
    return Row(c.label, [Entry(text or NONE) for text in texts])


def _count(more: float) -> str:
    return "∞" if math.isinf(more) else number(more, ",.0f")


def _tests(plan: Plan, compared: Comparisons, metric: Metric, *, folds: bool) -> Table:
    """Each method against the reference, by every test that applies to this metric."""
    comparisons = compared.about(metric)
    results = [
        outcomes(c.pairing, metric, seed=pairing.resamples(c.column, metric), family=len(comparisons)) if c.pairing.folds else {}
        for c in comparisons
    ]
    names = [name for name in _TESTS if any(name in tests for tests in results)]
    corrected = {name: stats.holm([tests[name].p if name in tests else math.nan for tests in results]) for name in names}
    lines: list[Row] = []
    tidy = []
    dashes: dict[str, list[str]] = defaultdict(list)  # why there is no p-value -> rows
    column: Column | None = None
    for i, (comparison, tests) in enumerate(zip(comparisons, results, strict=True)):
        heading = _heading(plan, comparison.column)
        if column != (column := comparison.column) and heading:
            lines.append(Row(heading, [], rule=bool(lines)))
        p_holm = {name: float(corrected[name][i]) for name in names}
        entries = _difference(comparison)
        for name in names:
            entries += _entries(name, tests.get(name), p_holm[name])
        lines.append(Row(comparison.label, entries))
        for name in (name for name in names if name in tests):
            tidy.append(_tidy(comparison, compared.reference, tests[name], p_holm[name]))
            if math.isnan(tests[name].p):
                where = f" ({heading})" if heading else ""
                dashes[f"{_TESTS[name][0]} {tests[name].note}"].append(comparison.label + where)
    headers = [("", head) for head in ("difference", "95 % interval", "W/T/L", "chance")]
    headers += [(_TESTS[name][0], label) for name in names for label in (*_TESTS[name][1], "p")]
    return Table(
        f"{_name(plan)}-tests-{metric.name.replace('_', '-')}", f"Other tests against {compared.label}: {metric.label}", headers,
        lines, _notes(compared.label, names, dashes, folds=folds), tidy,
    )  # fmt: skip


def _notes(reference: str, names: Sequence[str], dashes: dict[str, list[str]], *, folds: bool) -> list[str]:
    over = {"unit": "folds", "shared": "training cases"} if folds else {"unit": "seeds", "shared": "one split"}
    return [
        "Difference, interval and W/T/L are those of the paired comparison. Chance: that a new training of the method is better "
        f"than one of {reference} on these slides, ties one half; Cliff's delta is 2 chance - 1.",
        f"† p < {ALPHA:g} after Holm's correction over all rows of this table, test by test; the p-values are uncorrected.",
        *(_SAYS[name].format(**over, replicates=pairing.REPLICATES) for name in names),
        *(f"{why}: {', '.join(rows)}." for why, rows in dashes.items()),
    ]


def _difference(comparison: Comparison) -> list[Entry]:
    test = comparison.test
    won = NONE if math.isnan(test.difference) else tally(*comparison.tally)
    texts = (signed(test.difference), interval(test.low, test.high), won, number(comparison.chance.chance, ".2f"))
    return [Entry(text) for text in texts]


def _tidy(comparison: Comparison, reference: str, outcome: Outcome, p_holm: float) -> dict[str, Any]:
    test, (wins, ties, losses) = comparison.test, comparison.tally
    return {
        "aggregator": comparison.aggregator, "label": comparison.label, **comparison.column._asdict(),
        "metric": comparison.metric.name, "reference": reference, "difference": test.difference, "low": test.low,
        "high": test.high, "wins": wins, "ties": ties, "losses": losses, "chance": comparison.chance.chance,
        **_as_dict(outcome), "p_holm": p_holm,
    }  # fmt: skip


def _entries(name: str, outcome: Outcome | None, p_holm: float) -> list[Entry]:
    labels = _TESTS[name][1]
    if outcome is None:
        return [Entry(NONE)] * (len(labels) + 1)
    shown = {
        "difference": signed(outcome.effect),
        "95 % interval": interval(outcome.low, outcome.high),
        "smallest p": p_value(outcome.smallest, digits=3),
    }
    # Few pairs allow few p-values: those of Wilcoxon are printed as exactly as the smallest.
    p = p_value(outcome.p, digits=3 if name == "wilcoxon" else 0)
    return [*(Entry(shown[label]) for label in labels), Entry(p, dagger=p_holm < ALPHA)]


def _anova(plan: Plan, runs: Sequence[Run]) -> Table:
    """One line for each column and metric: do the methods differ at all?"""
    lines, tidy, undefined = [], [], []
    for column in dict.fromkeys(run.column for run in runs):
        done = [run for run in runs if run.column == column and run.status == "ok"]
        for metric in reading.metrics(plan):
            groups: dict[str, list[float]] = defaultdict(list)
            for run in done:
                if not math.isnan(value := run.metric(metric.name)):
                    groups[run.cell.aggregator].append(value)
            label = ", ".join(filter(None, [_heading(plan, column), metric.label]))
            n = sum(map(len, groups.values()))
            if n < len(done):
                undefined.append(f"{len(done) - n} of {len(done)} ({label})")
            test = stats.anova(list(groups.values())) if len(groups) > 1 and n > len(groups) else None
            texts = (number(test.effect, ".2f"), p_value(test.p)) if test else (NONE, NONE)
            counts = [Entry(str(len(groups))), Entry(str(n))]
            lines.append(Row(label, [*counts, Entry(texts[0]), Entry(texts[1], dagger=test is not None and test.p < ALPHA)]))
            if test:
                tidy.append(column._asdict() | {"metric": metric.name, "methods": len(groups)} | _as_dict(test))
    notes = [
        "UNPAIRED: runs (folds and seeds) are taken as independent samples of each method, normal and of one variance, though "
        "all methods share folds, cases and seeds. It stands here because the field prints it; read the paired comparison.",
        "η² is the share of the variance of all runs that lies between methods. A dash: fewer than two methods, or one run each.",
        f"† p < {ALPHA:g}, uncorrected.",
        *([f"Runs left out, in which the metric is undefined: {', '.join(undefined)}."] if undefined else []),
    ]  # fmt: skip
    headers = [("", head) for head in ("methods", "runs", "η²", "p")]
    return Table(f"{_name(plan)}-anova", "One-way analysis of variance, unpaired", headers, lines, notes, tidy)


def _name(plan: Plan) -> str:
    return str(plan.definition["table"]["name"])


def _heading(plan: Plan, column: Column) -> str:
    """The column as the suite's table heads it, without the metric."""
    values = column._asdict()
    names = (str(values[name]) for name in plan.definition["table"]["columns"] if name != "metric")
    return ", ".join(plan.heads.get(name, name) for name in names)


def _as_dict(outcome: Outcome) -> dict[str, Any]:
    return {
        "test": outcome.name, "effect": outcome.effect, "effect_low": outcome.low, "effect_high": outcome.high, "n": outcome.n,
        "over": outcome.over, "note": outcome.note, "smallest_p": outcome.smallest, "p": outcome.p,
    }  # fmt: skip
