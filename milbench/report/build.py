"""A suite's report: what it shows, and the files it is written to."""

import shutil
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from milbench import reading
from milbench.errors import MilbenchError
from milbench.files import replacing, write_atomically
from milbench.names import checked, slug
from milbench.plots import figure
from milbench.plots.figure import Figure, Saved, own_file
from milbench.report import appendix, capability, claims, classic, ranks, tables
from milbench.report.figures import suite_figures
from milbench.report.render import html, latex, markdown
from milbench.report.tables import Beside, Table
from milbench.trials.plan import Plan
from milbench.trials.store import Store

Format = Literal["latex", "md", "html", "csv"]
FORMATS: tuple[Format, ...] = ("latex", "md", "html", "csv")


@dataclass
class Section:
    """One suite with a table of its own, or several that fill one table.

    Args:
        plan: what was asked for.
        table: its numbers.
        paired: the comparison with the reference, None where there is none.
        made_with: versions and machine behind the numbers -> trials made with them -> seconds that each took.
        more: what else this suite has to say, such as what its methods can and cannot see.
        appendix: tests and details that stand after everything else.
        figures: drawn from these results.
    """

    plan: Plan
    table: Table
    paired: Table | None
    made_with: dict[str, dict[str, float]]
    more: list[Table] = field(default_factory=list)
    appendix: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)

    @property
    def tables(self) -> list[Table]:
        """What else the suite has to say, its table, then the comparison."""
        return [*self.more, self.table, *([self.paired] if self.paired else [])]


@dataclass
class Report:
    """Everything a report says.

    Args:
        suite: its name.
        title: one line.
        sections: suite by suite.
        not_run: suites that belong to it and were never run here.
        verdicts: what the results say about the paper's claims; stand first.
        figures: made by `milbench analyze` and `milbench profile`; stand last.
        others: what others published, where the report is about that.
    """

    suite: str
    title: str
    sections: list[Section]
    not_run: list[str] = field(default_factory=list)
    verdicts: list[Table] = field(default_factory=list)
    figures: list[Saved] = field(default_factory=list)
    others: list[Table] = field(default_factory=list)

    @property
    def tables(self) -> list[Table]:
        """Every table, in the order of the document."""
        return [
            *self.verdicts,
            *self.others,
            *(t for s in self.sections for t in s.tables),
            *(t for s in self.sections for t in s.appendix),
        ]


def build(
    store: Store,
    suite: str,
    *,
    published: Beside = "side",
    tests: bool = True,
    progress: Callable[[str, int, int], None] = lambda table, done, total: None,
) -> Report:
    """Read the results of `suite` and make its tables.

    Args:
        store: where the results are.
        suite: its name.
        published: printed numbers stand beside ours, below them, or stay out.
        tests: False leaves out everything that resamples, and with it the reading of most predictions.
        progress: told (name of the table, comparisons done, all of them).

    Raises:
        MilbenchError: the suite was never run into this store or lists no trial, or a result cannot be read.
    """
    sections = []
    leaves = reading.leaves(store, suite)
    for plan in reading.joined(leaves):
        runs = reading.read(store, plan)
        name = plan.definition["table"]["name"]

        def told(done: int, total: int, name: str = name) -> None:
            progress(name, done, total)

        table, paired = tables.build(plan, runs, published=published, tests=tests, progress=told)
        section = Section(plan, table, paired, _made_with(runs), figures=suite_figures(plan, runs, paired, predictions=tests))
        if tests:
            _extend(section, runs)
        sections.append(section)
    if not sections:
        raise MilbenchError(f"suite {suite} lists no trials in {store.root}; run it first: milbench run --suite {suite}")
    not_run = reading.not_run(store, suite)
    concerned = {leaf.suite for leaf in leaves} | set(not_run)
    verdicts = claims.verdicts(store, concerned, partial(progress, "verdicts")) if tests else []
    return Report(suite, reading.title(store, suite), sections, not_run, verdicts, figure.saved(store.root / "analysis"))


def _extend(section: Section, runs: list[reading.Run]) -> None:
    """What is more than a table of means: capabilities, printed results of classic sets, the other tests."""
    plan, layout = section.plan, section.plan.definition["table"]
    if plan.definition.get("known"):
        section.more, pictures = capability.build(plan, runs)
        section.figures += pictures
    section.more += [table for table in [classic.build(plan, runs)] if table]
    if section.paired:
        section.appendix = appendix.build(plan, runs, section.paired)
        diagrams = [ranks.critical_difference(layout["name"], runs, metric) for metric in layout["metrics"]]
        section.figures += [diagram for diagram in diagrams if diagram]


def _made_with(runs: list[reading.Run]) -> dict[str, dict[str, float]]:
    """Versions and machines behind the numbers, with the trials made there and how long they took."""
    seen: dict[str, dict[str, float]] = {}
    for run in runs:
        if run.result:
            p, spec = run.result["provenance"], run.result["spec"]
            machine = p.get("gpu") if spec["device"] == "cuda" else p.get("cpu")
            versions = f"milbench {p.get('milbench')}, torch {p.get('torch')}"
            line = f"{versions}, {spec['device']} ({machine}), {spec['threads']} thread{'s' * (spec['threads'] > 1)} a trial"
            seen.setdefault(line, {})[run.cell.trial_id] = run.result["cost"].get("seconds", 0.0)
    return seen


def write(report: Report, folder: Path, formats: Collection[Format] = FORMATS) -> list[Path]:
    """Write the document and each table in every format, and the figures; returns the paths, documents first.

    Raises:
        MilbenchError: two tables or two figures have the same name, or a saved figure lacks a file.
    """
    _distinct("table", [table.name for table in report.tables])
    figures = _figures(report, folder / "figures")
    written = [path for saved in figures.values() for path in (saved.pdf, saved.png, saved.csv)]
    forms = {"latex": (".tex", latex.table), "md": (".md", markdown.table), "csv": (".csv", markdown.tidy_csv)}
    for table in report.tables:
        for suffix, form in (forms[name] for name in FORMATS if name in forms and name in formats):
            path = folder / "tables" / f"{checked(table.name, 'table')}{suffix}"
            write_atomically(path, form(table))
            written.append(path)
    documents = []
    for name, file, make in (
        ("html", "report.html", html.html),
        ("latex", "report.tex", html.tex),
        ("md", "report.md", html.markdown),
    ):
        if name in formats:
            write_atomically(folder / file, make(report, figures))
            documents.append(folder / file)
    return documents + written


def _figures(report: Report, folder: Path) -> dict[str, Saved]:
    """Draw the sections' figures, and copy those of an analysis; by name."""
    drawn = [one for section in report.sections for one in section.figures]
    _distinct("figure", [one.name for one in drawn] + [slug(one.name) for one in report.figures])
    found = {one.name: one.save(folder) for one in drawn}
    for one in report.figures:
        copy = Saved(slug(one.name), one.title, one.caption, folder)
        for source, target in ((one.pdf, copy.pdf), (one.png, copy.png), (one.csv, copy.csv)):
            if not source.is_file():
                raise MilbenchError(f"figure {one.name}: {source} is missing; make the figure again, or remove {one.name}.json")
            with replacing(target) as path:
                shutil.copyfile(own_file(source), path)
        found[one.name] = copy
    return found


def _distinct(kind: str, names: list[str]) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise MilbenchError(f"{kind} {twice[0]} is there twice in this report; give one of them another name")
