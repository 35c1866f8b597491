"""The tables of a suite: means with their spread beside the printed ones, and the paired comparison with the reference method."""

import math
from collections.abc import Sequence
from typing import Any

from milbench.compare import ALPHA, Comparisons, Contrast
from milbench.numbers import NONE, Style, interval, number, p_value, signed, spread, styles, tally
from milbench.papers import PrintedTable
from milbench.reading import Run
from milbench.report import notes
from milbench.report.content import Block, Content, gather
from milbench.report.model import DELTA, PAPER, Beside, Entry, Row, Table
from milbench.trials.plan import Plan


def build(
    plan: Plan, runs: Sequence[Run], compared: Comparisons | None = None, *, published: Beside = "side", tests: bool = True
) -> tuple[Table, Table | None]:
    """The suite's table, and the paired comparison with its reference.

    Args:
        plan, runs: what was asked for, and what came of it.
        compared: the methods with their reference; None where nothing could be compared, or nothing was to be.
        published: printed numbers stand beside ours, below them, or stay out.
        tests: False where comparisons were left out on purpose, which the table says.

    Raises:
        MilbenchError: the suite asks for a metric that is none, or for a printed table that is not there.
    """
    content = gather(plan, runs, compared, published, tests=tests)
    return _main(content, published), _paired(content, compared) if compared else None


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


def _main(content: Content, published: Beside) -> Table:
    footnotes = _Footnotes()
    ruled = _ruled(content)
    lines = [Row(label, [], rule=method in ruled) for method, label in content.rows.items()]
    below = [Row(PAPER, [], below=True) for _ in content.rows]
    headers: list[tuple[str, str]] = []
    tidy = []
    for column, metric in content.heads:
        blocks = content.below(column, metric)
        ranked = styles([block.mean if block.complete else math.nan for block in blocks], metric.direction)
        group, label = content.head(column, metric)
        beside = published == "side" and any(block.printed for block in blocks)
        headers += [(group, label), (group, PAPER), (group, DELTA)] if beside else [(group, label)]
        for block, style, line, under in zip(blocks, ranked, lines, below, strict=True):
            line.entries.append(_entry(block, style, footnotes))
            if beside:
                line.entries += _beside(block, footnotes)
            if published == "below":
                under.entries.append(_below(block, footnotes))
            tidy.append(_tidy(block, content.printed))
    if published == "below":
        lines = [line for pair in zip(lines, below, strict=True) for line in pair if _says_something(line)]
    significant = any(entry.dagger for line in lines for entry in line.entries)
    return Table(
        content.layout["name"], notes.title(content), headers, lines,
        [*footnotes.notes, *notes.below(content, significant=significant), *notes.about_printed(content, published)], tidy,
        top=content.layout.get("top", ""), partial=notes.partial(content),
    )  # fmt: skip


def _says_something(line: Row) -> bool:
    return not line.below or any(entry.text != NONE or entry.mark for entry in line.entries)


def _entry(block: Block, style: Style | None, footnotes: _Footnotes) -> Entry:
    why_not = list(filter(None, [notes.missing(block), notes.undefined(block)]))
    mark = footnotes.mark("; ".join(why_not)) if why_not else ""
    significant = block.comparison is not None and block.comparison.p_holm < ALPHA
    return Entry(spread(block.mean, block.sd), style, dagger=significant and not math.isnan(block.mean), mark=mark)


def _beside(block: Block, footnotes: _Footnotes) -> list[Entry]:
    """The printed mean, and how far ours is above it."""
    mark = footnotes.mark(block.printed_note) if block.printed_note else ""
    if block.printed is None:
        return [Entry(NONE, "quiet", mark=mark), Entry("", "quiet")]
    delta = "" if math.isnan(block.mean) else signed(block.above_printed)
    return [Entry(number(block.printed.mean), "quiet", mark=mark), Entry(delta, "quiet")]


def _below(block: Block, footnotes: _Footnotes) -> Entry:
    """The printed number with its spread, and how far ours is above it."""
    mark = footnotes.mark(block.printed_note) if block.printed_note else ""
    if block.printed is None:
        return Entry(NONE, "quiet", mark=mark)
    delta = "" if math.isnan(block.mean) else f" ({signed(block.above_printed)})"
    return Entry(spread(block.printed.mean, block.printed.sd) + delta, "quiet", mark=mark)


def _tidy(block: Block, printed: PrintedTable | None) -> dict[str, Any]:
    number_of = block.printed
    beside = {
        "published_mean": number_of.mean if number_of else math.nan,
        "published_sd": number_of.sd if number_of else math.nan,
        "above_published": block.above_printed,
    }
    return {
        **block.place, "mean": block.mean, "sd": block.sd, "runs": len(block.values), "expected_runs": block.expected,
        **(beside if printed else {}),
    }  # fmt: skip


def _ruled(content: Content) -> set[str]:
    """Above which rows a rule stands: the first of each group, and those that the suite does not list; never at the top."""
    listed, names = content.plan.definition["grid"]["aggregator"], list(content.rows)
    starts = set(names).difference(listed)
    for first, _ in content.layout["groups"]:
        same = [name for name in names if name == first] or [name for name in names if name.split("[")[0] == first]
        starts.update(same[:1])
    return starts.difference(names[:1])


def _paired(content: Content, compared: Comparisons) -> Table:
    """Every method against the reference, by the primary test."""
    lines: list[Row] = []
    tidy, without = [], []
    once = any(c.seen_once for c in compared.every)
    for column, metric in content.heads:
        blocks, head = content.below(column, metric), content.words(column, metric)
        if not any(block.comparison for block in blocks):
            without.append(head)
            continue
        lines.append(Row(head, [], rule=bool(lines)))
        for block in blocks:
            if block.aggregator == compared.reference or not block.runs:
                continue
            lines.append(Row(block.label, difference(block.comparison, once=once)))
            if block.comparison:
                tidy.append({**block.place, "reference": compared.reference, **block.comparison.as_row()})
    below = notes.about_test(content, compared)
    if without:
        below.append(f"No method can be compared with {compared.label} in: {'; '.join(without)}.")
    title = f"Paired comparison with {compared.label}"
    return Table(f"{content.layout['name']}-paired", title, heads_of_test(once=once), lines, below, tidy)


def heads_of_test(*, once: bool) -> list[tuple[str, str]]:
    """Over the columns of :func:`difference`."""
    heads = ("difference", "95 % interval", "these models", "W/T/L", "p", "p (Holm)")
    return [("", head) for head in (*heads, *["tolerated sd"] * once)]


def difference(c: Contrast | None, *, once: bool) -> list[Entry]:
    """What the primary test says, cell by cell.

    Args:
        c: of one method with the reference; None where they were not compared.
        once: a comparison of the table is seen once, so it has a column for the tolerated sd.
    """
    if c is None:
        return [Entry(NONE)] * (6 + once)
    test = c.test
    return [
        Entry(signed(test.difference), dagger=c.p_holm < ALPHA),
        Entry(interval(test.low, test.high)),
        Entry(interval(test.fixed.low, test.fixed.high)),
        Entry(NONE if math.isnan(test.difference) else tally(*c.tally)),
        Entry("seen once" if c.seen_once else p_value(test.p)),
        Entry(p_value(c.p_holm)),
        *[Entry(number(test.tolerated_sd))] * once,
    ]
