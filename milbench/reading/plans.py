"""The plans behind a report: which suites fill a table together, and what their tables ask for."""

from collections.abc import Collection, Sequence

from milbench.errors import MilbenchError
from milbench.metrics import METRICS, Metric
from milbench.trials import plan as plans
from milbench.trials.plan import Plan
from milbench.trials.store import Store


def title(store: Store, suite: str) -> str:
    """One line about the suite."""
    return str(plans.read(store, suite).definition["title"])


def joined(leaves: Sequence[Plan]) -> list[Plan]:
    """Plans whose suites fill one printed table together become one plan, in the place of the first."""
    groups: dict[str, list[Plan]] = {}
    for plan in leaves:
        layout = plan.definition["table"]
        groups.setdefault(layout.get("published", "") if layout.get("joined") else plan.suite, []).append(plan)
    return [_together(parts) if len(parts) > 1 else parts[0] for parts in groups.values()]


def _together(parts: Sequence[Plan]) -> Plan:
    first = parts[0].definition
    layouts, grids = ([part.definition[key] for part in parts] for key in ("table", "grid"))
    layout = {**first["table"], "name": first["table"]["published"].rpartition("/")[2]}
    for key in ("heads", "labels"):
        layout[key] = {name: text for each in layouts for name, text in each[key].items()}
    grid = {key: list(dict.fromkeys(v for each in grids for v in each[key])) for key in ("dataset", "seed", "aggregator")}
    definition = {
        **first,
        "title": first["table"]["joined"],
        "reproduces": "; ".join(part.definition["reproduces"] for part in parts),
        "table": layout,
        "grid": grid,
    }
    return Plan(
        suite="+".join(part.suite for part in parts),
        definition=definition,
        notes=list(dict.fromkeys(note for part in parts for note in part.notes)),
        cells=[cell for part in parts for cell in part.cells],
    )


def metrics(plan: Plan) -> list[Metric]:
    """The metrics of the suite's table, in its order.

    Raises:
        MilbenchError: there is none of a name that the suite gives.
    """
    names = plan.definition["table"]["metrics"]
    for name in names:
        if name not in METRICS:
            raise MilbenchError(f"suite {plan.suite}: table.metrics: {name!r} cannot be printed; use {', '.join(METRICS)}")
    return [METRICS[name] for name in names]


def in_order(plan: Plan, methods: Collection[str]) -> list[str]:
    """Methods as the suite lists them, then those that it does not list."""
    return [name for name in dict.fromkeys([*plan.definition["grid"]["aggregator"], *methods]) if name in methods]
