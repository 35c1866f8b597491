"""Label and survival tables in the schemas that circulate.

Columns are found by the names that CLAM, HIPT, TRIDENT, BRACS, TCGA-CDR and cBioPortal give them; ids are compared without the
extension of the slide file.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pandas as pd

from milbench.errors import MilbenchError, few, printable, unknown
from milbench.files import LONGEST, table_text

SEPARATORS = (",", "\t", ";")
WIDEST = 10_000  # columns; a table of slides has fewer

# Names of columns, the likeliest first; compared in lower case, with _ for every other character.
COLUMNS = {
    "slide": "slide_id slide slide_name slide_ids wsi_id wsi wsi_name image_id image image_name filename file_name file",
    "case": "case_id case patient_id patient bracs_patient_id bcr_patient_barcode case_submitter_id submitter_id subject_id",
    "label": "label class type subtype target diagnosis oncotree_code label_name category",
    "time": "survival_months survival_days overall_survival_months overall_survival_days os_months os_days os_time time months "
    "days time_months time_days survival_time followup_months followup_days survival",
    "event": "event os_event os os_status vital_status status dead death died overall_survival_event",
    "censorship": "censorship censored censor censorship_status",
    "split": "split split_info set partition subset part",
    "fold": "fold fold_id fold_number folds",
}
_SLIDE_FILE = re.compile(r"\.(svs|tiff?|ndpi|mrxs|scn|vms|vmu|bif|qptiff|czi|dcm|isyntax|ome|jpe?g|png|h5|pt|npz)$", re.I)
_TCGA = re.compile(r"TCGA-\w\w-\w{4}(?=-|$)")
_TRUE, _FALSE = {"1", "true", "yes", "dead", "deceased"}, {"0", "false", "no", "alive", "living"}


@dataclass(frozen=True)
class Row:
    """One row of a label table.

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


def clean(id: str) -> str:
    """An id as everything is compared by: without folder and slide extension, and 12.0 as 12.

    TCGA's own ids have dots in them, so only the extensions of slide and feature files are taken away.
    """
    id = re.split(r"[/\\]", str(id).strip())[-1]
    while (shorter := _SLIDE_FILE.sub("", id)) != id:
        id = shorter
    return re.sub(r"^(\d+)\.0+$", r"\1", id)


def read(path: Path) -> pd.DataFrame:
    """A table with every cell as text.

    Raises:
        MilbenchError: no such file, or no table in it.
    """
    try:
        text = table_text(path)
        header = "".join(text[:LONGEST].lstrip().splitlines()[:1])
        if max(map(header.count, SEPARATORS)) >= WIDEST:
            raise ValueError(f"it has more than {WIDEST:,} columns")
        for separator in SEPARATORS:
            frame = pd.read_csv(StringIO(text), sep=separator, index_col=False, dtype=str, keep_default_na=False)
            if len(frame.columns) > 1:
                break
    except OSError as error:
        raise MilbenchError(f"table {path} {error}") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError) as error:
        raise MilbenchError(f"{path}: not a table of comma- or tab-separated text ({error})".replace("\n", " ")) from error
    if frame.empty:
        raise MilbenchError(f"{path}: the table has no rows")
    frame.columns = [str(name).strip() for name in frame.columns]
    if twice := sorted({name for name in frame.columns[frame.columns.duplicated()] if name}):
        raise MilbenchError(f"{path}: several columns are called {few(twice)}; rename all but one")
    return frame.apply(lambda column: column.str.strip())


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def find(frame: pd.DataFrame, role: str) -> str | None:
    """The column that plays `role`, a key of `COLUMNS`, or None."""
    by_name = {_plain(name): name for name in reversed(frame.columns)}
    return next((by_name[name] for name in COLUMNS[role].split() if name in by_name), None)


def columns(path: Path, task: str, asked: Mapping[str, str]) -> dict[str, str]:
    """Which columns of a label table are slide, case, and label or time and event.

    Args:
        path: the table.
        task: "subtyping" or "survival".
        asked: role -> column, where the user says it.

    Returns:
        role -> column. Of `event` and `censorship` (0 where the event was seen) there is one.

    Raises:
        MilbenchError: a column is missing, and which ones there are.
    """
    frame = read(path)
    roles = ["slide", "case", *(("label",) if task == "subtyping" else ("time", "event", "censorship"))]
    for role, name in asked.items():
        if role not in roles:
            raise unknown("role of a column", role, roles)
        if name not in frame.columns:
            raise unknown(f"column of {path}", name, frame.columns)
    by_role = {role: column for role in roles if (column := asked.get(role) or find(frame, role))}
    if "event" in by_role and "censorship" in by_role:  # the name of the latter has one meaning only
        del by_role["censorship" if "event" in asked else "event"]
    here = f"it has {few(frame.columns)}; name yours with --columns"
    if "slide" not in by_role and "case" not in by_role:
        raise MilbenchError(f"{path}: no column of slides or cases such as slide_id or case_id; {here} slide=NAME")
    if task == "subtyping" and "label" not in by_role:
        raise MilbenchError(f"{path}: no column of labels such as label; {here} label=NAME")
    if task == "survival" and "time" not in by_role:
        raise MilbenchError(f"{path}: no column of times such as survival_months or survival_days; {here} time=NAME")
    if task == "survival" and not {"event", "censorship"} & set(by_role):
        raise MilbenchError(f"{path}: no column of events such as event or censorship; {here} event=NAME")
    return by_role


def rows(path: Path, columns: Mapping[str, str]) -> list[Row]:
    """The rows of a label table, each slide once. A slide without a case is a case of its own; TCGA's ids name their case.

    Raises:
        MilbenchError: a missing, unreadable or contradictory value, with its row.
    """
    frame = read(path)
    if gone := [name for name in columns.values() if name not in frame.columns]:
        raise unknown(f"column of {path}", gone[0], frame.columns)
    by_id: dict[str, Row] = {}
    of_case: dict[str, Row] = {}
    for at, cells in enumerate(frame[list(columns.values())].itertuples(index=False), start=2):  # row 1 is the header
        cell = dict(zip(columns, cells, strict=True))
        where = f"{path}, row {at}"
        slide = clean(cell["slide"]) if "slide" in cell else None
        if slide == "" or (slide is None and not cell["case"]):
            raise MilbenchError(f"{where}: no {'slide' if slide == '' else 'case'} is named")
        case = clean(cell.get("case", "")) or _case_of(slide or "")
        who, patient = printable(slide or case), printable(case)
        row = Row(slide, case, _label(cell, where, who), _time(cell, where, patient), _event(cell, where, patient))
        other = by_id.setdefault(slide or case, row)
        if other != row:
            texts = [printable(f"case {seen.case} and {_outcome(seen)}") for seen in (other, row)]
            raise MilbenchError(f"{where}: {who} is listed twice, with {texts[0]} and with {texts[1]}")
        first = of_case.setdefault(case, row)
        if "time" in columns and (first.time, first.event) != (row.time, row.event):
            raise MilbenchError(f"{where}: case {patient} has {_outcome(row)} here and {_outcome(first)} in another row")
    return list(by_id.values())


def _case_of(slide: str) -> str:
    tcga = _TCGA.match(slide)
    return tcga[0] if tcga else slide


def _outcome(row: Row) -> str:
    return f"label {row.label}" if row.label is not None else f"time {row.time:g} and event {row.event}"


def _label(cell: Mapping[str, str], where: str, id: str) -> str | None:
    if "label" not in cell:
        return None
    if not cell["label"] or cell["label"].lower() in ("nan", "na", "none"):
        raise MilbenchError(f"{where}: {id} has no label; fill it in or remove the row")
    return re.sub(r"^(-?\d+)\.0+$", r"\1", cell["label"])


def _time(cell: Mapping[str, str], where: str, case: str) -> float | None:
    if "time" not in cell:
        return None
    try:
        time = float(cell["time"])
    except ValueError:
        time = float("nan")
    if not 0 <= time < float("inf"):
        raise MilbenchError(f"{where}: case {case} has the time {cell['time'] or 'nothing'!r}; it must be a number from 0 up")
    return time


def _event(cell: Mapping[str, str], where: str, case: str) -> bool | None:
    """`event` is true for an event, `censorship` is 0 for one. cBioPortal writes 1:DECEASED."""
    role = "event" if "event" in cell else "censorship"
    if role not in cell:
        return None
    value = re.sub(r"\.0+$", "", cell[role].lower().partition(":")[0])
    if value not in _TRUE | _FALSE:
        raise MilbenchError(f"{where}: case {case} has the {role} {cell[role] or 'nothing'!r}; it must be 0 or 1")
    return (value in _TRUE) == (role == "event")
