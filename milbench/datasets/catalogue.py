"""Which datasets and encoders are known by name."""

from dataclasses import dataclass
from typing import Any, Literal

from milbench.datasets import classic, spatial
from milbench.datasets.base import Dataset
from milbench.errors import MilbenchError, unknown

# Patch encoders of the LongMIL paper and the width of their features. Any other name works; its width is read from files.
ENCODERS = {"vits-lunit": 384, "vits-dino": 384, "hipt": 384, "resnet50": 1024, "uni": 1024, "gigapath": 1536}


@dataclass(frozen=True)
class DatasetInfo:
    """A line of `milbench ls datasets`."""

    name: str
    label: str
    task: str
    encoders: tuple[str, ...]
    available: bool
    why_not: str = ""


def infos() -> list[DatasetInfo]:
    """Every dataset known by name, whether or not its files are here."""
    missing, no_digits = classic.missing(), spatial.missing()
    return [
        DatasetInfo(name, table.label, "subtyping", (classic.ENCODER,), missing is None, missing or "")
        for name, table in classic.TABLES.items()
    ] + [
        DatasetInfo(name, spatial.label(name), "subtyping", spatial.ENCODERS, no_digits is None, no_digits or "")
        for name in spatial.NAMES
    ]


def load(
    name: str,
    encoder: str,
    magnification: int | None = None,
    patch_size: int | None = None,
    dtype: Literal["float32", "float16"] = "float32",
) -> Dataset:
    """The dataset `name` with features of `encoder`.

    Raises:
        MilbenchError: no such dataset or encoder, or its files are not installed.
    """
    if name not in [*classic.TABLES, *spatial.NAMES]:
        raise unknown("dataset", name, [*classic.TABLES, *spatial.NAMES])
    if magnification is not None or patch_size is not None:
        raise MilbenchError(f"dataset {name} has no magnification or patch size; leave them out of the suite")
    if name in spatial.NAMES:
        return spatial.load(name, encoder)
    if encoder != classic.ENCODER:
        raise unknown(f"encoder of dataset {name}", encoder, [classic.ENCODER])
    return classic.load(name)


def known(name: str) -> dict[str, Any]:
    """What is known of a generated dataset before any model is trained: chance, bayes, oracle and examples.

    Raises:
        MilbenchError: the dataset is not generated.
    """
    if name not in spatial.NAMES:
        raise unknown("generated dataset", name, spatial.NAMES)
    return spatial.known(name)
