"""Who works on what, in a folder that several machines may share: a claim is a file that only one of them can make.

Nothing here locks a file: on Lustre and older NFS a lock may hold on one machine only. That a file is made by one alone, that a
rename is one step, and the modification times that a file server gives, all of them keep.
"""

import hashlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from milbench.interrupt import unfinished

BEAT = 20.0  # seconds between two signs of life
MISSED = 3  # beats after which nobody is thought to be alive
WAIT = 0.1  # seconds between two looks at a claim that is waited for


class _Found(NamedTuple):
    """What a claim says, and when its holder gave the last sign of life, by the clock of the file system."""

    content: bytes
    beaten: float


@dataclass
class Claim:
    """Work that this process has taken. It must :meth:`beat` every BEAT seconds, or others take it over.

    Args:
        path: the file.
        content: what is in it, which no other claim says: a line of JSON, then a dot for each time that the work was begun.
        before: what the claim said that it took over from one who ended or fell silent; None where it was free.
    """

    path: Path
    content: bytes
    _handle: int
    before: dict[str, Any] | None = None

    @property
    def begun(self) -> int:
        """How often the work was begun and came to no end, by whoever had it, since it was last released."""
        return self.content.count(b".", self.content.index(b"\n"))

    @property
    def lost(self) -> bool:
        """Whether another process has taken it over: this one gave no sign of life, as when it was stopped for a while."""
        found = _found(self.path)
        return found is None or found.content != self.content

    def begin(self) -> None:
        """Note that the work is begun, so that whoever takes over from us knows."""
        with suppress(OSError):  # as in `beat`
            os.write(self._handle, b".")
            self.content += b"."

    def beat(self) -> None:
        """Give a sign of life. Of this file only, also where another has taken its place."""
        with suppress(OSError):  # a file server that is away for a moment; being away for long shows as `lost`
            os.utime(self._handle)

    def release(self) -> None:
        """Let others have it."""
        with suppress(OSError):
            os.close(self._handle)
        with suppress(OSError):
            if not self.lost:
                self.path.unlink()


def take(path: Path, writer: str = "") -> Claim | None:
    """Claim something; None where another process has it.

    A claim is free again when its process has ended (which shows on its own machine at once), or has given no sign of life for
    MISSED beats. Of several that find it so, one takes it over.

    Args:
        path: its file; the folder is made.
        writer: is kept in the claim: the name by which whoever takes it over knows what we left unfinished.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with suppress(FileExistsError):
            return _made(path, writer)
        if (found := _found(path)) is not None:
            return _taken_over(path, found, writer) if _free(path, found) else None


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Within this context no other process is in one of the same path. It waits for its turn.

    Raises:
        OSError: it cannot be written.
    """
    while (claim := take(path)) is None:
        time.sleep(WAIT)
    done = threading.Event()

    def live() -> None:
        while not done.wait(BEAT):
            claim.beat()

    with unfinished(path):
        threading.Thread(target=live, daemon=True).start()
        try:
            yield
        finally:
            done.set()
            claim.release()


def holder(path: Path) -> dict[str, Any] | None:
    """Machine, process and start of a claim; None where there is none, or the file does not say."""
    found = _found(path)
    return None if found is None else _said(found)


def alive(path: Path) -> bool:
    """Whether somebody has this claim, and gives signs of life."""
    found = _found(path)
    return found is not None and not _free(path, found)


def sweep(folder: Path, older_than: float = 3600.0) -> None:
    """Remove what processes left that ended while they took a claim over, more than `older_than` seconds ago."""
    for left in folder.glob(".*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > older_than:
                left.unlink()


def _made(file: Path, writer: str, path: Path | None = None, old: _Found | None = None) -> Claim:
    """A claim in a new file: on itself, or on `path`, where it is to replace the old one.

    Raises:
        FileExistsError: there is one.
    """
    handle = os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
    since = datetime.now(UTC).isoformat(timespec="seconds")
    said = {"machine": _machine(), "pid": os.getpid(), "since": since, "beat": BEAT, "writer": writer, "claim": uuid.uuid4().hex}
    dots = old.content.partition(b"\n")[2] if old else b""
    content = json.dumps(said).encode() + b"\n" + dots
    try:
        os.write(handle, content)
    except OSError:
        os.close(handle)
        file.unlink()
        raise
    return Claim(path or file, content, handle, old and (_said(old) or {}))


def _found(path: Path) -> _Found | None:
    """A claim as it stands. The file is opened since its times may be old ones on NFS before that."""
    try:
        with path.open("rb") as file:
            return _Found(file.read(4096), os.fstat(file.fileno()).st_mtime)
    except FileNotFoundError:
        return None


def _said(found: _Found) -> dict[str, Any] | None:
    """What a claim says; None where its process ended, or is still, before it was written."""
    with suppress(ValueError):
        said = json.loads(found.content.partition(b"\n")[0])
        if isinstance(said, dict) and isinstance(said.get("pid"), int) and isinstance(said.get("beat"), int | float):
            return said
    return None


def _free(path: Path, found: _Found) -> bool:
    """Whether nobody has this claim any more."""
    said = _said(found)
    if said and said.get("machine") == _machine() and not _runs(said["pid"]):
        return True
    silent = _now(path.parent) - found.beaten
    if silent < -BEAT:  # the clock was set back: count from now, for a dead one's time would come when the clock gets there
        with suppress(OSError):
            os.utime(path)
    return silent > MISSED * (said["beat"] if said else BEAT)


def _taken_over(path: Path, found: _Found, writer: str) -> Claim | None:
    """A claim in place of one that is free; None where another process is faster.

    Whoever makes the file that is named after the old claim may replace it, once it has seen that it is still there. Should that
    process end before it does, the next file in turn decides.
    """
    stem = f".taking-{path.name}-{hashlib.sha256(found.content).hexdigest()[:16]}"
    for turn in count():
        ours = path.with_name(f"{stem}-{turn}")
        try:
            claim = _made(ours, writer, path, found)
        except FileExistsError:
            if (theirs := _found(ours)) is None or not _free(ours, theirs):
                return None
            continue
        now = _found(path)
        if now is not None and now.content == found.content:
            ours.replace(path)
            return claim
        with suppress(OSError):
            ours.unlink()
        claim.release()
        return None
    raise AssertionError  # pragma: no cover - count() has no end


def _now(folder: Path) -> float:
    """Seconds, by the clock that stamps files of this folder: on a file server that of this machine may be another."""
    probe = folder / f".clock-{uuid.uuid4().hex}"
    handle = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_RDWR)
    try:
        return os.fstat(handle).st_mtime
    finally:
        os.close(handle)
        probe.unlink()


def _runs(pid: int) -> bool:
    """Whether a process of this machine runs. One that has ended and that its parent has not asked for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    return True


@cache
def _machine() -> str:
    """Within which numbers of processes mean something: a start of a machine, and on Linux a container of it."""
    parts = [platform.node()]
    with suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)
