"""What is known of feature files, kept beside the manifest until a file changes, so that the second look at many is quick.

A file counts as the same while its size and its times are. Its facts come from a look at it, the hash from reading all of it.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from milbench.datasets.files.containers import regular
from milbench.datasets.files.formats import BadFile, Facts, contents, inspect
from milbench.errors import MilbenchError
from milbench.files import write_atomically

VERSION = 3  # of what is remembered
READERS = 4  # threads: hashing leaves Python's lock alone, reading HDF5 does not
MOMENT = 0.5  # seconds of work for which no progress is shown
SAVED_EVERY = 30.0  # seconds of hashing that a crash may cost

Files = Mapping[str, tuple[Path, Path | None]]
Progress = Callable[[str, int, int], None]
State = list[Any]
PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}


def state_of(path: Path, patches: Path | None) -> State:
    """What tells whether a feature file and its patches file changed: sizes, times of the last write and of the last change.

    The last cannot be set by a program that copies the first, which is why both are here.
    """
    stats = [regular(file) for file in (path, patches) if file is not None]
    return [patches and patches.name, *(number for s in stats for number in (s.st_size, s.st_mtime_ns, s.st_ctime_ns))]


def too_young(state: State, seen: int) -> bool:
    """Whether the file could have been written once more after it was seen without a change of its times.

    File systems count time in steps: of a hundredth of a second, or of up to two seconds where they store whole ones.
    """
    times = state[2::3] if os.name == "nt" else state[3::3]
    return any(at + (2 * 10**9 if at % 10**9 == 0 else 10**8) > seen for at in times)


class Seen:
    """The memory of one set of features.

    Args:
        places: files to keep it in: the first that can be written is, all that can be read are.
        folders: of the features and patches, as the manifest has them; what was seen elsewhere is not taken.
    """

    def __init__(self, places: list[Path], folders: tuple[str, str | None]) -> None:
        self._places, self._folders = places, list(folders)
        self._old: dict[str, dict[str, Any]] = {}
        for place in places:
            for name, one in self._load(place).items():
                if name not in self._old or self._old[name]["seen"] < one["seen"]:
                    self._old[name] = one
        self._kept, self._new = self._old, dict[str, dict[str, Any]]()

    def _load(self, place: Path) -> dict[str, dict[str, Any]]:
        try:
            content = json.loads(place.read_text())
        except (OSError, ValueError):  # not there, or half of it: then files are looked at again
            return {}
        known = isinstance(content, dict) and (content.get("version"), content.get("folders")) == (VERSION, self._folders)
        return content["files"] if known else {}

    def facts(self, path: Path, patches: Path | None, *, anew: bool) -> Facts:
        """See :func:`milbench.datasets.files.formats.inspect`.

        Args:
            path, patches: the file and the patches file that belongs to it.
            anew: look at the file, and at every position, whatever is remembered.
        """
        now, state = time.time_ns(), state_of(path, patches)
        old = self._old.get(path.name)
        if anew or old is None or old["state"] != state or too_young(state, old["seen"]):
            facts = inspect(path, patches, thorough=anew)
            self._new[path.name] = {"state": state, "seen": now, "facts": dataclasses.asdict(facts), "contents": None}
            return facts
        self._new[path.name] = old
        return Facts(**old["facts"])

    def state(self, path: Path) -> State:
        """Of the file when it was looked at."""
        return self._new[path.name]["state"]

    def contents(self, files: Files, progress: Progress) -> tuple[dict[str, str], dict[str, BadFile], list[str]]:
        """The hash of each file's contents; files without one are read, whole and once.

        Args:
            files: slide -> file and patches file, all of which were looked at.
            progress: called with what is done, files done and files in all.

        Returns:
            slide -> hash, slide -> what is wrong with its file, and the slides whose file has other contents than before with
            the size and the time of the last write that it had.
        """
        unread = {slide: pair for slide, pair in files.items() if self._new[pair[0].name]["contents"] is None}
        broken: dict[str, BadFile] = {}
        saved = time.monotonic()
        with ThreadPoolExecutor(READERS) as pool:
            try:
                attempts = pool.map(_attempt, unread.values(), [self.state(path) for path, _ in unread.values()])
                for done, (slide, one) in enumerate(zip(unread, attempts, strict=True), 1):
                    progress("reading feature files whole, once", done, len(unread))
                    if isinstance(one, BadFile):
                        broken[slide] = one
                    else:
                        name = files[slide][0].name
                        self._new[name] = {**self._new[name], "contents": one}
                    if time.monotonic() - saved > SAVED_EVERY:
                        self.save()
                        saved = time.monotonic()
            except BaseException:  # Ctrl-C: what was read need not be read again, and the rest is not waited for
                pool.shutdown(wait=False, cancel_futures=True)
                self.save()
                raise
        hashes = {slide: self._new[path.name]["contents"] for slide, (path, _) in files.items() if slide not in broken}
        return hashes, broken, [slide for slide in hashes if slide in unread and self._changed_unseen(files[slide][0])]

    def _changed_unseen(self, path: Path) -> bool:
        old, new = self._old.get(path.name), self._new[path.name]
        if old is None or old["contents"] in (None, new["contents"]):
            return False
        times_of_change = {3, 6}  # of the file and its patches file, which copying does not keep
        pairs = [[x for i, x in enumerate(file["state"]) if i not in times_of_change] for file in (old, new)]
        return pairs[0] == pairs[1]

    def save(self) -> None:
        """Write what is new to a file; a message says so where that fails, since every command then takes longer."""
        if not self._new or self._new == self._kept:
            return
        text = json.dumps({"version": VERSION, "folders": self._folders, "files": self._new})
        for place in self._places:
            try:
                write_atomically(place, text)
            except MilbenchError as error:
                failed = error
            else:
                self._kept = dict(self._new)
                return
        if any(file["contents"] for file in self._new.values()):
            console().print(
                f"{failed}, so every command reads all feature files again; "
                "set MILBENCH_CACHE to a folder that can be written to", **PLAIN,
            )  # fmt: skip


def _attempt(files: tuple[Path, Path | None], state: State) -> str | BadFile:
    """The hash of a file that is, after it was read, what it was when it was looked at."""
    path, patches = files
    try:
        content = contents(path, patches)
        if state_of(path, patches) != state:
            return changing(path)
    except BadFile as error:
        return error
    except OSError as error:
        return BadFile(path, "unreadable", f"cannot be read ({error.strerror})", "copy or extract it again")
    return content


def changing(path: Path) -> BadFile:
    """The error of a file that is written while it is used."""
    return BadFile(path, "changing", "changed after it was looked at", "wait until it is whole, then start again")


def console() -> Any:
    """Where progress is shown: standard error."""
    from rich.console import Console

    return Console(stderr=True)


class Watch:
    """Tells how far a look at files is: with a bar on a terminal, in one line elsewhere, not at all when it takes a moment."""

    def __enter__(self) -> Progress:
        self._started: dict[str, float] = {}
        self._bar: Any = None
        return self._update

    def _update(self, what: str, done: int, total: int) -> None:
        began = self._started.setdefault(what, time.monotonic())
        if began == 0 or time.monotonic() - began < MOMENT:
            return
        if self._bar is None:
            if not (out := console()).is_terminal:
                out.print(f"{what}: {total:,}", **PLAIN)
                self._started[what] = 0.0
                return
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            self._bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=out, transient=True)
            self._task = self._bar.add_task(what)
            self._bar.start()
        self._bar.update(self._task, description=what, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
