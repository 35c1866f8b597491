"""The tables of a suite: means with their spread beside the printed ones, and the paired comparison with the reference method."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from milbench import stats
from milbench.errors import MilbenchError
from milbench.numbers import NONE, Style, interval, number, p_value, signed, spread, styles, tally
from milbench.papers.printed import Printed, PrintedTable
from milbench.reading import Run, usual
from milbench.stats.paired import Metric, Once
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
PAPER, DELTA = "paper", "Δ"  # heads of the columns that hold printed numbers
Beside = Literal["side", "below", "off"]  # where printed numbers stand
FEW = 100  # slides below which a table says that its ranking is mostly chance


@dataclass
class Entry:
    """What stands in one place of a table.

    Args:
        text: as printed; an en dash where there is no number.
        style: "best" is bold, "second" underlined, "quiet" grey: a printed number or what belongs to it.
        dagger: the difference to the reference is significant after correction.
        mark: letter of the footnote that belongs to it.
    """

    text: str
    style: Style | None = None
    dagger: bool = False
    mark: str = ""


@dataclass
class Row:
    """A line of a table; `rule` draws a line above it. Without entries it is a heading over the lines below.

    `below` says that it belongs to the line above and stays with it.
    """

    label: str
    entries: list[Entry]
    rule: bool = False
    below: bool = False


@dataclass
class Table:
    """A table, ready to be rendered.

    Args:
        name: file name.
        title: what it shows, with the number of slides.
        headers: (group, label) of each column; neighbours of the same group share a heading.
        rows: the lines.
        notes: footnotes, one sentence or more each.
        tidy: the same numbers to 12 digits, one dict per entry, for CSV.
        top: a heading over all columns.
        corner: head of the first column.
        partial: what is missing, empty where nothing is.
    """

    name: str
    title: str
    headers: list[tuple[str, str]]
    rows: list[Row]
    notes: list[str]
    tidy: list[dict[str, Any]] = field(repr=False)
    top: str = ""
    corner: str = "Method"
    partial: str = ""


class _Name(NamedTuple):
    aggregator: str
    label: str


@dataclass
class _Block:
    """All runs of one row in one column, with one metric."""

    runs: list[Run]
    expected: int
    metric: str
    values: NDArray[np.float64]
    printed: Printed | None = None
    printed_note: str = ""
    comparison: stats.Comparison | None = None
    p_holm: float = math.nan

    @property
    def complete(self) -> bool:
        return len(self.values) == self.expected and not np.isnan(self.values).any()

    @property
    def mean(self) -> float:
        return stats.rounded(self.values.mean(), step=stats.STEP) if len(self.values) else math.nan

    @property
    def sd(self) -> float:
        """Sample standard deviation."""
        return stats.rounded(self.values.std(ddof=1), step=stats.STEP) if len(self.values) > 1 else math.nan

    @property
    def above_printed(self) -> float:
        """Our mean less the printed one."""
        return stats.rounded(self.mean - self.printed.mean, step=stats.STEP) if self.printed else math.nan


@dataclass
class _Content:
    """What a suite's tables are made of: a block for each (row, column, metric)."""

    plan: Plan
    layout: dict[str, Any]  # the suite's [table]
    runs: Sequence[Run]
    rows: list[_Name]
    columns: list[tuple[Any, ...]]
    metrics: list[str]
    blocks: dict[tuple[_Name, tuple[Any, ...], str], _Block]
    printed: PrintedTable | None
    reference: _Name | None = None  # once something was compared with it

    @property
    def heads(self) -> list[tuple[tuple[Any, ...], str]]:
        return [(column, metric) for column in self.columns for metric in self.metrics]


def build(
    plan: Plan,
    runs: Sequence[Run],
    *,
    published: Beside = "side",
    tests: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Table, Table | None]:
    """The suite's table, and the paired comparison with its reference.

    Args:
        plan, runs: what was asked for, and what came of it.
        published: printed numbers stand beside ours, below them, or stay out.
        tests: False leaves the paired comparison out.
        progress: told (comparisons done, all of them).

    Returns:
        The comparison is None without tests, and when the reference has no result beside another method.
    """
    content = _content(plan, runs, published)
    if tests:
        _compare(content, progress)
    return _main(content, published, tests), _paired(content, content.reference) if content.reference else None


def _content(plan: Plan, runs: Sequence[Run], published: Beside) -> _Content:
    layout = {**plan.definition["table"], "heads": plan.heads}
    for name in layout["metrics"]:
        if name not in METRICS:
            raise MilbenchError(f"suite {plan.suite}: table.metrics: {name!r} cannot be printed; use {', '.join(METRICS)}")
    wanted = published != "off" and layout.get("published")
    printed = PrintedTable(wanted, usual(runs)) if wanted else None
    listed = plan.definition["grid"]["aggregator"]
    labels = {run.cell.aggregator: run.cell.label for run in runs}
    if printed:  # its rows all stand in the table, whether they were asked for here or not
        own = layout.get("labels", {})
        labels = {name: own.get(name) or printed.label(name) or name for name in listed} | labels
    rows = [_Name(name, labels[name]) for name in [*listed, *labels] if name in labels]
    places: dict[tuple[str, tuple[Any, ...]], list[Run]] = {}
    repeats: dict[tuple[Any, ...], set[tuple[int, int]]] = {}
    for run in runs:
        places.setdefault((run.cell.aggregator, run.cell.column), []).append(run)
        repeats.setdefault(run.cell.column, set()).add((run.cell.fold, run.cell.seed))
    blocks = {}
    for row in dict.fromkeys(rows):
        for column, expected in repeats.items():
            here = places.get((row.aggregator, column), [])
            for metric in layout["metrics"]:
                values = np.array([run.metric(metric) for run in here if run.status == "ok"])
                block = blocks[row, column, metric] = _Block(here, len(expected), metric, values)
                if printed and row.aggregator in listed:
                    block.printed = printed.get(row.aggregator, column, metric)
                    head = " ".join(_head(layout, column, metric)).strip()
                    block.printed_note = printed.note(row.aggregator, head, block.printed)
    return _Content(plan, layout, runs, list(dict.fromkeys(rows)), list(repeats), layout["metrics"], blocks, printed)


def with_data(run: Run, name: str) -> Metric:
    """The metric of a run's predictions as a function of case counts (B, n) -> (B,)."""
    function, p = METRICS[name][1], run.predictions
    if "risk" in p:
        return lambda counts: function(p["time"], p["event"], p["risk"], counts)
    return lambda counts: function(p["target"], p["score"], counts)


def _reference(content: _Content) -> _Name | None:
    """The row that the others are compared with: the suite's, or AB-MIL where that has no result."""
    wanted = [row for row in content.rows if row.aggregator == content.layout["reference"]]
    fallback = [row for row in content.rows if row.aggregator.split("[")[0] == "abmil"]
    ran = {run.cell.aggregator for run in content.runs if run.status == "ok"}
    return next((row for row in wanted + fallback if row.aggregator in ran), None)


def _compare(content: _Content, progress: Callable[[int, int], None]) -> None:
    """Fill in the comparison of every row with the reference; Holm over the rows and columns of one metric."""
    reference = _reference(content)
    if reference is None:
        return
    todo = []
    for column, metric in content.heads:
        ran = [run for run in content.blocks[reference, column, metric].runs if run.status == "ok"]
        base = {(run.cell.fold, run.cell.seed): (run, Once(with_data(run, metric))) for run in ran}  # every row meets them
        for row in content.rows:
            block = content.blocks[row, column, metric]
            pairs = [(r, *base[key]) for r in block.runs if r.status == "ok" and (key := (r.cell.fold, r.cell.seed)) in base]
            if row != reference and pairs:
                todo.append((block, column, pairs))
    for done, (block, column, pairs) in enumerate(todo):
        progress(done, len(todo))
        folds = []
        for fold in sorted({mine.cell.fold for mine, _, _ in pairs}):
            seeds = [pair for pair in pairs if pair[0].cell.fold == fold]
            both = [(with_data(mine, block.metric), known) for mine, _, known in seeds]
            folds.append((strata([(mine, other) for mine, other, _ in seeds]), both))
        # One seed of the resamples per column and metric: every row meets the same resampled cases.
        block.comparison = stats.paired_bootstrap(folds, replicates=REPLICATES, seed=f"{column}|{block.metric}")
    progress(len(todo), len(todo))
    for metric in content.metrics:
        family = [block for block, _, _ in todo if block.metric == metric]
        for block, p in zip(family, stats.holm([b.comparison.p for b in family if b.comparison]), strict=True):
            block.p_holm = float(p)
    if todo:
        content.reference = reference


def strata(pairs: Sequence[tuple[Run, Run]]) -> NDArray[np.int64]:
    """Class, or event, of each case that all these runs of one fold tested: what a bootstrap keeps in proportion.

    Raises:
        MilbenchError: they tested different cases.
    """
    first = pairs[0][0].predictions
    for pair in pairs:
        for run in pair:
            if not np.array_equal(run.predictions["slide"], first["slide"]):
                raise MilbenchError(
                    f"trials {pairs[0][0].cell.trial_id} and {run.cell.trial_id} test other slides, they cannot be paired"
                )
    return np.asarray(first["event"] if "risk" in first else first["target"]).astype(int)


class _Footnotes:
    """Letters of footnotes, one for each text."""

    def __init__(self) -> None:
        self._letters: dict[str, str] = {}

    def mark(self, text: str) -> str:
        """The letter of this footnote: a, b, ..., z, aa, ab, ..."""
        n = len(self._letters)
        letter = (chr(96 + n // 26) if n >= 26 else "") + chr(97 + n % 26)
        return self._letters.setdefault(text, letter)

    @property
    def notes(self) -> list[str]:
        return [f"({letter}) {text}" for text, letter in self._letters.items()]


def _main(content: _Content, published: Beside, tests: bool) -> Table:
    footnotes = _Footnotes()
    ruled = _ruled(content)
    lines = [Row(row.label, [], rule=row.aggregator in ruled) for row in content.rows]
    below = [Row(PAPER, [], below=True) for _ in content.rows]
    headers: list[tuple[str, str]] = []
    tidy = []
    for column, metric in content.heads:
        own = [content.blocks[row, column, metric] for row in content.rows]
        ranked = styles([b.mean if b.complete else math.nan for b in own], METRICS[metric][2])
        group, label = _head(content.layout, column, metric)
        beside = published == "side" and any(block.printed for block in own)
        headers += [(group, label), (group, PAPER), (group, DELTA)] if beside else [(group, label)]
        for row, block, style, line, under in zip(content.rows, own, ranked, lines, below, strict=True):
            line.entries.append(_entry(block, style, footnotes))
            if beside:
                line.entries += _beside(block, footnotes)
            if published == "below":
                under.entries.append(_below(block, footnotes))
            tidy.append(_tidy(row, column, block, content.printed))
    if published == "below":
        lines = [line for row, under in zip(lines, below, strict=True) for line in (row, under) if _says(line)]
    significant = any(entry.dagger for line in lines for entry in line.entries)
    notes = footnotes.notes + _notes(content, tests=tests, significant=significant) + _about_printed(content, published)
    return Table(
        content.layout["name"], _title(content), headers, lines, notes, tidy,
        top=content.layout.get("top", ""), partial=_partial(content),
    )  # fmt: skip


def _says(line: Row) -> bool:
    return not line.below or any(entry.text != NONE or entry.mark for entry in line.entries)


def _entry(block: _Block, style: Style | None, footnotes: _Footnotes) -> Entry:
    why_not = []
    done, missing = len(block.values), block.expected - len(block.values)
    if missing:
        states = [_STATES.get(run.status, run.status) for run in block.runs if run.status != "ok"]
        reasons = [str(run.cell.missing or run.result.get("reason") or "") for run in block.runs if run.status != "ok"]
        why = "; ".join(filter(None, dict.fromkeys(" ".join(reason.split()) for reason in reasons)))
        kinds = ", ".join(dict.fromkeys(states)) or "not asked for in any run here"
        over = f"; over {done} of {block.expected} runs, not ranked" if done else ""
        why_not.append(f"{kinds}{': ' + why if why else ''}{over}")
    if np.isnan(block.values).any():
        why_not.append(_undefined(block))
    mark = footnotes.mark("; ".join(why_not)) if why_not else ""
    return Entry(spread(block.mean, block.sd), style, dagger=block.p_holm < ALPHA and not math.isnan(block.mean), mark=mark)


_STATES = {"oom": "out of memory", "pending": "not run", "absent": "not run"}


def _undefined(block: _Block) -> str:
    """Why the metric of some finished runs has no value, and of how many."""
    runs = [run for run in block.runs if run.status == "ok" and math.isnan(run.metric(block.metric))]
    missing = [run for run in runs if any(np.isnan(run.predictions.get(key, 0.0)).any() for key in ("score", "risk"))]
    told = ["a prediction is missing (NaN)"] if missing else []
    if len(missing) < len(runs):
        told.append("a fold's test part " + ("has no comparable pair" if block.metric == "c_index" else "lacks a class"))
    return f"{' or '.join(told)}, so the metric is undefined in {len(runs)} of {block.expected} runs"


def _beside(block: _Block, footnotes: _Footnotes) -> list[Entry]:
    """The printed mean, and how far ours is above it."""
    mark = footnotes.mark(block.printed_note) if block.printed_note else ""
    if block.printed is None:
        return [Entry(NONE, "quiet", mark=mark), Entry("", "quiet")]
    delta = "" if math.isnan(block.mean) else signed(block.above_printed)
    return [Entry(number(block.printed.mean), "quiet", mark=mark), Entry(delta, "quiet")]


def _below(block: _Block, footnotes: _Footnotes) -> Entry:
    """The printed number with its spread, and how far ours is above it."""
    mark = footnotes.mark(block.printed_note) if block.printed_note else ""
    if block.printed is None:
        return Entry(NONE, "quiet", mark=mark)
    delta = "" if math.isnan(block.mean) else f" ({signed(block.above_printed)})"
    return Entry(spread(block.printed.mean, block.printed.sd) + delta, "quiet", mark=mark)


def _tidy(row: _Name, column: tuple[Any, ...], block: _Block, printed: PrintedTable | None) -> dict[str, Any]:
    dataset, encoder, magnification, patch_size, split = column
    said = block.printed
    beside = {
        "published_mean": said.mean if said else math.nan,
        "published_sd": said.sd if said else math.nan,
        "above_published": block.above_printed,
    }
    return {
        "aggregator": row.aggregator, "label": row.label, "dataset": dataset, "encoder": encoder, "magnification": magnification,
        "patch_size": patch_size, "split": split, "metric": block.metric, "mean": block.mean, "sd": block.sd,
        "runs": len(block.values), "expected_runs": block.expected, **(beside if printed else {}),
    }  # fmt: skip


def _ruled(content: _Content) -> set[str]:
    """Above which rows a rule stands: the first of each group, and those that the suite does not list; never at the top."""
    listed, names = content.plan.definition["grid"]["aggregator"], [row.aggregator for row in content.rows]
    starts = set(names).difference(listed)
    for first, _ in content.layout["groups"]:
        same = [name for name in names if name == first] or [name for name in names if name.split("[")[0] == first]
        starts.update(same[:1])
    return starts.difference(names[:1])


def _head(layout: dict[str, Any], column: tuple[Any, ...], metric: str) -> tuple[str, str]:
    """(group, label) of a column; a metric that the suite leaves without a head leaves the label to the rest."""
    heads = layout["heads"]
    values = dict(zip(("dataset", "encoder", "magnification", "patch_size", "split"), map(str, column), strict=True))
    group = ", ".join(heads.get(values[name], values[name]) for name in layout["columns"] if name != "metric")
    label = heads.get(metric, METRICS[metric][0] + (" ↓" if METRICS[metric][2] < 0 else ""))
    return (group, label) if label else ("", group)


def _title(content: _Content) -> str:
    measured = next((run.result["spec"]["unit"] for run in content.runs if run.result), "slide")
    unit = content.layout.get("unit") or measured
    slides = _tested(content.runs)
    heads = content.layout["heads"]
    told = [f"{count} {heads[name]}" if len(slides) > 1 else str(count) for name, count in slides.items()]
    return f"{content.plan.definition['title']} (n = {', '.join(told) or 0} {unit}s)"


def _tested(runs: Iterable[Run]) -> dict[str, int]:
    """How many different slides (or cases) the tables of each dataset rest on. Runs of one fold test the same ones."""
    folds = {(r.cell.dataset, r.cell.split, r.cell.fold, r.cell.context): r for r in runs if r.status == "ok"}
    seen: dict[str, set[str]] = {}
    for run in folds.values():
        seen.setdefault(run.cell.dataset, set()).update(run.predictions["slide"])
    return {name: len(slides) for name, slides in seen.items()}


def _partial(content: _Content) -> str:
    """What the table lacks, against the suite."""
    waiting = Counter(_STATES.get(run.status, run.status) for run in content.runs if run.status not in ("ok", "skipped"))
    said = []
    if waiting:
        states = ", ".join(f"{count} {state}" if len(waiting) > 1 else state for state, count in waiting.items())
        said.append(f"{sum(waiting.values())} of {len(content.runs)} trials have no result ({states})")
    listed, asked = content.plan.definition["grid"]["aggregator"], {run.cell.aggregator for run in content.runs}
    if left := [name for name in listed if name not in asked]:
        said.append(f"{len(left)} of the suite's {len(listed)} methods were not asked for")
    seeds, ran = content.plan.definition["grid"].get("seed", []), {run.cell.seed for run in content.runs}
    if left := [seed for seed in seeds if seed not in ran]:
        said.append(f"{len(left)} of the suite's {len(seeds)} seeds were not asked for")
    return "; ".join(said)


def _notes(content: _Content, *, tests: bool, significant: bool) -> list[str]:
    runs = content.runs
    done = [run for run in runs if run.result]
    notes = [f"{note[:1].upper()}{note[1:]}." for note in content.plan.notes if note]
    notes += _spreads(content)
    if 0 < (total := sum(_tested(runs).values())) < FEW:
        notes.append(
            f"n = {total} is few: the ranking above is mostly chance, read the intervals of the paired comparison instead."
        )
    notes += _recipes(done)
    scaled = {run.cell.dataset_label: run.result["spec"]["standardise"] for run in done}
    if any(scaled.values()):
        of = "" if all(scaled.values()) else f" of {', '.join(label for label, yes in scaled.items() if yes)}"
        notes.append(f"Features{of} are standardised with statistics of the training fold.")
    notes += list(dict.fromkeys(f"Said during training: {message}." for run in done for message in run.result["messages"]))
    wanted = content.layout["reference"]
    if not tests:
        notes.append("No significance is marked: this report was made without tests.")
    elif content.reference is None:
        notes.append(f"No paired comparison: the reference {wanted} has no result beside another method.")
    else:
        label = content.reference.label
        found = f"† differs from {label}" if significant else f"No row differs (†) from {label}"
        if content.reference.aggregator != wanted:
            label += f", which stands in for {wanted}: that has no result here"
        sizes = Counter(key[2] for key, block in content.blocks.items() if block.comparison)
        over = " and ".join(str(size) for size in dict.fromkeys(sizes.values()))
        notes.append(
            f"{found} at p < {ALPHA:g} after Holm's correction over the {over} comparisons of each metric; see the paired "
            f"comparison with {label}."
        )
    return notes


def _spreads(content: _Content) -> list[str]:
    """What ± is over and how many are tested; where datasets differ in it, their names come with it."""
    said: dict[str, list[str]] = {}
    for dataset in dict.fromkeys(run.cell.dataset for run in content.runs):
        own = [run for run in content.runs if run.cell.dataset == dataset]
        folds, seeds = {run.cell.fold for run in own}, {run.cell.seed for run in own}
        over = " x ".join(f"{len(s)} {name}s" for s, name in ((folds, "fold"), (seeds, "seed")) if len(s) > 1)
        spread = f"Mean ± sample standard deviation (ddof = 1) over {over}" if over else "One run, no spread"
        each = {run.cell.fold: run for run in own if run.status == "ok"}.values()
        sizes = sorted({len(run.predictions["slide"]) for run in each})
        tested = " to ".join(map(str, sizes[:1] + sizes[1:][-1:]))
        said.setdefault(spread + (f", {tested} tested in each" if tested else ""), []).append(own[0].cell.dataset_label)
    told = [f"{', '.join(names)}: {text[:1].lower()}{text[1:]}" if len(said) > 1 else text for text, names in said.items()]
    return [f"{'; '.join(told)}. Best in bold, second underlined."] if told else []


def _about_printed(content: _Content, published: Beside) -> list[str]:
    if content.printed is None:
        return []
    source = content.plan.definition["reproduces"].partition(",")[0] or content.layout["published"]
    where = {
        "side": f"{PAPER}: the mean that {source} prints; {DELTA}: ours minus it.",
        "below": f"{PAPER}: what {source} prints, and in brackets ours minus it.",
    }[published]
    heads = [" ".join(_head(content.layout, *head)).strip() for head in content.heads]
    errata = []
    for e in content.printed.errata(heads):
        what = f"Erratum ({e.column})" if e.column else "Erratum"
        errata.append(f"{what}: {f'printed {e.printed}. ' if e.printed else ''}{e.says} Source: {e.source}.")
    return [where, *errata]


def _recipes(done: Sequence[Run]) -> list[str]:
    """One sentence per recipe; where rows or datasets differ in it, their names come with it."""
    used: dict[str, tuple[dict[str, Any], list[Run]]] = {}
    for run in done:
        recipe = run.result["spec"]["recipe"]
        used.setdefault(str(recipe), (recipe, []))[1].append(run)
    by_dataset = len({frozenset(run.cell.label for run in own) for _, own in used.values()}) == 1
    notes = []
    for recipe, own in used.values():
        labels = [run.cell.dataset_label if by_dataset else run.cell.label for run in own]
        parts = [recipe["optimiser"], f"learning rate {recipe['lr']:g}", f"weight decay {recipe['weight_decay']:g}"]
        if recipe["schedule"] != "constant":
            parts.append(f"{recipe['schedule']} schedule")
        if recipe["accumulate"] > 1:
            parts.append(f"a step every {recipe['accumulate']} bags")
        if recipe["clip"]:
            parts.append(f"gradients clipped at {recipe['clip']:g}")
        parts += ["batch of one bag"] + (["classes drawn equally often"] if recipe["sampling"] != "shuffle" else [])
        patience = f", patience {recipe['patience']}" if recipe["patience"] else ""
        most = "at most " if recipe["select"] != "last" else ""
        each = f" of {recipe['epoch_bags']} bags" if recipe.get("epoch_bags") else ""
        parts.append(f"{most}{recipe['max_epochs']} epochs{each}" + (patience if most else ""))
        chosen = "the last epoch is tested" if recipe["select"] == "last" else "the epoch is chosen on validation, never on test"
        rows = f" ({', '.join(dict.fromkeys(labels))})" if len(used) > 1 else ""
        notes.append(f"Recipe {recipe['name']}{rows}: {', '.join(parts)}; {chosen}.")
    return notes


def _paired(content: _Content, reference: _Name) -> Table:
    lines: list[Row] = []
    tidy, without = [], []
    said: dict[str, list[str]] = {}
    for column, metric in content.heads:
        head = ", ".join(filter(None, _head(content.layout, column, metric)))
        if not any(content.blocks[row, column, metric].comparison for row in content.rows):
            without.append(head)
            continue
        lines.append(Row(head, [], rule=bool(lines)))
        for row in content.rows:
            block = content.blocks[row, column, metric]
            c = block.comparison
            if row == reference or not block.runs:
                continue
            if c is None:
                lines.append(Row(row.label, [Entry(NONE)] * 5))
                continue
            wins, ties, losses = (c.wins, c.ties, c.losses)[:: METRICS[metric][2]]  # a lower Brier score wins
            if c.note:
                said.setdefault(c.note, []).append(f"{row.label} ({head})")
            entries = [
                Entry(signed(c.difference), dagger=block.p_holm < ALPHA),
                Entry(interval(c.low, c.high)),
                Entry(tally(wins, ties, losses, c.undefined)),
                Entry(p_value(c.p)),
                Entry(p_value(block.p_holm)),
            ]
            lines.append(Row(row.label, entries))
            place = _tidy(row, column, block, None)
            tidy.append({
                **{k: v for k, v in place.items() if k not in ("mean", "sd", "runs", "expected_runs")},
                "reference": reference.aggregator, "difference": c.difference, "low": c.low, "high": c.high,
                "wins": wins, "ties": ties, "losses": losses, "undefined": c.undefined, "superiority": c.superiority,
                "p": c.p, "p_holm": block.p_holm, "runs": c.runs,
            })  # fmt: skip
    notes = [
        f"Difference = method minus {reference.label}, mean over the paired runs; W/T/L counts them.",
        f"95 % interval and two-sided p: bootstrap over cases, stratified by class, drawn inside each fold, {REPLICATES:,} "
        "resamples, the same for both methods. It says what other test cases would have shown, not what another training set "
        "would.",
        "Holm's correction runs over all comparisons of one metric in this table.",
    ]
    notes += [f"{', '.join(rows)}: {note}." for note, rows in said.items()]
    if without:
        notes.append(f"No method can be paired with {reference.label} in: {'; '.join(without)}.")
    headers = [("", h) for h in ("difference", "95 % interval", "W/T/L", "p", "p (Holm)")]
    return Table(f"{content.layout['name']}-paired", f"Paired comparison with {reference.label}", headers, lines, notes, tidy)
