"""Every method of a suite against its reference by the primary test, with one correction for all comparisons of a metric."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from milbench import reading, stats
from milbench.compare.pairing import Pairing, Shared, finished
from milbench.compare.primary import Contrast, contrast, trainings
from milbench.metrics import Column, Metric
from milbench.reading import Run
from milbench.trials.plan import Plan


@dataclass(frozen=True)
class Comparison(Contrast):
    """A method minus the reference in one column and metric.

    Args:
        aggregator, label: the method.
        column: what both were tested on.
        pairing: their runs of the same fold and seed, for tests that pair seeds; there may be none.
    """

    aggregator: str
    label: str
    column: Column
    pairing: Pairing[Run] = field(repr=False)


@dataclass(frozen=True)
class Comparisons:
    """What was compared with a reference, by column and metric and then as the suite lists the methods.

    Args:
        reference, label: the method that the others are compared with.
        every: the comparisons.
    """

    reference: str
    label: str
    every: tuple[Comparison, ...]

    def about(self, metric: Metric) -> list[Comparison]:
        """Those of one metric."""
        return [c for c in self.every if c.metric.name == metric.name]


def with_reference(
    plan: Plan, runs: Sequence[Run], progress: Callable[[int, int], None] = lambda done, total: None
) -> Comparisons | None:
    """Compare every method with the suite's reference, or with AB-MIL where that has no result.

    Args:
        plan, runs: what was asked for, and what came of it.
        progress: called with (comparisons done, all of them).

    Returns:
        None where neither has a result beside another method.

    Raises:
        MilbenchError: runs of one fold test different cases, or the suite asks for a metric that is none.
    """
    metrics, reference = reading.metrics(plan), _reference(plan, runs)
    if reference is None:
        return None
    labels = {run.cell.aggregator: run.cell.label for run in runs}
    methods = reading.in_order(plan, [name for name in labels if name != reference])
    places: dict[tuple[str, Column], list[Run]] = {}
    for run in runs:
        places.setdefault((run.cell.aggregator, run.column), []).append(run)
    todo = [(column, metric) for column in dict.fromkeys(run.column for run in runs) for metric in metrics]
    compared = []
    for done, (column, metric) in enumerate(todo):
        progress(done * len(methods), len(todo) * len(methods))
        shared = Shared()  # every method meets the reference's runs
        base = places.get((reference, column), [])
        for method in methods:
            mine = places.get((method, column), [])
            if found := contrast(trainings(mine), trainings(base), metric, shared):
                sides = Pairing.of([finished(mine)], [finished(base)])
                compared.append(Comparison(**vars(found), aggregator=method, label=labels[method], column=column, pairing=sides))
    progress(len(todo) * len(methods), len(todo) * len(methods))
    return Comparisons(reference, labels[reference], tuple(_corrected(compared))) if compared else None


def _reference(plan: Plan, runs: Sequence[Run]) -> str | None:
    """The suite's reference where it has a result, else AB-MIL."""
    ran = reading.in_order(plan, [run.cell.aggregator for run in runs if run.status == "ok"])
    wanted = plan.definition["table"]["reference"]
    return wanted if wanted in ran else next((name for name in ran if name.split("[")[0] == "abmil"), None)


def _corrected(compared: Sequence[Comparison]) -> list[Comparison]:
    """The same with Holm's correction over the comparisons of each metric."""
    p_holm: dict[int, float] = {}
    for name in dict.fromkeys(c.metric.name for c in compared):
        family = [at for at, c in enumerate(compared) if c.metric.name == name]
        p_holm |= dict(zip(family, stats.holm([compared[at].test.p for at in family]).tolist(), strict=True))
    return [replace(c, p_holm=p_holm[at]) for at, c in enumerate(compared)]
