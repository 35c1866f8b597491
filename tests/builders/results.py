"""Small datasets and stores made on the spot."""

import csv
import hashlib
import json

import numpy as np
import torch

from milbench.bags import Bag
from milbench.datasets import Dataset, Fold, Sample
from milbench.recipes import Recipe
from milbench.trials.plan import Cell, Plan, merge
from milbench.trials.spec import TrialSpec
from milbench.trials.store import PREDICTIONS, Result, Store


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


def spec(**changes):
    """A spec with every field decided."""
    values = dict(
        dataset="toy", fingerprint="sha256:0", unit="slide", task="subtyping", encoder="none", aggregator="abmil", params={"hidden": 8},
        implementation="abmil@1", split="one", split_fingerprint="sha256:1", fold=0, seed=0, recipe=Recipe(name="paper"),
    )  # fmt: skip
    return TrialSpec(**{**values, **changes})


def cell_of(trial, label=None):
    """The place of a trial in a plan."""
    return Cell(
        trial_id=trial.trial_id, context=trial.context(trial.recipe.model_dump()), aggregator=trial.aggregator, label=label or trial.aggregator,
        dataset=trial.dataset, dataset_label="Toy", encoder=trial.encoder, magnification=trial.magnification,
        patch_size=trial.patch_size, split=trial.split, fold=trial.fold, seed=trial.seed,
    )  # fmt: skip


def finished(trial, metrics=None, **changes):
    """A result as a finished trial writes it."""
    result = dict(
        trial_id=trial.trial_id, spec=trial, status="ok", metrics={"test": metrics or {"macro_auc": 0.5, "macro_f1": 0.5}},
        selected={"epoch": 1, "on": "val", "epochs_run": 1}, cost={"seconds": 1.0},
        provenance={"milbench": "0.1.0", "torch": "2.13.0", "cpu": "a CPU", "gpu": None},
    )  # fmt: skip
    return Result(**{**result, **changes})


def predictions_file(slides, target, score, fold=0, instances=None):
    """A function that writes predictions.csv of a subtyping trial, with the sizes of the bags where they are given."""

    def save(path):
        with path.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            sized = ["instances"] if instances is not None else []
            writer.writerow(["slide", "case", "fold", *sized, "target", *(f"p{c}" for c in range(score.shape[1]))])
            sizes = [[]] * len(slides) if instances is None else [[n] for n in instances]
            for slide, size, y, p in zip(slides, sizes, target, score, strict=True):
                writer.writerow([slide, slide, fold, *size, y, *(f"{v:.9g}" for v in p)])

    return {PREDICTIONS: save}


def sign(store, trial_id):
    """Make trial.json say that the files are as they are now, as a forger would."""
    path = store.folder(trial_id) / "trial.json"
    content = json.loads(path.read_text())
    for name in content["sha256"]:
        content["sha256"][name] = hashlib.sha256((path.parent / name).read_bytes()).hexdigest()
    path.write_text(json.dumps(content))


def made_up_suite(root, methods, *, folds=3, seeds=1, n=30, skip=(), name="made-up", title="Made up", **plan_changes):
    """A store with a suite whose methods see the truth through `methods[name] = noise`; `skip` maps (method, fold, seed) to a status.

    Returns the store and the plan.
    """
    from milbench import stats

    skip = dict(skip)
    store, cells = Store(root), []
    for fold in range(folds):
        target = np.arange(n) % 3
        slides = [f"f{fold}-{i:03d}" for i in range(n)]
        for seed in range(seeds):
            for number, (method, noise) in enumerate(methods.items()):
                trial = spec(aggregator=method, fold=fold, seed=seed, params={})
                cells.append(cell_of(trial, method.upper()))
                state = skip.get((method, fold, seed), "ok")
                if state == "pending":
                    continue
                if state != "ok":
                    store.write(finished(trial, status=state, metrics={}, reason=f"because of {state}"))
                    continue
                rng = np.random.default_rng([fold, seed, number])
                logits = np.eye(3)[target] + noise * rng.normal(size=(n, 3))
                score = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
                score = np.array([[float(f"{v:.9g}") for v in row] for row in score])
                metrics = {"macro_auc": float(stats.macro_auc(target, score)), "macro_f1": float(stats.macro_f1(target, score))}
                store.write(finished(trial, metrics), predictions_file(slides, target, score, fold))
    definition = {
        "name": name, "title": title, "reproduces": "", "task": "subtyping", "includes": [], "recipe": {"name": "paper"},
        "grid": {"aggregator": list(methods)},
        "table": {"name": name, "columns": ["metric"], "metrics": ["macro_auc", "macro_f1"], "groups": [], "reference": "abmil"},
    }  # fmt: skip
    plan = merge(store, Plan(suite=name, definition={**definition, **plan_changes}, notes=["Toy: 90 slides"], cells=cells))
    return store, plan
