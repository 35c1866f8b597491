"""Small files, written whole or not at all."""

import os
import uuid
from pathlib import Path


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
