"""What there is, as lists of rows: aggregators and their parameters, suites, recipes, datasets, encoders, backends."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from milbench.config import Settings

if TYPE_CHECKING:
    from milbench.plugins import Entry, Variant

WIDTHS = (384, 1024)  # of features, for which the parameters of an aggregator are counted

Row = dict[str, Any]


def _entries(wanted: Iterable[str], plugin: Iterable[str | Path]) -> list[Entry]:
    from milbench import plugins

    plugins.discover(plugin)
    return [plugins.resolve(name).entry for name in wanted] or plugins.entries()


def aggregators(wanted: Iterable[str] = (), plugin: Iterable[str | Path] = ()) -> list[Row]:
    """Registered aggregators: by family, in a family by year; those without a family last, without a year first.

    Args:
        wanted: only these; every one unless given.
        plugin: files that register aggregators of your own.

    Raises:
        MilbenchError: an unknown aggregator, with near misses.
    """
    from milbench import plugins

    rows = []
    for entry in sorted(_entries(wanted, plugin), key=lambda entry: plugins.place(entry.name)):
        variant = plugins.resolve(entry.name)
        rows.append({
            "name": entry.name,
            "label": entry.label,
            "family": entry.family,
            "year": entry.year,
            "cite": entry.cite,
            "complexity": f"O({entry.complexity})",
            "needs_coords": entry.cls.needs_coords,
            "order_sensitive": entry.cls.order_sensitive,
            "recipes": ["paper"] + (["official"] if variant.official else []),
            **{f"parameters_{width}": _size(variant, width) for width in WIDTHS},
            "implementation": entry.implementation,
            "parameters": variant.params,
        })  # fmt: skip
    return rows


def _size(variant: Variant, width: int) -> int | None:
    """Parameters of a model for features of that width and three classes; None for one that needs weights it does not have."""
    import torch

    from milbench.errors import SkipTrial

    try:
        with torch.device("meta"):
            return sum(p.numel() for p in variant.build(width, 3).parameters())
    except SkipTrial:
        return None


def parameters(wanted: Iterable[str] = (), plugin: Iterable[str | Path] = ()) -> list[Row]:
    """What can be written in the brackets of `name[parameter=value]`: one row for each parameter of each aggregator.

    Heads, dropout and positions of those that have no such parameter come after them, as type "fixed".

    Args:
        wanted: only these aggregators; every registered one unless given.
        plugin: files that register aggregators of your own.

    Raises:
        MilbenchError: an unknown aggregator, with near misses.
    """
    rows = []
    for entry in _entries(wanted, plugin):
        fields = entry.parameters.model_fields
        listed = {name: (_kind(field.annotation), field.default) for name, field in fields.items()}
        usual: dict[str, str] = dict.fromkeys(("heads", "dropout", "positions"), "none")
        fixed = {name: ("fixed", said) for name, said in {**usual, **entry.cls.fixed}.items() if name not in fields}
        rows += [
            {"aggregator": entry.name, "parameter": name, "type": kind, "default": default}
            for name, (kind, default) in {**listed, **fixed}.items()
        ]
    return rows


def _kind(annotation: Any) -> str:
    """A type as it is written in Python; of a choice its values."""
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    return inspect.formatannotation(annotation)


def suites() -> list[Row]:
    """Every built-in suite."""
    from milbench.suites import load, names

    return [
        {"name": suite.name, "task": suite.task, "reproduces": suite.reproduces, "title": suite.title, "includes": suite.includes}
        for suite in map(load, names())
    ]


def recipes(plugin: Iterable[str | Path] = ()) -> list[Row]:
    """Every recipe with its values, where it comes from, and what of that it does not follow.

    "official" has a row for every method and task that was published with one, and for every choice of a parameter that has
    another; a method without one is fitted with "paper".

    Args:
        plugin: files that register aggregators of your own.
    """
    from milbench.recipes import about, get, shared

    known: list[tuple[str, str, str, Row]] = [(name, task, "", {}) for name, task in shared()]
    for entry in _entries([], plugin):
        known += [("official", task, variant.name, {"official": variant.official}) for variant, task in _official(entry)]
    rows = []
    for name, task, method, own in known:
        values = get(name, task, **own).model_dump(exclude={"name"})
        parameters = own["official"][task].get("params", {}) if own else {}
        rows.append(
            {"name": name, "task": task, "method": method, **values, "parameters": parameters, **about(name, task, **own)}
        )
    return rows


def _official(entry: Entry) -> Iterator[tuple[Variant, str]]:
    """The entry with each task that it was published for, and its choices of one parameter that were published otherwise."""
    from milbench import plugins

    usual = plugins.resolve(entry.name)
    yield from ((usual, task) for task in usual.official)
    for name, field in entry.parameters.model_fields.items():
        for choice in get_args(field.annotation) if get_origin(field.annotation) is Literal else ():
            variant = plugins.resolve(f"{entry.name}[{name}={choice}]")
            yield from ((variant, task) for task, own in variant.official.items() if own != usual.official.get(task))


def datasets(data: str | Path | None = None) -> list[Row]:
    """Every dataset known by name, and whether its files are here.

    Args:
        data: folder of the datasets that you added. [default: MILBENCH_DATA, or data]
    """
    from milbench.datasets import infos

    return [asdict(info) for info in infos(Settings.from_environment(data=data))]


def encoders() -> list[Row]:
    """Patch encoders of the paper and the width of their features; any other name works too."""
    from milbench.datasets import ENCODERS

    return [{"name": name, "width": width} for name, width in ENCODERS.items()]


def backends() -> list[Row]:
    """What operations compute with here, and why not with something faster."""
    import torch

    from milbench.ops import backends as known

    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    return [{"device": device, **row} for device in devices for row in known.table(device)]
