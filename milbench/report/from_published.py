"""Tables and tests from results that others published: scores per fold, or predictions per case, in CSV files of theirs.

Columns are found by name, in any case and with `-`, `_`, `.` or blanks between words:

| what | names |
|---|---|
| model | model, method, aggregator |
| fold | fold, folds, split, run, seed |
| score of a fold | any name with auc, c-index, acc, accuracy, f1, kappa or score in it |
| case | case, case id, patient, patient id, slide, slide id |
| risk, higher is worse | risk, risk score, hazard |
| time | time, survival months, survival days, survival time, os time |
| outcome | event or status, 1 where it was seen; or censorship, censored or censor, 1 where it was not |
| class | target, label; its scores p0, p1, ... or p_0, prob_0, ... |

Tables of folds are grouped by all other columns, predictions by cohort, dataset and encoder.
"""

import csv
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milbench import stats
from milbench.errors import MilbenchError, few, unknown
from milbench.files import table_text
from milbench.numbers import interval, number, p_value, signed, spread, styles, tally
from milbench.report import claims
from milbench.report.build import Report
from milbench.report.tables import ALPHA, METRICS, REPLICATES, Entry, Row, Table
from milbench.stats.paired import Once

MODEL = ("model", "method", "aggregator")
FOLD = ("fold", "folds", "split", "run", "seed")
SCORE = re.compile(r"auc|c ?index|\bacc|f1|kappa|score")
CASE = ("case", "case id", "patient", "patient id", "slide", "slide id")
RISK = ("risk", "risk score", "hazard")
TIME = ("time", "survival months", "survival days", "survival time", "os time")
EVENT = ("event", "status")
CENSORED = ("censorship", "censored", "censor")
TARGET = ("target", "label")
GROUPS = ("cohort", "dataset", "encoder")
OURS = ("longmil", "abmil", "amil")  # references, in this order; else the first model of the file

# Two definitions are in use. Where an event and a censored case have the same time, scikit-survival, and with it most published
# tables and ours, counts the pair; Harrell did not.
_C_INDEX: dict[str, tuple[str, Callable[..., NDArray[np.float64]], int]] = {
    "c_index": METRICS["c_index"],
    "c_index_harrell": ("c-index (Harrell)", partial(stats.c_index, equal_times=False), 1),
}
_SUBTYPING = {name: METRICS[name] for name in ("macro_auc", "macro_f1")}


def _plain(name: str) -> str:
    return re.sub(r"[-_.\s]+", " ", name).strip().lower()


@dataclass(frozen=True)
class Sheet:
    """A CSV file, gzipped or not."""

    path: Path
    names: list[str]
    rows: list[dict[str, str]] = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> "Sheet":
        """Read a file.

        Raises:
            MilbenchError: it is not there, not such a file, or without rows.
        """
        try:
            reader = csv.DictReader(StringIO(table_text(path), newline=""), strict=True)
            rows = list(reader)
        except (OSError, ValueError, csv.Error) as error:
            raise MilbenchError(f"{path}: cannot be read as CSV ({error})") from error
        if not rows:
            raise MilbenchError(f"{path}: no rows")
        for line, row in enumerate(rows, start=2):
            if None in row or None in row.values():
                raise MilbenchError(f"{path}, line {line}: not {len(reader.fieldnames or ())} fields as in the first line")
        return cls(path, list(reader.fieldnames or ()), rows)

    def find(self, what: str, known: Sequence[str]) -> str | None:
        """The column with one of these names.

        Raises:
            MilbenchError: several columns have one.
        """
        found = [name for name in self.names if _plain(name) in known]
        if len(found) > 1:
            raise MilbenchError(f"{self.path}: {' and '.join(found)} could both be the {what}; rename all but one")
        return found[0] if found else None

    def need(self, what: str, known: Sequence[str]) -> str:
        """The same, where there must be one.

        Raises:
            MilbenchError: there is none; says what was found and what is needed.
        """
        found = self.find(what, known)
        if found is None:
            raise MilbenchError(
                f"{self.path}: no column for the {what}; needed is one of {', '.join(known)}, found are {few(self.names, 30)}"
            )
        return found

    def number(self, at: int, name: str) -> float:
        """A number of row `at`; NaN where the field is empty.

        Raises:
            MilbenchError: it is none.
        """
        text = self.rows[at][name].strip()
        try:
            return float(text or "nan")
        except ValueError:
            raise MilbenchError(f"{self.path}, line {at + 2}: {name} is {text!r}, not a number") from None

    @property
    def stem(self) -> str:
        """File name for tables: letters, digits and hyphens."""
        return _file_name(self.path.name.removesuffix(".gz").removesuffix(".csv"))


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")


@dataclass
class Cases:
    """Predictions of one model for the test cases of one fold, in the order of their names.

    Args:
        case: (n,) names.
        outcome: (n,) class or event, which strata are made of.
        data: what metrics take: time, event, risk, or class and scores.
    """

    case: NDArray[np.str_]
    outcome: NDArray[np.int64]
    data: tuple[NDArray[Any], ...]

    def of(self, cases: NDArray[np.str_]) -> "Cases":
        """Only these cases."""
        at = np.isin(self.case, cases)
        return Cases(self.case[at], self.outcome[at], tuple(values[at] for values in self.data))


Column = tuple[str, str]  # group and score
Scores = dict[Column, dict[str, dict[str, float]]]  # -> model -> fold -> score


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
        MilbenchError: a file cannot be read or lacks a column; says what was found and what is needed. No file has the reference.
    """
    by_fold, by_case = [Sheet.read(path) for path in folds], [Sheet.read(path) for path in predictions]
    models = {row[sheet.need("model", MODEL)] for sheet in (*by_fold, *by_case) for row in sheet.rows}
    if reference is not None and reference not in models:
        raise unknown("model in these files", reference, models)
    tables: list[Table] = []
    for sheet in by_fold:
        tables += of_folds(sheet, reference, tests=tests)
    for sheet in by_case:
        tables += of_predictions(sheet, reference, tests=tests)
    return tables


def report(
    folds: Iterable[Path] = (), predictions: Iterable[Path] = (), *, reference: str | None = None, tests: bool = True
) -> Report:
    """What :func:`build` makes of the files, after what the paper's printed numbers say.

    Raises:
        MilbenchError: a file cannot be read or lacks a column; says what was found and what is needed.
    """
    others = build(folds, predictions, reference=reference, tests=tests)
    return Report("published", "Published results", [], verdicts=claims.verdicts(None) if tests else [], others=others)


def of_folds(sheet: Sheet, reference: str | None = None, *, tests: bool = True) -> list[Table]:
    """Tables of scores per fold: one with a column per group where there is one score, else one per group.

    Raises:
        MilbenchError: a column is missing, a number is none, or a model has a fold twice.
    """
    model, fold = sheet.need("model", MODEL), sheet.need("fold", FOLD)
    scores = [name for name in sheet.names if name not in (model, fold) and SCORE.search(_plain(name))]
    if not scores:
        raise MilbenchError(
            f"{sheet.path}: no column with scores; needed is a name with auc, c-index, acc, f1, kappa or score in it, "
            f"found are {', '.join(sheet.names)}"
        )
    keys = [name for name in sheet.names if name and name not in (model, fold, *scores)]
    groups = [name for name in keys if len({row[name] for row in sheet.rows}) > 1]
    found: Scores = {}
    names: dict[str, str] = {}  # group -> file name
    for at, row in enumerate(sheet.rows):
        group = ", ".join(row[name] if len(groups) == 1 else f"{name} {row[name]}" for name in groups)
        names[group] = _file_name(" ".join([sheet.stem, *(row[name] for name in groups)]))
        for score in scores:
            own = found.setdefault((group, score), {}).setdefault(row[model], {})
            if row[fold] in own:
                raise MilbenchError(
                    f"{sheet.path}, line {at + 2}: {row[model]} has fold {row[fold]} twice{group and f' in {group}'}"
                )
            own[row[fold]] = sheet.number(at, score)
    labels = {score: score for score in scores}
    if len(scores) == 1:
        return _tables(sheet, sheet.stem, "", found, labels, reference, tests=tests)
    tables = []
    for group, name in names.items():
        part = {column: models for column, models in found.items() if column[0] == group}
        tables += _tables(sheet, name, group, part, labels, reference, tests=tests)
    return tables


def _tables(
    sheet: Sheet, name: str, group: str, scores: Scores, labels: dict[str, str], reference: str | None, *, tests: bool
) -> list[Table]:
    """The table of means, and the comparison over folds."""
    main = _main(sheet, name, group, scores, labels, {})
    over_folds = _over_folds(name, group, scores, labels, _reference(scores, reference)) if tests else None
    return [main, *([over_folds] if over_folds else [])]


def _reference(scores: Scores, asked: str | None) -> str:
    models = list(dict.fromkeys(model for own in scores.values() for model in own))
    if asked in models:
        return asked
    plain = {_plain(model).replace(" ", ""): model for model in reversed(models)}
    return next((plain[name] for name in OURS if name in plain), models[0])


def _main(
    sheet: Sheet, name: str, group: str, scores: Scores, labels: dict[str, str], daggers: dict[tuple[Column, str], float]
) -> Table:
    """Mean ± sample standard deviation over folds."""
    models = list(dict.fromkeys(model for own in scores.values() for model in own))
    rows, tidy, marks = [Row(model, []) for model in models], [], dict[str, str]()
    every = sorted({fold for own in scores.values() for values in own.values() for fold in values}, key=lambda f: (len(f), f))
    for column, own in scores.items():
        folds = {fold for values in own.values() for fold in values}
        known_of = {m: np.array([v for v in own.get(m, {}).values() if not math.isnan(v)]) for m in models}
        means = {m: stats.rounded(v.mean(), step=stats.STEP) if len(v) else math.nan for m, v in known_of.items()}
        ranked = styles([mean if len(known_of[m]) == len(folds) else math.nan for m, mean in means.items()])
        for row, style in zip(rows, ranked, strict=True):
            known, mean = known_of[row.label], means[row.label]
            note = f"over {len(known)} of {len(folds)} folds, not ranked" if len(known) < len(folds) else ""
            mark = (
                marks.setdefault(note if len(known) else "not in the file, or undefined", chr(ord("a") + len(marks)))
                if note
                else ""
            )
            sd = stats.rounded(known.std(ddof=1), step=stats.STEP) if len(known) > 1 else math.nan
            dagger = daggers.get((column, row.label), math.nan) < ALPHA
            row.entries.append(Entry(spread(mean, sd), style, dagger=dagger, mark=mark))
            values_of = {f"fold_{fold}": own.get(row.label, {}).get(fold, math.nan) for fold in every}
            of = {"model": row.label, "group": column[0], "score": column[1], "mean": mean, "sd": sd, "folds": len(known)}
            tidy.append({**of, **values_of})
    notes = [f"({letter}) {note}." for note, letter in marks.items()]
    notes.append(
        f"From {sheet.path.name}. Mean ± sample standard deviation (ddof = 1) over folds. Best in bold, second underlined."
    )
    heads = [("" if group else column[0], labels[column[1]]) for column in scores]
    return Table(name, f"Published results: {sheet.path.name}" + (f", {group}" if group else ""), heads, rows, notes, tidy)


def _over_folds(name: str, group: str, scores: Scores, labels: dict[str, str], base: str) -> Table | None:
    """Every model against the reference, folds being the sample; None where no two models share a fold."""
    lines: list[Row] = []
    tidy = []
    for column, own in scores.items():
        if base not in own:
            continue
        tested = []
        for model in (model for model in own if model != base):
            common = [f for f in own[model] if f in own[base] and not math.isnan(own[model][f] - own[base][f])]
            if common:
                differences = np.array([own[model][f] - own[base][f] for f in common])
                tested.append((model, stats.rounded(differences, step=stats.STEP)))
        if not tested:
            continue
        # k folds of one data set: a test part is one k-th of it, and what remains at most k - 1 of them.
        corrected = [
            stats.nadeau_bengio(d, np.full(len(d), len(own[base]) - 1), np.ones(len(d))) if len(d) > 1 else None
            for _, d in tested
        ]
        holm = stats.holm([math.nan if test is None else test.p for test in corrected])
        lines.append(Row(", ".join(filter(None, [column[0] if not group else "", labels[column[1]]])), [], rule=bool(lines)))
        for (model, d), test, p_holm in zip(tested, corrected, holm, strict=True):
            signs = stats.wilcoxon(d)
            wins, losses = int((d > 0).sum()), int((d < 0).sum())
            mean = stats.rounded(d.mean(), step=stats.STEP)
            low, high, p = (test.low, test.high, test.p) if test else (math.nan,) * 3
            entries = [
                signed(mean),
                interval(low, high),
                tally(wins, len(d) - wins - losses, losses),
                f"{p_value(p)} ({p_value(float(p_holm))})",
                f"{p_value(signs.p)} ({number(signs.smallest, '.3g')})",
            ]
            lines.append(Row(model, [Entry(text) for text in entries]))
            tidy.append({
                "model": model, "reference": base, "group": column[0], "score": column[1], "folds": len(d),
                "difference": mean, "low": low, "high": high, "wins": wins, "losses": losses, "p_nadeau_bengio": p,
                "p_holm": float(p_holm), "p_wilcoxon": signs.p, "smallest_p_wilcoxon": signs.smallest,
            })  # fmt: skip
    if not lines:
        return None
    notes = [
        f"Difference = model minus {base}, mean over the folds that both have; W/T/L counts folds.",
        "Interval and p: Nadeau and Bengio's corrected t-test, in brackets after Holm's correction over the models of a column; "
        "for k folds n_test / n_train is taken as 1 / (k - 1), since the file does not say.",
        "Wilcoxon: exact signed-rank test, in brackets the smallest p that so many folds allow.",
    ]
    heads = [("", h) for h in ("difference", "95 % interval", "W/T/L", "p (Holm)", "p Wilcoxon (least possible)")]
    return Table(f"{name}-over-folds", "Comparison over folds" + (f", {group}" if group else ""), heads, lines, notes, tidy)


def of_predictions(sheet: Sheet, reference: str | None = None, *, tests: bool = True) -> list[Table]:
    """Tables of predictions per case: scores recomputed, the paired bootstrap over cases, and the comparison over folds.

    Raises:
        MilbenchError: a column is missing, a number is none, a case comes twice, or models do not agree on a case's outcome.
    """
    read, metrics = _reader(sheet)
    model, case, fold = sheet.need("model", MODEL), sheet.need("case", CASE), sheet.find("fold", FOLD)
    groups = [name for name in sheet.names if _plain(name) in GROUPS]
    places: dict[tuple[str, str, str], dict[str, int]] = defaultdict(dict)  # group, model, fold -> case -> row
    for at, row in enumerate(sheet.rows):
        group = ", ".join(row[name] for name in groups)
        own = places[group, row[model], row[fold] if fold else "0"]
        if row[case] in own:
            raise MilbenchError(f"{sheet.path}, line {at + 2}: case {row[case]} comes twice for one model and fold")
        own[row[case]] = at
    cases: dict[tuple[str, str], dict[str, Cases]] = defaultdict(dict)  # group, model -> fold -> cases
    for (group, name, part), rows in places.items():
        names = sorted(rows)
        cases[group, name][part] = Cases(np.array(names), *read([rows[n] for n in names]))
    scores: Scores = defaultdict(lambda: defaultdict(dict))
    for (group, name), parts in cases.items():
        for metric, (_, function, _sign) in metrics.items():
            for part, some in parts.items():
                scores[group, metric][name][part] = stats.rounded(float(function(*some.data)), step=stats.STEP)
    labels = {metric: label for metric, (label, *_) in metrics.items()}
    base = _reference(scores, reference)
    paired, daggers = _paired(sheet, cases, metrics, base) if tests else (None, {})
    main = _main(sheet, sheet.stem, "", scores, labels, daggers)
    if paired:
        found = "† differs" if any(p < ALPHA for p in daggers.values()) else "No row differs (†)"
        main.notes.append(f"{found} from {base} at p < {ALPHA:g} after Holm's correction; see the paired comparison.")
    if "c_index_harrell" in metrics:
        main.notes.append(
            "c-index: as scikit-survival counts, where an event and a censored case of the same time are comparable; "
            "Harrell: where they are not."
        )
    over_folds = _over_folds(sheet.stem, "", scores, labels, base) if tests else None
    return [main, *(table for table in (paired, over_folds) if table)]


Reader = Callable[[list[int]], tuple[NDArray[np.int64], tuple[NDArray[Any], ...]]]


def _reader(sheet: Sheet) -> tuple[Reader, dict[str, tuple[str, Callable[..., NDArray[np.float64]], int]]]:
    """How rows become outcome and data, and the metrics of them."""

    def column(name: str, rows: list[int]) -> NDArray[np.float64]:
        values = np.array([sheet.number(at, name) for at in rows])
        if np.isnan(values).any():
            raise MilbenchError(f"{sheet.path}, line {rows[int(np.isnan(values).argmax())] + 2}: {name} is missing")
        return values

    if risk := sheet.find("risk", RISK):
        time = sheet.need("time", TIME)
        event = sheet.find("event", EVENT)
        flag = event or sheet.need("outcome", (*EVENT, *CENSORED))

        def survival(rows: list[int]) -> tuple[NDArray[np.int64], tuple[NDArray[Any], ...]]:
            value = column(flag, rows)
            if not np.isin(value, (0, 1)).all():
                at = rows[int((~np.isin(value, (0, 1))).argmax())]
                raise MilbenchError(f"{sheet.path}, line {at + 2}: {flag} is {sheet.rows[at][flag]}, it must be 0 or 1")
            seen = value == (1 if event else 0)
            return seen.astype(int), (column(time, rows), seen, column(risk, rows))

        return survival, _C_INDEX
    classes = {int(m[1]): name for name in sheet.names if (m := re.fullmatch(r"(?:p|prob) ?(\d+)", _plain(name)))}
    target = sheet.find("class", TARGET)
    if not target or sorted(classes) != list(range(max(2, len(classes)))):
        raise MilbenchError(
            f"{sheet.path}: no predictions; needed are risk, time and event or censorship, or target and p0, p1, ..., "
            f"found are {', '.join(sheet.names)}"
        )

    def subtyping(rows: list[int]) -> tuple[NDArray[np.int64], tuple[NDArray[Any], ...]]:
        y = column(target, rows)
        if not np.isin(y, list(classes)).all():
            at = rows[int((~np.isin(y, list(classes))).argmax())]
            raise MilbenchError(
                f"{sheet.path}, line {at + 2}: {target} is {sheet.rows[at][target]}, there are scores for 0 to {len(classes) - 1}"
            )
        return y.astype(int), (y.astype(int), np.stack([column(classes[c], rows) for c in sorted(classes)], axis=1))

    return subtyping, _SUBTYPING


def _paired(
    sheet: Sheet, cases: dict[tuple[str, str], dict[str, Cases]], metrics: dict[str, Any], base: str
) -> tuple[Table | None, dict[tuple[Column, str], float]]:
    """The primary test of every model against the reference: cases drawn inside each fold, the same for both.

    Returns:
        The table, and the corrected p-value of each column and model.
    """
    lines: list[Row] = []
    tidy, said, daggers = [], list[str](), dict[tuple[Column, str], float]()
    for metric, (label, function, _) in metrics.items():
        known: dict[tuple[str, str, str, bytes], Once] = {}

        def counted(*who: str, function: Any = function, known: Any = known, some: Cases) -> Once:
            return known.setdefault((*who, some.case.tobytes()), Once(partial(_value, function, some)))

        tested: list[tuple[str, str, stats.Comparison]] = []
        for (group, model), parts in cases.items():
            other = cases.get((group, base), {})
            folds, dropped = [], 0
            for part in (part for part in parts if part in other and model != base):
                common = np.intersect1d(parts[part].case, other[part].case)
                mine, theirs = parts[part].of(common), other[part].of(common)
                dropped += len(np.setxor1d(parts[part].case, other[part].case))
                _agree(sheet, mine, theirs, f"{model} and {base}, fold {part}")
                if len(common):
                    pair = counted(group, model, part, some=mine), counted(group, base, part, some=theirs)
                    folds.append((mine.outcome, [pair]))
            if folds:
                seed = f"{sheet.stem}|{group}|{metric}"
                tested.append((group, model, stats.paired_bootstrap(folds, replicates=REPLICATES, seed=seed)))
            if dropped and folds:
                said.append(f"{model}: {dropped} cases that only it or only {base} has are left out of the comparison.")
        for (group, model, c), p_holm in zip(tested, stats.holm([c.p for *_, c in tested]), strict=True):
            daggers[(group, metric), model] = float(p_holm)
            said += [f"{model}: {c.note}."] if c.note else []
            head = ", ".join(filter(None, [group, label]))
            if not any(not line.entries and line.label == head for line in lines):
                lines.append(Row(head, [], rule=bool(lines)))
            entries = [
                signed(c.difference),
                interval(c.low, c.high),
                tally(c.wins, c.ties, c.losses, c.undefined),
                p_value(c.p),
                p_value(float(p_holm)),
            ]
            lines.append(Row(model, [Entry(entries[0], dagger=bool(p_holm < ALPHA)), *map(Entry, entries[1:])]))
            tidy.append({
                "model": model, "reference": base, "group": group, "score": metric, "folds": c.runs, "difference": c.difference,
                "low": c.low, "high": c.high, "wins": c.wins, "ties": c.ties, "losses": c.losses, "undefined": c.undefined,
                "p": c.p,
                "p_holm": float(p_holm),
            })  # fmt: skip
    if not lines:
        return None, {}
    notes = [
        f"Difference = model minus {base}, mean over folds; W/T/L counts folds.",
        f"95 % interval and two-sided p: bootstrap over cases, stratified by outcome, drawn inside each fold, {REPLICATES:,} "
        "resamples, the same for both models. Holm's correction runs over all models and columns of one score.",
        *dict.fromkeys(said),
    ]
    heads = [("", h) for h in ("difference", "95 % interval", "W/T/L", "p", "p (Holm)")]
    return Table(f"{sheet.stem}-paired", f"Paired comparison with {base}", heads, lines, notes, tidy), daggers


def _agree(sheet: Sheet, mine: Cases, theirs: Cases, who: str) -> None:
    """Both models must know the same of a case."""
    known = len(mine.data) - 1  # all but risk or scores
    for a, b in zip(mine.data[:known], theirs.data[:known], strict=True):
        if (wrong := np.flatnonzero(a != b)).size:
            raise MilbenchError(f"{sheet.path}: {who}, differ in what happened to case {mine.case[wrong[0]]}")


def _value(function: Callable[..., NDArray[np.float64]], cases: Cases, counts: NDArray[np.float64]) -> NDArray[np.float64]:
    return function(*cases.data, counts)
