"""A store of many finished trials: real specs of classic bags and honest predictions, only training was left out."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydantic_core

from milbench import datasets, plugins, stats, suites
from milbench.trials import plan as plans
from milbench.trials import predictions
from milbench.trials.plan import Job
from milbench.trials.spec import SCHEMA
from milbench.trials.store import PREDICTIONS, TRIAL, Store

DATASETS = ["musk1", "musk2", "elephant", "ucsb-breast", "protein"]
METHODS = [
    "mean", "max", "abmil", "abmil[gated=false]", "dsmil", "clam-sb", "clam-mb", "dtfd-maxs", "dtfd-maxmins", "dtfd-afs",
]  # fmt: skip
FOLDS, EPOCHS, VARIANTS = 10, 20, 4
SUITE = """
title = "Many trials"
[grid]
dataset = {datasets}
encoder = ["hand-crafted"]
split = ["kfold10"]
seed = {seeds}
aggregator = {methods}
[recipe]
name = "paper"
[table]
name = "many"
columns = ["dataset", "metric"]
metrics = ["macro_auc", "macro_f1"]
reference = "abmil"
"""


def make(root: Path, trials: int) -> Path:
    """A results folder with so many finished trials; returns the file of their suite."""
    each = len(DATASETS) * len(METHODS) * FOLDS
    path = root / "many.toml"
    root.mkdir(parents=True, exist_ok=True)
    path.write_text(
        SUITE.format(datasets=json.dumps(DATASETS), seeds=list(range(-(-trials // each))), methods=json.dumps(METHODS))
    )
    store, suite = Store(root / "results"), suites.load(str(path))
    if store.trials.exists():
        return path
    plugins.discover([])
    plan, jobs = suites.expand(suite)
    plans.merge(store, plan)
    suites.save_splits(jobs, store)
    tested: dict[tuple[str, int, int], tuple[str, dict[str, Any]]] = {}
    for job in jobs:
        key = job.cell.dataset, job.cell.fold, job.cell.seed % VARIANTS
        if key not in tested:
            tested[key] = _tested(*key, root)
        _write(store, job, *tested[key])
    return path


def _tested(name: str, number: int, variant: int, root: Path) -> tuple[str, dict[str, Any]]:
    """Predictions of one test part, as text, and their metrics."""
    dataset = datasets.load(name, "hand-crafted")
    samples = [dataset.sample(id) for id in dataset.folds("kfold10")[number].test]
    rng, target = np.random.default_rng([number, variant]), np.array([sample.label for sample in samples])
    logits = (target[:, None] == np.arange(2)) + rng.normal(size=(len(samples), 2))
    score = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)
    rows = [
        {"slide": s.id, "case": s.case_id, "fold": number, "instances": 9, "target": s.label, "p0": a, "p1": b}
        for s, (a, b) in zip(samples, score, strict=True)
    ]
    path = root / "predictions.csv"
    predictions.write(path, rows)
    return path.read_text(), stats.of_subtyping(target, score)


def _write(store: Store, job: Job, text: str, metrics: dict[str, Any]) -> None:
    """One trial, without waiting for the disk."""
    losses = np.random.default_rng([job.cell.seed, job.cell.fold]).random((EPOCHS, 3)).tolist()
    curve = [{"epoch": e, "train_loss": a, "val_loss": b, "val_macro_auc": c} for e, (a, b, c) in enumerate(losses, 1)]
    content = {
        "schema": SCHEMA, "trial_id": job.trial_id, "status": "ok", "reason": None, "traceback": None,
        "spec": job.spec.model_dump(mode="json"), "labels": job.labels, "metrics": {"test": metrics, "val": metrics},
        "selected": {"epoch": 7, "on": "val", "epochs_run": EPOCHS}, "curve": curve, "messages": [],
        "cost": {"seconds_per_step": 0.001, "parameters": 100_000, "seconds": losses[0][0], "peak_memory_bytes": 4 * 10**8},
        "provenance": {
            "milbench": "0.1.0", "git": "0123456789ab", "dirty": False, "python": "3.11.7", "torch": "2.13.0", "numpy": "2.3.0",
            "platform": "Linux x86_64", "cpu": "a CPU", "gpu": None, "threads": 1, "backends": {},
        },
        "sha256": {PREDICTIONS: hashlib.sha256(text.encode()).hexdigest()},
    }  # fmt: skip
    folder = store.folder(job.trial_id)
    folder.mkdir(parents=True)
    (folder / PREDICTIONS).write_text(text)
    (folder / TRIAL).write_bytes(pydantic_core.to_json(content, indent=1) + b"\n")


if __name__ == "__main__":
    make(Path(sys.argv[1]), int(sys.argv[2]))
