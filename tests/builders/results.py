"""Results and stores made on the spot, without training or after a short one."""

import csv
import hashlib
import json

import numpy as np

from milbench import datasets, plugins, recipes, stats
from milbench.recipes import Recipe
from milbench.trials.plan import Cell, Plan, merge
from milbench.trials.run import run_trial
from milbench.trials.spec import TrialSpec
from milbench.trials.store import PREDICTIONS, Result, Store


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
