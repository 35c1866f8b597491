"""Small files: written whole or not at all, and read as what others may have written, which may be anything."""

import bz2
import codecs
import gzip
import hashlib
import lzma
import os
import re
import stat
import tomllib
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pydantic_core

from milbench.errors import MilbenchError
from milbench.interrupt import unfinished

DEEPEST = 30  # tables within tables of a TOML file
LARGEST = 256 << 20  # bytes of a table; a million rows have 100 MB
LONGEST = 1 << 20  # bytes of a line of it
_PACKED: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_MARKS = {
    codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
_SHEET = "a workbook (Excel or other), not text; open it and save the sheet as CSV"
_NO_TEXT = {
    b"PK\x03\x04": _SHEET, b"\xd0\xcf\x11\xe0": _SHEET, b"PAR1": "a Parquet file; save it as CSV",
    b"ARROW1": "an Arrow file; save it as CSV", b"%PDF": "a PDF; save its table as CSV",
    b"<!DOCTYPE": "a web page; download the table itself", b"<!doctype": "a web page; download the table itself",
    b"<html": "a web page; download the table itself", b"{\\rtf": "a text with formats (RTF); save it as CSV",
    b"version https://git-lfs": "a pointer to a file that Git LFS keeps; fetch it with: git lfs pull",
}  # fmt: skip
_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}  # fmt: skip


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to that becomes `path` in one step at the end, and is gone when anything goes wrong on the way.

    Only a process that is killed leaves it behind, under a name that begins with a dot. It ends as `path` does: some writers
    choose the format by that.

    Raises:
        MilbenchError: the folder cannot be made or written to.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    with unfinished(temporary):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            flush(temporary)
            temporary.replace(path)
        except OSError as error:
            raise unusable(path, error) from error
        finally:
            with suppress(OSError):
                temporary.unlink()


def write_atomically(path: Path, text: str) -> None:
    """Replace a small text file in one step; a crash leaves the old one or the new one.

    Raises:
        MilbenchError: the folder cannot be made or written to.
    """
    with replacing(path) as temporary:
        temporary.write_text(text)


def flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def unusable(path: str | Path, error: OSError) -> MilbenchError:
    """The error for a file or folder that the system does not let us use."""
    return MilbenchError(f"cannot use {path}: {(error.strerror or str(error)).lower()}")


def read_bytes(path: Path) -> bytes | None:
    """What is in the file, or None when there is none.

    Raises:
        MilbenchError: it is no file, or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unusable(path, error) from error


def stamp(path: str | Path) -> str | None:
    """What tells whether a file is still the one that was read: size, times of the last write and change, and inode.

    None where there is none.

    Raises:
        MilbenchError: the system does not let us look.
    """
    try:
        s = os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unusable(path, error) from error
    return f"{s.st_size} {s.st_mtime_ns} {s.st_ctime_ns} {s.st_ino}"


def sha256(path: Path) -> str:
    """Hash of what is in the file, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_json(data: bytes, path: Path, mend: str) -> Any:
    """JSON as objects. NaN, half characters and nesting beyond 200 levels are refused.

    Args:
        data: what is in the file.
        path, mend: for the message: the file, and what to do.

    Raises:
        MilbenchError: not JSON.
    """
    try:
        return pydantic_core.from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise MilbenchError(f"{path}: not JSON ({error}); {mend}") from error


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """A TOML file.

    Args:
        path: the file.
        what: it is, for messages: "suite file".

    Raises:
        MilbenchError: it is not there, cannot be read, or is not TOML.
    """
    data = read_bytes(path)
    if data is None:
        raise MilbenchError(f"{what} {path} does not exist")
    return parse_toml(data, path)


def parse_toml(data: bytes, path: Path) -> dict[str, Any]:
    """What a TOML file says.

    Args:
        data: what is in the file.
        path: the file, for messages.

    Raises:
        MilbenchError: not TOML, or nested too deep.
    """
    try:
        content = tomllib.loads(data.decode())
        deep = _deeper_than(content, DEEPEST)
    except ValueError as error:  # of syntax, of characters, of numbers with thousands of digits
        raise MilbenchError(f"{path}: not TOML: {error}") from error
    except RecursionError:
        deep = True
    if deep:
        raise MilbenchError(f"{path}: tables or lists are nested more than {DEEPEST} deep")
    return content


def _deeper_than(value: Any, levels: int) -> bool:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_deeper_than(one, levels - 1) for one in inside)


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(inf|nan)", re.IGNORECASE)
_ACTS = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet takes what begins so for a formula


def csv_cell(value: Any) -> Any:
    """A value as a CSV file for people has it: text that a spreadsheet would run gets an apostrophe before it.

    So does text that begins with an apostrophe, which makes :func:`csv_text` its exact inverse. Numbers stay what they are.
    """
    if isinstance(value, str) and value.startswith((*_ACTS, "'")) and not _NUMBER.fullmatch(value):
        return "'" + value
    return value


def csv_text(cell: str) -> str:
    """The text behind a cell that :func:`csv_cell` made."""
    return cell[1:] if cell.startswith("'") else cell


def regular(path: Path) -> os.stat_result:
    """What the system knows of a file. To be asked before a file of others is opened: opening a pipe waits for ever.

    Raises:
        OSError: it is no file that can be read to an end; says what it is.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        leads = f"is a link to {os.readlink(path)}, which does not exist" if os.path.islink(path) else "does not exist"
        raise FileNotFoundError(leads) from error
    except ValueError as error:
        raise OSError("has a name that no file can have") from error
    except OSError as error:
        raise OSError(f"cannot be reached ({error.strerror})") from error
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"is {_KINDS.get(stat.S_IFMT(status.st_mode), 'no file')}, not a file")
    return status


def table_text(path: Path, encoding: str | None = None) -> str:
    """The text of a table, packed (.gz, .bz2, .xz) or not.

    Args:
        path: the table.
        encoding: of the text, where it is neither UTF-8 nor begins with a byte order mark.

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
    if kind := next((kind for start, kind in _NO_TEXT.items() if raw.startswith(start)), None):
        raise ValueError(f"it is {kind}")
    text = _decoded(raw, encoding)
    if any(len(line) > LONGEST for line in text.splitlines()):
        raise ValueError(f"it has a line of more than {LONGEST >> 20} MiB")
    return text


def _decoded(raw: bytes, encoding: str | None) -> str:
    """Text by its byte order mark, else in the encoding that is asked for, else in UTF-8; plain ASCII is the same in all."""
    plain = raw.isascii() and not {0, 0x1B} & set(raw)
    marked = next((name for mark, name in _MARKS.items() if raw.startswith(mark)), None)
    try:
        codec = codecs.lookup(marked or encoding or "utf-8").name
        text = raw.decode("ascii" if plain else codec).lstrip("\ufeff")
    except LookupError as error:
        raise ValueError(f"unknown encoding {encoding!r}; known are utf-16, gbk, cp1252, shift_jis and others") from error
    except UnicodeError as error:
        what = f"it is not {codec.upper()}"
        if isinstance(error, UnicodeDecodeError):
            line = raw.count(b"\n", 0, error.start) + 1
            what = f"line {line} is not {codec.upper()}: byte {raw[error.start]:#04x}"
        raise ValueError(f"{what}; {_advice(raw)}, or save it as CSV in UTF-8") from error
    if "\0" in text:
        raise ValueError(f"it has NUL bytes in it; {_advice(raw)} if it is text, or save it as CSV in UTF-8")
    return text


def _advice(raw: bytes) -> str:
    """Which encoding the text of a table may have."""
    with suppress(UnicodeDecodeError):
        if "\0" not in raw.decode():
            return "it is UTF-8: give it in a command of its own, without --encoding"
    pairs = raw[: len(raw) // 2 * 2]
    for name, zeros in (("utf-16-le", pairs[1::2]), ("utf-16-be", pairs[::2])):
        if zeros.count(0) > len(zeros) / 3:
            return f"it looks like UTF-16: give --encoding {name}"
    with suppress(UnicodeDecodeError):
        letters = [c for c in raw.decode("gb2312") if ord(c) > 127]
        if letters and sum("\u3000" <= c <= "\u9fff" or "\uff00" <= c <= "\uffef" for c in letters) == len(letters):
            return "it looks like GBK: give --encoding gbk"
    return "give its encoding, such as --encoding cp1252 (Western Europe), gbk (China) or shift_jis (Japan)"


def own_file(path: Path) -> Path:
    """The path, when it is a file of its own folder and no link to somewhere else.

    Raises:
        MilbenchError: it is a link that leaves the folder.
    """
    try:
        leaves = path.resolve(strict=True).parent != path.parent.resolve(strict=True)
    except (OSError, RuntimeError):
        leaves = path.is_symlink()
    if leaves:
        raise MilbenchError(f"{path}: is a link to somewhere else; put the file itself there, or remove the link")
    return path
