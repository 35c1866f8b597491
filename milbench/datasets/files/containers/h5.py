"""HDF5 files: arrays by name, within the one file, and as large as what is written of them."""

import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py

from milbench.datasets.files.containers import AGAIN, Array, BadFile, Stored, attributes, fits, nbytes, reading, regular
from milbench.errors import few

FORM = "HDF5"
ONE_FILE = "put the arrays into the file itself (h5repack, or h5py: copy them)"
_PLAIN = (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.STRING)
_HOPS = 16  # links that lead to links


def opened(path: Path, stack: ExitStack) -> Stored:
    """Features, positions and attributes of a file of CLAM's or TRIDENT's.

    Raises:
        BadFile: it is not such a file, or cannot be read.
    """
    file = _file(path, stack)
    features, coords = _array(path, file, "features"), _array(path, file, "coords")
    if features is None:
        with reading(path, FORM):
            names = few(file)
        do = "this is a patches file: give the folder of features" if names == "coords" else (
            "rename the array that holds one row per patch"
        )  # fmt: skip
        raise BadFile(path, "no-features", f"has no array `features`, only {names or 'nothing'}", do)
    says = {**_said(path, file), **_said(path, features.source), **(_said(path, coords.source) if coords else {})}
    return Stored(features, coords, says)


def patches(path: Path, stack: ExitStack) -> tuple[Array, dict[str, str | float]]:
    """Positions in a patches file of CLAM's, and what it says of them.

    Raises:
        BadFile: it is not such a file, or cannot be read.
    """
    coords = _array(path, _file(path, stack), "coords")
    if coords is None:
        raise BadFile(path, "patches", "is not a patches file: it has no array `coords`", "point --patches elsewhere")
    return coords, _said(path, coords.source)


def _file(path: Path, stack: ExitStack) -> h5py.File:
    regular(path)
    with reading(path, FORM):
        return stack.enter_context(h5py.File(path, "r", locking=False))


def _array(path: Path, file: h5py.File, name: str) -> Array | None:
    """The array `name`, whose declared size fits the bytes in the file; None where the file has no such array."""
    with reading(path, FORM):
        node = _resolved(path, file, name)
        if node is None:
            return None
        if not isinstance(node, h5py.Dataset):
            kind = "a group" if isinstance(node, h5py.Group) else "a type"
            raise BadFile(path, "no-array", f"has {kind} `{name}` where an array should be", "store one row per patch")
        layout = node.id.get_create_plist()
        if layout.get_layout() == h5py.h5d.VIRTUAL:
            raise BadFile(path, "elsewhere", f"has a virtual array `{name}` whose values lie in other files", ONE_FILE)
        if layout.get_external_count():
            raise BadFile(path, "elsewhere", f"has an array `{name}` whose values lie in another file", ONE_FILE)
        if node.shape is None:
            raise BadFile(path, "empty", f"holds no values in `{name}`", AGAIN)
        _check_size(path, name, node, layout)
        return Array(path, FORM, node, node.chunks)


def _resolved(path: Path, file: h5py.File, name: str) -> Any:
    """What `name` stands for. Links are followed here: HDF5 would open every file that they name, and wait on a pipe."""
    here, steps, hops = file, [name], 0
    while steps:
        step = steps.pop(0)
        link = here.get(step, getlink=True) if isinstance(here, h5py.Group) else None
        if isinstance(link, h5py.ExternalLink):
            raise BadFile(path, "elsewhere", f"has a link `{name}` into another file, {link.filename}", ONE_FILE)
        if isinstance(link, h5py.SoftLink):
            hops += 1
            if hops > _HOPS:
                raise BadFile(path, "link", f"has a link `{name}` that leads back to itself", AGAIN)
            here = file if link.path.startswith("/") else here
            steps = [part for part in link.path.split("/") if part not in ("", ".")] + steps
        elif link is not None:
            here = here[step]
        elif hops:
            raise BadFile(path, "link", f"has a link `{name}` to {step}, which is not in it", AGAIN)
        else:
            return None
    return here


def _check_size(path: Path, name: str, array: h5py.Dataset, layout: Any) -> None:
    """Refuse an array of which the file holds only a part: HDF5 would fill the rest with zeros."""
    shape, width = array.shape, array.id.get_type().get_size()
    size = nbytes(path, name, shape, width)
    filters = [layout.get_filter(i) for i in range(layout.get_nfilters())]
    if size == 0:
        return
    for code, _, _, label in filters:
        if not h5py.h5z.filter_avail(code):
            called = f"{label.decode(errors='replace')} " if label else ""
            raise BadFile(
                path, "filter", f"has an array `{name}` packed with filter {code} {called}that is not installed here",
                "write it again without, or with gzip",
            )  # fmt: skip
    held = min(array.id.get_storage_size(), path.stat().st_size)
    if chunks := array.chunks:
        pieces = math.prod(-(-n // piece) for n, piece in zip(shape, chunks, strict=True))
        chunk_size = nbytes(path, name, chunks, width)
        written = _filtered_chunks(path, name, array, chunk_size) if filters else array.id.get_storage_size() // chunk_size
        if written < pieces:
            what = f"declares {shape[0]:,} rows of `{name}` but holds only {written:,} of {pieces:,} pieces"
            raise BadFile(path, "size", what, AGAIN)
        size = pieces * chunk_size
    fits(path, name, shape, size, held, compressed=bool(filters))


def _filtered_chunks(path: Path, name: str, array: h5py.Dataset, size: int) -> int:
    """How many chunks are written. One that takes much more than its size would burst when it is unpacked."""
    sizes: list[int] = []
    array.id.chunk_iter(lambda chunk: sizes.append(chunk.size))
    if sizes and max(sizes) > 1.25 * size + 65536:
        raise BadFile(path, "size", f"packs {size:,} bytes of `{name}` into {max(sizes):,}", AGAIN)
    return len(sizes)


def _said(path: Path, holder: Any) -> dict[str, str | float]:
    """The attributes that matter; others are not looked at.

    The length of a text of variable length cannot be checked in advance: where that number is damaged, libhdf5 takes minutes
    to fail.
    """
    meanings: dict[str, str | float] = {}
    with reading(path, FORM):
        for name in attributes.NAMES.intersection(holder.attrs):
            kept = holder.attrs.get_id(name)
            if kept.shape is None:  # h5py.Empty: it says nothing
                continue
            count, size = math.prod(kept.shape), kept.get_storage_size()
            if count > attributes.MOST or size > attributes.MOST * 4 * attributes.LONGEST:
                raise attributes.bad(path, name, f"has {count:,} values of {size:,} bytes")
            if kept.get_type().get_class() not in _PLAIN:  # libhdf5 can crash over others, where bytes are broken
                raise attributes.bad(path, name, "is neither number nor text")
            if (meant := attributes.plain(path, name, holder.attrs[name])) is not None:
                meanings[name] = meant
    return meanings
