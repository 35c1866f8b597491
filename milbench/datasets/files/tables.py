"""Split tables in the schemas that circulate: CLAM's, HIPT's, ACMIL's, with columns of parts or of fold numbers."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from milbench.datasets.base import Fold
from milbench.datasets.files import ids as spelling
from milbench.datasets.files.columns import find, plain
from milbench.delimited import Delimited
from milbench.errors import MilbenchError, few, printable
from milbench.followup import missing

PARTS = {
    "train": "train", "training": "train", "tr": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val", "tune": "val",
    "test": "test", "testing": "test", "te": "test", "holdout": "test",
}  # fmt: skip


def read(path: Path, encoding: str | None = None) -> pd.DataFrame:
    """A table with every cell as text, empty where it says that nobody knows.

    Raises:
        MilbenchError: no such file, no table in it, or no header.
    """
    table = Delimited.read(path, encoding)
    frame = pd.DataFrame({name: table.column(name) for name in table.names}, index=list(table.numbers), dtype=str)
    return frame.map(lambda cell: "" if missing(cell) else cell)


def folds(path: Path, encoding: str | None = None) -> tuple[list[Fold], str]:
    """The folds of a split table or of a folder of them.

    A folder holds CLAM's `splits_0.csv`, `splits_1.csv`, ... A file is one such table; or it has a column of parts (train, val,
    test), or one such column for each fold; or a column of fold numbers, of which each is tested once and the next one is
    validated on.

    Args:
        path: the table or folder.
        encoding: of the text, where that is not UTF-8.

    Returns:
        The folds, with ids as they stand there but for blanks and Unicode forms, and how the table was understood.

    Raises:
        MilbenchError: nothing of that kind, with what there is.
    """
    return _folder(path, encoding) if os.path.isdir(path) else _file(path, encoding)


def _file(path: Path, encoding: str | None) -> tuple[list[Fold], str]:
    frame = read(path, encoding)
    names = list(map(str, frame.columns))
    if columns := _part_columns(names, path):
        return [_wide(frame, columns, path)], f"columns {', '.join(columns.values())}"
    id = find(names, "slide") or find(names, "case")
    if id is None:
        raise MilbenchError(
            f"{path}: a split table has columns train, val and test, or a column of slides or cases beside a column of parts; "
            f"it has {few(names)}; is its first row no header? Then add one, such as slide_id,split"
        )
    frame = frame.assign(**{id: frame[id].map(spelling.slides)}).explode(id)
    ids = frame[id].map(spelling.text)
    if split := find(names, "split"):
        return [_long(ids, frame[split], f"{path}: column {split}")], f"columns {id} and {split}"
    numbered = sorted((int(m[1]), name) for name in names if (m := re.fullmatch(r"(?:fold|split)_?(\d{1,9})", plain(name))))
    if numbered:
        _check_numbers([number for number, _ in numbered], path)
        form = f"column {id} and {len(numbered)} columns of parts"
        return [_long(ids, frame[name], f"{path}: column {name}") for _, name in numbered], form
    if fold := find(names, "fold"):
        form = f"columns {id} and {fold}: each is tested once, the next validated on"
        return _numbers(ids, frame[fold], f"{path}: column {fold}"), form
    raise MilbenchError(f"{path}: no column of parts such as split, or of folds such as fold; it has {few(names)}")


def _part_columns(names: Iterable[str], path: Path) -> dict[str, str]:
    """part -> column, of a table that has one column for each part; empty for other tables."""
    by_part: dict[str, str] = {}
    for name in names:
        if (part := PARTS.get(plain(name))) and by_part.setdefault(part, name) != name:
            raise MilbenchError(f"{path}: columns {by_part[part]} and {name} are both of the {part} part; remove one")
    return {part: by_part[part] for part in Fold._fields if part in by_part} if "train" in by_part else {}


def _folder(path: Path, encoding: str | None) -> tuple[list[Fold], str]:
    every = {
        file: m for file in sorted(path.glob("*.csv")) if (m := re.fullmatch(r"(?:splits?|fold)_?(\d{1,9})(_bool)?", file.stem))
    }
    numbered = {int(m[1]): file for file, m in every.items() if not m[2]} or {int(m[1]): file for file, m in every.items()}
    if not numbered:
        raise MilbenchError(f"{path} holds no splits_0.csv, splits_1.csv and so on; give a folder that does, or one split table")
    _check_numbers(numbered, path)
    folds = []
    for number in sorted(numbered):
        some, _ = _file(numbered[number], encoding)
        if len(some) != 1:
            raise MilbenchError(f"{numbered[number]}: {len(some)} folds in one file of a folder that has a file for each")
        folds += some
    return folds, f"{len(folds)} files {numbered[0].name} to {numbered[len(folds) - 1].name}"


def _check_numbers(numbers: Iterable[int], path: Path) -> None:
    numbers = sorted(numbers)
    if numbers != list(range(len(numbers))):
        raise MilbenchError(f"{path}: folds are numbered from 0 up without gaps, these are {', '.join(map(str, numbers))}")


def _wide(frame: pd.DataFrame, columns: Mapping[str, str], path: Path) -> Fold:
    """One column for each part: of ids, padded with nothing; or of true and false beside a column of ids."""
    values = {part: frame[name] for part, name in columns.items()}
    if all(set(column.str.lower()) <= {"true", "false", "0", "1", ""} for column in values.values()):
        ids = frame[_beside(frame, columns, path)].map(spelling.text)
        return Fold(*(tuple(ids[values[p].str.lower().isin({"true", "1"})]) if p in values else () for p in Fold._fields))
    every = {part: [id for cell in column if cell for id in spelling.slides(cell)] for part, column in values.items()}
    return Fold(*(tuple(map(spelling.text, every.get(part, ()))) for part in Fold._fields))


def _beside(frame: pd.DataFrame, columns: Mapping[str, str], path: Path) -> str:
    """The column of ids beside columns of true and false: by its name, else the first that does not only number the rows."""
    others = [name for name in frame.columns if name not in columns.values()]
    if not others:
        raise MilbenchError(f"{path}: columns of true and false, but no column of slides")
    words = [name for name in others if list(frame[name]) != [str(at) for at in range(len(frame))]]
    return find(others, "slide") or find(others, "case") or (words or others)[0]  # CLAM leaves it without a name


def _long(ids: Iterable[str], parts: Iterable[str], where: str) -> Fold:
    """A part for each id; an id without one is in none."""
    by_part: dict[str, list[str]] = {part: [] for part in Fold._fields}
    for id, part in zip(ids, parts, strict=True):
        if not part:
            continue
        if part.lower() not in PARTS:
            raise MilbenchError(f"{where}: {printable(id)} is in the part {part!r}; parts are train, val and test")
        by_part[PARTS[part.lower()]].append(id)
    return Fold(*map(tuple, by_part.values()))


def _numbers(ids: Iterable[str], column: Iterable[str], where: str) -> list[Fold]:
    """Fold numbers: fold i tests part i and validates on the next."""
    if not all(re.fullmatch(r"\d{1,9}(\.0+)?", value) for value in column):
        bad = next(value for value in column if not re.fullmatch(r"\d{1,9}(\.0+)?", value))
        raise MilbenchError(f"{where}: {bad or 'nothing'!r} is not the number of a fold")
    parts: dict[int, list[str]] = {}
    for id, value in zip(ids, column, strict=True):
        parts.setdefault(int(float(value)), []).append(id)
    if len(parts) < 3:
        raise MilbenchError(f"{where}: {len(parts)} folds; with a test and a validation part there must be at least 3")
    numbers = sorted(parts)
    return [
        Fold(
            tuple(id for part in numbers if part not in (val, test) for id in parts[part]), tuple(parts[val]), tuple(parts[test])
        )
        for test, val in zip(numbers, numbers[1:] + numbers[:1], strict=True)
    ]
