"""What the columns of a table mean, by the names that CLAM, HIPT, TRIDENT, BRACS, TCGA-CDR, GDC and cBioPortal give them."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from milbench.datasets.files import ids
from milbench.delimited import Delimited
from milbench.errors import MilbenchError, few, unknown
from milbench.followup import contradiction, missing, seen

# Names of columns, the likeliest first; compared in lower case, with _ for every other character.
COLUMNS = {
    "slide": "slide_id slide slide_name slide_ids wsi_id wsi wsi_name image_id image image_name filename file_name file slides "
    "wsis slide_files slide_path wsi_path image_path",
    "case": "case_id case patient_id patient bracs_patient_id bcr_patient_barcode case_submitter_id submitter_id subject_id",
    "label": "label class type subtype target diagnosis oncotree_code label_name category",
    "time": "survival_months survival_days overall_survival_months overall_survival_days os_months os_days os_time time months "
    "days time_months time_days survival_time followup_months followup_days survival overall_survival os",
    "event": "event os_event os os_status overall_survival_status vital_status status dead death died overall_survival_event",
    "censorship": "censorship censored censor censorship_status",
    "split": "split split_info set partition subset part",
    "fold": "fold fold_id fold_number folds",
}
# These may well be about something else than the class: they contradict a column of labels only in its own words.
_LOOSE = {"type", "category"}
DAYS = 30.44  # of a month


def plain(name: str) -> str:
    """A name as `COLUMNS` has it."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _bare(name: str) -> str:
    """The same without the number that the second of two columns with one name has: `label (2)`."""
    return plain(re.sub(r" \(\d+\)$", "", name))


def find(names: Iterable[str], role: str) -> str | None:
    """The likeliest column for `role`, a key of `COLUMNS`, or None."""
    return next(iter(candidates(names, role)), None)


def candidates(names: Iterable[str], role: str) -> list[str]:
    """Every column that may play a role, the likeliest first; of one name the leftmost first."""
    by_name = [(_bare(name), name) for name in names]
    return [name for known in COLUMNS[role].split() for plain_name, name in by_name if plain_name == known]


def roles(table: Delimited, task: str, asked: Mapping[str, str]) -> dict[str, str]:
    """Which columns of a label table are slide, case, and label or time and event.

    Args:
        table: the table.
        task: "subtyping" or "survival".
        asked: role -> column, where the user says it; an empty column leaves the role to none.

    Returns:
        role -> column. Of `event` and `censorship` (0 where the event was seen) there is one.

    Raises:
        MilbenchError: a column is missing, with those there are, or two contradict each other, with a row.
    """
    needed = ["slide", "case", *(("label",) if task == "subtyping" else ("time", "event", "censorship"))]
    for role, name in asked.items():
        if role not in needed:
            raise unknown("role of a column", role, needed)
        if name and name not in table.names:
            raise no_column(table, name)
    by_role = _chosen(table, needed, asked)
    if "slide" not in by_role and "case" not in by_role and (unnamed := _ids_without_name(table, asked)):
        by_role = {"slide": unnamed, **by_role}
    _complete(table, task, by_role)
    _agree(table, by_role, asked)
    if "event" in by_role and "censorship" in by_role:  # the name of the latter has one meaning only
        del by_role["censorship" if "event" in asked else "event"]
    return by_role


def _chosen(table: Delimited, needed: Sequence[str], asked: Mapping[str, str]) -> dict[str, str]:
    """role -> column, as asked, else the likeliest by its name; of events the likeliest with flags, as `OS` may be a time."""
    by_role = {role: asked[role] for role in needed if asked.get(role)}
    for role in sorted(set(needed) - set(asked), key=lambda role: role == "time"):
        free = [name for name in candidates(table.names, role) if name not in by_role.values()]
        if role in ("event", "censorship"):
            free.sort(key=lambda name: not any(seen(cell, censorship=False) for cell in table.column(name)))
        if free:
            by_role[role] = free[0]
    return {role: by_role[role] for role in needed if role in by_role}


def no_column(table: Delimited, name: str) -> MilbenchError:
    """The error for a column that the table lacks."""
    error = unknown(f"column of {table.path}", name, table.names)
    return MilbenchError(f"{error}; columns have numbers with --no-header") if name.isdigit() else error


def _ids_without_name(table: Delimited, asked: Mapping[str, str]) -> str | None:
    """The first column where the header leaves it without a name and it does not only number the rows, as saved ids do."""
    name = table.names[0]
    cells = table.column(name)
    named = name != "column 1" or "slide" in asked
    return None if named or all(re.fullmatch(r"\d+", cell) for cell in cells) else name


def _complete(table: Delimited, task: str, by_role: Mapping[str, str]) -> None:
    """Every role has a column that needs one."""
    here = f"it has {few(table.names)}; name yours with --columns"
    if "slide" not in by_role and "case" not in by_role:
        if headless(table):
            columns = {"subtyping": "slide=1,label=2", "survival": "case=1,time=2,event=3"}[task]
            raise MilbenchError(
                f"{table.path}: it seems to have no header, as its first row looks like the others ({few(table.names)}); "
                f"add one, or read it by the numbers of its columns: --no-header --columns {columns}"
            )
        raise MilbenchError(
            f"{table.path}: no column of slides or cases such as slide_id or case_id; {here} slide=NAME; if its "
            "first row is no header, read it with --no-header"
        )
    if task == "subtyping" and "label" not in by_role:
        followed = list(_chosen(table, ("time", "event", "censorship"), {}).values())
        hint = f"; {' and '.join(followed)} look like survival, which is read with --task survival" if len(followed) > 1 else ""
        raise MilbenchError(f"{table.path}: no column of labels such as label; {here} label=NAME{hint}")
    if task == "survival" and "time" not in by_role:
        raise MilbenchError(f"{table.path}: no column of times such as survival_months or survival_days; {here} time=NAME")
    if task == "survival" and not {"event", "censorship"} & set(by_role):
        raise MilbenchError(f"{table.path}: no column of events such as event or censorship; {here} event=NAME")


def headless(table: Delimited) -> bool:
    """Whether the first row looks like the others: has one of their cells, or one with digits that is built like theirs."""
    for name in table.names:
        cells = [cell for cell in table.column(name) if cell]
        alike = any(c.isdigit() for c in name) and set(map(ids.shape, cells)) == {ids.shape(name)}
        if name in cells or (alike and not name.startswith("column ")):
            return True
    return False


def _agree(table: Delimited, by_role: Mapping[str, str], asked: Mapping[str, str]) -> None:
    """No two columns contradict each other, unless the user says which to take."""
    free = [name for name in table.names if name not in asked.values()]
    if {"event", "censorship"} & set(by_role) and not {"event", "censorship"} & set(asked):
        flags = {role: candidates(free, role) for role in ("event", "censorship")}
        _agree_on_events(table, flags)
    if "label" in by_role and "label" not in asked:
        first, *others = candidates(free, "label")
        for other in others:
            _agree_on_labels(table, first, other)
    if "time" in by_role and "time" not in asked:
        _agree_on_times(table, by_role["time"])
    for role in ("slide", "case", "time"):
        if role in by_role and role not in asked:
            twins = [name for name in candidates(free, role) if re.sub(r" \(\d+\)$", "", name) == by_role[role]]
            for twin in twins[1:]:
                _same(table, twins[0], twin, role)


def _agree_on_events(table: Delimited, flags: Mapping[str, Sequence[str]]) -> None:
    columns = [*flags["event"], *flags["censorship"]]
    for number, cells in zip(table.numbers, zip(*map(table.column, columns), strict=True), strict=True):
        if said := contradiction(dict(zip(columns, cells, strict=True)), flags["censorship"]):
            right = [f"--columns {role}={name}" for role, names in flags.items() for name in names[:1]]
            do = f"correct the table, or say which column is right: {' or '.join(right)}"
            raise MilbenchError(f"{table.path}, row {number}: {said}; {do}")


def _agree_on_times(table: Delimited, chosen: str) -> None:
    """The same follow-up in months and in days agrees, but for rounding: within a month or a twentieth."""
    stem = re.sub("_(months|days)$", "", _bare(chosen))
    columns = [next((name for name in table.names if _bare(name) == f"{stem}_{unit}"), None) for unit in ("months", "days")]
    if not all(columns):
        return
    for number, *cells in zip(table.numbers, *(table.column(str(name)) for name in columns), strict=True):
        try:
            months, days = map(float, cells)
        except ValueError:
            continue
        if abs(days / DAYS - months) > max(1.0, 0.05 * months):
            raise MilbenchError(
                f"{table.path}, row {number}: {columns[0]} is {cells[0]} and {columns[1]} is {cells[1]}, which are not the same "
                f"time; correct the table, or say which column is right: --columns time={chosen}"
            )


def _agree_on_labels(table: Delimited, first: str, other: str) -> None:
    """Two columns of labels agree: cell by cell where they use the same words, else one label stands beside one other.

    Labels of another kind (grades beside subtypes) are no contradiction as long as one kind divides the other.
    """
    pairs = [(n, a, b) for n, a, b in zip(table.numbers, table.column(first), table.column(other), strict=True)
             if not missing(a) and not missing(b)]  # fmt: skip
    words = [{a.casefold() for _, a, _ in pairs}, {b.casefold() for _, _, b in pairs}]
    shared, numbers = words[0] & words[1], all(word.isdigit() for word in words[0] | words[1])
    loose = _bare(other) in _LOOSE
    own = words[1] <= words[0] and not (numbers or loose)
    if _bare(other) == _bare(first) or words[0] == words[1] or own or (not numbers and len(shared) > 1):
        apart = next(((n, a, b) for n, a, b in pairs if a.casefold() != b.casefold()), None)
    elif loose:
        return
    else:
        apart = _crossing(pairs)
    if apart:
        number, a, b = apart
        do = f"correct the table, or say which column is right: --columns label={first}"
        raise MilbenchError(f"{table.path}, row {number}: {first} is {a!r} and {other} is {b!r}, which do not go together; {do}")


def _crossing(pairs: Collection[tuple[int, str, str]]) -> tuple[int, str, str] | None:
    """The row with the rarest pair of labels, where neither label follows from the other; None where one does."""
    counts = Counter((a, b) for _, a, b in pairs)
    if len(counts) in (len({a for a, _ in counts}), len({b for _, b in counts})):
        return None
    own, theirs = Counter(a for a, _ in counts), Counter(b for _, b in counts)
    crossing = [row for row in pairs if own[row[1]] > 1 and theirs[row[2]] > 1] or list(pairs)
    return min(crossing, key=lambda row: counts[row[1:]])


def _same(table: Delimited, first: str, twin: str, role: str) -> None:
    for number, a, b in zip(table.numbers, table.column(first), table.column(twin), strict=True):
        if a != b:
            raise MilbenchError(
                f"{table.path}, row {number}: two columns are called {first}, with {a!r} and {b!r} here; rename one, or say "
                f"which is right: --columns '{role}={twin}'"
            )
