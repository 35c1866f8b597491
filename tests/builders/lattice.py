"""A small dataset on a lattice, and trials on it with stored weights."""

import h5py
import torch
from click.testing import CliRunner

from milbench import datasets, plugins, recipes
from milbench.bags import Bag
from milbench.cli import main
from milbench.datasets import Dataset, Fold, Sample
from milbench.trials.run import run_trial
from milbench.trials.spec import TrialSpec
from milbench.trials.store import Store


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


def feature_file(path, bag, **attributes):
    """Write the bag as an h5 file with attributes beside its coordinates."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["features"], file["coords"] = bag.features.numpy(), bag.coords.numpy()
        file["coords"].attrs.update(attributes)
    return path


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


def trained_trial(root, monkeypatch, text, dataset, *, keep_model=True, standardise=False):
    """Train `text` for two epochs at a rate that moves the weights; the trial's id."""
    monkeypatch.setattr(datasets, "load", lambda *names, **more: dataset)
    variant = plugins.resolve(text)
    trial = TrialSpec(
        dataset=dataset.name, fingerprint=dataset.fingerprint, unit=dataset.unit, task=dataset.task, encoder="none",
        aggregator=variant.entry.name, params=variant.params, implementation=variant.implementation, split="one",
        split_fingerprint=dataset.split_fingerprint("one"), fold=0, seed=0, standardise=standardise,
        recipe=recipes.get("paper", dataset.task, has_validation=bool(dataset.folds("one")[0].val), max_epochs=2, lr=0.03),
    )  # fmt: skip
    store = Store(root)
    assert run_trial(trial, store, {}, keep_model=keep_model) == "ok", store.read(trial.trial_id)
    return trial.trial_id


def milbench(*words, code=0):
    """Run a command in this process; its output."""
    done = CliRunner().invoke(main, list(map(str, words)))
    assert done.exit_code == code, done.output
    return done.output
