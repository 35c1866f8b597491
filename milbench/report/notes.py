"""What stands around a suite's table: its title, what it lacks, and the footnotes."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from milbench.compare import ALPHA, Comparison, Comparisons
from milbench.reading import Run
from milbench.report.content import Block, Content
from milbench.report.model import DELTA, PAPER, Beside

FEW = 100  # slides below which a table says that its ranking is mostly chance
THE_TEST = (
    "95 % interval, p and †: for other patients and other trainings (trainings are the readers and patients the cases of an "
    "Obuchowski-Rockette-Hillis analysis). These models: the 95 % interval for other patients, the trainings being these."
)
TOLERATED = (
    "Tolerated sd: of one training a side, the standard deviation between trainings of either method up to which the difference "
    "would be significant; 0 where it is not even for these models."
)
SEEN_ONCE = "Seen once: a side has one training on one split, so no † is possible."
_STATES = {"oom": "out of memory", "pending": "not run", "absent": "not run"}


def title(content: Content) -> str:
    """The suite's title, with the number of slides (or cases) that the table rests on."""
    measured = next((run.result["spec"]["unit"] for run in content.runs if run.result), "slide")
    unit = content.layout.get("unit") or measured
    slides, heads = _tested(content.runs), content.plan.heads
    counts = [f"{count} {heads[name]}" if len(slides) > 1 else str(count) for name, count in slides.items()]
    return f"{content.plan.definition['title']} (n = {', '.join(counts) or 0} {unit}s)"


def _tested(runs: Iterable[Run]) -> dict[str, int]:
    """How many different slides (or cases) the tables of each dataset rest on. Runs of one fold test the same slides."""
    folds = {(r.cell.dataset, r.cell.split, r.cell.fold, r.cell.context): r for r in runs if r.status == "ok"}
    seen: dict[str, set[str]] = {}
    for run in folds.values():
        seen.setdefault(run.cell.dataset, set()).update(run.predictions["slide"])
    return {name: len(slides) for name, slides in seen.items()}


def partial(content: Content) -> str:
    """What the table lacks, against the suite; empty where it is whole."""
    waiting = Counter(_STATES.get(run.status, run.status) for run in content.runs if run.status not in ("ok", "skipped"))
    lacks = []
    if waiting:
        states = ", ".join(f"{count} {state}" if len(waiting) > 1 else state for state, count in waiting.items())
        lacks.append(f"{sum(waiting.values())} of {len(content.runs)} trials have no result ({states})")
    listed, asked = content.plan.definition["grid"]["aggregator"], {run.cell.aggregator for run in content.runs}
    if left := [name for name in listed if name not in asked]:
        lacks.append(f"{len(left)} of the suite's {len(listed)} methods were not asked for")
    seeds, ran = content.plan.definition["grid"].get("seed", []), {run.cell.seed for run in content.runs}
    if left := [seed for seed in seeds if seed not in ran]:
        lacks.append(f"{len(left)} of the suite's {len(seeds)} seeds were not asked for")
    return "; ".join(lacks)


def missing(block: Block) -> str:
    """Why runs of a row have no result; empty where all have one."""
    done = len(block.values)
    if done == block.expected:
        return ""
    without = [run for run in block.runs if run.status != "ok"]
    reasons = (" ".join(str(run.cell.missing or run.result.get("reason") or "").split()) for run in without)
    why = "; ".join(filter(None, dict.fromkeys(reasons)))
    states = ", ".join(dict.fromkeys(_STATES.get(run.status, run.status) for run in without)) or "not asked for in any run here"
    return states + (f": {why}" if why else "") + (f"; over {done} of {block.expected} runs, not ranked" if done else "")


def undefined(block: Block) -> str:
    """Why the metric of finished runs has no value, and of how many; empty where all have one."""
    runs = [run for run in block.runs if run.status == "ok" and math.isnan(run.metric(block.metric.name))]
    if not runs:
        return ""
    unknown = [run for run in runs if any(np.isnan(run.predictions.get(key, 0.0)).any() for key in ("score", "risk"))]
    why = ["a prediction is missing (NaN)"] if unknown else []
    if len(unknown) < len(runs):
        why.append("a fold's test part " + ("has no comparable pair" if block.metric.task == "survival" else "lacks a class"))
    return f"{' or '.join(why)}, so the metric is undefined in {len(runs)} of {block.expected} runs"


def below(content: Content, *, significant: bool) -> list[str]:
    """The footnotes about what was measured; `significant` says that a row has a dagger."""
    runs = content.runs
    done = [run for run in runs if run.result]
    notes = [f"{note[:1].upper()}{note[1:]}." for note in content.plan.notes if note]
    notes += _spreads(runs)
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
    return [*notes, *_about_daggers(content, significant)]


def _about_daggers(content: Content, significant: bool) -> list[str]:
    wanted, compared = content.layout["reference"], content.compared
    if not content.tests:
        return ["No significance is marked: this report was made without tests."]
    if compared is None:
        return [f"No paired comparison: the reference {wanted} has no result beside another method."]
    label = compared.label
    stands_in = "" if compared.reference == wanted else f", which stands in for {wanted}: that has no result here"
    see = f"see the paired comparison with {label}{stands_in}."
    once, known = _said(content, compared, _seen_once), _said(content, compared, lambda c: c.notes)
    sizes = Counter(c.metric.name for c in compared.every if not math.isnan(c.test.p))
    if not sizes:
        return [f"No p-value, so no row is marked (†); {see}", *once, *known]
    over = " and ".join(str(size) for size in dict.fromkeys(sizes.values()))
    start = f"† differs from {label}" if significant else f"No row differs (†) from {label}"
    daggers = f"{start} for other patients and other trainings, at p < {ALPHA:g} after Holm's correction over the {over} "
    return [f"{daggers}comparisons of each metric; {see}", *once, *known]


def about_test(content: Content, compared: Comparisons) -> list[str]:
    """The footnotes of the paired comparison: what each number says, and where it says nothing."""
    once = any(c.seen_once for c in compared.every)
    notes = [
        f"Difference = method minus {compared.label}, mean over the folds that both have; all finished trainings count, seeds "
        "need not pair. W/T/L counts pairs of trainings of one fold.",
        THE_TEST,
        "Holm's correction runs over all comparisons of one metric in this table.",
        *[TOLERATED] * once,
    ]
    if any(c.shares for c in compared.every):
        notes.append("What the variance comes from, and what more trainings or patients would show: in the appendix and the CSV.")
    without = _said(content, compared, lambda c: [] if c.seen_once or not c.test.why else [f"No p-value: {c.test.why}."])
    return [*notes, *_said(content, compared, _seen_once), *without, *_said(content, compared, lambda c: c.notes)]


def _seen_once(comparison: Comparison) -> list[str]:
    return [SEEN_ONCE] if comparison.seen_once else []


def _said(content: Content, compared: Comparisons, texts: Callable[[Comparison], Iterable[str]]) -> list[str]:
    """What must be known of some comparisons, each text once, with the columns and rows it is true of unless that is all."""
    true_of: dict[str, list[Comparison]] = {}
    for c in compared.every:
        for text in texts(c):
            true_of.setdefault(text, []).append(c)
    return [
        text if len(of) == len(compared.every) else f"{_where(content, compared, of)}: {text}" for text, of in true_of.items()
    ]


def _where(content: Content, compared: Comparisons, some: Sequence[Comparison]) -> str:
    """Rows and columns of comparisons in words; a column alone stands for all of its rows."""
    words = []
    for column, metric in content.heads:
        here, among = (
            [c.label for c in of if (c.column, c.metric.name) == (column, metric.name)] for of in (compared.every, some)
        )
        head = content.words(column, metric)
        words += [head] if here == among != [] else [f"{label} ({head})" for label in among]
    return ", ".join(words)


def _spreads(runs: Sequence[Run]) -> list[str]:
    """What ± is over and how many are tested; where datasets differ in it, their names come with it."""
    by_text: dict[str, list[str]] = {}
    for dataset in dict.fromkeys(run.cell.dataset for run in runs):
        here = [run for run in runs if run.cell.dataset == dataset]
        folds, seeds = {run.cell.fold for run in here}, {run.cell.seed for run in here}
        over = " x ".join(f"{len(s)} {name}s" for s, name in ((folds, "fold"), (seeds, "seed")) if len(s) > 1)
        spread = f"Mean ± sample standard deviation (ddof = 1) over {over}" if over else "One run, no spread"
        each = {run.cell.fold: run for run in here if run.status == "ok"}.values()
        sizes = sorted({len(run.predictions["slide"]) for run in each})
        tested = " to ".join(map(str, sizes[:1] + sizes[1:][-1:]))
        by_text.setdefault(spread + (f", {tested} tested in each" if tested else ""), []).append(here[0].cell.dataset_label)
    several = len(by_text) > 1
    parts = [f"{', '.join(names)}: {text[:1].lower()}{text[1:]}" if several else text for text, names in by_text.items()]
    return [f"{'; '.join(parts)}. Best in bold, second underlined."] if parts else []


def about_printed(content: Content, published: Beside) -> list[str]:
    """The footnotes about the printed numbers, and the errata of their table."""
    if content.printed is None:
        return []
    source = content.plan.definition["reproduces"].partition(",")[0] or content.layout["published"]
    where = {
        "side": f"{PAPER}: the mean that {source} prints; {DELTA}: ours minus it.",
        "below": f"{PAPER}: what {source} prints, and in brackets ours minus it.",
    }[published]
    heads = [" ".join(content.head(column, metric)).strip() for column, metric in content.heads]
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
    by_dataset = len({frozenset(run.cell.label for run in runs) for _, runs in used.values()}) == 1
    notes = []
    for recipe, runs in used.values():
        labels = [run.cell.dataset_label if by_dataset else run.cell.label for run in runs]
        whose = f" ({', '.join(dict.fromkeys(labels))})" if len(used) > 1 else ""
        notes.append(f"Recipe {recipe['name']}{whose}: {_in_words(recipe)}.")
    return notes


def _in_words(recipe: dict[str, Any]) -> str:
    """A recipe: optimiser, steps, epochs, and which epoch is tested."""
    parts = [recipe["optimiser"], f"learning rate {recipe['lr']:g}", f"weight decay {recipe['weight_decay']:g}"]
    if recipe["schedule"] != "constant":
        parts.append(f"{recipe['schedule']} schedule")
    if recipe["accumulate"] > 1:
        rest = {"carry": "", "restart": ", counted anew in each epoch", "flush": " and at the end of each epoch"}
        parts.append(f"a step every {recipe['accumulate']} bags{rest[recipe.get('left_over', 'carry')]}")
    if recipe["clip"]:
        parts.append(f"gradients clipped at {recipe['clip']:g}")
    parts += ["batch of one bag"] + (["classes drawn equally often"] if recipe["sampling"] != "shuffle" else [])
    last = recipe["select"] == "last"
    patience = f", patience {recipe['patience']}" if recipe["patience"] and not last else ""
    each = f" of {recipe['epoch_bags']} bags" if recipe.get("epoch_bags") else ""
    parts.append(f"{'' if last else 'at most '}{recipe['max_epochs']} epochs{each}{patience}")
    chosen = "the last epoch is tested" if last else "the epoch is chosen on validation, never on test"
    return f"{', '.join(parts)}; {chosen}"
