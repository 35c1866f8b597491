"""What is known of the trials of a store, so that a look at many opens few files: `results/index.jsonl`, a cache.

A line is a trial: its id, the stamp of its trial.json as it was read, and what was in it. Lines are only ever appended, each in
one write and without a lock; the last one of a trial counts, and only while the stamp is that of its file now. What is no whole
line (half of one, two writers' lines mixed by a network disk) has another checksum and is nothing. So the file may be lost, cut
or removed at any time, which costs reading the trials once more.
"""

import os
import re
import sys
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pydantic_core

from milbench.errors import MilbenchError
from milbench.files import replacing

SPARE = 100  # lines that nobody needs any more, before the file is written anew, beside as many as are needed
_HEAD = re.compile(
    rb'\{"crc":"([0-9a-f]{8})","id":"([0-9a-f]{16})","stamp":"([^"]*)","status":"(\w+)","parts":"([^"]*)","result":\{'
)
_CHECKED_FROM = len('{"crc":"01234567",')
_REPEAT = re.compile(rb',"fold":(\d+),"seed":(\d+),')  # in a spec
_REMEMBERED = 4096  # parts that stay parsed
_LONG = 2048  # bytes of a part that does not


class Line(NamedTuple):
    """A line of the index, as it is kept in memory.

    Args:
        stamp: hash of what tells whether the trial.json is still the one that was read.
        status: of the trial.
        at, length: where the line begins, and how long it is, in bytes.
    """

    stamp: int
    status: str
    at: int
    length: int


class Index:
    """The lines of one file.

    Args:
        path: of the file; made with its first line, where the folder can be written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None
        self._writable = True
        self._lines: dict[str, Line] | None = None
        self._parsed: dict[bytes, Any] = {}
        self._last: tuple[str, int, dict[str, bytes]] = "", 0, {}  # a trial, where its line begins, and its parts

    def __del__(self) -> None:
        if self._handle is not None:
            os.close(self._handle)

    def find(self, trial_id: str, stamp: str, ids: Callable[[], Collection[str]]) -> Line | None:
        """The line of a trial; None where there is none, or its file has another stamp by now.

        Args:
            trial_id: which.
            stamp: of its trial.json now.
            ids: gives the trials that there are; the lines of others are dropped now and then.
        """
        if self._lines is None:
            self._load(ids)
        assert self._lines is not None
        line = self._lines.get(trial_id)
        return line if line and line.stamp == hash(stamp.encode()) else None

    def add(self, trial_id: str, stamp: str, result: Mapping[str, Any]) -> Line | None:
        """Append a line; None where the file cannot be written to."""
        if (handle := self._opened()) is None or not self._writable:
            return None
        text = _line(trial_id, stamp, result)
        try:
            if os.write(handle, text) < len(text):  # the disk is full: what is there of the line must not spoil the next one
                os.write(handle, b"\n")
                return None
        except OSError:
            self._writable = False
            return None
        at = os.lseek(handle, 0, os.SEEK_CUR) - len(text)
        line = Line(hash(stamp.encode()), str(result["status"]), at, len(text))
        if self._lines is not None:
            self._lines[trial_id] = line
        return line

    def clock(self) -> int:
        """Nanoseconds, by the clock that stamps files of this folder: on a file server that of this machine may be another.

        0 where the file cannot be written to.
        """
        self._follow()
        if (handle := self._opened()) is not None and self._writable:
            with suppress(OSError):
                os.utime(handle)
                return os.fstat(handle).st_mtime_ns
        return 0

    def part(self, trial_id: str, line: Line, key: str) -> Any:
        """What stands at a key of the trial's result. Not to be changed.

        Raises:
            LookupError: the file no longer has that line, or the result has no such key.
        """
        text = self.parts(trial_id, line)[key]
        if key == "spec" and len(repeats := _REPEAT.findall(text)) == 1:
            rest = self._parse(_REPEAT.sub(b",", text))  # which many other trials have, too
            if "fold" not in rest:
                fold, seed = map(int, repeats[0])
                return {**rest, "fold": fold, "seed": seed}
        return self._parse(text)

    def parts(self, trial_id: str, line: Line) -> dict[str, bytes]:
        """Key -> its JSON.

        Raises:
            LookupError: the file no longer has that line.
        """
        known, at, found = self._last
        if (known, at) != (trial_id, line.at):
            found = self._read(trial_id, line)
            self._last = trial_id, line.at, found
        return found

    def _parse(self, text: bytes) -> Any:
        """Equal texts become one object, as many trials have parts in common; long ones are curves, which none shares."""
        if len(text) > _LONG:
            return pydantic_core.from_json(text, allow_inf_nan=False)
        if text not in self._parsed:
            if len(self._parsed) >= _REMEMBERED:
                self._parsed.clear()
            self._parsed[text] = pydantic_core.from_json(text, allow_inf_nan=False)
        return self._parsed[text]

    def _read(self, trial_id: str, line: Line) -> dict[str, bytes]:
        assert self._handle is not None
        try:
            text = os.pread(self._handle, line.length, line.at)
        except OSError as error:  # the file was on a server that has forgotten it
            raise LookupError from error
        head = _HEAD.match(text)
        if head is None or head[2] != trial_id.encode() or hash(head[3]) != line.stamp:
            raise LookupError(trial_id)
        at, found = head.end(), {}
        for part in head[5].decode().split(" "):
            key, _, length = part.partition(":")
            start = at + len(key) + 3  # "key":
            at = start + int(length) + 1  # and a comma or bracket
            found[key] = text[start : at - 1]
        return found

    def _follow(self) -> None:
        """Who only writes goes to the file that others have put in the place of the one it wrote to."""
        if self._handle is not None and self._lines is None:
            with suppress(OSError):
                if self.path.exists() and os.path.samestat(os.fstat(self._handle), self.path.stat()):
                    return
            os.close(self._handle)
            self._handle = None

    def _opened(self) -> int | None:
        """The file, for reading and appending where that can be; None where there is none and none can be made."""
        if self._handle is None:
            with suppress(OSError):
                self._handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        if self._handle is None:
            self._writable = False
            with suppress(OSError):
                self._handle = os.open(self.path, os.O_RDONLY)
        return self._handle

    def _load(self, ids: Callable[[], Collection[str]]) -> None:
        """Note where each trial's last line is; write the file anew where most lines are of no use."""
        self._lines, count = {}, 0
        for count, (at, text) in enumerate(self._every(), 1):  # noqa: B007 - the last count is how many there are
            if head := _head(text):
                self._lines[head[2].decode()] = Line(hash(head[3]), sys.intern(head[4].decode()), at, len(text))
        if self._writable and count > SPARE and count > 2 * len(there := set(ids())) + SPARE:
            self._rewrite(there)

    def _every(self) -> Iterator[tuple[int, bytes]]:
        """Where each line begins, and the line."""
        if not self.path.exists() or self._opened() is None:
            return
        assert self._handle is not None
        at = 0
        with open(os.dup(self._handle), "rb") as file:
            file.seek(0)
            for text in file:
                yield at, text
                at += len(text)
        if at and not text.endswith(b"\n") and self._writable:  # a writer was killed: end its line
            with suppress(OSError):
                os.write(self._handle, b"\n")

    def _rewrite(self, there: Collection[str]) -> None:
        """Keep the line that counts of each trial that there is. Lines that others append meanwhile are lost, and made again."""
        assert self._lines is not None
        assert self._handle is not None
        lines: dict[str, Line] = {}
        at = 0
        try:
            with replacing(self.path) as temporary, temporary.open("wb") as file:
                for trial_id, line in self._lines.items():
                    if trial_id in there:
                        file.write(os.pread(self._handle, line.length, line.at))
                        lines[trial_id], at = line._replace(at=at), at + line.length
        except MilbenchError:
            return
        os.close(self._handle)
        self._handle, self._lines = None, lines
        self._opened()


def _line(trial_id: str, stamp: str, result: Mapping[str, Any]) -> bytes:
    """A trial as a line, with the length of each part, so that they can be read one by one."""
    parts = {key: pydantic_core.to_json(value) for key, value in result.items()}
    lengths = " ".join(f"{key}:{len(part)}" for key, part in parts.items())
    head = f'"id":"{trial_id}","stamp":"{stamp}","status":"{result["status"]}","parts":"{lengths}","result":{{'
    body = head.encode() + b",".join(b'"%s":%s' % (key.encode(), part) for key, part in parts.items()) + b"}}\n"
    return b'{"crc":"%08x",' % zlib.crc32(body) + body


def _head(text: bytes) -> re.Match[bytes] | None:
    """How a line begins, when it is whole and nothing else."""
    head = _HEAD.match(text)
    return head if head and text.endswith(b"}\n") and int(head[1], 16) == zlib.crc32(text[_CHECKED_FROM:]) else None


class Kept(Mapping[str, Any]):
    """trial.json without its traceback. Its parts are parsed when they are looked at, so that 100,000 take little memory.

    Args:
        index: has it in its line `line`.
        trial_id: whose.
        again: reads trial.json, where the index no longer has that line.
    """

    __slots__ = ("_again", "_index", "_line", "_trial_id")

    def __init__(self, index: Index, trial_id: str, line: Line, again: Callable[[str], Mapping[str, Any]]) -> None:
        self._index, self._trial_id, self._line, self._again = index, trial_id, line, again

    def __repr__(self) -> str:
        return repr(dict(self))

    def __reduce__(self) -> tuple[type[dict], tuple[dict[str, Any]]]:
        return dict, (dict(self),)  # in another process, or as a copy

    def __getitem__(self, key: str) -> Any:
        if key == "status":
            return self._line.status
        try:
            return self._index.part(self._trial_id, self._line, key)
        except LookupError:
            return self._again(self._trial_id)[key]

    def __iter__(self) -> Iterator[str]:
        try:
            return iter(self._index.parts(self._trial_id, self._line))
        except LookupError:
            return iter(self._again(self._trial_id))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __bool__(self) -> bool:
        return True
