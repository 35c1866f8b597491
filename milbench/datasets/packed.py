"""The packed store: all bags of a dataset in one memory-mapped file, so that reading one again opens, parses and copies nothing.

The file is a cache. It is written from the feature files when a bag is first read, and again whenever they change.
"""

import hashlib
import json
import logging
import mmap
import os
import re
import shutil
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from milbench.bags import Bag
from milbench.claims import held
from milbench.errors import MilbenchError
from milbench.files import flush
from milbench.interrupt import unfinished

MAGIC = b"milbench pack 2\n"
FORMER = b"milbench pack 1\n"  # which nothing reads any more
ALIGNMENT = 64  # bytes, of every array in the file
_ADVICE = "set MILBENCH_CACHE to a folder with room that can be written to, or read the files directly with --no-pack"
_log = logging.getLogger("milbench.datasets")


def packed(
    read: Callable[[str], Bag],
    sizes: Mapping[str, int],
    *,
    in_dim: int,
    dtype: str,
    fingerprint: str,
    name: str,
    folder: Path | None,
    owner: str = "",
) -> Callable[[str], Bag]:
    """A function that gives the same bags as `read`, from one memory-mapped file that all processes share.

    The file is written when the first bag is asked for, or by :meth:`Pack.build`. Without a folder every bag is read
    directly; its features are rounded all the same where `dtype` asks for it, so a pack changes no number.

    Args:
        read: id -> Bag with float32 features, from the dataset's own files.
        sizes: id -> number of instances, of every bag.
        in_dim: width of the features.
        dtype: "float16" or "float32", of the features in the file. Features that come from float16 files lose nothing in float16;
            for others float16 is a choice that belongs into the trial's identity.
        fingerprint: of all that `read` gives; another fingerprint means another file, and the old one goes.
        name: of dataset, encoder, magnification and patch size, for the name of the file.
        folder: where the file lies; made when needed. None packs nothing.
        owner: key of what the pack is of, where the name alone may be that of another dataset, too. Only packs of the same name
            and owner are ever removed, and those of the name alone that earlier versions left.

    Raises:
        MilbenchError: another dtype.
    """
    if dtype not in ("float16", "float32"):
        raise MilbenchError(f"{name}: features are packed as float16 or float32, not {dtype}")
    if folder is None:
        return read if dtype == "float32" else lambda id: rounded(read(id))
    counts, plain = {id: int(n) for id, n in sizes.items()}, re.sub(r"[^\w.+-]+", "-", name)
    return Pack(read, counts, in_dim, dtype, fingerprint, plain, folder, owner)


@dataclass(eq=False)
class Pack:
    """Reads bags from a pack, and writes it where it is missing. Fields as :func:`packed` takes them.

    The file holds, one after the other, each bag's features, coordinates and slide index, and at its end, as JSON, where they
    are, what they are, the fingerprint, and a checksum of each bag (CRC-32, as zip files have: it finds every flipped bit and
    every hole, and costs less than any hash). The JSON has one, too. Whatever does not end that way was not written to its end.
    The checksum of a bag is verified when this object first reads it, so later epochs pay nothing.

    Tensors of a bag are views of a read-only map of the file: writing into one ends the process. Float16 features are converted
    into memory of their own.
    """

    direct: Callable[[str], Bag]
    sizes: Mapping[str, int]
    in_dim: int
    dtype: str
    fingerprint: str
    name: str
    folder: Path
    owner: str = ""
    _map: mmap.mmap | None = field(default=None, init=False)
    _bytes: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8), init=False)
    _bags: dict[str, dict[str, Any]] = field(default_factory=dict, init=False)
    _sound: set[str] = field(default_factory=set, init=False)  # bags whose checksum was right
    _touched: tuple[int, int] = field(default=(0, 0), init=False)
    _inode: int = field(default=0, init=False)  # of the file that is mapped, which may no longer be the one at `path`

    @property
    def stem(self) -> str:
        """What names of its files begin with."""
        return f"{self.name}.{self.owner}" if self.owner else self.name

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / f"{self.stem}.{self.dtype}.{hashlib.sha256(self.fingerprint.encode()).hexdigest()[:16]}.pack"

    @property
    def bytes_needed(self) -> int:
        """Of disk, at most."""
        instance = self.in_dim * getattr(torch, self.dtype).itemsize + 3 * 8  # coordinates and slide index
        return sum(self.sizes.values()) * instance + len(self.sizes) * (3 * ALIGNMENT + 1024)

    def __call__(self, id: str) -> Bag:
        """The bag `id`; builds the pack if need be.

        Raises:
            MilbenchError: its bytes are not those that were written; the pack is gone then, and the next reader writes it again.
        """
        if self._map is None:
            self.build()
        entry = self._bags[id]
        self._release(entry["at"], entry["end"])
        if id not in self._sound:
            self._verify(id, entry)
        n, at = entry["n"], entry["arrays"]
        return Bag(
            _float32(self._view(at["features"], self.dtype, n * self.in_dim).view(n, self.in_dim)),
            None if at["coords"] is None else self._view(at["coords"], entry["coords_dtype"], 2 * n).view(n, 2),
            entry["step"],
            slide_id=id,
            case_id=entry["case"],
            slide_index=None if at["slides"] is None else self._view(at["slides"], "int64", n),
            source=entry["source"],
        )

    def _view(self, at: int, dtype: str, count: int) -> Tensor:
        kind: torch.dtype = getattr(torch, dtype)
        return self._bytes[at : at + count * kind.itemsize].view(kind)

    def _release(self, at: int, end: int) -> None:
        """Give the pages of the bag read before back to the page cache, so that memory does not grow with the dataset.

        Tensors that still look at them find them there.
        """
        start, stop = self._touched
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED") and stop > start:
            start -= start % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, start, stop - start)
        self._touched = (at, end)

    def _verify(self, id: str, entry: Mapping[str, Any]) -> None:
        assert self._map is not None
        if zlib.crc32(memoryview(self._map)[entry["at"] : entry["end"]]) == entry["crc"]:
            self._sound.add(id)
            return
        says = f"slide {id}: its bytes in the pack {self.path} are not those that were written; is the disk sound?"
        try:
            self._remove()
        except OSError as error:
            raise MilbenchError(f"{says} The pack cannot be removed ({error.strerror}): remove it") from error
        raise MilbenchError(f"{says} The pack is removed, and the next run writes it again: milbench run --retry-failed")

    def _remove(self) -> None:
        """Remove the pack, unless another process has done so and written a new one, and let go of it."""
        with self._lock(), suppress(FileNotFoundError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()
        self._map, self._bags, self._touched = None, {}, (0, 0)

    def _lock(self) -> AbstractContextManager[None]:
        return held(self.folder / f".{self.stem}.claim")

    def build(self, tell: Callable[[str], None] = lambda text: None) -> None:
        """Open the pack, and write it first where it is missing. Of several processes one writes and the others wait.

        Args:
            tell: called with what is about to be written, and where.

        Raises:
            MilbenchError: the disk is too small, the folder cannot be written to, or a bag cannot be packed; no file is left.
        """
        try:
            if self._open():
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._lock():
                if self._open():
                    return
                if self.path.exists():
                    _log.warning("%s is damaged or no pack of these features; it is written again", self.path)
                useless = self._useless()
                free = shutil.disk_usage(self.folder).free + sum(path.stat().st_size for path in useless)
                if free < self.bytes_needed:
                    raise MilbenchError(
                        f"packing {self.name} needs {self.bytes_needed / 1e6:,.1f} MB in {self.folder}, where "
                        f"{free / 1e6:,.1f} MB are free; {_ADVICE}"
                    )
                for path in useless:
                    path.unlink()
                tell(f"packing {self.name}: {len(self.sizes):,} bags, {self.bytes_needed / 1e6:,.1f} MB, into {self.path}")
                self._write()
                if not self._open():
                    raise MilbenchError(f"{self.path} was written and cannot be read back; is the disk sound? {_ADVICE}")
        except OSError as error:
            raise MilbenchError(f"packing {self.name} into {self.folder}: {error}; {_ADVICE}") from error

    @property
    def _contents(self) -> dict[str, Any]:
        """What the index must say of the pack as a whole."""
        return {"fingerprint": self.fingerprint, "dtype": self.dtype, "in_dim": self.in_dim, "sizes": self.sizes}

    def _useless(self) -> list[Path]:
        """What a killed writer left, packs of sources that have changed since, and the pack itself where it is damaged."""
        end = r"\.float(?:16|32)(\.[0-9a-f]{16})\.pack(\.part)?"
        own, former = re.compile(re.escape(self.stem) + end), re.compile(re.escape(self.name) + end)
        key = self.path.suffixes[-2]
        return [
            path
            for path in self.folder.iterdir()
            if ((match := own.fullmatch(path.name)) and (match[2] or match[1] != key or path == self.path))
            or (former.fullmatch(path.name) and _begins(path, FORMER))
        ]

    def _write(self) -> None:
        with _whole_or_nothing(self.path) as file:
            file.write(MAGIC)
            bags = {id: self._append(file, id) for id in self.sizes}
            index = json.dumps({**self._contents, "bags": bags}).encode()
            file.write(index + _number(len(index)) + _number(zlib.crc32(index)) + MAGIC)

    def _append(self, file: BinaryIO, id: str) -> dict[str, Any]:
        """Write a bag; returns where it is and what the index says of it."""
        bag = self.direct(id).check(self.in_dim)
        if self.dtype == "float16":
            bag = rounded(bag)
        if len(bag) != self.sizes[id]:
            raise MilbenchError(
                f"slide {id} ({bag.source}): {len(bag)} instances where {self.sizes[id]} were counted; did it change just now?"
            )
        start = file.tell()
        slides = None if bag.slide_index is None else bag.slide_index.long()
        arrays = {"features": bag.features.to(getattr(torch, self.dtype)), "coords": bag.coords, "slides": slides}
        at: dict[str, int | None] = {}
        crc = 0
        for what, array in arrays.items():
            at[what], crc = (None, crc) if array is None else _append_array(file, array, crc)
        return {
            "n": len(bag), "at": start, "end": file.tell(), "crc": crc, "arrays": at,
            "step": None if bag.step is None else float(bag.step), "case": bag.case_id,
            "coords_dtype": None if bag.coords is None else str(bag.coords.dtype).removeprefix("torch."), "source": bag.source,
        }  # fmt: skip

    def _open(self) -> bool:
        """Map the file; False where it is missing, cut short, foreign, or made of other features."""
        try:
            with self.path.open("rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (FileNotFoundError, ValueError):  # ValueError: empty
            return False
        end = len(mapped) - len(MAGIC) - 16
        if end < len(MAGIC) or mapped[: len(MAGIC)] != MAGIC or mapped[-len(MAGIC) :] != MAGIC:
            return False
        length, crc = (int.from_bytes(mapped[at : at + 8], "little") for at in (end, end + 8))
        try:
            index = json.loads(text) if zlib.crc32(text := mapped[max(0, end - length) : end]) == crc else None
        except ValueError:
            return False
        if not isinstance(index, dict) or any(index.get(key) != value for key, value in self._contents.items()):
            return False
        self._bags = index["bags"]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")  # it is meant to be
            self._bytes = torch.frombuffer(mapped, dtype=torch.uint8)
        self._map, self._inode, self._sound = mapped, inode, set()
        return True


def _float32(features: Tensor) -> Tensor:
    """Float32 as it is, float16 as a copy."""
    if features.dtype == torch.float32:
        return features
    # NumPy asks for huge pages; to map as much memory in small ones takes longer than to convert.
    return torch.from_numpy(np.empty(features.shape, np.float32)).copy_(features)


def rounded(bag: Bag) -> Bag:
    """The bag with features as float16 holds them.

    Raises:
        MilbenchError: it cannot hold them, naming the slide and the file.
    """
    features = bag.features.half().float()
    if (features.isinf() & bag.features.isfinite()).any():
        largest = float(bag.features.abs().max())
        raise MilbenchError(
            f"slide {bag.slide_id} ({bag.source}): values up to {largest:.3g} do not fit into float16, whose largest is 65,504; "
            "take float32 for this dataset"
        )
    return replace(bag, features=features)


def _append_array(file: BinaryIO, array: Tensor, crc: int) -> tuple[int, int]:
    """Write the array at the next aligned place; returns that, and the checksum of what was written since `crc` was it."""
    padding, content = b"\0" * (-file.tell() % ALIGNMENT), array.contiguous().numpy().data
    file.write(padding)
    at = file.tell()
    file.write(content)
    return at, zlib.crc32(content, zlib.crc32(padding, crc))


def _number(value: int) -> bytes:
    return value.to_bytes(8, "little")


def _begins(path: Path, start: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(start)) == start


@contextmanager
def _whole_or_nothing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that appears as `path` when all is on disk, and not at all when anything goes wrong.

    What a killed writer left is overwritten; whoever writes holds the lock.
    """
    part = path.with_name(path.name + ".part")
    try:
        with unfinished(part):
            with part.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        flush(path.parent)
    except BaseException:
        with suppress(FileNotFoundError):
            part.unlink()
        raise
