"""Many small trials in few files: `results/shelves/ab.zip` holds the folders of trials whose ids begin with ab.

A shelf is a plain zip, nothing in it is compressed, and `unzip -d trials` makes folders of it again. Only finished trials without
weights are packed. A shelf is written whole, read back, and put in place by one rename; only then do folders go. So at any moment
a trial is in its folder, in its shelf, or in both, and readers look in this order.
"""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milbench.claims import held
from milbench.errors import MilbenchError
from milbench.files import flush, replacing, stamp, unusable
from milbench.names import is_trial_id

if TYPE_CHECKING:
    from milbench.trials.store import Store

PREFIX = 2  # digits of an id that name its shelf: at most 256 shelves
_SHELF = re.compile(rf"([0-9a-f]{{{PREFIX}}})\.zip")
_THEN = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can tell, so that equal shelves have equal bytes


class Shelves:
    """The shelves of a store, as a reader sees them. Each is listed once, and again when its file is another one.

    One stays open from the first time that a file in it is read: where each of its files begins takes a kilobyte a trial.

    Args:
        folder: that they are in.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._listed: dict[str, tuple[str, frozenset[str]]] = {}  # shelf -> stamp, its trials
        self._open: dict[str, tuple[str, zipfile.Path]] = {}  # shelf -> stamp, its top folder

    def path(self, trial_id: str) -> Path:
        """The shelf that the trial is in, or would be."""
        return self.folder / f"{trial_id[:PREFIX]}.zip"

    def stamp(self, trial_id: str) -> str | None:
        """What tells whether the trial is still what was read; None where no shelf has it."""
        stamp = self.stamp_of_shelf(trial_id)
        return stamp if stamp and trial_id in self._ids(trial_id[:PREFIX], stamp) else None

    def stamp_of_shelf(self, trial_id: str) -> str | None:
        """The stamp that the trial has if it is in its shelf; None where there is no such shelf."""
        return self._stamp(trial_id[:PREFIX])

    def place(self, trial_id: str) -> zipfile.Path | None:
        """The trial's folder inside its shelf; None where no shelf has it.

        Raises:
            MilbenchError: the shelf is damaged, or cannot be read.
        """
        shelf = trial_id[:PREFIX]
        stamp = self._stamp(shelf)
        if stamp is None or trial_id not in self._ids(shelf, stamp):
            return None
        if shelf not in self._open or self._open[shelf][0] != stamp:
            self._open[shelf] = stamp, zipfile.Path(self._file(shelf))
        return self._open[shelf][1] / trial_id

    def ids(self) -> set[str]:
        """Every trial that is in a shelf.

        Raises:
            MilbenchError: a shelf is damaged, or cannot be read.
        """
        try:
            shelves = [match[1] for name in os.listdir(self.folder) if (match := _SHELF.fullmatch(name))]
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise unusable(self.folder, error) from error
        return {trial_id for shelf in shelves if (stamp := self._stamp(shelf)) for trial_id in self._ids(shelf, stamp)}

    def _stamp(self, shelf: str) -> str | None:
        of_file = stamp(f"{self.folder}/{shelf}.zip")
        return of_file and f"{of_file} shelf"

    def _ids(self, shelf: str, stamp: str) -> frozenset[str]:
        if shelf not in self._listed or self._listed[shelf][0] != stamp:
            with self._file(shelf) as file:
                names = {name.partition("/")[0] for name in file.namelist()}
            self._listed[shelf] = stamp, frozenset(filter(is_trial_id, names))
        return self._listed[shelf][1]

    def _file(self, shelf: str) -> zipfile.ZipFile:
        path = self.folder / f"{shelf}.zip"
        try:
            return zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> MilbenchError:
    """The error for a shelf that cannot be read."""
    return MilbenchError(f"{path}: cannot be read ({error!s:.80}); copy it here again, or remove it to run its trials again")


def pack(store: Store, progress: Callable[[int, int], None] = lambda done, total: None) -> tuple[list[str], dict[str, str]]:
    """Move finished trials without weights from their folders to shelves. Other commands may run meanwhile.

    Args:
        store: whose.
        progress: called with how many trials of how many were looked at.

    Returns:
        The trials that were packed, and of each that is damaged what is wrong; those stay where they are.

    Raises:
        MilbenchError: a shelf is damaged, or cannot be written.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for trial_id in store.in_folders():
        groups[trial_id[:PREFIX]].append(trial_id)
    packed: list[str] = []
    wrong: dict[str, str] = {}
    total = sum(map(len, groups.values()))
    if not total:
        return packed, wrong
    try:
        with held(store.shelves.folder / ".claim"):
            for left in store.shelves.folder.glob(".*.zip"):  # of a pack that was killed: nobody else writes now
                left.unlink()
            for done, ids in enumerate(groups.values()):
                progress(done * total // len(groups), total)
                packed += _pack_shelf(store, ids, wrong)
    except OSError as error:
        raise unusable(store.shelves.folder, error) from error
    progress(total, total)
    return packed, wrong


def _pack_shelf(store: Store, ids: list[str], wrong: dict[str, str]) -> list[str]:
    """Add trials to their shelf, all of whose ids begin alike; returns those that were."""
    files: dict[str, dict[str, bytes]] = {}
    stamps: dict[str, str | None] = {}
    for trial_id in ids:
        try:
            stamps[trial_id], content = store.stamp(trial_id), store.raw(trial_id)
            if content and (some := _small(store, content)):
                files[trial_id] = some
        except MilbenchError as error:
            wrong[trial_id] = str(error)
    if not files:
        return []
    path = store.shelves.path(ids[0])
    _write(path, store, files)
    for trial_id in files:
        if store.stamp(trial_id) == stamps[trial_id]:  # nobody wrote to the folder since
            store.drop(trial_id)
            store.note(trial_id)
    return list(files)


def _small(store: Store, content: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of a trial that may be packed, each the one that it wrote; empty where it may not."""
    from milbench.trials.store import MODEL, TRIAL

    folder = store.folder(content["trial_id"])
    if content["status"] not in ("ok", "skipped") or MODEL in content["sha256"]:
        return {}
    if set(os.listdir(folder)) != {TRIAL, *content["sha256"]}:
        raise MilbenchError(f"{folder} holds files that the trial did not write, or lacks some; see milbench results check")
    return {
        TRIAL: (folder / TRIAL).read_bytes(),
        **{name: store.verified(content, name).read_bytes() for name in content["sha256"]},
    }


def _write(path: Path, store: Store, new: Mapping[str, Mapping[str, bytes]]) -> None:
    """The shelf with these trials beside those that it has."""
    whole = {f"{trial_id}/{name}": data for trial_id, some in new.items() for name, data in some.items()}
    try:
        if path.exists():
            with zipfile.ZipFile(path) as old:
                kept = [name for name in old.namelist() if name.partition("/")[0] not in new]
                whole |= {name: old.read(name) for name in kept}
    except (OSError, zipfile.BadZipFile) as error:
        raise damaged(path, error) from error
    with replacing(path) as temporary:
        with zipfile.ZipFile(temporary, "w") as shelf:
            for name in sorted(whole):
                shelf.writestr(zipfile.ZipInfo(name, _THEN), whole[name])
        with zipfile.ZipFile(temporary) as shelf:
            if any(shelf.read(name) != data for name, data in whole.items()):
                raise MilbenchError(f"{path}: the disk gave back other bytes than were written; folders were kept")
        store.date_back(temporary)
    with suppress(OSError):
        flush(path.parent)


def removed(folder: Path, hidden: Path) -> None:
    """Remove a folder in one step, as readers see it."""
    with suppress(FileNotFoundError):
        folder.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)
