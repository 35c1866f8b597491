"""What feature files are made of: HDF5, PyTorch's files and NumPy's, one room each. A file is hostile until it is read.

Only regular files are opened, nothing is followed into another file, no array is larger than its bytes can hold, and whatever a
library raises over broken bytes is a BadFile.
"""

import math
import os
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milbench import files
from milbench.errors import MilbenchError, printable

SMALL = 64 << 20  # bytes; a compressed array of no more than this is read however small its file is
DENSEST = 100  # bytes of an array to a byte of its file, at most: compression makes 1.1 to 3 of features, up to 50 of positions
AGAIN = "copy or extract it again"


class BadFile(MilbenchError):  # noqa: N818 - named for what it says
    """A feature file that cannot be used.

    Args:
        path: the file.
        kind: one word for lists.
        what: what is wrong with it.
        do: how to correct it.
    """

    def __init__(self, path: Path, kind: str, what: str, do: str) -> None:
        what = printable(what)
        super().__init__(f"{printable(str(path))}: {what}; {do}")
        self.path, self.kind, self.what, self.do = path, kind, what, do


@dataclass
class Array:
    """An array that is read when it is indexed.

    Args:
        path: its file.
        form: what the file is, for messages.
        source: `h5py.Dataset` or NumPy array.
        chunks: shape of the pieces it is stored in; None where it is in one.
    """

    path: Path
    form: str
    source: Any
    chunks: tuple[int, ...] | None = None
    shape: tuple[int, ...] = field(init=False)  # as stored: features may have a leading axis of length one
    dtype: np.dtype[Any] = field(init=False)

    def __post_init__(self) -> None:
        with reading(self.path, self.form):
            self.shape, self.dtype = tuple(self.source.shape), self.source.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        with reading(self.path, self.form):
            return np.asarray(self.source[rows])


@dataclass
class Stored:
    """What a file holds.

    Args:
        features, coords: its arrays.
        says: its attributes, as :func:`milbench.datasets.files.containers.attributes.plain` gives them.
        order: whether its positions are those of the patches file as they stand, and with x and y exchanged; None where nobody
            compared them.
        verify: reads the file to its end and raises BadFile where its checksums do not hold, if it has any.
    """

    features: Array
    coords: Array | None
    says: Mapping[str, str | float]
    verify: Callable[[], None] = lambda: None
    order: tuple[bool, bool] | None = None


@contextmanager
def reading(path: Path, form: str) -> Iterator[None]:
    """Around calls of a library that reads bytes of others: over broken ones h5py, zipfile, NumPy and torch raise anything.

    Running out of memory is not the file's fault: sizes are compared with its bytes before anything is read.
    """
    try:
        yield
    except (BadFile, MemoryError):
        raise
    except PermissionError as error:
        raise BadFile(path, "forbidden", "may not be read (permission denied)", "give yourself the right to") from error
    except Exception as error:
        said = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        raise BadFile(path, "unreadable", f"cannot be read as {form} ({said})", AGAIN) from error


def regular(path: Path) -> os.stat_result:
    """Size and times of a file, before anything opens it.

    Raises:
        BadFile: it is not there, a folder, a pipe, or empty.
    """
    try:
        status = files.regular(path)
    except OSError as error:
        raise BadFile(path, "no-file", str(error), "put the feature file there, or leave the slide out") from error
    if not status.st_size:
        raise BadFile(path, "zero-bytes", "is empty (0 bytes)", AGAIN)
    return status


def fits(path: Path, name: str, shape: Sequence[int], size: int, held: int, *, compressed: bool) -> None:
    """Refuse an array that cannot be in the file, before memory is taken for it.

    Args:
        path, name: of file and array.
        shape, size: of the array as declared; size in bytes.
        held: bytes that the file holds of it.
        compressed: whether these may be fewer.
    """
    if size > (max(SMALL, DENSEST * held) if compressed else held):
        raise BadFile(
            path, "size", f"declares `{name}` of shape {tuple(shape)}, {size:,} bytes, but holds only {held:,} bytes of it", AGAIN
        )


def nbytes(path: Path, name: str, shape: Sequence[int], itemsize: int) -> int:
    """Bytes of an array of that shape, however large.

    Raises:
        BadFile: the shape is none.
    """
    if any(not isinstance(n, int) or n < 0 for n in shape):
        raise BadFile(path, "size", f"declares `{name}` of shape {tuple(shape)}, which is none", AGAIN)
    return math.prod(shape) * itemsize


def place(path: Path, entry: zipfile.ZipInfo) -> int:
    """Where the bytes of an entry of a zip file begin: past its name and extra field."""
    with path.open("rb") as file:
        file.seek(entry.header_offset + 26)
        return entry.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
