"""From the results of a suite to its report."""

from collections.abc import Callable
from functools import partial

from milbench import reading
from milbench.compare import Comparisons, with_reference
from milbench.errors import MilbenchError
from milbench.plots import figure
from milbench.reading import Run
from milbench.report import appendix, capability, everyone, printed, ranks, tables, verdicts
from milbench.report.figures import suite_figures
from milbench.report.model import Beside, Report, Section
from milbench.trials.plan import Plan
from milbench.trials.store import Store


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
        progress: called with (name of the table, comparisons done, all of them).

    Raises:
        MilbenchError: the suite was never run into this store or lists no trial, or a result cannot be read.
    """
    leaves = reading.leaves(store, suite)
    sections = [
        _section(plan, reading.read(store, plan), published, tests=tests, progress=progress) for plan in reading.joined(leaves)
    ]
    if not sections:
        raise MilbenchError(f"suite {suite} lists no trials in {store.root}; run it first: milbench run --suite {suite}")
    not_run = reading.not_run(store, suite)
    concerned = {leaf.suite for leaf in leaves} | set(not_run)
    on_claims = verdicts.build(store, concerned, partial(progress, "verdicts")) if tests else []
    return Report(suite, reading.title(store, suite), sections, not_run, on_claims, figure.saved(store.root / "analysis"))


def _section(
    plan: Plan, runs: list[Run], published: Beside, *, tests: bool, progress: Callable[[str, int, int], None]
) -> Section:
    compared = with_reference(plan, runs, partial(progress, plan.definition["table"]["name"])) if tests else None
    table, paired = tables.build(plan, runs, compared, published=published, tests=tests)
    section = Section(plan, table, paired, _made_with(runs), figures=suite_figures(plan, runs, compared, predictions=tests))
    if tests:
        _extend(section, runs, compared)
    return section


def _extend(section: Section, runs: list[Run], compared: Comparisons | None) -> None:
    """What is more than a table of means: capabilities, printed results of classic sets, the other tests."""
    plan = section.plan
    if plan.definition.get("known"):
        section.more, figures = capability.build(plan, runs)
        section.figures += figures
    section.more += [table for table in [printed.build(plan, runs)] if table]
    if compared:
        pairs, figures = everyone.build(plan, runs)
        section.appendix = [*pairs, *appendix.build(plan, runs, compared)]
        section.figures += figures
        name = plan.definition["table"]["name"]
        diagrams = [ranks.critical_difference(name, runs, metric) for metric in reading.metrics(plan)]
        section.figures += [diagram for diagram in diagrams if diagram]


def _made_with(runs: list[Run]) -> dict[str, dict[str, float]]:
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
