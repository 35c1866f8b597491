"""Small datasets made on the spot: separable bags, and bags on a lattice."""

import torch

from milbench.bags import Bag
from milbench.datasets import Dataset, Fold, Sample


def toy_dataset(n=20, task="subtyping", folds=None, shift=1.0, d=6):
    """Separable bags of 2 to 9 instances; survival times grow where the features shrink."""
    samples = []
    for i in range(n):
        outcome = {"label": i % 2} if task == "subtyping" else {"time": float(1 + i), "event": i % 3 != 0}
        samples.append(Sample(f"s{i:02d}", f"s{i:02d}", **outcome))
    order = {s.id: i for i, s in enumerate(samples)}

    def read(id):
        i = order[id]
        generator = torch.Generator().manual_seed(i)
        at = shift * (i % 2) if task == "subtyping" else -shift * i / n * 3
        return Bag(torch.randn(2 + i % 8, d, generator=generator) + at, slide_id=id, case_id=id, source=f"{id}.h5")

    ids = [s.id for s in samples]
    folds = folds or [Fold(tuple(ids[: n // 2]), tuple(ids[n // 2 : 3 * n // 4]), tuple(ids[3 * n // 4 :]))]
    return Dataset(
        name="toy", label="Toy", task=task, unit="slide", classes=("a", "b") if task == "subtyping" else (), samples=tuple(samples),
        read=read, in_dim=d, has_coords=False, encoder="none", fingerprint="sha256:0", splits={"one": lambda: folds},
    )  # fmt: skip


def lattice(n, seed=0, d=5, slides=1):
    """n patches on an irregular piece of a lattice of 32 pixels that does not start at 0."""
    generator = torch.Generator().manual_seed(seed)
    side = int((2 * n) ** 0.5) + 2
    cell = torch.randperm(side * side, generator=generator)[:n].sort().values
    coords = torch.stack([cell % side, cell // side], dim=1) * 32 + torch.tensor([100, 700])
    index = torch.arange(n) * slides // n if slides > 1 else None
    return Bag(
        torch.randn(n, d, generator=generator), coords, 32.0, slide_id=f"s{seed:02d}", case_id=f"s{seed:02d}", slide_index=index
    )


def lattice_dataset(task="subtyping", n=12, slides=1):
    """Bags of 40 to 51 patches; the last one is the test part."""
    samples = [
        Sample(
            f"s{i:02d}", f"s{i:02d}", **({"label": i % 2} if task == "subtyping" else {"time": float(1 + i), "event": i % 3 > 0})
        )
        for i in range(n)
    ]
    ids = [s.id for s in samples]
    fold = Fold(tuple(ids[:-4]), tuple(ids[-4:-2]) if task == "subtyping" else (), tuple(ids[-2:]))
    return Dataset(
        name="lattice", label="Lattice", task=task, unit="slide" if slides == 1 else "case",
        classes=("benign", "malignant") if task == "subtyping" else (), samples=tuple(samples),
        read=lambda id: lattice(40 + int(id[1:]), int(id[1:]), slides=slides), in_dim=5, has_coords=True, encoder="none",
        fingerprint="sha256:0", splits={"one": lambda: [fold]},
    )  # fmt: skip
