"""Reports and figures of made-up results: the one whose files are stored, and a suite whose bags have sizes."""

import math

import numpy as np

from milbench.report import build, write
from milbench.trials.plan import Plan, merge
from milbench.trials.store import Store
from tests import ROOT
from tests.builders.results import cell_of, finished, made_up_suite, predictions_file, spec

GOLDEN = ROOT / "tests" / "golden" / "report"
NOISE = {
    "mean": 2.5,
    "abmil": 1.0,
    "dsmil": 0.9,
    "odd_name & 100% #1": 0.5,
}  # of each method: the less, the better it sees the truth
LAYOUT = {"columns": ["metric"], "groups": [], "metrics": ["macro_f1", "macro_auc"]}


def golden(folder, formats):
    """Results made up on the spot, and their report in `folder`/report."""
    skip = {("dsmil", 1, 0): "failed", ("mean", 0, 0): "pending"}
    store, _ = made_up_suite(folder, NOISE, seeds=3, skip=skip, title="Names with _ & % #")
    return write(build(store, "made-up"), folder / "report", formats)


def plan_of(store, name, rows, cells, *, reference="abmil", task="subtyping", metrics=("macro_f1", "macro_auc"), **more):
    definition = {
        "name": name, "title": f"Made up: {name}", "reproduces": "", "task": task, "includes": [], "recipe": {"name": "paper"},
        "grid": {"aggregator": rows}, "table": {**LAYOUT, "name": name, "reference": reference, "metrics": list(metrics)}, **more,
    }  # fmt: skip
    return merge(store, Plan(suite=name, definition=definition, cells=cells))


CHANCES = {  # method -> instances -> how often it is right
    "abmil": lambda n: 0 * n + 0.7,
    "transmil": lambda n: np.clip(1.7 - 0.1 * np.log2(n), 0, 1),  # 10 points fewer with each doubling
    "longmil": lambda n: 0 * n + 0.75,
    "mine": lambda n: 0 * n + 1.0,
}


def sized_suite(root, methods, *, splits=("official",), seeds=2, n=60):
    """Methods that are right with probability `methods[name](instances)`; curves fall, and rise again on validation."""
    store, cells = Store(root), []
    sizes = np.round(np.geomspace(200, 20_000, n)).astype(int)
    target = np.arange(n) % 3
    for split in splits:
        for seed in range(seeds):
            for number, (method, chance) in enumerate(methods.items()):
                trial = spec(aggregator=method, split=split, seed=seed, params={})
                cells.append(cell_of(trial, method.upper()))
                rng = np.random.default_rng([seed, number, len(split)])
                right = rng.random(n) < chance(sizes)
                score = np.eye(3)[np.where(right, target, (target + 1) % 3)] * 0.6 + 0.4 / 3
                epochs = np.arange(1, 13 + 2 * seed)
                curve = [
                    {"epoch": int(e), "train_loss": math.exp(-e / 6), "val_loss": math.exp(-e / 5) + 0.02 * e + 0.1 * number, "val_macro_auc": 0.5}
                    for e in epochs
                ]  # fmt: skip
                metrics = {name: float(right.mean()) - 0.01 * k for k, name in enumerate(LAYOUT["metrics"])}
                store.write(
                    finished(trial, metrics, curve=curve, selected={"epoch": 7 + seed, "on": "val", "epochs_run": len(curve)}),
                    predictions_file([f"s{i:03d}" for i in range(n)], target, score, instances=sizes),
                )
    return store, plan_of(store, "sized", list(methods), cells)
