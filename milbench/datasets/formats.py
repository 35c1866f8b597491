"""Feature files as they circulate, read as they are: CLAM (h5, or pt beside its patches file), TRIDENT (h5) and plain npz.

`inspect` looks at shapes, attributes, positions and a few rows; `read` takes the whole file. Both see a file through `_opened`,
whose arrays are read when they are indexed.
"""

import hashlib
import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from milbench.errors import MilbenchError

Format = Literal["h5", "pt", "npz"]

SAMPLED = 8  # rows of features that are looked at without reading a file
BLOCK = 2**23  # bytes of features that are hashed at a time
LOOK = 2000  # positions looked at where a file stores nearly every one in a chunk of its own, as TRIDENT does


class BadFile(MilbenchError):  # noqa: N818 - named for what it says
    """A feature file that cannot be used.

    Args:
        path: the file.
        kind: one word for lists.
        what: what is wrong with it.
        do: how to mend it.
    """

    def __init__(self, path: Path, kind: str, what: str, do: str) -> None:
        super().__init__(f"{path}: {what}; {do}")
        self.path, self.kind, self.what, self.do = path, kind, what, do


@dataclass(frozen=True)
class Facts:
    """What is known of a feature file without reading its features.

    Args:
        n, d, dtype: instances, their width, and how they are stored.
        coords: whether there are positions.
        digest: hash of shape, dtype, and a few rows of features and positions; the same in every format and on every machine.
            It tells copies and what a file was called before :func:`contents` was: never whether a file changed.
        nonfinite: how many of the sampled rows hold NaN or infinite values.
        step: level-0 pixels between neighbours by the file's attributes or its patches file; None where they do not say.
        lattice: the most common distance of neighbours in a row or column of patches; None where there are no neighbours.
        aligned: share of patches with a neighbour at that distance.
        duplicates: patches at a position that an earlier patch has.
        says: `encoder`, `magnification` and `patch_size` by the file's attributes.
        squeezed: whether features have a leading axis of length one.
    """

    n: int
    d: int
    dtype: str
    coords: bool
    digest: str
    nonfinite: int = 0
    step: float | None = None
    lattice: float | None = None
    aligned: float = 0.0
    duplicates: int = 0
    says: Mapping[str, str | float] = field(default_factory=dict)
    squeezed: bool = False


@dataclass(frozen=True)
class Layout:
    """Where feature files are.

    Args:
        folder: holds one file per slide.
        format: their suffix.
        patches: holds CLAM's patches files, or None.
    """

    folder: Path
    format: Format
    patches: Path | None = None

    def files(self) -> list[Path]:
        """The feature files, in the order of their names."""
        return _files(self.folder, self.format)

    def patches_of(self, file: Path) -> Path | None:
        """The patches file that belongs to a feature file."""
        names = (f"{file.stem}.h5", f"{file.stem}_patches.h5") if self.patches else ()
        return next((path for name in names if self.patches and (path := self.patches / name).is_file()), None)


def _files(folder: Path, suffix: str) -> list[Path]:
    return sorted(path for path in folder.glob(f"*.{suffix}") if not path.name.startswith("."))


def layout(folder: Path, patches: Path | None = None) -> Layout:
    """Find out what a folder of features is: CLAM's (`h5_files/` or `pt_files/` in it), or one file per slide.

    Args:
        folder: as the user gives it.
        patches: the folder of CLAM's patches files; `patches/` in or beside `folder` unless given.

    Raises:
        MilbenchError: no such folder, or no feature files in it.
    """
    for given, what in ((folder, "features"), (patches, "patches")):
        if given is not None and not given.is_dir():
            raise MilbenchError(f"folder of {what} {given} does not exist" + ("; it is a file" if given.exists() else ""))
    places: list[tuple[Path, Format]] = [
        (folder / "h5_files", "h5"), (folder / "pt_files", "pt"), (folder, "h5"), (folder, "pt"), (folder, "npz"),
    ]  # fmt: skip
    found = next(((place, suffix) for place, suffix in places if _files(place, suffix)), None)
    if found is None:
        deeper = sorted({path.parent for path in folder.glob("*/*") if path.suffix in (".h5", ".pt", ".npz")})
        hint = f"; there are some in {', '.join(map(str, deeper[:3]))}" if deeper else ""
        raise MilbenchError(f"{folder} holds no .h5, .pt or .npz files, nor do h5_files/ and pt_files/ in it{hint}")
    place, suffix = found
    if patches is None:
        root = place.parent if place.name in ("h5_files", "pt_files") else place
        patches = next((p for p in (root / "patches", root.parent / "patches") if p != place and _files(p, "h5")), None)
    return Layout(place, suffix, patches)


@dataclass
class _Raw:
    """Arrays that are read when indexed, and what attributes say."""

    features: Any
    coords: Any
    says: dict[str, Any]


@contextmanager
def _opened(path: Path, patches: Path | None) -> Iterator[_Raw]:
    with ExitStack() as stack:
        raw = {".h5": _h5, ".pt": _pt, ".npz": _npz}[path.suffix](path, stack)
        _check_features(path, raw.features)
        if patches is not None and (raw.coords is None or _step(raw.says) is None):
            beside = _hdf5(patches, stack)
            if "coords" not in beside:
                raise BadFile(patches, "patches", "is no patches file: it has no array `coords`", "point --patches elsewhere")
            if len(beside["coords"]) != _shape(raw.features)[0]:
                raise BadFile(
                    path, "mismatch", f"has {_shape(raw.features)[0]:,} patches, {patches} lists {len(beside['coords']):,}",
                    "they are not of one extraction: point --patches at the files these features were made from",
                )  # fmt: skip
            raw.coords = beside["coords"] if raw.coords is None else raw.coords
            raw.says = {**beside["coords"].attrs, **raw.says}
        if raw.coords is not None:
            _check_coords(path, raw.coords, _shape(raw.features)[0])
        try:
            yield raw
        except OSError as error:
            raise BadFile(path, "unreadable", f"breaks off while being read ({error})", "copy or extract it again") from error


def _check_features(path: Path, features: Any) -> None:
    shape = tuple(features.shape)
    if len(shape) == 1 and shape[0] > 0:
        raise BadFile(
            path,
            "slide-vector",
            f"holds one vector of {shape[0]} values for the whole slide",
            "give the folder of patch features",
        )
    if 0 in shape:
        raise BadFile(path, "empty", "holds no patches", "segment the slide again with other settings, or leave it out")
    if len(shape) > 3 or (len(shape) == 3 and shape[0] != 1):
        raise BadFile(path, "shape", f"features are {shape}, not (n, d)", "store one row per patch")
    if not np.issubdtype(features.dtype, np.floating):
        raise BadFile(path, "dtype", f"features are {features.dtype}, not floating point", "store them as float32 or float16")


def _check_coords(path: Path, coords: Any, n: int) -> None:
    shape = tuple(coords.shape)
    shape = shape[1:] if len(shape) == 3 and shape[0] == 1 else shape
    if shape != (n, 2):
        raise BadFile(
            path, "mismatch", f"has {n:,} rows of features and coords of shape {shape}",
            "one (x, y) belongs to each patch: extract the slide again",
        )  # fmt: skip


def _shape(features: Any) -> tuple[int, int]:
    """(n, d), without a leading axis of length one."""
    return tuple(features.shape[-2:])


def _rows(array: Any, rows: Any) -> NDArray[Any]:
    return np.asarray(array[0, rows] if array.ndim == 3 else array[rows])


def _hdf5(path: Path, stack: ExitStack) -> Any:
    try:
        return stack.enter_context(h5py.File(path, "r", locking=False))
    except OSError as error:
        raise BadFile(path, "unreadable", f"cannot be read as HDF5 ({error})", "copy or extract it again") from error


def _h5(path: Path, stack: ExitStack) -> _Raw:
    file = _hdf5(path, stack)
    if "features" not in file:
        only = set(file) == {"coords"}
        raise BadFile(
            path, "no-features", f"has no array `features`, only {', '.join(sorted(file)) or 'nothing'}",
            "this is a patches file: give the folder of features" if only else "rename the array that holds one row per patch",
        )  # fmt: skip
    coords = file.get("coords")
    says = {**file.attrs, **file["features"].attrs, **(coords.attrs if coords is not None else {})}
    return _Raw(file["features"], coords, says)


def _pt(path: Path, stack: ExitStack) -> _Raw:
    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        if "unsupported" in str(error).lower():
            raise BadFile(
                path, "pickle", "holds Python objects instead of a tensor (TRIDENT's .pt files hold a NumPy array); "
                "reading them can run code, so it was not read",
                "let TRIDENT write h5 files, or store a plain tensor: torch.save(torch.from_numpy(features), path)",
            ) from None  # fmt: skip
        raise BadFile(path, "unreadable", "cannot be read as a torch file", "copy or extract it again") from error
    if not isinstance(found, torch.Tensor):
        keys = f" with {', '.join(map(str, list(found)[:5]))}" if isinstance(found, dict) else ""
        raise BadFile(
            path, "no-features", f"holds a {type(found).__name__}{keys} instead of a tensor", "store the (n, d) tensor alone"
        )
    tensor = found.detach()
    if tensor.dtype == torch.bfloat16:  # numpy has none
        tensor = tensor.float()
    return _Raw(tensor.numpy(), None, {})


def _npz(path: Path, stack: ExitStack) -> _Raw:
    try:
        archive = stack.enter_context(zipfile.ZipFile(path))
        names = {name.removesuffix(".npy") for name in archive.namelist()}
        arrays = {name: _npy(path, archive, name) for name in names & {"features", "coords", "step", "patch_size_level0"}}
    except (zipfile.BadZipFile, OSError, ValueError, KeyError, EOFError) as error:
        if "Object arrays" in str(error):
            raise BadFile(
                path, "pickle", "holds Python objects; reading them can run code, so it was not read", "store plain arrays"
            ) from None
        raise BadFile(path, "unreadable", f"cannot be read as npz ({error})", "write it again with numpy.savez") from error
    if "features" not in arrays:
        raise BadFile(
            path, "no-features", f"has no array `features`, only {', '.join(sorted(names)) or 'nothing'}",
            "store one row per patch as `features`",
        )  # fmt: skip
    says: dict[str, Any] = {key: float(arrays[key]) for key in ("step", "patch_size_level0") if key in arrays}
    return _Raw(arrays["features"], arrays.get("coords"), says)


def _npy(path: Path, archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """One array of an npz file, mapped where it is stored uncompressed, so that its shape costs no reading."""
    entry = archive.getinfo(f"{name}.npy")
    if entry.compress_type != zipfile.ZIP_STORED:
        with archive.open(entry) as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    with path.open("rb") as file:
        file.seek(entry.header_offset + 26)
        file.seek(sum(struct.unpack("<HH", file.read(4))), 1)  # past the entry's name and extra field
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(file)
        if dtype.hasobject:
            raise ValueError("Object arrays cannot be loaded")
        if 0 in shape:
            return np.zeros(shape, dtype)
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")


def _step(says: Mapping[str, Any]) -> float | None:
    """Level-0 pixels between neighbouring patches by attributes of TRIDENT or CLAM; None where they do not say.

    TRIDENT gives its overlap in pixels of the patch. CLAM does not store the stride that patches were cut with; it is the size of
    the patch unless `--step_size` was given.
    """
    if "step" in says:
        return float(says["step"])
    size = float(says.get("patch_size", 0))
    if "patch_size_level0" in says:
        overlap = float(says.get("overlap", 0)) / size if size else 0.0
        return float(says["patch_size_level0"]) * (1 - overlap) if overlap < 1 else None
    if size and ("downsample" in says or not says.get("patch_level")):
        down = float(np.atleast_1d(says.get("downsample", 1.0))[0])
        return size * down * float(np.atleast_1d(says.get("custom_downsample", 1.0))[0])
    return None


def inspect(path: Path, patches: Path | None = None, *, thorough: bool = False) -> Facts:
    """Shape, dtype, positions and a few rows of a feature file.

    Args:
        path: the file.
        patches: CLAM's patches file that belongs to it, where positions or step are not in the file itself.
        thorough: look at every position, even where that takes long.

    Raises:
        BadFile: the file cannot be used.
    """
    with _opened(path, patches) as raw:
        n, d = _shape(raw.features)
        rows = np.unique(np.linspace(0, n - 1, SAMPLED).astype(int))  # h5py wants them ascending and distinct
        sampled = _rows(raw.features, rows)
        dtype = str(raw.features.dtype)
        digest = hashlib.sha256(f"{n}|{d}|{dtype}|".encode() + np.ascontiguousarray(sampled).tobytes())
        lattice, aligned, duplicates = None, 0.0, 0
        if raw.coords is not None:
            chunks = getattr(raw.coords, "chunks", None)
            look = n if thorough or not chunks or chunks[-2] >= 16 else min(n, LOOK)
            xy = _rows(raw.coords, slice(look)).astype(np.float64)
            if not np.isfinite(xy).all():
                raise BadFile(path, "coords", "has positions that are NaN or infinite", "extract the slide again")
            digest.update(np.ascontiguousarray(_rows(raw.coords, rows), dtype=np.float64).tobytes())
            lattice, aligned, duplicates = _lattice(xy)
        said = {
            name: value.item() if isinstance(value, np.generic) else value
            for name, key in (("encoder", "encoder"), ("magnification", "target_magnification"), ("patch_size", "patch_size"))
            if (value := raw.says.get(key)) is not None and (name == "encoder" or "patch_size_level0" in raw.says)
        }
        return Facts(
            n=n,
            d=d,
            dtype=dtype,
            coords=raw.coords is not None,
            digest=digest.hexdigest()[:16],
            nonfinite=int((~np.isfinite(sampled)).any(axis=1).sum()),
            step=_step(raw.says) if raw.coords is not None else None,
            lattice=lattice,
            aligned=round(aligned, 4),
            duplicates=duplicates,
            says=said,
            squeezed=raw.features.ndim == 3,
        )


def contents(path: Path, patches: Path | None = None) -> str:
    """Hash of every number in a feature file: shape, dtype, features and positions, row by row.

    The same in every format, chunking, compression and byte order, and on every machine. Whole positions are the same as
    integers of any width and as floats.

    Args:
        path, patches: as :func:`inspect` takes them.

    Raises:
        BadFile: the file cannot be used, or breaks off.
    """
    with _opened(path, patches) as raw:
        features, (n, d) = raw.features, _shape(raw.features)
        dtype = features.dtype.newbyteorder("<")
        chunk = features.chunks[-2] if getattr(features, "chunks", None) else 1  # no chunk is read twice
        rows = -(-max(1, BLOCK // (d * dtype.itemsize)) // chunk) * chunk
        digest = hashlib.sha256(f"{n}|{d}|{dtype.name}|".encode())
        for start in range(0, n, rows):
            digest.update(_bytes(_rows(features, slice(start, start + rows)), dtype))
        if raw.coords is not None:
            xy = _rows(raw.coords, slice(None))
            with np.errstate(invalid="ignore"):  # what has no place among integers is not whole
                whole = xy.astype("<i8")
            is_whole = np.array_equal(whole, xy)
            digest.update(b"|whole|" if is_whole else b"|positions|")
            digest.update(_bytes(whole, "<i8") if is_whole else _bytes(xy, "<f8"))
        return digest.hexdigest()[:32]


def _bytes(array: NDArray[Any], dtype: Any) -> memoryview:
    return np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8).data


def read(path: Path, patches: Path | None = None) -> tuple[NDArray[np.float32], NDArray[Any] | None]:
    """Features (n, d) as float32, and positions (n, 2) in level-0 pixels or None.

    Raises:
        BadFile: the file cannot be used.
    """
    with _opened(path, patches) as raw:
        features = _rows(raw.features, slice(None)).astype(np.float32)  # a copy even of float32: mapped files close
        return features, None if raw.coords is None else np.array(_rows(raw.coords, slice(None)))


def _lattice(xy: NDArray[np.float64]) -> tuple[float | None, float, int]:
    """How patches lie. Contours may start anywhere, so distances are taken within rows and within columns only.

    Args:
        xy: (n, 2).

    Returns:
        The most common distance of neighbours, the share of patches that have a neighbour at it, and how many patches lie where
        another one does.
    """
    order = np.lexsort(xy.T)
    distinct = np.concatenate([[True], (np.diff(xy[order], axis=0) != 0).any(axis=1)])
    xy, duplicates = xy[order[distinct]], int((~distinct).sum())
    lines: Sequence[tuple[NDArray[Any], NDArray[np.float64]]] = [
        (order, np.where(np.diff(xy[order, across]) == 0, np.diff(xy[order, along]), np.inf))
        for along, across in ((0, 1), (1, 0))
        for order in [np.lexsort((xy[:, along], xy[:, across]))]
    ]
    gaps = np.concatenate([gap for _, gap in lines])
    values, counts = np.unique(gaps[np.isfinite(gaps)].round(3), return_counts=True)
    if not len(values):
        return None, 0.0, duplicates
    step = float(values[counts.argmax()])
    near = np.zeros(len(xy), dtype=bool)
    for order, gap in lines:
        hit = np.abs(gap - step) <= min(1.0, 0.02 * step)  # sizes scaled between magnifications are rounded to pixels
        near[order[:-1][hit]] = near[order[1:][hit]] = True
    return step, float(near.mean()), duplicates
