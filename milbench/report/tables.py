"""The tables of a suite: means with their spread, and the paired comparison with the reference method."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from milbench import stats
from milbench.errors import MilbenchError
from milbench.report.collect import Run
from milbench.stats.paired import Metric
from milbench.trials.plan import Plan

METRICS: dict[str, tuple[str, Callable[..., NDArray[np.float64]], int]] = {  # label, function, +1 where higher is better
    "macro_auc": ("macro-AUC", stats.macro_auc, 1),
    "macro_f1": ("macro-F1", stats.macro_f1, 1),
    "balanced_accuracy": ("balanced accuracy", stats.balanced_accuracy, 1),
    "accuracy": ("accuracy", stats.accuracy, 1),
    "brier": ("Brier", stats.brier, -1),
    "c_index": ("c-index", stats.c_index, 1),
}
REPLICATES = 10_000
ALPHA = 0.05
FEW = 100  # slides below which a table says that its ranking is mostly chance


@dataclass
class Entry:
    """What stands in one place of a table.

    Args:
        text: as printed; an en dash where there is no number.
        style: "best" is bold, "second" underlined.
        dagger: the difference to the reference is significant after correction.
        mark: letter of the footnote that belongs to it.
    """

    text: str
    style: Literal["best", "second"] | None = None
    dagger: bool = False
    mark: str = ""


@dataclass
class Row:
    """A line of a table; `rule` draws a line above it. Without entries it is a heading over the lines below."""

    label: str
    entries: list[Entry]
    rule: bool = False


@dataclass
class Table:
    """A table, ready to be rendered.

    Args:
        name: file name.
        title: what it shows, with the number of slides.
        headers: (group, label) of each column; neighbours of the same group share a heading.
        rows: the lines.
        notes: footnotes, one sentence or more each.
        tidy: the same numbers unrounded, one dict per entry, for CSV.
    """

    name: str
    title: str
    headers: list[tuple[str, str]]
    rows: list[Row]
    notes: list[str]
    tidy: list[dict[str, Any]] = field(repr=False)


@dataclass
class _Block:
    """All runs of one row in one column, with one metric."""

    runs: list[Run]
    expected: int
    metric: str
    values: NDArray[np.float64]
    comparison: stats.Comparison | None = None
    p_holm: float = math.nan

    @property
    def complete(self) -> bool:
        return len(self.values) == self.expected and not np.isnan(self.values).any()

    @property
    def mean(self) -> float:
        return float(self.values.mean()) if len(self.values) else math.nan

    @property
    def sd(self) -> float:
        """Sample standard deviation."""
        return float(self.values.std(ddof=1)) if len(self.values) > 1 else math.nan


def build(plan: Plan, runs: Sequence[Run]) -> tuple[Table, Table | None]:
    """The suite's table, and the paired comparison with its reference (None when the reference has no result)."""
    layout = plan.definition["table"]
    for name in layout["metrics"]:
        if name not in METRICS:
            raise MilbenchError(f"suite {plan.suite}: table.metrics: {name!r} cannot be printed; use {', '.join(METRICS)}")
    columns = list(dict.fromkeys(run.cell.column for run in runs))
    rows = list(dict.fromkeys((run.cell.aggregator, run.cell.label) for run in runs))
    blocks = {
        (row, column, metric): _block(runs, row[0], column, metric)
        for row in rows
        for column in columns
        for metric in layout["metrics"]
    }
    reference = next((row for row in rows if row[0] == layout["reference"]), None)
    compared = reference is not None and _compare(plan, blocks, rows, columns, layout["metrics"], reference)
    heads = [(column, metric) for column in columns for metric in layout["metrics"]]
    table = _main(plan, runs, blocks, rows, heads, reference[1] if compared and reference else None)
    paired = _paired(plan, blocks, rows, heads, reference) if compared and reference else None
    return table, paired


def _block(runs: Sequence[Run], aggregator: str, column: tuple[object, ...], metric: str) -> _Block:
    in_column = [run for run in runs if run.cell.column == column]
    expected = len({(run.cell.fold, run.cell.seed) for run in in_column})
    own = [run for run in in_column if run.cell.aggregator == aggregator]
    return _Block(own, expected, metric, np.array([run.metric(metric) for run in own if run.status == "ok"]))


def _with_data(run: Run, name: str) -> Metric:
    """The metric of a run's predictions as a function of case counts (B, n) -> (B,)."""
    function, p = METRICS[name][1], run.predictions
    if "risk" in p:
        return lambda counts: function(p["time"], p["event"], p["risk"], counts)
    return lambda counts: function(p["target"], p["score"], counts)


def _compare(plan: Plan, blocks: dict, rows: list, columns: list, metrics: list[str], reference: tuple[str, str]) -> bool:
    """Fill in the comparison of every row with the reference; Holm over the rows of one column and metric."""
    found = False
    for column in columns:
        for metric in metrics:
            base = {(r.cell.fold, r.cell.seed): r for r in blocks[reference, column, metric].runs if r.status == "ok"}
            family = []
            for row in rows:
                block = blocks[row, column, metric]
                pairs = [(r, base[key]) for r in block.runs if r.status == "ok" and (key := (r.cell.fold, r.cell.seed)) in base]
                if row == reference or not pairs:
                    continue
                folds = []
                for fold in sorted({mine.cell.fold for mine, _ in pairs}):
                    seeds = [(mine, other) for mine, other in pairs if mine.cell.fold == fold]
                    folds.append(
                        (_strata(seeds), [(_with_data(mine, metric), _with_data(other, metric)) for mine, other in seeds])
                    )
                # One seed of the resamples per column and metric: every row meets the same resampled cases.
                block.comparison = stats.paired_bootstrap(folds, replicates=REPLICATES, seed=f"{plan.suite}|{column}|{metric}")
                family.append(block)
            for block, p in zip(family, stats.holm([b.comparison.p for b in family if b.comparison]), strict=True):
                block.p_holm = float(p)
            found = found or bool(family)
    return found


def _strata(pairs: Sequence[tuple[Run, Run]]) -> NDArray[np.int64]:
    first = pairs[0][0].predictions
    for pair in pairs:
        for run in pair:
            if not np.array_equal(run.predictions["slide"], first["slide"]):
                raise MilbenchError(
                    f"trials {pairs[0][0].cell.trial_id} and {run.cell.trial_id} test other slides, they cannot be paired"
                )
    return np.asarray(first["event"] if "risk" in first else first["target"]).astype(int)


def _main(plan: Plan, runs: Sequence[Run], blocks: dict, rows: list, heads: list, reference: str | None) -> Table:
    marks: dict[str, str] = {}  # footnote -> letter
    lines = [Row(label, [], rule=_rule_above(plan, name, i)) for i, (name, label) in enumerate(rows)]
    tidy = []
    for column, metric in heads:
        whole = [b for row in rows if (b := blocks[row, column, metric]).complete]
        ranked = sorted({METRICS[metric][2] * b.mean for b in whole}, reverse=True)
        for row, line in zip(rows, lines, strict=True):
            block = blocks[row, column, metric]
            line.entries.append(_entry(block, ranked, marks))
            tidy.append(_tidy(row, column, block))
    notes = [f"({letter}) {note}" for note, letter in marks.items()]
    significant = any(entry.dagger for line in lines for entry in line.entries)
    notes += _how(plan, runs, reference, significant=significant)
    return Table(plan.definition["table"]["name"], _title(plan, runs), [_head(plan, *head) for head in heads], lines, notes, tidy)


def _entry(block: _Block, ranked: list[float], marks: dict[str, str]) -> Entry:
    mark = ""
    done, missing = len(block.values), block.expected - len(block.values)
    if missing:
        states = [run.status for run in block.runs if run.status != "ok"]
        why = "; ".join(dict.fromkeys(str(r.result["reason"]) for r in block.runs if r.status in ("failed", "oom", "skipped")))
        names = {"oom": "out of memory", "pending": "not run"}
        kinds = ", ".join(dict.fromkeys(names.get(s, s) for s in states)) or "not run"
        note = f"{kinds}{': ' + why if why else ''}" + (f"; over {done} of {block.expected} runs, not ranked" if done else "")
        mark = marks.setdefault(note, chr(ord("a") + len(marks)))
    elif not block.complete:
        mark = marks.setdefault("a fold's test part lacks a class, so the metric is undefined", chr(ord("a") + len(marks)))
    if math.isnan(block.mean):
        return Entry("–", mark=mark)
    text = f"{block.mean:.3f}" + ("" if math.isnan(block.sd) else f" ± {block.sd:.3f}")
    score = METRICS[block.metric][2] * block.mean
    style: Literal["best", "second"] | None = None
    if block.complete and len(ranked) > 1:
        style = "best" if score == ranked[0] else "second" if score == ranked[1] else None
    return Entry(text, style, dagger=block.p_holm < ALPHA, mark=mark)


def _tidy(row: tuple[str, str], column: tuple[object, ...], block: _Block) -> dict[str, Any]:
    dataset, encoder, magnification, patch_size, split = column
    return {
        "aggregator": row[0], "label": row[1], "dataset": dataset, "encoder": encoder, "magnification": magnification,
        "patch_size": patch_size, "split": split, "metric": block.metric, "mean": block.mean, "sd": block.sd,
        "runs": len(block.values), "expected_runs": block.expected,
    }  # fmt: skip


def _rule_above(plan: Plan, name: str, index: int) -> bool:
    """A rule stands above the first row of each group, except at the top, and above rows the suite does not list."""
    listed = plan.definition["grid"]["aggregator"]
    firsts = [first for first, _ in plan.definition["table"]["groups"]]
    starts = name in firsts or name.split("[")[0] in firsts or name not in listed
    return starts and index > 0


def _head(plan: Plan, column: tuple[object, ...], metric: str) -> tuple[str, str]:
    values = dict(zip(("dataset", "encoder", "magnification", "patch_size"), column, strict=False))
    parts = [values[name] for name in plan.definition["table"]["columns"] if name != "metric"]
    return ", ".join(str(part) for part in parts), METRICS[metric][0] + (" ↓" if METRICS[metric][2] < 0 else "")


def _title(plan: Plan, runs: Sequence[Run]) -> str:
    unit = next((run.result["spec"]["unit"] for run in runs if run.result), "slide")
    return f"{plan.definition['title']} (n = {_tested(runs)} {unit}s)"


def _tested(runs: Sequence[Run]) -> int:
    """How many different slides (or cases) the table rests on."""
    return len({(run.cell.dataset, slide) for run in runs if run.status == "ok" for slide in run.predictions["slide"]})


def _how(plan: Plan, runs: Sequence[Run], reference: str | None, *, significant: bool) -> list[str]:
    done = [run for run in runs if run.result]
    notes = [f"{note[0].upper()}{note[1:]}." for note in plan.notes]
    folds, seeds = {run.cell.fold for run in runs}, {run.cell.seed for run in runs}
    over = " x ".join(f"{len(s)} {name}{'s' * (len(s) > 1)}" for s, name in ((folds, "fold"), (seeds, "seed")) if len(s) > 1)
    spread = f"Mean ± sample standard deviation (ddof = 1) over {over}" if over else "One run, no spread"
    tested = {len(run.predictions["slide"]) for run in done if run.status == "ok"}
    size = (
        f", {min(tested)} to {max(tested)} tested in each"
        if len(tested) > 1
        else f", {max(tested)} tested in each"
        if tested
        else ""
    )
    notes.append(f"{spread}{size}. Best in bold, second underlined.")
    if (total := _tested(runs)) < FEW:
        notes.append(
            f"n = {total} is few: the ranking above is mostly chance, read the intervals of the paired comparison instead."
        )
    notes += _recipes(done)
    if any(run.result["spec"]["standardise"] for run in done):
        notes.append("Features are standardised with statistics of the training fold.")
    notes += list(dict.fromkeys(f"Said during training: {message}." for run in done for message in run.result["messages"]))
    if reference is not None:
        found = "† differs" if significant else "No row differs (†)"
        notes.append(f"{found} from {reference} at p < {ALPHA:g} after Holm's correction; see the paired comparison.")
    else:
        notes.append(
            f"No paired comparison: the reference {plan.definition['table']['reference']} has no result beside another method."
        )
    return notes


def _recipes(done: Sequence[Run]) -> list[str]:
    """One sentence per recipe; where rows differ in it, their names come with it."""
    used: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for run in done:
        recipe = run.result["spec"]["recipe"]
        used.setdefault(str(recipe), (recipe, []))[1].append(run.cell.label)
    notes = []
    for recipe, labels in used.values():
        parts = [recipe["optimiser"], f"learning rate {recipe['lr']:g}", f"weight decay {recipe['weight_decay']:g}"]
        if recipe["schedule"] != "constant":
            parts.append(f"{recipe['schedule']} schedule")
        if recipe["accumulate"] > 1:
            parts.append(f"a step every {recipe['accumulate']} bags")
        if recipe["clip"]:
            parts.append(f"gradients clipped at {recipe['clip']:g}")
        parts += ["batch of one bag"] + (["classes drawn equally often"] if recipe["sampling"] != "shuffle" else [])
        patience = f", patience {recipe['patience']}" if recipe["patience"] else ""
        parts.append(
            f"at most {recipe['max_epochs']} epochs{patience}" if recipe["select"] != "last" else f"{recipe['max_epochs']} epochs"
        )
        chosen = "the last epoch is tested" if recipe["select"] == "last" else "the epoch is chosen on validation, never on test"
        rows = f" ({', '.join(dict.fromkeys(labels))})" if len(used) > 1 else ""
        notes.append(f"Recipe {recipe['name']}{rows}: {', '.join(parts)}; {chosen}.")
    return notes


def _paired(plan: Plan, blocks: dict, rows: list, heads: list, reference: tuple[str, str]) -> Table:
    lines: list[Row] = []
    tidy = []
    for column, metric in heads:
        lines.append(Row(", ".join(filter(None, _head(plan, column, metric))), [], rule=bool(lines)))
        for row in rows:
            block = blocks[row, column, metric]
            c = block.comparison
            if row == reference:
                continue
            if c is None:
                lines.append(Row(row[1], [Entry("–")] * 5))
                continue
            entries = [
                Entry(f"{c.difference:+.3f}", dagger=block.p_holm < ALPHA),
                Entry("–" if math.isnan(c.low) else f"[{c.low:+.3f}, {c.high:+.3f}]"),
                Entry(f"{c.wins}/{c.ties}/{c.losses}"),
                Entry(_p(c.p)),
                Entry(_p(block.p_holm)),
            ]
            lines.append(Row(row[1], entries))
            tidy.append({
                **{k: v for k, v in _tidy(row, column, block).items() if k not in ("mean", "sd", "runs", "expected_runs")},
                "reference": reference[0], "difference": c.difference, "low": c.low, "high": c.high, "wins": c.wins,
                "ties": c.ties, "losses": c.losses, "p": c.p, "p_holm": block.p_holm, "runs": c.runs,
            })  # fmt: skip
    notes = [
        f"Difference = method minus {reference[1]}, mean over the paired runs; W/T/L counts them.",
        f"95 % interval and two-sided p: bootstrap over cases, stratified by class, drawn inside each fold, {REPLICATES:,} "
        "resamples, the same for both methods. It says what other test cases would have shown, not what another training set "
        "would.",
        "Holm's correction runs over the methods of one column and metric.",
    ]
    headers = [("", h) for h in ("difference", "95 % interval", "W/T/L", "p", "p (Holm)")]
    return Table(
        f"{plan.definition['table']['name']}-paired", f"Paired comparison with {reference[1]}", headers, lines, notes, tidy
    )


def _p(value: float) -> str:
    return "–" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"
