"""`milbench compare`: two methods on one screen."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from milbench.cli import show
from milbench.cli.options import AS_JSON, PATH, RESULTS

if TYPE_CHECKING:
    from milbench.api.comparisons import Comparison
    from milbench.compare.methods import Difference

WIDTH = 80  # of one screen
MOST = 5  # slides shown
HEAD = 14  # characters of the words that begin a line
NONE = "–"
SHARES = ("patients", "trainings", "interaction")  # what the variance comes from


@click.command()
@click.argument("a")
@click.argument("b")
@click.option("--suite", metavar="SUITE", help="Only this suite: its name, or the TOML file that was run; all unless given.")
@click.option("--metric", metavar="NAME", help="[default: macro_auc, c_index for survival]")
@click.option("--results-b", type=PATH, metavar="FOLDER", help="Another results folder, where those of B are.")
@RESULTS
@AS_JSON
def compare(
    a: str, b: str, suite: str | None, metric: str | None, results: Path, results_b: Path | None, as_json: bool
) -> None:  # fmt: skip
    """Is the difference between methods A and B real: for other patients and other trainings?

    All finished trainings count; seeds need not pair. One training a side on one split allows no p-value. The exit code is 0
    whether they differ or not.
    """
    from milbench.api.comparisons import compare as compared

    comparison = compared(a, b, suite, metric, results=results, results_b=results_b)
    if as_json:
        whole = {"a": comparison.a, "b": comparison.b, "columns": comparison.as_rows(), "left_out": dict(comparison.left_out)}
        click.echo(json.dumps(whole, indent=1))
        return
    if len(comparison.columns) == 1:
        _one(comparison, comparison.columns[0])
    else:
        _several(comparison)
    _slides(comparison)
    notes = [note for each in comparison.columns for note in each.notes]
    for note in dict.fromkeys([*notes, *(f"Not compared: {where}: {why}." for where, why in comparison.left_out.items())]):
        _note(note)


def _say(head: str, text: str) -> None:
    """A line that begins with `head`, wrapped beside it."""
    indent = " " * HEAD
    click.echo(click.wrap_text(text, width=_width(), initial_indent=f"{head:{HEAD}}", subsequent_indent=indent))


def _note(text: str) -> None:
    click.echo(click.wrap_text(text, width=_width(), initial_indent="- ", subsequent_indent="  "))


def _width() -> int:
    return min(WIDTH, show.width())


def _title(comparison: Comparison, each: Difference) -> None:
    lower = ", lower is better" if each.metric.direction < 0 else ""
    click.secho(click.wrap_text(f"{comparison.a} minus {comparison.b}: {each.metric.label}{lower}", width=_width()), bold=True)


def _one(comparison: Comparison, each: Difference) -> None:
    """One column of data, a line for each question."""
    from milbench.numbers import interval, number, p_equals, signed
    from milbench.words import counted

    test, chance, (wins, ties, losses) = each.test, each.chance, each.tally
    _title(comparison, each)
    _say("measured on", f"{show.place_of(*each.column)}: {_sample(each)}")
    _say(
        "difference",
        f"{signed(test.difference)} ({comparison.a} {number(each.means[0])}, {comparison.b} {number(each.means[1])})",
    )
    if math.isnan(test.p):
        _say("no p-value", f"{'seen once: ' * each.seen_once}{test.why}")
    else:
        _say("new trainings", f"{interval(test.low, test.high)} p {p_equals(test.p)}, for other patients and trainings:")
        _say("", f"{_verdict(comparison, each)} (by how {test.rule} differ, {test.df:.1f} degrees of freedom)")
    fixed = "" if math.isnan(test.fixed.p) else f" p {p_equals(test.fixed.p)}"
    _say("these models", f"{interval(test.fixed.low, test.fixed.high)}{fixed}, for other patients only")
    if not math.isnan(test.tolerated_sd):
        _say("tolerated sd", _tolerated(test.tolerated_sd))
    shares = " | ".join(f"{name} {100 * share:.0f} %" for name, share in each.shares.items())
    _say("variance", shares or "patients and trainings cannot be told apart")
    _say(
        "chance",
        f"{number(chance.chance, '.2f')} {interval(chance.low, chance.high, '.2f')} that a new training of {comparison.a} is the "
        f"better one; of {counted(sum(each.tally), 'pair')} it won {wins}, tied {ties} and lost {losses}",
    )
    for head, text in zip(("planning", ""), _planned(each), strict=False):
        _say(head, text)


def _sample(each: Difference) -> str:
    """`2 folds, 4 + 4 trainings, 24 patients`."""
    from milbench.words import counted

    a, b = each.test.trainings
    unit = "patient" if each.test.patients_known else "slide"
    return f"{counted(len(each.folds), 'fold')}, {a} + {b} trainings, {counted(each.test.patients, unit)}"


def _verdict(comparison: Comparison, each: Difference) -> str:
    return f"{getattr(comparison, each.better)} is better" if each.better else "no difference is shown"


def _tolerated(sd: float) -> str:
    """How much trainings may differ before the difference is not shown."""
    if not sd > 0:
        return "none; the difference is not shown even for these models"
    return f"{sd:.3f} between trainings of either method; if it is larger, no difference is shown"


def _planned(each: Difference) -> list[str]:
    """Half-widths with more of either, and what it takes to show a difference as large as this one."""
    from milbench.numbers import number

    plan, needed = each.planning, each.planning.needed
    if math.isnan(plan.now.half_width):
        return ["needs two trainings a side or more, which tell the parts of the variance"]
    (a, b), patients, size = each.test.trainings, each.test.patients, number(abs(each.test.difference))
    unit = "patients" if each.test.patients_known else "slides"
    now = f"half-width {number(plan.now.half_width)} now, {number(plan.seeds.half_width)} with {2 * a} + {2 * b} trainings, "
    now += f"{number(plan.patients.half_width)} with {2 * patients:,} {unit}"
    if size == number(0.0):
        return [now]
    if needed.trainings == 0:
        return [now, f"a true difference of {size} would show (80 % chance) with what there is"]
    more = f"{_more(needed.trainings, 'trainings a side and fold')}, or with {_more(needed.patients, f'{unit} a fold')}"
    return [now, f"a true difference of {size} would show (80 % chance) with {more}"]


def _more(count: float, what: str) -> str:
    return f"no number of {what}" if math.isinf(count) else f"{count:,.0f} more {what}"


def _several(comparison: Comparison) -> None:
    """A row for each column of data: first the difference, then what it rests on."""
    from milbench.numbers import interval, number, p_value, signed

    for metric in {each.metric.name: each.metric for each in comparison.columns}.values():
        columns = [each for each in comparison.columns if each.metric == metric]
        shared, heads = show.apart([each.column for each in columns])
        _title(comparison, columns[0])
        if shared:
            click.echo(shared)
        rows, parts = [], []
        for head, each in zip(heads, columns, strict=True):
            test, plan = each.test, each.planning
            p = "seen once" if each.seen_once else p_value(each.p_holm)
            spans = [interval(span.low, span.high) for span in (test, test.fixed)]
            rows.append([head, signed(test.difference), *spans, p])
            widths = [number(some.half_width) for some in (plan.now, plan.seeds, plan.patients)]
            shares = [f"{share:.0%}" for share in each.shares.values()] or [NONE] * 3
            parts.append([head, *shares, *widths, number(each.chance.chance, ".2f")])
        show.table(["", "difference", "new trainings", "these models", "p (Holm)"], rows, names=0)
        click.echo("Share of the variance; half-width of the interval, now and with twice as many:")
        heads = ["", *SHARES[:2], "inter-\naction", "half-\nwidth", "2x\ntrainings", "2x\npatients", "chance"]
        show.table(heads, parts, names=0)


def _slides(comparison: Comparison) -> None:
    """Where the methods disagree most, the slides of a patient together."""
    from milbench.compare.methods import disagreement
    from milbench.numbers import number, signed

    slides = disagreement([slide for each in comparison.columns for slide in each.slides], MOST)
    if not slides:
        return
    patients = any(each.test.patients_known for each in comparison.columns)
    _, places = show.apart([slide.column for slide in slides])
    several = any(places)
    heads = ["patient"] * patients + ["slide"] + ["data"] * several + ["truth", comparison.a, comparison.b, "difference"]
    rows, last = [], ""
    for slide, place in zip(slides, places, strict=True):
        first = [slide.patient if slide.patient != last else ""] * patients
        numbers = [number(slide.a), number(slide.b), signed(slide.difference)]
        rows.append([*first, slide.slide, *[place] * several, slide.truth, *numbers])
        last = slide.patient
    click.echo("\n" + click.wrap_text(f"Most disagreement: {_measure(comparison)}, mean over trainings.", width=_width()))
    show.table(heads, rows, names=0)


def _measure(comparison: Comparison) -> str:
    """What the numbers of slides are."""
    survival = {each.metric.task == "survival" for each in comparison.columns}
    words = ["share of pairs with other cases in the right order"] * (True in survival)
    return " or ".join(["probability of the true class"] * (False in survival) + words)
