"""The paper's suites with made-up results: every table of the paper without its data."""

import numpy as np

from milbench import stats
from milbench.datasets import Dataset, Fold, Sample
from milbench.errors import NotHere
from milbench.suites import expand, load
from milbench.suites.model import whole, with_includes
from milbench.trials.plan import Plan, merge
from milbench.trials.store import PREDICTIONS, Store
from tests.builders.results import finished, predictions_file

FOLDS = {
    "official": 1,
    "hipt5": 5,
    "hipt10": 10,
    "hipt10-grouped": 10,
    "extrapolation": 1,
    "extrapolation-mixed": 1,
    "kfold10": 10,
}
LABELS = {"bracs": "BRACS", "tcga-brca": "TCGA-BRCA", "musk1": "MUSK1"}


def stand_in(n, missing=()):
    """A function like `datasets.load`, for datasets of `n` tested samples a fold; those of `missing` are not here."""

    def give(name, encoder, magnification, patch_size, dtype):
        if name in missing or encoder in missing:
            raise NotHere(f"no features of {name}, encoder {encoder}; add them with: milbench data add {name} --features FOLDER")
        survival = name.endswith("-survival")
        outcome = [{"time": 1.0 + i, "event": i % 3 > 0} if survival else {"label": i % 3} for i in range(n * 10)]
        samples = [Sample(f"{name}-{i:03d}", f"{name}-{i:03d}", **what) for i, what in enumerate(outcome)]
        ids = [s.id for s in samples]
        folds = [Fold((ids[-1],), () if survival else (ids[-2],), tuple(ids[i * n : (i + 1) * n])) for i in range(10)]
        return Dataset(
            name=name, label=LABELS.get(name, name.upper()), task="survival" if survival else "subtyping", unit="case" if survival else "slide",
            classes=() if survival else ("benign", "atypical", "malignant"), samples=tuple(samples), read=None, in_dim=384,
            has_coords=True, encoder=encoder, magnification=magnification, patch_size=patch_size, fingerprint="sha256:0",
            splits={split: (lambda k=count: folds[:k]) for split, count in FOLDS.items()}, notes=("made up",),
        )  # fmt: skip

    return give


def paper_store(root, name, *, n=30, missing=(), skip=lambda cell: False, **changes):
    """A store in which the suite `name` was run: LongMIL sees the truth a little better than the rest."""
    store, suite = Store(root), load(name)
    for leaf in with_includes(suite):
        plan, jobs = expand(leaf, load=stand_in(n, missing), **changes)
        merge(store, plan)
        for job in jobs:
            if not skip(job.cell) and store.raw(job.spec.trial_id) is None:
                write_result(store, job, n)
    for above in whole(suite):
        if above.grid is None and not above.made_by:
            merge(store, Plan(suite=above.name, definition=above.model_dump(mode="json")))
    return store


def write_result(store, job, n):
    s = job.spec
    rng = np.random.default_rng([s.fold, s.seed, *s.aggregator.encode()])
    slides = [f"{s.dataset}-{i:03d}" for i in range(s.fold * n, (s.fold + 1) * n)]
    noise = 1.1 if s.aggregator.startswith("longmil") else 1.4
    if s.task == "survival":
        time, event = np.arange(n) + 1.0, np.arange(s.fold * n, (s.fold + 1) * n) % 3 > 0
        risk = -time / n + noise * rng.normal(size=n)
        metrics, text = {"c_index": float(stats.c_index(time, event, risk))}, "slide,case,fold,time,event,risk\n"
        text += "".join(f"{a},{a},{s.fold},{t},{int(e)},{r:.9g}\n" for a, t, e, r in zip(slides, time, event, risk, strict=True))
        files = {PREDICTIONS: lambda path: path.write_text(text)}
    else:
        target = np.arange(s.fold * n, (s.fold + 1) * n) % 3
        score = np.exp(np.eye(3)[target] + noise * rng.normal(size=(n, 3)))
        score /= score.sum(1, keepdims=True)
        metrics = {name: float(getattr(stats, name)(target, score)) for name in ("macro_auc", "macro_f1", "accuracy")}
        files = predictions_file(slides, target, score, s.fold)
    result = finished(s, metrics, labels=job.labels)
    result.metrics["val"] = result.metrics["test"]
    store.write(result, files)
