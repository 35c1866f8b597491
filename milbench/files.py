"""Small files, written whole or not at all, and files of others, which may be anything."""

import bz2
import gzip
import lzma
import os
import stat
import uuid
import zlib
from pathlib import Path
from typing import Any

LARGEST = 256 << 20  # bytes of a table; a million rows have 100 MB
LONGEST = 1 << 20  # bytes of a line of it
_PACKED: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}  # fmt: skip


def write_atomically(path: Path, text: str) -> None:
    """Replace a small text file in one step; a crash leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    temporary.write_text(text)
    flush(temporary)
    temporary.replace(path)


def flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def printable(text: str) -> str:
    """The text in one line: line breaks, control characters and bytes that are not UTF-8 are written as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def regular(path: Path) -> os.stat_result:
    """What the system knows of a file. To be asked before a file of others is opened: opening a pipe waits for ever.

    Raises:
        OSError: it is no file that can be read to an end; says what it is.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError as error:
        leads = f"is a link to {os.readlink(path)}, which does not exist" if os.path.islink(path) else "does not exist"
        raise FileNotFoundError(leads) from error
    except ValueError as error:
        raise OSError("has a name that no file can have") from error
    except OSError as error:
        raise OSError(f"cannot be reached ({error.strerror})") from error
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"is {_KINDS.get(stat.S_IFMT(found.st_mode), 'no file')}, not a file")
    return found


def table_text(path: Path) -> str:
    """The text of a table, packed (.gz, .bz2, .xz) or not.

    Raises:
        OSError, ValueError: it is none; says why in one line.
    """
    regular(path)
    try:
        with _PACKED.get(path.suffix, open)(path, "rb") as file:
            raw: bytes = file.read(LARGEST + 1)
    except PermissionError as error:
        raise OSError("may not be read (permission denied)") from error
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"it cannot be read to its end: {error}") from error
    if len(raw) > LARGEST:
        raise ValueError(f"it is larger than {LARGEST >> 20} MiB")
    if b"\0" in raw:
        raise ValueError("it has NUL bytes in it; is it UTF-16 or no text? Save it as CSV in UTF-8")
    if any(len(line) > LONGEST for line in raw.splitlines()):
        raise ValueError(f"it has a line of more than {LONGEST >> 20} MiB")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line} is not UTF-8: byte {raw[error.start]:#04x}; save it as CSV in UTF-8") from error
