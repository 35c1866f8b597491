"""The rows of a label or survival table: which slides, of whom, with which outcome, and what is not used."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from milbench.datasets.files import columns, ids
from milbench.datasets.files.findings import MOST, Finding, kept
from milbench.delimited import Delimited
from milbench.errors import MilbenchError, few, printable
from milbench.followup import missing, seen
from milbench.words import counted


@dataclass(frozen=True)
class Row:
    """One slide, or one case, of a label table.

    Args:
        slide: its id; None where the table lists cases.
        case: the patient.
        label: as the table spells it (subtyping).
        time, event: follow-up, in the table's unit, and whether the event was seen (survival).
    """

    slide: str | None
    case: str
    label: str | None = None
    time: float | None = None
    event: bool | None = None

    @property
    def id(self) -> str:
        """What the table lists: the slide, or the case."""
        return self.slide or self.case


@dataclass(frozen=True)
class Options:
    """How a label table is read, beside its columns.

    Args:
        exclude: slides and cases whose rows are left out before anything in them is looked at.
        skip_incomplete: whether rows without a label, a time or an event are left out, too.
        classes: labels that are classes by the user's word, even where they read like "nobody knows".
        slides: table of the slides of cases, where the label table lists cases.
    """

    exclude: Collection[str] = ()
    skip_incomplete: bool = False
    classes: Collection[str] = ()
    slides: Delimited | None = None


@dataclass
class Listed:
    """What a label table lists.

    Args:
        rows: each slide once, or each case once.
        unused: why -> the slides, or cases, that are listed and not used.
        known: every slide and case that a table names, used or not.
        findings: what is odd.
    """

    rows: list[Row] = field(default_factory=list)
    unused: dict[str, list[str]] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True)
class _Record:
    """A slide, or a case, in a row of the table.

    Args:
        number: of the row.
        raw: the slide as the table writes it; None where it lists cases.
        slide, case: their ids.
        cell: role -> cell.
    """

    number: int
    raw: str | None
    slide: str | None
    case: str
    cell: Mapping[str, str] = field(repr=False)

    @property
    def id(self) -> str:
        return self.slide or self.case or f"row {self.number}"


class Rows(MilbenchError):  # noqa: N818 - named for what it lists
    """Rows of a table that cannot be used: the first of them, and how many there are.

    Args:
        table: the file.
        faults: (number of the row, what is wrong with it, what to do).
    """

    def __init__(self, table: object, faults: Sequence[tuple[int, str, str]]) -> None:
        self.lines = [printable(f"row {number}: {what}") for number, what, _ in faults]
        remedies = "; ".join(dict.fromkeys(do for *_, do in faults if do))
        first = "; ".join(line if len(line) <= 500 else f"{line[:497]}..." for line in self.lines[:MOST])
        first += f"; and {len(faults) - MOST:,} more" if len(faults) > MOST else ""
        head = f"{table}, " if len(faults) == 1 else f"{table}: {len(faults):,} rows cannot be used: "
        super().__init__(printable(head + first + (f"; {remedies}" if remedies else "")))

    def whole(self, path: Path) -> MilbenchError:
        """The same error, with all rows in the file `path` where there are too many for a message."""
        return MilbenchError(f"{self}; all are in {kept(path, self.lines)}") if len(self.lines) > MOST else self


def read(table: Delimited, roles: Mapping[str, str], options: Options = Options()) -> Listed:
    """The rows of a label table. A slide without a case is a case of its own; TCGA's ids name their patient.

    Args:
        table: the table.
        roles: role -> column, as :func:`milbench.datasets.files.columns.roles` gives them.
        options: what else to heed.

    Raises:
        MilbenchError: missing, unreadable or contradictory values, with their rows.
    """
    if gone := [name for name in roles.values() if name not in table.names]:
        raise columns.no_column(table, gone[0])
    if table.short:
        what = f"{counted(len(table.short), 'row')} with fewer fields than the header"
        raise MilbenchError(f"{table.path}, row {table.short[0]}: {what}; give empty fields their separators, too")
    listed = Listed()
    records = _patients(list(_records(table, roles)), roles, listed, table)
    if options.slides is not None:
        records = _joined(records, options.slides, listed)
    listed.known = {id for record in records for id in (record.slide, record.case) if id}
    used = _used(records, roles, options, listed)
    listed.known |= {id for some in listed.unused.values() for id in some}
    faults = list(_twins(used))
    rows: dict[str, Row] = {}
    of_case: dict[str, Row] = {}
    for record in used:
        try:
            row = _row(record, roles, options, table)
        except _Fault as fault:
            faults.append((record.number, *fault.args))
            continue
        same, first = rows.setdefault(row.id, row), of_case.setdefault(row.case, row)
        faults += [(record.number, what, "keep the right one") for what in _contradictions(row, same, first)]
    if faults:
        raise Rows(table.path, sorted(dict.fromkeys(faults)))
    listed.rows = list(rows.values())
    return listed


class _Fault(Exception):  # noqa: N818 - what is wrong with a row, and what to do
    pass


def _records(table: Delimited, roles: Mapping[str, str]) -> Iterator[_Record]:
    """Every slide, or case, of every row."""
    at = {role: table.names.index(column) for role, column in roles.items()}
    for number, cells in zip(table.numbers, table.rows, strict=True):
        cell = {role: cells[index] for role, index in at.items()}
        case = "" if missing(cell.get("case", "")) else ids.text(cell["case"])
        if "slide" not in cell:
            yield _Record(number, None, None, case, cell)
            continue
        named = [] if missing(cell["slide"]) else list(dict.fromkeys(ids.slides(cell["slide"])))
        some = [(cell["slide"] if len(named) == 1 else raw, ids.slide(raw)) for raw in named]
        for raw, slide in some or [("", "")]:
            yield _Record(number, raw, slide, case or _of_slide(some[0][1] if some else ""), cell)


def _of_slide(slide: str) -> str:
    return ids.patient(slide) or slide


def _patients(records: list[_Record], roles: Mapping[str, str], listed: Listed, table: Delimited) -> list[_Record]:
    """The records with the patients of TCGA's barcodes, where the column of cases names something else than patients."""
    if "case" not in roles:
        return records
    column = roles["case"]
    warn = partial(_warn, listed, table)
    barcode = {record.slide: patient for record in records if record.slide and (patient := ids.patient(record.slide))}
    cases, patients = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
    for record in records:
        if record.slide in barcode:
            cases[barcode[record.slide]].add(record.case)
            patients[record.case].add(barcode[record.slide])
    torn = sorted(patient for patient, some in cases.items() if len(some) > 1)
    repeats = any(record.slide in barcode and record.case == record.slide for record in records)
    if torn or repeats:
        why = "repeats the ids of slides" if repeats else f"gives slides of one TCGA patient several cases ({few(torn, 3)})"
        warn("barcodes", f"column {column} {why}; the patient is taken from {counted(len(barcode), 'barcode')}")
        return [replace(r, case=barcode[r.slide]) if r.slide in barcode else r for r in records]
    if several := sorted(case for case, some in patients.items() if len(some) > 1):
        warn("many-patients", f"column {column} gives slides of several TCGA patients one case", CASE, several)
    slides = {record.slide: record.case for record in records if record.slide}
    if len(slides) > 1 and all(slide == case for slide, case in slides.items()):
        warn("no-patients", f"column {column} repeats the ids of slides, so that nobody knows which are of one patient", CASE)
    for other in columns.candidates(table.names, "case"):
        if other != column and (coarser := _coarser(table.column(column), table.column(other))):
            warn(
                "two-cases",
                f"column {other} puts cases of column {column} together: one patient?",
                CASE,
                coarser,
            )
    return records


CASE = "say which column names the patients: --columns case=NAME"


def _warn(listed: Listed, table: Delimited, kind: str, what: str, do: str = "", about: Sequence[str] = ()) -> None:
    listed.findings.append(Finding("warning", kind, f"table {table.path.name}", what, do, tuple(about)))


def _coarser(cases: Sequence[str], others: Sequence[str]) -> list[str]:
    """Those of the others that stand beside several cases; none where a case stands beside several of them."""
    inside, of = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
    for case, other in zip(cases, others, strict=True):
        if not missing(case) and not missing(other):
            inside[other].add(case)
            of[case].add(other)
    return sorted(other for other, some in inside.items() if len(some) > 1) if all(len(one) == 1 for one in of.values()) else []


def _joined(records: list[_Record], table: Delimited, listed: Listed) -> list[_Record]:
    """The slides of every case, from a table that lists both."""
    roles = {role: column for role in ("slide", "case") if (column := columns.find(table.names, role))}
    if "slide" not in roles:
        raise MilbenchError(f"{table.path}: no column of slides such as slide_id; it has {few(table.names)}")
    if any(record.slide is not None for record in records):
        raise MilbenchError(f"{table.path}: --slides is for a label table of cases; this one lists slides itself")
    slides = _patients(list(_records(table, roles)), roles, listed, table)
    if faults := list(_twins(slides)):
        raise Rows(table.path, faults)
    by_case: dict[str, dict[str, _Record]] = defaultdict(dict)
    for one in slides:
        if one.slide:
            by_case[one.case].setdefault(one.slide, one)
    cases = {record.case for record in records}
    if not cases & by_case.keys():
        raise MilbenchError(f"{table.path}: none of its cases ({few(by_case, 3)}) is in the label table ({few(cases, 3)})")
    listed.unused["of cases without a row in the label table"] = [
        slide for case, some in by_case.items() if case not in cases for slide in some
    ]
    listed.unused[f"without a slide in {table.path.name}"] = sorted(cases - by_case.keys())
    return [replace(r, raw=one.raw, slide=slide) for r in records for slide, one in by_case.get(r.case, {}).items()]


def _used(records: list[_Record], roles: Mapping[str, str], options: Options, listed: Listed) -> list[_Record]:
    """The records that are neither excluded nor, where that is asked for, incomplete."""
    kept, out, lacking = list[_Record](), list[_Record](), list[_Record]()
    excluded = {ids.meant(id, listed.known) for id in options.exclude}
    for record in records:
        incomplete = options.skip_incomplete and _lacking(record, roles, options)
        (out if {record.slide, record.case} & excluded else lacking if incomplete else kept).append(record)
    used = {record.id for record in kept}
    for why, some in (("excluded", out), ("incomplete", lacking)):
        listed.unused[why] = [id for id in dict.fromkeys(record.id for record in some) if id not in used]
    return kept


def _lacking(record: _Record, roles: Mapping[str, str], options: Options) -> str:
    """What the row must say and does not; empty where it says all."""
    if record.slide == "" or (record.slide is None and not record.case):
        return "slide" if record.slide == "" else "case"
    needed = [role for role in roles if role in ("label", "time", "event", "censorship")]
    return next((role for role in needed if missing(cell := record.cell[role]) and cell.strip() not in options.classes), "")


def _twins(records: Sequence[_Record]) -> Iterator[tuple[int, str, str]]:
    """Ids that differ as they are written and are the same as they are compared."""
    do = "write one id in one way, or rename what is not the same"
    for role in ("slide", "case"):
        first: dict[str, tuple[str, int]] = {}
        for record in records:
            raw = record.raw if role == "slide" else record.cell.get("case")
            id = record.slide if role == "slide" else record.case
            if not raw or not id or (role == "case" and ids.text(raw) != id):  # a patient of a barcode has no other name
                continue
            other, number = first.setdefault(ids.spelling(id), (raw, record.number))
            if other != raw:
                yield record.number, f"{role} {ids.shown(raw)} and {ids.shown(other)} in row {number} are the same id", do


def _row(record: _Record, roles: Mapping[str, str], options: Options, table: Delimited) -> Row:
    cell, case = record.cell, record.case
    if lacking := _lacking(record, roles, options):
        if lacking in ("slide", "case"):
            raise _Fault(f"no {lacking} is named", "name it, remove the row, or leave such rows out with --skip-incomplete")
        who = record.id if lacking == "label" else f"case {case}"
        word = cell[lacking].strip()
        do = "fill it in or remove the row, or leave such rows out with --skip-incomplete"
        do += ", or name it with --classes if it is a class" if word and lacking == "label" else ""
        raise _Fault(f"{who} has no {lacking}" + (f" ({word!r})" if word else ""), do)
    role = "event" if "event" in cell else "censorship"
    return Row(
        record.slide,
        case,
        re.sub(r"^(-?\d+)\.0+$", r"\1", cell["label"].strip()) if "label" in cell else None,
        _time(cell["time"].strip(), case, table) if "time" in cell else None,
        _event(cell[role].strip(), role, case) if role in cell else None,
    )


def _time(cell: str, case: str, table: Delimited) -> float:
    try:
        time = float(re.sub(r"^(\d+),(\d+)$", r"\1.\2", cell) if table.separator == ";" else cell)
    except ValueError:
        time = float("nan")
    if not 0 <= time < float("inf"):
        raise _Fault(f"case {case} has the time {cell!r}", "it must be a number from 0 up")
    return time


def _event(cell: str, role: str, case: str) -> bool:
    """`event` is true for an event, `censorship` is 0 for one. cBioPortal writes 1:DECEASED."""
    said = seen(cell, censorship=role == "censorship")
    if len(said) > 1:
        raise _Fault(f"case {case} has the {role} {cell!r}, whose flag and word contradict each other", "correct the table")
    if not said:
        raise _Fault(f"case {case} has the {role} {cell!r}", "it must be 0 or 1")
    return next(iter(said))


def _contradictions(row: Row, same: Row, first: Row) -> Iterator[str]:
    """What the first row of the slide, or the first row of the case, says otherwise."""
    if row != same:
        texts = [f"case {one.case} and {_outcome(one)}" for one in (same, row)]
        yield f"{row.id} is listed twice, with {texts[0]} and with {texts[1]}"
    elif (first.time, first.event) != (row.time, row.event):
        yield f"case {row.case} has {_outcome(row)} here and {_outcome(first)} in another row"


def _outcome(row: Row) -> str:
    return f"label {row.label}" if row.label is not None else f"time {row.time:g} and event {row.event}"
