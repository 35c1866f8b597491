"""Attributes of feature files: what TRIDENT and CLAM say of their patches, in every spelling that leaves no doubt."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from milbench.datasets.files.containers import BadFile

MOST = 16  # values of an attribute; the longest that is known is a pair
LONGEST = 200  # characters of a text

# Numbers, and the smallest that makes sense. No slide is wider than `LARGEST` pixels.
NUMBERS = {
    "step": 1e-3, "patch_size": 1e-3, "patch_size_level0": 1e-3, "target_magnification": 1e-3, "downsample": 1e-3,
    "custom_downsample": 1e-3, "overlap": 0.0, "patch_level": 0.0, "level0_width": 1.0, "level0_height": 1.0,
}  # fmt: skip
LARGEST = 1e9
NAMES = frozenset(("encoder", *NUMBERS))
_UNSAID = {"", "none", "null", "n/a", "unknown"}


def plain(path: Path, name: str, value: Any) -> str | float | None:
    """An attribute as one text or number: that of an array of one, of a pair of equal numbers (within 1 %), of bytes, of "256".

    Args:
        path: the file.
        name: one of `NAMES`.
        value: as a library gives it.

    Returns:
        Text for `encoder`, else a number; None where an empty array, or a text such as "None", says nothing.

    Raises:
        BadFile: it is not clear what is meant, or it cannot be meant: a size of zero, NaN.
    """
    values = np.atleast_1d(np.asarray(value))
    if values.dtype.kind == "f":
        values = values.astype(np.float64)  # of long doubles, too
    if values.size > MOST:
        raise bad(path, name, f"has {values.size:,} values")
    items = [_item(path, name, item) for item in values.ravel().tolist()] if values.dtype.kind in "iufSUO" else [value]
    if not items or all(isinstance(item, str) and item.lower() in _UNSAID for item in items):
        return None
    first = items[0]
    if name == "encoder":
        if not isinstance(first, str) or any(item != first for item in items):
            raise bad(path, name, _shown(items))
        return first
    if any(isinstance(item, bool) or not isinstance(item, int | float) for item in items):
        raise bad(path, name, _shown(items))
    if not all(NUMBERS[name] <= item <= LARGEST for item in items):  # NaN is not, either
        raise bad(path, name, _shown(items))
    if any(abs(item - first) > 0.01 * abs(first) for item in items):  # OpenSlide's downsamples differ a little in x and y
        raise bad(path, name, _shown(items))
    return first


def _item(path: Path, name: str, item: Any) -> Any:
    """Bytes as text, and, but for `encoder`, text as a number where it is one."""
    if isinstance(item, bytes):
        try:
            item = item.decode()
        except UnicodeDecodeError:
            raise bad(path, name, "is not UTF-8 text") from None
    if not isinstance(item, str):
        return item
    item = item.strip("\0 \t\r\n")
    if len(item) > LONGEST:
        raise bad(path, name, f"is a text of {len(item):,} characters")
    if name == "encoder" or not re.fullmatch(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", item, re.ASCII | re.I):
        return item
    return int(item) if re.fullmatch(r"[+-]?\d{1,15}", item) else float(item)


def _shown(items: list[Any]) -> str:
    text = str(items[0]) if len(items) == 1 else ", ".join(map(str, items))
    return f"is {text if len(text) <= 60 else text[:57] + '...'}"


def bad(path: Path, name: str, what: str) -> BadFile:
    """The error of an attribute that cannot be used.

    Args:
        path, name: of file and attribute.
        what: a verb and what is wrong: "has 300 values".
    """
    if name == "encoder":
        do = "set it to one text, or delete it"
    else:
        do = f"set it to one number from {NUMBERS[name]:g} to {LARGEST:g}, or delete it"
    return BadFile(path, "attribute", f"has an attribute `{name}` that {what}", do)
