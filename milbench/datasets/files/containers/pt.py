"""PyTorch's files: one plain tensor, whose values are all in the file. Nothing that could run code is unpickled."""

import mmap
import pickle
import zipfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milbench.datasets.files.containers import AGAIN, Array, BadFile, Stored, fits, place, reading, regular
from milbench.errors import few

if TYPE_CHECKING:
    from torch import Tensor

FORM = "a torch file"
PLAIN = "store a plain tensor: torch.save(torch.from_numpy(features), path)"


def opened(path: Path, stack: ExitStack) -> Stored:
    """Features of a file.

    Raises:
        BadFile: it is not such a file, or cannot be read.
    """
    regular(path)
    with reading(path, FORM):
        zipped = zipfile.is_zipfile(path)
        held = _bytes_of_tensors(path, zipped)
        tensor = _plain(path, _load(path, zipped), held)
        if tensor.is_floating_point() and tensor.dtype not in _of_numpy():  # bfloat16 and eight bits, which NumPy has not
            tensor = tensor.float()
        return Stored(Array(path, FORM, tensor.resolve_neg().resolve_conj().numpy()), None, {})


def _load(path: Path, zipped: bool) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except (pickle.UnpicklingError, RuntimeError) as error:
        if "unsupported" in str(error).lower():
            raise BadFile(
                path, "pickle", "holds Python objects instead of a tensor (TRIDENT's .pt files hold a NumPy array); "
                "reading them can run code, so it was not read", f"let TRIDENT write h5 files, or {PLAIN}",
            ) from None  # fmt: skip
        raise BadFile(path, "unreadable", "cannot be read as a torch file", AGAIN) from error


def _bytes_of_tensors(path: Path, zipped: bool) -> int:
    """How many bytes the largest tensor of a file can have.

    Refuses what torch would unpack or allocate before anybody can ask for a size: packed parts, and `bytearray(10**12)`.
    """
    if zipped:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            for part in parts:
                if part.compress_type != zipfile.ZIP_STORED or part.file_size > path.stat().st_size:
                    raise BadFile(path, "size", f"packs its part {part.filename}, as torch never does", PLAIN)
            suspect = any(b"bytearray" in _stored(path, part) for part in parts if part.filename.endswith("data.pkl"))
            held = max((part.file_size for part in parts if "/data/" in part.filename), default=0)
    else:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            suspect, held = mapped.find(b"bytearray") >= 0, len(mapped)
    if suspect:
        raise BadFile(path, "pickle", "holds Python objects instead of a tensor", PLAIN)
    return held


def _stored(path: Path, part: zipfile.ZipInfo) -> bytes:
    """A part as it is: torch can write wrong checksums (`set_crc32_options`), over which zipfile would stumble."""
    with path.open("rb") as file:
        file.seek(place(path, part))
        return file.read(part.file_size)


def _plain(path: Path, value: Any, held: int) -> "Tensor":
    """The tensor, if it is one whose values are all stored, in at most `held` bytes.

    Raises:
        BadFile: it is something else, says what.
    """
    import torch

    if not isinstance(value, torch.Tensor):
        keys = f" with {few(map(str, value), 5)}" if isinstance(value, dict) else ""
        raise BadFile(
            path, "no-features", f"holds a {type(value).__name__}{keys} instead of a tensor", "store the (n, d) tensor alone"
        )
    odd = {
        "nested": value.is_nested,
        "quantised": value.is_quantized,
        "sparse": value.layout != torch.strided,
        f"on the device {value.device}, without values": value.device.type != "cpu",
    }
    if kinds := [kind for kind, it_is in odd.items() if it_is]:
        raise BadFile(path, "tensor", f"holds a tensor that is {kinds[0]}", f"{PLAIN}, of a dense tensor")
    storage = value.untyped_storage().nbytes()
    fits(path, "tensor", value.shape, storage, held, compressed=False)
    fits(path, "tensor", value.shape, value.numel() * value.element_size(), storage, compressed=False)
    return value.detach()


def _of_numpy() -> tuple[Any, ...]:
    import torch

    return torch.float16, torch.float32, torch.float64
