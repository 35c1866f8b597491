"""The appendix: every other test that a reader may ask for, beside the primary one, and what each assumes."""

import csv
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from milbench import stats
from milbench.errors import MilbenchError
from milbench.numbers import NONE, interval, number, p_value, signed, tally
from milbench.reading import Run
from milbench.report.ranks import critical_difference, ranks
from milbench.report.tables import ALPHA, METRICS, REPLICATES, Entry, Row, Table
from milbench.stats import Outcome, PairedFold
from milbench.trials.plan import Plan

__all__ = ["build", "critical_difference", "ranks"]

Place = tuple[Any, ...]
Pairs = list[tuple[Run, Run]]  # a run of the method and the reference's of the same fold and seed

_COLUMN = ("dataset", "encoder", "magnification", "patch_size", "split")  # what a place says
_EFFECT = ("difference", "low", "high", "wins", "ties", "losses", "undefined")  # of the paired comparison
# How each test is called in the heads, and which of its numbers stand before its p-value.
_SHOWN = {
    "delong": ("DeLong", ("95 % interval",)),
    "permutation": ("permutation", ()),
    "mcnemar": ("McNemar", ("difference", "95 % interval")),
    "nadeau-bengio": ("Nadeau-Bengio", ("95 % interval",)),
    "wilcoxon": ("Wilcoxon", ("smallest p",)),
}
_SAYS = {
    "delong": "DeLong: AUC of two classes, each seed's own probabilities (not seed-mean ones); placements are averaged over "
    "seeds, folds are taken as independent; normal approximation. It says what other test cases would have shown.",
    "permutation": "Permutation: each seed's own predictions (not seed-mean ones) of a case are swapped between the methods, all "
    f"seeds together; for the AUC ranks within each method are swapped. All swaps where they are few, else {REPLICATES:,} random "
    "ones. Its null hypothesis is stronger than equal metrics: the methods are exchangeable case by case.",
    "mcnemar": "McNemar, exact: SEED-MEAN probabilities, over the cases of all folds. It tests the accuracy, whose difference it "
    "shows, not the metric of this table; the interval is Clopper and Pearson's given the number of discordant cases.",
    "nadeau-bengio": "Nadeau-Bengio: Student's t over folds (seeds averaged first), the variance multiplied by 1/J + "
    "n_test/n_train because training sets overlap. It assumes normal differences and speaks of other training sets too.",
    "wilcoxon": "Wilcoxon signed rank, exact, over {unit}. It takes pairs as independent, which {unit} that share {shared} are "
    "not. No p-value can be below the smallest one that so many pairs allow, which stands beside it.",
}


def build(plan: Plan, runs: Sequence[Run], paired: Table) -> list[Table]:
    """The appendix of a suite: other tests against the same reference, ANOVA, and ranks where there are 5 blocks.

    Args:
        plan, runs: as for the suite's table.
        paired: its comparison with the reference: differences and intervals are taken from there, so that they agree.
    """
    reference = paired.tidy[0]["reference"]
    tables = [_tests(plan, runs, paired, reference, metric) for metric in plan.definition["table"]["metrics"]]
    tables.append(_anova(plan, runs))
    for metric in plan.definition["table"]["metrics"]:
        ranked = ranks(plan.definition["table"]["name"], runs, metric, reference)
        tables += [ranked] if ranked else []
    return tables


def _tests(plan: Plan, runs: Sequence[Run], paired: Table, reference: str, metric: str) -> Table:
    """Each method against the reference, by every test that applies to this metric."""
    primary = [row for row in paired.tidy if row["metric"] == metric]
    pairs = [_pairs(runs, _place(row), row["aggregator"], reference) for row in primary]
    found = [_outcomes(pair, metric) for pair in pairs]
    names = [name for name in _SHOWN if any(name in outcomes for outcomes in found)]
    corrected = {name: stats.holm([outcomes[name].p if name in outcomes else math.nan for outcomes in found]) for name in names}
    headers = [("", head) for head in ("difference", "95 % interval", "W/T/L", "superiority")]
    headers += [(_SHOWN[name][0], label) for name in names for label in (*_SHOWN[name][1], "p")]

    labels = {run.cell.aggregator: run.cell.label for run in runs}
    lines: list[Row] = []
    tidy, place = [], None
    dashes: dict[str, list[str]] = defaultdict(list)  # why there is no p-value -> rows
    for i, (row, outcomes) in enumerate(zip(primary, found, strict=True)):
        heading = _heading(plan, _place(row))
        if place != (place := _place(row)) and heading:
            lines.append(Row(heading, [], rule=bool(lines)))
        superiority = _superiority(pairs[i], metric)
        entries = [
            Entry(signed(row["difference"])),
            Entry(interval(row["low"], row["high"])),
            Entry(tally(row["wins"], row["ties"], row["losses"], row["undefined"])),
            Entry(number(superiority, ".2f")),
        ]
        shared = {key: row[key] for key in ("aggregator", "label", *_COLUMN, "metric", "reference", *_EFFECT)}
        for name in names:
            p_holm = float(corrected[name][i])
            entries += _entries(name, outcomes.get(name), p_holm)
            if outcome := outcomes.get(name):
                tidy.append(shared | {"superiority": superiority} | _as_dict(outcome) | {"p_holm": p_holm})
                if math.isnan(outcome.p):
                    dashes[f"{_SHOWN[name][0]} {outcome.note}"].append(row["label"] + (f" ({heading})" if heading else ""))
        lines.append(Row(row["label"], entries))
    folds = len({run.cell.fold for run in runs}) > 1
    over = {"unit": "folds", "shared": "training cases"} if folds else {"unit": "seeds", "shared": "one split"}
    notes = [
        "Difference, interval and W/T/L are those of the paired comparison. Superiority: how often a run of the method has a "
        f"larger value than one of {labels[reference]} on the same fold, ties one half; Cliff's delta is 2 superiority - 1.",
        f"† p < {ALPHA:g} after Holm's correction over all rows of this table, test by test; the p-values are uncorrected.",
        *(_SAYS[name].format(**over) for name in names),
        *(f"{why}: {', '.join(rows)}." for why, rows in dashes.items()),
    ]
    title = f"Other tests against {labels[reference]}: {METRICS[metric][0]}"
    return Table(f"{_name(plan)}-tests-{metric.replace('_', '-')}", title, headers, lines, notes, tidy)


def _entries(name: str, outcome: Outcome | None, p_holm: float) -> list[Entry]:
    labels = _SHOWN[name][1]
    if outcome is None:
        return [Entry(NONE)] * (len(labels) + 1)
    shown = {
        "difference": signed(outcome.effect),
        "95 % interval": interval(outcome.low, outcome.high),
        "smallest p": number(outcome.smallest, ".3g"),
    }
    # Few pairs allow few p-values: those of Wilcoxon are printed as exactly as the smallest.
    p = number(outcome.p, ".3g") if name == "wilcoxon" else p_value(outcome.p)
    return [*(Entry(shown[label]) for label in labels), Entry(p, dagger=p_holm < ALPHA)]


def _outcomes(pairs: Pairs, metric: str) -> dict[str, Outcome]:
    """Every test that applies; one that applies and finds the metric undefined says so in its outcome."""
    folds = _by_fold(pairs)
    found: dict[str, Outcome] = {}
    if metric in ("macro_auc", "macro_f1", "accuracy") and _incomplete(pairs):
        name = "permutation" if metric == "macro_auc" else "mcnemar"
        found[name] = _not_computed(
            "a prediction is missing (NaN)", sum(len(fold[0][0].predictions["slide"]) for fold in folds.values())
        )
    elif metric in ("macro_auc", "macro_f1", "accuracy"):
        cases = [_cases(fold) for fold in folds.values()]
        if metric != "accuracy":
            seed = f"{pairs[0][0].cell.column}|{metric}"
            found["permutation"] = stats.permutation(cases, metric, replicates=REPLICATES, seed=seed)
        if metric == "macro_auc" and cases[0].method.shape[2] == 2:
            found["delong"] = stats.delong(cases)
        if metric != "macro_auc":
            found["mcnemar"] = stats.mcnemar(cases)

    differences = [[mine.metric(metric) - other.metric(metric) for mine, other in fold] for fold in folds.values()]
    sample = [float(np.mean(seeds)) for seeds in differences] if len(folds) > 1 else differences[0]
    undefined = "the metric is undefined in some runs" if np.isnan(sample).any() else ""
    if len(sample) > 1:
        found["wilcoxon"] = _not_computed(undefined, len(sample)) if undefined else stats.wilcoxon(sample)
    if len(folds) > 1:
        sizes = _sizes(pairs[0][0])
        if lack := undefined or ("" if folds.keys() <= sizes.keys() else "the file of the split is not here"):
            found["nadeau-bengio"] = _not_computed(lack, len(sample))
        else:
            train, test = zip(*(sizes[fold] for fold in folds), strict=True)
            found["nadeau-bengio"] = stats.nadeau_bengio(sample, train, test)
    return found


def _incomplete(pairs: Pairs) -> bool:
    return any(np.isnan(run.predictions["score"]).any() for pair in pairs for run in pair)


def _not_computed(why: str, n: int) -> Outcome:
    return Outcome("", math.nan, math.nan, math.nan, n, f"not computed ({why})", math.nan, math.nan)


def _pairs(runs: Sequence[Run], place: Place, aggregator: str, reference: str) -> Pairs:
    here = [run for run in runs if run.cell.column == place and run.status == "ok"]
    base = {(run.cell.fold, run.cell.seed): run for run in here if run.cell.aggregator == reference}
    own = [run for run in here if run.cell.aggregator == aggregator]
    return [(run, base[key]) for run in own if (key := (run.cell.fold, run.cell.seed)) in base]


def _by_fold(pairs: Pairs) -> dict[int, Pairs]:
    folds: dict[int, Pairs] = defaultdict(list)
    for pair in pairs:
        folds[pair[0].cell.fold].append(pair)
    return folds


def _cases(fold: Pairs) -> PairedFold:
    """The predictions of one fold, seed by seed.

    Raises:
        MilbenchError: the runs test other slides.
    """
    first = fold[0][0].predictions
    for run in (run for pair in fold for run in pair):
        if not np.array_equal(run.predictions["slide"], first["slide"]):
            raise MilbenchError(
                f"trials {fold[0][0].cell.trial_id} and {run.cell.trial_id} test other slides, they cannot be paired"
            )
    method, reference = (np.stack([pair[side].predictions["score"] for pair in fold]) for side in (0, 1))
    return PairedFold(first["target"], method, reference)  # (n,), (seeds, n, C), (seeds, n, C)


def _superiority(pairs: Pairs, metric: str) -> float:
    folds = _by_fold(pairs).values()
    method, reference = ([[pair[side].metric(metric) for pair in fold] for fold in folds] for side in (0, 1))
    return stats.superiority(method, reference)


def _sizes(run: Run) -> dict[int, tuple[int, int]]:
    """Training and test cases of each fold, from the split that the run was made with; empty when its file is not here."""
    spec = run.result["spec"]
    name = f"{spec['dataset']}-{spec['split']}-{spec['split_fingerprint'].removeprefix('sha256:')}.csv"
    path = run.store.root / "splits" / name
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        parts = Counter((int(row["fold"]), row["part"]) for row in csv.DictReader(file))
    return {fold: (parts[fold, "train"], parts[fold, "test"]) for fold, _ in parts}


def _anova(plan: Plan, runs: Sequence[Run]) -> Table:
    """One line for each column and metric: do the methods differ at all?"""
    lines, tidy, undefined = [], [], []
    columns = list(dict.fromkeys(run.cell.column for run in runs))
    for column in columns:
        for metric in plan.definition["table"]["metrics"]:
            groups: dict[str, list[float]] = defaultdict(list)
            done = [run for run in runs if run.cell.column == column and run.status == "ok"]
            for run in done:
                if not math.isnan(value := run.metric(metric)):
                    groups[run.cell.aggregator].append(value)
            label = ", ".join(filter(None, [_heading(plan, column), METRICS[metric][0]]))
            n = sum(map(len, groups.values()))
            if n < len(done):
                undefined.append(f"{len(done) - n} of {len(done)} ({label})")
            if len(groups) < 2 or n <= len(groups):
                lines.append(Row(label, [Entry(str(len(groups))), Entry(str(n)), *[Entry(NONE)] * 2]))
                continue
            found = stats.anova(list(groups.values()))
            lines.append(Row(label, [
                Entry(str(len(groups))), Entry(str(n)), Entry(number(found.effect, ".2f")),
                Entry(p_value(found.p), dagger=found.p < ALPHA),
            ]))  # fmt: skip
            tidy.append(dict(zip(_COLUMN, column, strict=True)) | {"metric": metric, "methods": len(groups)} | _as_dict(found))
    notes = [
        "UNPAIRED: runs (folds and seeds) are taken as independent samples of each method, normal and of one variance, though "
        "all methods share folds, cases and seeds. It stands here because the field prints it; read the paired comparison.",
        "η² is the share of the variance of all runs that lies between methods. A dash: fewer than two methods, or one run each.",
        f"† p < {ALPHA:g}, uncorrected.",
        *([f"Runs left out, in which the metric is undefined: {', '.join(undefined)}."] if undefined else []),
    ]  # fmt: skip
    headers = [("", head) for head in ("methods", "runs", "η²", "p")]
    return Table(f"{_name(plan)}-anova", "One-way analysis of variance, unpaired", headers, lines, notes, tidy)


def _place(row: dict[str, Any]) -> Place:
    return tuple(row[name] for name in _COLUMN)


def _name(plan: Plan) -> str:
    return str(plan.definition["table"]["name"])


def _heading(plan: Plan, place: Place) -> str:
    """The column as the suite's table heads it, without the metric."""
    values, heads = dict(zip(_COLUMN, map(str, place), strict=True)), plan.heads
    return ", ".join(heads.get(values[n], values[n]) for n in plan.definition["table"]["columns"] if n != "metric")


def _as_dict(outcome: Outcome) -> dict[str, Any]:
    return {
        "test": outcome.name, "effect": outcome.effect, "effect_low": outcome.low, "effect_high": outcome.high, "n": outcome.n,
        "note": outcome.note, "smallest_p": outcome.smallest, "p": outcome.p,
    }  # fmt: skip
