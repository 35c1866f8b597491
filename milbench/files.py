"""Small files, written whole or not at all."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from milbench.interrupt import unfinished


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to that becomes `path` in one step at the end, and is gone when anything goes wrong on the way.

    Only a process that is killed leaves it behind, under a name that begins with a dot. It ends as `path` does: some writers
    choose the format by that.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    with unfinished(temporary):
        try:
            yield temporary
            flush(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Replace a small text file in one step; a crash leaves the old one or the new one."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
