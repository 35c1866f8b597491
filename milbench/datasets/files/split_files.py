"""Splits in the forms that circulate: who is in which part of which fold, by a table, a JSON file, or a folder of them.

Ids stay as they stand there but for blanks and Unicode forms, and what a table or folder holds besides is named, never dropped.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

from milbench.datasets.base import Fold
from milbench.datasets.files import ids as spelling
from milbench.datasets.files.columns import find, plain
from milbench.delimited import SEPARATORS, Delimited
from milbench.errors import MilbenchError, few, printable
from milbench.files import parse_json, table_text
from milbench.followup import missing

PARTS = {
    "train": "train", "training": "train", "tr": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val", "tune": "val",
    "test": "test", "testing": "test", "te": "test", "holdout": "test",
}  # fmt: skip
# Words beside a part that say only that ids stand there, as in `train_slide_path` or `train_ids_0`.
_OF_IDS = {
    "id", "ids", "slide", "slides", "wsi", "wsis", "case", "cases", "patient", "patients", "image", "images", "file", "files",
    "filename", "filenames", "name", "names", "path", "paths", "bag", "bags", "list", "split", "splits", "set", "fold", "k", "cv",
}  # fmt: skip
_OUTCOMES = {"label", "labels", "y", "class", "classes", "target", "targets", "event", "events", "time", "times", "censorship"}
_FOLD_COLUMN = re.compile(r"(?:fold|split|cv|k|repeat|rep|run|seed)_?(\d{1,9})")
_NUMBER = r"(?:fold|split)?[ _-]?(\d{1,9})(?:\.0+)?"
_SUFFIXES = (".csv", ".tsv", ".txt", ".json")
_COUNTS = re.compile(r"descriptor|summary|stats|result", re.I)  # what CLAM writes beside its splits: numbers, not who
_WRAPPERS = ("folds", "splits", "split", "cv", "data")
_YES, _NO = {"true", "1", "1.0"}, {"false", "0", "0.0"}

Columns = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Split:
    """A split as it was read.

    Args:
        folds: ids of slides or cases in each part.
        form: how the source was understood.
        unused: files or columns beside it that were not used though they may say who is in a part.
    """

    folds: list[Fold]
    form: str
    unused: tuple[str, ...] = ()


def read(path: Path, encoding: str | None = None) -> Split:
    """The folds of a split table, a JSON file, or a folder.

    A table has a column for each part, a column of parts (train, val, test), one such column for each fold, or a column of fold
    numbers, of which each is tested once and the next one is validated on. A JSON file says the same with lists and objects. A
    folder holds a file or folder for each fold, numbered from 0 or 1, or a file for each part.

    Args:
        path: the table, file or folder.
        encoding: of the text, where that is not UTF-8.

    Raises:
        MilbenchError: nothing of that kind, with what there is.
    """
    return _folder(path, encoding) if os.path.isdir(path) else _file(path, encoding)


def _file(path: Path, encoding: str | None) -> Split:
    if ".json" in path.suffixes:
        return _json(_parsed(path, encoding), str(path))
    return _table(_columns(path, encoding), str(path))


def _columns(path: Path, encoding: str | None) -> Columns:
    table = Delimited.read(path, encoding)
    return {name: ["" if missing(cell) else cell for cell in table.column(name)] for name in table.names}


def _ids(cell: str) -> list[str]:
    """The ids that a cell names: one, or a list."""
    return list(map(spelling.text, spelling.slides(cell))) if cell else []


def _one_each(columns: Columns, id: str) -> Columns:
    """The columns with a row for each id, where a cell names several."""
    every = [_ids(cell) or [""] for cell in columns[id]]
    return {
        **{name: [cell for cell, own in zip(cells, every, strict=True) for _ in own] for name, cells in columns.items()},
        id: [one for own in every for one in own],
    }


# Tables


def _table(columns: Columns, where: str) -> Split:
    """The folds of a table with one of the four kinds of columns."""
    if wide := _part_columns(columns, where):
        form = f"columns {', '.join(wide[0].values())}" if len(wide) == 1 else f"columns of parts of {len(wide)} folds"
        used = {name for parts in wide for name in parts.values()}
        unused = tuple(f"column {name}" for name in columns if name not in used and _said(name))
        return Split([_wide(columns, parts, where) for parts in wide], form, unused)
    id = _id_column(columns)
    if id is None:
        raise MilbenchError(
            f"{where}: a split table has columns train, val and test, or a column of slides or cases beside a column of parts; "
            f"it has {few(columns)}; if its first row is no header, add one, such as slide_id,split"
        )
    columns = _one_each(columns, id)
    ids = columns[id]
    split, fold = find(columns, "split"), find(columns, "fold")
    if split and fold and len(set(ids)) < len(ids):
        return Split(_by_fold(ids, columns[fold], columns[split], f"{where}: column"), f"columns {fold} and {split} of {id}")
    if split and all(re.fullmatch(_NUMBER, cell.lower()) for cell in columns[split]) and len(set(columns[split])) > 2:
        split, fold = None, split
    if split:
        unused = (f"column {fold}",) if fold else ()
        return Split([_long(ids, columns[split], f"{where}: column {split}")], f"column {split} of {id}", unused)
    if numbered := sorted((int(m[1]), name) for name in columns if (m := _FOLD_COLUMN.fullmatch(plain(name)))):
        _check_numbers([number for number, _ in numbered], where)
        folds = [_long(ids, columns[name], f"{where}: column {name}") for _, name in numbered]
        return Split(folds, f"{len(numbered)} columns of parts of {id}")
    if fold:
        form = f"column {fold} of {id}: each is tested once, the next validated on"
        return Split(_by_number(ids, columns[fold], f"{where}: column {fold}"), form)
    raise MilbenchError(f"{where}: no column of parts such as split, or of folds such as fold; it has {few(columns)}")


def _id_column(names: Iterable[str]) -> str | None:
    """The column of slides, else of cases, else one whose name would say too little in a label table."""
    names = list(names)
    loose = (name for name in names if plain(name) in ("id", "ids", "name", "path", "bag", "bag_id"))
    return find(names, "slide") or find(names, "case") or next(loose, None)


@dataclass(frozen=True)
class _Said:
    """What a name says of its column or file.

    Args:
        part: train, val or test.
        fold: the number in the name, if there is one.
        more: words that are not about parts, folds or ids.
    """

    part: str
    fold: int | None
    more: tuple[str, ...]


def _said(name: str) -> _Said | None:
    """None where a name says nothing of a part, or is that of outcomes: `train_slide_path` has a part, `train_label` has not."""
    words = re.findall(r"[a-z]+|\d+", name.lower())
    parts = {PARTS[word] for word in words if word in PARTS}
    numbers = [int(word[:9]) for word in words if word.isdigit()]
    if len(parts) != 1 or len(numbers) > 1 or _OUTCOMES.intersection(words):
        return None
    more = tuple(word for word in words if word not in PARTS and word not in _OF_IDS and not word.isdigit())
    return _Said(parts.pop(), numbers[0] if numbers else None, more)


def _part_columns(names: Iterable[str], where: str) -> list[dict[str, str]]:
    """For each fold, part -> column, of a table that has a column for each part; empty for other tables."""
    of_fold: dict[int | None, dict[str, str]] = defaultdict(dict)
    for name in names:
        said = _said(name)
        if said and not said.more:
            of_fold[said.fold].setdefault(said.part, name)
    whole = {fold: parts for fold, parts in of_fold.items() if "train" in parts}
    if None not in whole:
        _check_numbers([fold for fold in whole if fold is not None], where)
    chosen = [whole[None]] if None in whole else [whole[fold] for fold in sorted(whole, key=lambda fold: fold or 0)]
    return [{part: parts[part] for part in Fold._fields if part in parts} for parts in chosen]


def _wide(columns: Columns, of_part: Mapping[str, str], where: str) -> Fold:
    """One column for each part: of ids, padded with nothing; or of true and false beside a column of ids."""
    values = {part: columns[name] for part, name in of_part.items()}
    flags = [cell.lower() for cells in values.values() for cell in cells if cell]
    if not flags or not set(flags) <= _YES | _NO:
        return Fold(*(tuple(id for cell in values.get(part, ()) for id in _ids(cell)) for part in Fold._fields))
    id = _beside(columns, where)
    ids = [spelling.text(cell) for cell in columns[id]]
    chosen = {part: [cell.lower() in _YES for cell in cells] for part, cells in values.items()}
    return Fold(*(tuple(compress(ids, chosen.get(part, ()))) for part in Fold._fields))


def _beside(columns: Columns, where: str) -> str:
    """The column of ids beside columns of true and false: by its name, else the first that does not only number the rows."""
    others = [name for name in columns if _said(name) is None]
    words = [name for name in others if list(columns[name]) != list(map(str, range(len(columns[name]))))]
    id = _id_column(others) or next(iter(words or others), None)  # CLAM leaves it without a name
    if id is None:
        raise MilbenchError(f"{where}: columns of true and false, but no column of slides")
    return id


def _long(ids: Iterable[str], parts: Iterable[str], where: str) -> Fold:
    """A part for each id; an id without one is in none."""
    by_part: dict[str, list[str]] = {part: [] for part in Fold._fields}
    for id, part in zip(ids, parts, strict=True):
        if missing(part):
            continue
        said = _said(part)  # `train`, or `training set`
        if said is None or said.more or said.fold is not None:
            raise MilbenchError(f"{where}: {printable(id)} is in the part {part!r}; parts are train, val and test")
        by_part[said.part].append(id)
    return Fold(*map(tuple, by_part.values()))


def _by_fold(ids: Sequence[str], folds: Sequence[str], parts: Sequence[str], where: str) -> list[Fold]:
    """Every id once in each fold, with its part there."""
    numbers = _whole(folds, where)
    _check_numbers(set(numbers), where)
    of_fold = [[number == fold for number in numbers] for fold in sorted(set(numbers))]
    return [_long(compress(ids, here), compress(parts, here), where) for here in of_fold]


def _whole(cells: Iterable[str], where: str) -> list[int]:
    """Numbers of folds, which may be called `fold 3`."""
    numbers = []
    for cell in cells:
        match = re.fullmatch(_NUMBER, cell.lower())
        if not match:
            raise MilbenchError(f"{where}: {cell or 'nothing'!r} is not the number of a fold")
        numbers.append(int(match[1]))
    return numbers


def _by_number(ids: Sequence[str], column: Iterable[str], where: str) -> list[Fold]:
    """Fold numbers: fold i tests part i and validates on the next."""
    parts: dict[int, list[str]] = defaultdict(list)
    for id, number in zip(ids, _whole(column, where), strict=True):
        parts[number].append(id)
    if len(parts) < 3:
        raise MilbenchError(f"{where}: {len(parts)} folds; with a test and a validation part there must be at least 3")
    numbers = sorted(parts)
    return [
        Fold(
            tuple(id for part in numbers if part not in (val, test) for id in parts[part]), tuple(parts[val]), tuple(parts[test])
        )
        for test, val in zip(numbers, numbers[1:] + numbers[:1], strict=True)
    ]


def _check_numbers(numbers: Iterable[int], where: object) -> None:
    numbers = sorted(numbers)
    if (numbers and numbers != list(range(numbers[0], numbers[0] + len(numbers)))) or numbers[:1] > [1]:
        raise MilbenchError(f"{where}: folds are numbered from 0 or 1 up without gaps, these are {', '.join(map(str, numbers))}")


# JSON


def _parsed(path: Path, encoding: str | None) -> Any:
    do = 'write JSON such as {"train": [...], "val": [...], "test": [...]}, or give a split table'
    return parse_json(_text(path, encoding).encode(), path, do)


def _json(value: Any, where: str) -> Split:
    """Folds of lists and objects: ids of each part, parts of each fold, the part of each id, or rows or columns of a table."""
    if isinstance(value, dict):
        lower = {str(key).lower(): key for key in value}
        if "train" in {PARTS.get(key) for key in lower}:
            return Split([_json_fold(value, where)], f"parts {few(value)}")
        wrapped = [lower[key] for key in _WRAPPERS if isinstance(value.get(lower.get(key)), dict | list)]
        if wrapped and _id_column(map(str, value)) is None:
            return _json(value[wrapped[0]], where)
    folds = _numbered(value, where)
    if folds and all(isinstance(fold, dict) for fold in folds):
        inside = [_json(fold, f"{where}, fold {number}") for number, fold in enumerate(folds)]
        if all(len(one.folds) == 1 for one in inside):
            return Split([one.folds[0] for one in inside], f"{len(folds)} folds of {inside[0].form}")
    if folds and all(isinstance(fold, list) and all(isinstance(id, str | int) for id in fold) for fold in folds):
        pairs = [(spelling.text(str(id)), str(number)) for number, fold in enumerate(folds) for id in fold]
        ids, numbers = map(list, zip(*pairs, strict=True)) if pairs else ([], [])
        return Split(_by_number(ids, numbers, where), f"{len(folds)} lists: each is tested once, the next validated on")
    return _table(_json_columns(value, where), where)


def _numbered(value: Any, where: str) -> list[Any]:
    """The folds of a list, or of an object whose keys are numbers or `fold_0`; empty where there are none."""
    if isinstance(value, list):
        return [] if any(isinstance(one, dict) and _id_column(map(str, one)) is not None for one in value) else value
    if not isinstance(value, dict) or not value:
        return []
    keys = {key: m for key in value if (m := re.fullmatch(r"(?:fold|split|cv|k)?[ _=-]*(\d{1,9})", str(key).lower()))}
    if len(keys) < len(value) or not all(isinstance(one, dict | list) for one in value.values()):
        return []
    numbers = {int(m[1]): value[key] for key, m in keys.items()}
    _check_numbers(numbers, where)
    return [numbers[number] for number in sorted(numbers)]


def _json_fold(value: Mapping[str, Any], where: str) -> Fold:
    by_part: dict[str, tuple[str, ...]] = {}
    for key, ids in value.items():
        if (part := PARTS.get(str(key).lower())) is None:
            continue
        if part in by_part:
            raise MilbenchError(f"{where}: several keys mean the {part} part; leave one")
        by_part[part] = tuple(spelling.text(id) for id in _json_ids(ids, f"{where}, {key}"))
    return Fold(*(by_part.get(part, ()) for part in Fold._fields))


def _json_ids(value: Any, where: str) -> list[str]:
    """Ids of a list, of objects that name a slide or case, of a column, of a list for each class, or of keys with their label."""
    if value is None:
        return []
    if isinstance(value, dict):
        if (id := _id_column(value)) is not None and isinstance(value[id], list | dict):
            return _json_ids(list(value[id].values()) if isinstance(value[id], dict) else value[id], where)
        if value and all(isinstance(some, list) for some in value.values()):
            return [id for some in value.values() for id in _json_ids(some, where)]
        return [str(id) for id in value]
    if not isinstance(value, list):
        raise MilbenchError(f"{where}: {printable(str(value))[:60]!r} is no list of ids")
    return [_json_id(one, where) for one in value]


def _json_id(value: Any, where: str) -> str:
    name = _id_column(value) if isinstance(value, dict) else None
    id = value if name is None else value[name]
    if isinstance(id, bool) or not isinstance(id, str | int):
        raise MilbenchError(f"{where}: {printable(str(value))[:60]!r} is no id, and no object that names a slide or case")
    return str(id)


def _json_columns(value: Any, where: str) -> Columns:
    """The columns of a table that JSON holds as rows, as columns, or as id -> part (or number of the fold)."""
    if isinstance(value, dict) and value:
        inside = list(value.values())
        if all(isinstance(one, str | int) for one in inside):
            parts = {str(one).lower() for one in inside} <= {*PARTS, "", "nan"}
            return {"slide_id": list(map(str, value)), "split" if parts else "fold": list(map(str, inside))}
        lists = [list(one.values()) if isinstance(one, dict) else one for one in inside]
        if all(isinstance(one, list) for one in lists) and len(set(map(len, lists))) == 1:
            return {str(name): [_cell(cell) for cell in one] for name, one in zip(value, lists, strict=True)}
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        names = dict.fromkeys(str(name) for row in value for name in row)
        return {name: [_cell(row.get(name)) for row in value] for name in names}
    raise MilbenchError(
        f"{where}: no folds in it; give an object with train, val and test, a list of such objects, or an object id: part"
    )


def _cell(value: Any) -> str:
    return "" if value is None else str(value)


# Folders


def _folder(path: Path, encoding: str | None, *, inner: bool = False) -> Split:
    """A file for each part, or a file or folder for each fold; `inner` is a folder of one fold, which has no more in it."""
    entries = _entries(path)
    files = [entry for entry in entries if entry.suffix in _SUFFIXES]
    if of_parts := _part_files(files):
        used = [file for parts in of_parts for file in parts.values()]
        unused = tuple(file.name for file in files if file not in used and _said(file.stem))
        folds = [Fold(*(tuple(_listed(parts[p], encoding)) if p in parts else () for p in Fold._fields)) for parts in of_parts]
        form = f"files {', '.join(file.name for file in of_parts[0].values())}" + (" and so on" if len(folds) > 1 else "")
        return Split(folds, form, unused)
    folders = [] if inner else [entry for entry in entries if entry not in files and entry.is_dir()]
    for some, kind in ((files, "files"), (folders, "folders")):
        if series := _series(some, path):
            inside = [_file(entry, encoding) if entry in files else _folder(entry, encoding, inner=True) for entry in series]
            if wrong := [entry for entry, one in zip(series, inside, strict=True) if len(one.folds) != 1]:
                raise MilbenchError(f"{wrong[0]}: several folds in one of {len(series)} {kind} that have one fold each")
            beside = tuple(f"{entry.name}/{name}" for entry, one in zip(series, inside, strict=True) for name in one.unused)
            form = f"{len(series)} {kind} {series[0].name} to {series[-1].name}"
            return Split([one.folds[0] for one in inside], form, beside)
    deeper = sorted({file.parent for file in path.glob("*/*") if file.suffix in _SUFFIXES})
    hint = f"; there may be some in {', '.join(map(str, deeper[:3]))}" if deeper else ""
    raise MilbenchError(
        f"{path} holds no splits_0.csv, splits_1.csv and so on, and no train.csv and test.csv; give a folder that does, or one "
        f"split table{hint}"
    )


def _entries(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise MilbenchError(f"folder {path} cannot be read ({error.strerror})") from error


def _part_files(files: Sequence[Path]) -> list[dict[str, Path]]:
    """For each fold, part -> file, of a folder that has a file for each part: `train.csv`, or `train_0.csv`, `train_1.csv`."""
    of_fold: dict[int | None, dict[str, Path]] = defaultdict(dict)
    for file in files:
        said = _said(file.stem)
        if said is None or said.more:
            continue
        if (other := of_fold[said.fold].setdefault(said.part, file)) != file:
            raise MilbenchError(
                f"{file.parent}: {other.name} and {file.name} both list a {said.part} part; leave one in the folder"
            )
    whole = {fold: parts for fold, parts in of_fold.items() if "train" in parts and len(parts) > 1}
    if None in whole:
        return [whole[None]]
    numbers = [fold for fold in whole if fold is not None]
    if numbers:
        _check_numbers(numbers, files[0].parent)
    return [whole[number] for number in sorted(numbers)]


def _listed(file: Path, encoding: str | None) -> list[str]:
    """The ids of one part: a table with a column of slides or cases, a JSON list, or a line for each."""
    if file.suffix == ".json":
        return [spelling.text(id) for id in _json_ids(_parsed(file, encoding), str(file))]
    lines = [line.strip() for line in _text(file, encoding).splitlines() if line.strip()]
    if not any(separator in line for line in lines for separator in SEPARATORS):
        lines = [line.strip('"') for line in lines]
        return [spelling.text(line) for line in (lines[1:] if lines and _id_column(lines[:1]) else lines)]
    columns = _columns(file, encoding)
    id = _id_column(columns)
    if id is None:
        raise MilbenchError(f"{file}: no column of slides or cases such as slide_id or case_id; it has {few(columns)}")
    return [one for cell in columns[id] for one in _ids(cell)]


def _text(file: Path, encoding: str | None) -> str:
    try:
        return table_text(file, encoding)
    except (OSError, ValueError) as error:
        raise MilbenchError(f"table {file} {error}") from error


def _series(entries: Sequence[Path], path: Path) -> list[Path]:
    """The entries that differ in one number only, in its order; empty where there are none.

    A single one counts where its name says that its number is that of a fold.
    """
    series: dict[str, dict[int, Path]] = defaultdict(dict)
    for entry in entries:
        for m in re.finditer(r"\d{1,9}", entry.name.removesuffix(entry.suffix) if entry.suffix in _SUFFIXES else entry.name):
            series[f"{entry.name[: m.start()]}#{entry.name[m.end() :]}"][int(m[0])] = entry
    series = {form: some for form, some in series.items() if not _COUNTS.search(form)}
    named = {form: some for form, some in series.items() if re.match(r"(splits?|fold|k)[ _=-]?#", form, re.I)}
    several = named or {form: some for form, some in series.items() if len(some) > 1}
    plain = {form: some for form, some in several.items() if "bool" not in form.lower()} or several
    if len(plain) > 1:
        raise MilbenchError(f"{path} holds several series of folds, {few(plain)}; give a folder that holds one")
    if not plain:
        return []
    (some,) = plain.values()
    _check_numbers(some, path)
    return [some[number] for number in sorted(some)]
