"""The list of trials behind a suite's tables: `results/suites/<suite>.json`.

A trial belongs to no suite; a suite is a list of trial ids, so that suites which share a cell share the trial.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass as checked_dataclass

from milbench.claims import held
from milbench.errors import MilbenchError, NothingYet, from_validation, unknown
from milbench.files import parse_json, read_bytes, replacing, unusable
from milbench.metrics import Column
from milbench.names import TRIAL_ID, Encoder, Name, checked
from milbench.trials.spec import SCHEMA, TrialSpec
from milbench.trials.store import REHEARSAL, Store


@checked_dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class Cell:
    """One trial's place in a table. A plan may have 100,000: their fields stand in slots.

    Args:
        trial_id: the trial; empty where the data is not here.
        context: hash of all that the methods of one column share (data, split, recipe, threads, device).
        aggregator, label: the row, as a name (`transmil[landmarks=32]`) and as printed.
        dataset, dataset_label, encoder, magnification, patch_size, split: the column.
        fold, seed: the repetition.
        family, member: colour, and marker with line, of the method in figures; a plan of an earlier version has neither.
        draw: number of the draw in a suite that searches; :func:`milbench.reading.draws.chosen` keeps one of them.
        missing: the reason why there is no trial, such as features of this encoder that are not here.
    """

    trial_id: Annotated[str, Field(pattern=f"^$|{TRIAL_ID}")]
    context: str
    aggregator: str
    label: str
    dataset: Name
    dataset_label: str
    encoder: Encoder
    magnification: int | None
    patch_size: int | None
    split: Name
    fold: int
    seed: int
    draw: int | None = None
    missing: str = ""
    family: str = ""
    member: int | None = None

    @model_validator(mode="after")
    def _somewhere(self) -> "Cell":
        if not self.trial_id and not self.missing:
            raise ValueError("a cell needs a trial_id, or in `missing` the reason why it has no trial")
        return self

    @property
    def column(self) -> Column:
        """What the cell's numbers are measured on."""
        return Column(self.dataset, self.encoder, self.magnification, self.patch_size, self.split)

    @property
    def place(self) -> tuple[object, ...]:
        """Column, row and repetition: one trial each."""
        return (*self.column, self.aggregator, self.fold, self.seed, self.draw)


@dataclass(frozen=True, slots=True)
class Job:
    """One trial to run.

    Args:
        like: its identity, but for fold and seed: one object for all trials of a row that differ in nothing else.
        labels: its names for tables.
        cell: its place in a table, with fold and seed.
    """

    like: TrialSpec
    labels: dict[str, str]
    cell: Cell

    @property
    def trial_id(self) -> str:
        """The trial's name."""
        return self.cell.trial_id

    @property
    def spec(self) -> TrialSpec:
        """Its identity, made anew each time."""
        return self.like.model_copy(update={"fold": self.cell.fold, "seed": self.cell.seed})


class Plan(BaseModel):
    """A suite as it was run here.

    Args:
        suite: its name.
        definition: the suite file's content, so that a report needs nothing else.
        notes: what a reader of the dataset's tables must know.
        cells: every trial asked for so far, in the suite's order.
    """

    model_config = ConfigDict(extra="forbid", validate_by_name=True, serialize_by_alias=True)

    schema_version: int = Field(SCHEMA, alias="schema")
    suite: Name
    definition: dict[str, Any]
    notes: list[str] = []
    cells: list[Cell] = []

    @cached_property
    def heads(self) -> dict[str, str]:
        """Dataset, encoder, split, metric -> how it is printed: datasets by their labels, and what the suite's table says."""
        return {cell.dataset: cell.dataset_label for cell in self.cells} | self.definition["table"].get("heads", {})


def marker(store: Store) -> Path:
    """The file that marks a store as a rehearsal's."""
    return store.root / REHEARSAL


def refuse_rehearsal(store: Store) -> None:
    """Keep results and rehearsals apart.

    Raises:
        MilbenchError: the store is a rehearsal's.
    """
    if marker(store).exists():
        raise MilbenchError(
            f"{store.root} holds a REHEARSAL, not results: its trials saw stand-in bags; use another --results folder"
        )


def path_of(store: Store, suite: str) -> Path:
    """Where a suite's plan is kept.

    Raises:
        MilbenchError: no suite can have that name.
    """
    return store.root / "suites" / f"{checked(suite, 'suite')}.json"


def names(store: Store) -> list[str]:
    """Suites that were run into this store."""
    return sorted(path.stem for path in (store.root / "suites").glob("*.json"))


def chosen(store: Store, suite: str | None) -> list[str]:
    """The suite asked for, or all that were run into this store.

    Raises:
        MilbenchError: nothing was run into it yet, or it is a rehearsal's.
    """
    refuse_rehearsal(store)
    suites = [suite] if suite else names(store)
    if not suites:
        raise _nothing_yet(store)
    return suites


def _nothing_yet(store: Store) -> NothingYet:
    return NothingYet(f"nothing was run into {store.root} yet; start with: milbench run --suite quickstart")


def read(store: Store, suite: str) -> Plan:
    """The plan of `suite`.

    Raises:
        MilbenchError: the suite was not run into this store, its plan is broken or of another schema version, or the store is a
            rehearsal's.
    """
    refuse_rehearsal(store)
    path = path_of(store, suite)
    data = read_bytes(path)
    if data is None:
        known = names(store)
        raise NothingYet(str(unknown(f"suite in {store.root}", suite, known))) if known else _nothing_yet(store)
    digest = hashlib.sha256(data).digest()
    if suite in store.plans and store.plans[suite][0] == digest:
        return store.plans[suite][1]
    again = "remove it and run the suite again"
    content = parse_json(data, path, again)
    if isinstance(content, dict) and content.get("schema") != SCHEMA:
        version = content.get("schema")
        raise MilbenchError(f"{path}: schema {version!r:.20}, this milbench reads {SCHEMA}; {store.other_schema(version)}")
    try:
        plan = Plan.model_validate(content)
    except ValidationError as error:
        raise MilbenchError(f"{from_validation(error, path)}; {again}") from error
    if plan.suite != suite:
        raise MilbenchError(f"{path}: is the plan of suite {plan.suite}; give the file its name, or {again}")
    store.plans[suite] = digest, plan
    return plan


def merge(store: Store, new: Plan) -> Plan:
    """Add a run's cells to what the suite already lists, and write it.

    A cell of an earlier run stays when it may stand beside the new ones: same column, same context. Cells of another context
    (changed data, another recipe) leave the list; their trials stay in the store, so asking for them again costs nothing.
    Cells that were run stay, too, when their data is no longer here.

    Raises:
        MilbenchError: results would be mixed with a rehearsal.
    """
    refuse_rehearsal(store)
    path = path_of(store, new.suite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with held(path.with_suffix(".claim")):
            alone = new.model_copy(update={"cells": _in_order(new.cells, new)})
            if path.exists() and _is(path, alone):  # nothing new; to parse a large plan takes long
                return alone
            earlier = read(store, new.suite).cells if path.exists() else []
            contexts = {cell.column: cell.context for cell in new.cells if not cell.missing}
            ran = {cell.column for cell in earlier if not cell.missing}
            cells = [c for c in new.cells if not c.missing or c.column not in ran]
            places = {cell.place for cell in cells}
            kept = [c for c in earlier if c.place not in places and contexts.get(c.column, c.context) == c.context]
            merged = new.model_copy(update={"cells": _in_order(kept + cells, new)})
            write(path, merged)
    except OSError as error:
        raise unusable(path, error) from error
    return merged


def write(path: Path, plan: Plan) -> None:
    """Write a plan in one step.

    Raises:
        MilbenchError: it cannot be written.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.writelines(_text(plan))


def _is(path: Path, plan: Plan) -> bool:
    """Whether the file says exactly that."""
    with path.open("rb") as file:
        return all(file.read(len(piece)) == piece for piece in _text(plan)) and not file.read(1)


def _text(plan: Plan) -> Iterator[bytes]:
    """The plan as JSON, cell by cell: in one piece 100,000 cells would take much memory."""
    before, _, after = plan.model_copy(update={"cells": []}).model_dump_json(indent=1).rpartition("[]")
    yield before.encode() + b"["
    for number, cell in enumerate(plan.cells):
        yield b"," * bool(number) + b"\n  " + pydantic_core.to_json(cell, indent=1).replace(b"\n", b"\n  ")
    yield b"\n " * bool(plan.cells) + b"]" + after.encode() + b"\n"


def _in_order(cells: Sequence[Cell], new: Plan) -> list[Cell]:
    """By column, then row as the suite lists them (additions last), then seed and fold."""
    listed = dict.fromkeys((new.definition.get("grid") or {}).get("aggregator", []))
    row = {name: at for at, name in enumerate(listed)}
    column = {one: at for at, one in enumerate(dict.fromkeys(cell.column for cell in [*new.cells, *cells]))}

    def key(cell: Cell) -> tuple[object, ...]:
        at = row.get(cell.aggregator, len(row))
        return (column[cell.column], at, cell.aggregator, cell.seed, cell.fold, cell.draw or 0)

    return sorted(cells, key=key)
