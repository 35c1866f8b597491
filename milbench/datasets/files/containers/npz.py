"""NumPy's npz files: mapped where they are stored uncompressed, so that a shape costs no reading."""

import zipfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milbench.datasets.files.containers import AGAIN, Array, BadFile, Stored, attributes, fits, nbytes, place, reading, regular
from milbench.errors import few

FORM = "npz"
_SAYING = ("step", "patch_size_level0")


def opened(path: Path, stack: ExitStack) -> Stored:
    """Features, positions and step of a file.

    Raises:
        BadFile: it is not such a file, or cannot be read.
    """
    regular(path)
    with reading(path, FORM):
        archive = stack.enter_context(zipfile.ZipFile(path))
        names = {name.removesuffix(".npy") for name in archive.namelist()}
        if "features" not in names:
            what = f"has no array `features`, only {few(sorted(names)) or 'nothing'}"
            raise BadFile(path, "no-features", what, "store one row per patch as `features`")
        arrays = {name: _array(path, archive, name) for name in ("features", "coords", *_SAYING) if name in names}
    attribute = {name: attributes.plain(path, name, arrays[name]) for name in _SAYING if name in arrays}
    coords = Array(path, FORM, arrays["coords"]) if "coords" in arrays else None
    says = {name: float(value) for name, value in attribute.items() if value is not None}
    return Stored(Array(path, FORM, arrays["features"]), coords, says, lambda: _verify(path, archive, arrays))


def _verify(path: Path, archive: zipfile.ZipFile, names: Iterable[str]) -> None:
    """Checksums of what was mapped; those of what was unpacked were held already."""
    with reading(path, FORM):
        for entry in [archive.getinfo(f"{name}.npy") for name in names]:
            if entry.compress_type == zipfile.ZIP_STORED:
                with archive.open(entry) as file:
                    while file.read(1 << 20):
                        pass


def _array(path: Path, archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """An array whose header, shape and place in the file agree."""
    entry = archive.getinfo(f"{name}.npy")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BadFile(path, "filter", f"packs `{name}` by method {entry.compress_type}", "write it with numpy.savez_compressed")
    with archive.open(entry) as file:
        shape, fortran, dtype = _header(file)
        start = file.tell()
        if dtype.hasobject:
            raise BadFile(
                path, "pickle", "holds Python objects; reading them can run code, so it was not read", "store plain arrays"
            )
        size = nbytes(path, name, shape, dtype.itemsize)
        if size != entry.file_size - start:
            what = f"declares `{name}` of shape {shape}, {size:,} bytes, but holds {entry.file_size - start:,} bytes of it"
            raise BadFile(path, "size", what, AGAIN)
        stored = entry.compress_type == zipfile.ZIP_STORED
        fits(path, name, shape, size, min(entry.compress_size, path.stat().st_size), compressed=not stored)
        if not stored or size == 0:
            values = np.frombuffer(file.read(), dtype) if size else np.zeros(0, dtype)
            return values.reshape(shape, order="F" if fortran else "C")
    return np.memmap(path, dtype, "r", place(path, entry) + start, shape, "F" if fortran else "C")


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)
