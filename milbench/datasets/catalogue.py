"""Which datasets and encoders are known by name."""

from dataclasses import dataclass
from typing import Literal

from milbench.datasets import classic
from milbench.datasets.base import Dataset
from milbench.errors import MilbenchError, NotHere, unknown

# Patch encoders of the LongMIL paper and the width of their features. Any other name works; its width is read from files.
ENCODERS = {"vits-lunit": 384, "vits-dino": 384, "hipt": 384, "resnet50": 1024, "uni": 1024, "gigapath": 1536}

# Datasets of the paper. Their features are the user's own.
PUBLISHED = ("bracs", "tcga-brca", "tcga-brca-survival", "tcga-coadread-survival", "tcga-stad-survival")


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
    missing = classic.missing()
    return [
        DatasetInfo(name, table.label, "subtyping", (classic.ENCODER,), missing is None, missing or "")
        for name, table in classic.TABLES.items()
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
        NotHere: a dataset of the paper, whose features are not here.
        MilbenchError: no such dataset or encoder, or its files are not installed.
    """
    if name in PUBLISHED:
        raise NotHere(f"no features of {name}; add them with: milbench data add {name} --encoder {encoder} ...")
    if name not in classic.TABLES:
        raise unknown("dataset", name, [*classic.TABLES, *PUBLISHED])
    if encoder != classic.ENCODER:
        raise unknown(f"encoder of dataset {name}", encoder, [classic.ENCODER])
    if magnification is not None or patch_size is not None:
        raise MilbenchError(f"dataset {name} has no magnification or patch size; leave them out of the suite")
    return classic.load(name)
