"""Tables and tests of the files that others published (:mod:`milbench.papers.sheets`), after the paper's printed numbers."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from milbench import stats
from milbench.compare import ALPHA
from milbench.compare.sheets import OverCases, OverFolds, over_cases, over_folds
from milbench.errors import unknown
from milbench.metrics import HARRELL
from milbench.numbers import interval, p_value, signed, spread, styles, tally
from milbench.papers.sheets import FoldScores, Head, Predictions, Scores, Sheet, fold_scores, plain, predictions
from milbench.report import verdicts
from milbench.report.model import Entry, Report, Row, Table
from milbench.report.notes import SEEN_ONCE, THE_TEST, TOLERATED
from milbench.report.tables import difference, heads_of_test

REFERENCES = ("longmil", "abmil", "amil")  # in this order; else the first model of the file


def report(
    folds: Iterable[Path] = (), predictions: Iterable[Path] = (), *, reference: str | None = None, tests: bool = True
) -> Report:
    """What :func:`build` makes of the files, after what the paper's printed numbers say.

    Raises:
        MilbenchError: a file cannot be read or lacks a column; says what was found and what is needed.
    """
    others = build(folds, predictions, reference=reference, tests=tests)
    return Report("published", "Published results", [], verdicts=verdicts.build(None) if tests else [], others=others)


def build(
    folds: Iterable[Path] = (), predictions: Iterable[Path] = (), *, reference: str | None = None, tests: bool = True
) -> list[Table]:
    """Tables of every file: means with their spread, the paired comparison over cases (of predictions), and over folds.

    Args:
        folds: files with a row per model and fold.
        predictions: files with a row per model, fold and case.
        reference: model that the others are compared with, in tables that have it; else LongMIL, AB-MIL or the first.
        tests: False leaves the comparisons out.

    Raises:
        MilbenchError: a file cannot be read or lacks a column, a number is none, models do not agree on what happened to a case,
            or no file has the reference; says what was found and what is needed.
    """
    by_fold, by_case = [Sheet.read(path) for path in folds], [Sheet.read(path) for path in predictions]
    models = {model for sheet in (*by_fold, *by_case) for model in sheet.models()}
    if reference is not None and reference not in models:
        raise unknown("model in these files", reference, models)
    tables = [table for sheet in by_fold for table in _of_folds(sheet, reference, tests=tests)]
    return tables + [table for sheet in by_case for table in _of_predictions(sheet, reference, tests=tests)]


def _of_folds(sheet: Sheet, reference: str | None, *, tests: bool) -> list[Table]:
    """Tables of scores per fold: one with a column per group where there is one score, else one per group."""
    every = fold_scores(sheet)
    if len({score for _, score in every.scores}) == 1:
        parts = [_Part(sheet, sheet.stem, "", every.scores)]
    else:
        parts = [_Part(sheet, name, group, _of_group(every, group)) for group, name in every.names.items()]
    tables = []
    for part in parts:
        compared = part.over_folds(reference) if tests else None
        means = part.means({})
        means.notes += [f"Not used: column{'s' * (len(every.unused) > 1)} {', '.join(every.unused)}."] if every.unused else []
        tables += [means, *([compared] if compared else [])]
    return tables


def _of_group(every: FoldScores, group: str) -> Scores:
    return {head: models for head, models in every.scores.items() if head[0] == group}


def _of_predictions(sheet: Sheet, reference: str | None, *, tests: bool) -> list[Table]:
    """Tables of predictions per case: scores recomputed, the primary test over cases, and the comparison over folds."""
    read = predictions(sheet)
    part = _Part(sheet, sheet.stem, "", read.scores(), {metric.name: metric.label for metric in read.metrics})
    base = part.reference(reference)
    compared = [over_cases(sheet, read, metric, base) for metric in read.metrics] if tests else []
    daggers = {((c.group, c.metric.name), c.model): c.p_holm for of_metric in compared for c in of_metric}
    means = part.means(daggers)
    if daggers:
        start = "† differs" if any(p < ALPHA for p in daggers.values()) else "No row differs (†)"
        what = f"{start} from {base} for other patients and other trainings, at p < {ALPHA:g} after Holm's correction"
        unknown = all(math.isnan(p) for p in daggers.values())
        means.notes.append(f"{'No p-value, so no row is marked (†)' if unknown else what}; see the paired comparison.")
    if HARRELL in read.metrics:
        means.notes.append(
            "c-index: as scikit-survival counts, where an event and a censored case of the same time are comparable; "
            "Harrell: where they are not."
        )
    tables = [means, *([_paired(sheet, read, compared, base)] if daggers else [])]
    on_folds = part.over_folds(reference) if tests else None
    return [*tables, *([on_folds] if on_folds else [])]


class _Part:
    """Scores of a file, or of a group of it, that make one table.

    Args:
        sheet: the file.
        name: of the table.
        group: that the table is about; empty where groups are its columns.
        scores: by group and score.
        labels: how scores are headed; as in the file unless given.
    """

    def __init__(self, sheet: Sheet, name: str, group: str, scores: Scores, labels: Mapping[str, str] | None = None) -> None:
        self.sheet, self.name, self.group, self.scores, self.labels = sheet, name, group, scores, labels or {}
        self.models = list(dict.fromkeys(model for of_score in scores.values() for model in of_score))

    def reference(self, asked: str | None) -> str:
        """The model that the others are compared with."""
        if asked in self.models:
            return str(asked)
        names = {plain(model).replace(" ", ""): model for model in reversed(self.models)}
        return next((names[name] for name in REFERENCES if name in names), self.models[0])

    def head(self, head: Head) -> tuple[str, str]:
        """(group, label) over a column."""
        return "" if self.group else head[0], self.labels.get(head[1], head[1])

    def means(self, daggers: Mapping[tuple[Head, str], float]) -> Table:
        """Mean ± sample standard deviation over folds; `daggers` holds corrected p-values by column and model."""
        rows = [Row(model, []) for model in self.models]
        every = {fold for of_score in self.scores.values() for folds in of_score.values() for fold in folds}
        in_order = sorted(every, key=lambda fold: (len(fold), fold))
        tidy, marks = [], dict[str, str]()
        for head, of_score in self.scores.items():
            folds = {fold for values in of_score.values() for fold in values}
            known = [np.array([v for v in of_score.get(m, {}).values() if not math.isnan(v)]) for m in self.models]
            means = [stats.rounded(values.mean(), step=stats.STEP) if len(values) else math.nan for values in known]
            ranked = styles([mean if len(k) == len(folds) else math.nan for k, mean in zip(known, means, strict=True)])
            for row, values, mean, style in zip(rows, known, means, ranked, strict=True):
                sd = stats.rounded(values.std(ddof=1), step=stats.STEP) if len(values) > 1 else math.nan
                dagger = daggers.get((head, row.label), math.nan) < ALPHA
                mark = ""
                if len(values) < len(folds):
                    few = f"over {len(values)} of {len(folds)} folds, not ranked"
                    mark = marks.setdefault(few if len(values) else "not in the file, or undefined", chr(ord("a") + len(marks)))
                row.entries.append(Entry(spread(mean, sd), style, dagger=dagger, mark=mark))
                place = {"model": row.label, "group": head[0], "score": head[1], "mean": mean, "sd": sd, "folds": len(values)}
                tidy.append({**place, **{f"fold_{f}": of_score.get(row.label, {}).get(f, math.nan) for f in in_order}})
        notes = [f"({letter}) {note}." for note, letter in marks.items()]
        notes.append(
            f"From {self.sheet.path.name}. Mean ± sample standard deviation (ddof = 1) over folds. Best in bold, second "
            "underlined."
        )
        title = f"Published results: {self.sheet.path.name}" + (f", {self.group}" if self.group else "")
        return Table(self.name, title, [self.head(head) for head in self.scores], rows, notes, tidy)

    def over_folds(self, reference: str | None) -> Table | None:
        """Every model against the reference, folds being the sample; None where no two models share a fold."""
        base = self.reference(reference)
        lines: list[Row] = []
        tidy = []
        for head, of_score in self.scores.items():
            compared = over_folds(of_score, base)
            if compared:
                lines.append(Row(", ".join(filter(None, self.head(head))), [], rule=bool(lines)))
            for c in compared:
                lines.append(_line_over_folds(c))
                tidy.append(_tidy_over_folds(c, head, base))
        if not lines:
            return None
        notes = [
            f"Difference = model minus {base}, mean over the folds that both have; W/T/L counts folds.",
            "Interval and p: Nadeau and Bengio's corrected t-test, in brackets after Holm's correction over the models of a "
            "column; for k folds n_test / n_train is taken as 1 / (k - 1), since the file does not say.",
            "Wilcoxon: exact signed-rank test, in brackets the smallest p that so many folds allow.",
        ]
        heads = [("", h) for h in ("difference", "95 % interval", "W/T/L", "p (Holm)", "p Wilcoxon (least possible)")]
        title = "Comparison over folds" + (f", {self.group}" if self.group else "")
        return Table(f"{self.name}-over-folds", title, heads, lines, notes, tidy)


def _line_over_folds(c: OverFolds) -> Row:
    low, high, p = (c.corrected.low, c.corrected.high, c.corrected.p) if c.corrected else (math.nan,) * 3
    texts = [
        signed(c.mean),
        interval(low, high),
        tally(*c.tally),
        f"{p_value(p)} ({p_value(c.p_holm)})",
        f"{p_value(c.signs.p)} ({p_value(c.signs.smallest, digits=3)})",
    ]
    return Row(c.model, [Entry(text) for text in texts])


def _tidy_over_folds(c: OverFolds, head: Head, base: str) -> dict[str, Any]:
    low, high, p = (c.corrected.low, c.corrected.high, c.corrected.p) if c.corrected else (math.nan,) * 3
    wins, _, losses = c.tally
    return {
        "model": c.model, "reference": base, "group": head[0], "score": head[1], "folds": len(c.differences),
        "difference": c.mean, "low": low, "high": high, "wins": wins, "losses": losses, "p_nadeau_bengio": p,
        "p_holm": c.p_holm, "p_wilcoxon": c.signs.p, "smallest_p_wilcoxon": c.signs.smallest,
    }  # fmt: skip


def _paired(sheet: Sheet, read: Predictions, compared: list[list[OverCases]], base: str) -> Table:
    """The primary test of every model against the reference."""
    lines: list[Row] = []
    notes: list[str] = []
    once = any(c.seen_once for of_metric in compared for c in of_metric)
    for metric, of_metric in zip(read.metrics, compared, strict=True):
        notes += [
            f"{c.model}: {c.left_out} cases that only it or only {base} has are left out of the comparison."
            for c in of_metric
            if c.left_out
        ]
        for c in of_metric:
            head = ", ".join(filter(None, [c.group, metric.label]))
            if not any(not line.entries and line.label == head for line in lines):
                lines.append(Row(head, [], rule=bool(lines)))
            notes += [SEEN_ONCE, TOLERATED] if c.seen_once else [f"{c.model}: {c.test.why}."] if c.test.why else []
            notes += c.notes
            lines.append(Row(c.model, difference(c, once=once)))
    notes = [
        f"Difference = model minus {base}, mean over folds; W/T/L counts folds. Each row of the file is taken as a patient.",
        THE_TEST,
        "Holm's correction runs over all models and columns of one score.",
        *dict.fromkeys(notes),
    ]
    tidy = [
        {"model": c.model, "reference": base, "group": c.group, "score": c.metric.name, **c.as_row()}
        for of_metric in compared
        for c in of_metric
    ]
    return Table(f"{sheet.stem}-paired", f"Paired comparison with {base}", heads_of_test(once=once), lines, notes, tidy)
