"""A suite's report: its tables in every form, and the files they are written to."""

from dataclasses import dataclass
from pathlib import Path

from milbench.report import collect, render, tables
from milbench.report.tables import Table
from milbench.trials.plan import Plan
from milbench.trials.store import Store, write_atomically


@dataclass
class Section:
    """One suite with a table of its own."""

    plan: Plan
    table: Table
    paired: Table | None
    unfinished: int
    made_with: list[str]

    @property
    def tables(self) -> list[Table]:
        """The suite's table, then the comparison."""
        return [self.table, *([self.paired] if self.paired else [])]


@dataclass
class Report:
    """Everything a report says."""

    suite: str
    sections: list[Section]


def build(store: Store, suite: str) -> Report:
    """Read the results of `suite` and make its tables.

    Raises:
        MilbenchError: the suite was never run into this store, or a result cannot be read.
    """
    sections = []
    for plan in collect.leaves(store, suite):
        runs = collect.runs(store, plan)
        table, paired = tables.build(plan, runs)
        sections.append(Section(plan, table, paired, sum(run.status == "pending" for run in runs), _made_with(runs)))
    return Report(suite, sections)


def _made_with(runs: list[collect.Run]) -> list[str]:
    """The distinct versions and machines behind the numbers."""
    seen = set()
    for run in runs:
        if run.result:
            p, spec = run.result["provenance"], run.result["spec"]
            machine = p.get("gpu") if spec["device"] == "cuda" else p.get("cpu")
            versions = f"milbench {p.get('milbench')}, torch {p.get('torch')}"
            seen.add(f"{versions}, {spec['device']} ({machine}), {spec['threads']} thread{'s' * (spec['threads'] > 1)} a trial")
    return sorted(seen)


def write(report: Report, folder: Path) -> list[Path]:
    """Write report.md, and each table as .tex, .md and .csv; returns the paths."""
    written = []
    for section in report.sections:
        for table in section.tables:
            for suffix, form in ((".tex", render.latex), (".md", render.markdown), (".csv", render.tidy_csv)):
                path = folder / "tables" / f"{table.name}{suffix}"
                write_atomically(path, form(table))
                written.append(path)
    path = folder / "report.md"
    write_atomically(path, _markdown(report))
    return [path, *written]


def _markdown(report: Report) -> str:
    parts = [f"# milbench report: {report.suite}\n"]
    for section in report.sections:
        definition = section.plan.definition
        parts.append(f"## {definition['title']}\n")
        if definition["reproduces"]:
            parts.append(f"Reproduces {definition['reproduces']}.\n")
        if section.unfinished:
            parts.append(f"**Partial: {section.unfinished} of {len(section.plan.cells)} trials are not run yet.**\n")
        parts += [render.markdown(table) for table in section.tables]
        parts += [f"Made with {line}.\n" for line in section.made_with]
    return "\n".join(parts)
