"""What is written before the first trial: packed features, the splits as tables, and what is known of generated tasks."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from milbench import datasets
from milbench.files import csv_cell, write_atomically
from milbench.suites.expand import Load
from milbench.suites.model import Suite, whole
from milbench.trials.plan import Job, Plan
from milbench.trials.spec import TrialSpec
from milbench.trials.store import Store


def pack(jobs: Iterable[Job], say: Callable[[str], None], load: Load = datasets.load) -> None:
    """Write the packed store of every dataset behind `jobs` that has none, so that no trial waits for it or fails.

    Args:
        jobs: what is about to run.
        say: called with a line for each file that is written.
        load: gives the datasets, as :func:`milbench.datasets.load` does.

    Raises:
        MilbenchError: the disk is too small, or a bag cannot be read.
    """
    from milbench.datasets.packed import Pack  # loads torch, which a list of suites does not need

    for dataset in _datasets(_specs(jobs), load):
        if isinstance(dataset.read, Pack):
            dataset.read.build(say)


def composed(suite: Suite) -> list[Plan]:
    """The plans of those suites, of the suite and what it includes, that have no grid: they consist of their includes."""
    return [Plan(suite=part.name, definition=part.model_dump(mode="json")) for part in whole(suite) if part.grid is None]


def with_known(plan: Plan) -> Plan:
    """The plan with the chance and best scores of its generated datasets, which a report prints beside the models.

    Only for suites that expect outcomes; other plans stay as they are.
    """
    if not plan.definition.get("expect"):
        return plan
    known = {name: datasets.known(name) for name in plan.definition["grid"]["dataset"]}
    return plan.model_copy(update={"definition": {**plan.definition, "known": known}})


def save_splits(jobs: Iterable[Job], store: Store, load: Load = datasets.load) -> list[Path]:
    """Write who is trained on and tested, once for each split behind `jobs`: `splits/<dataset>-<split>-<fingerprint>.csv`.

    Columns fold, part, id, case. A file that is there is left alone: its name says what is in it.

    Returns:
        The files of these splits.
    """
    paths: dict[Path, TrialSpec] = {}
    for s in _specs(jobs):
        paths.setdefault(store.root / "splits" / f"{s.dataset}-{s.split}-{s.split_fingerprint.removeprefix('sha256:')}.csv", s)
    for path, s in paths.items():
        if path.exists():
            continue
        (dataset,) = _datasets([s], load)
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["fold", "part", "id", "case"])
        for number, fold in enumerate(dataset.folds(s.split)):
            for part, ids in zip(("train", "val", "test"), fold, strict=True):
                writer.writerows([number, part, csv_cell(id), csv_cell(dataset.sample(id).case_id)] for id in ids)
        write_atomically(path, out.getvalue())
    return list(paths)


def _specs(jobs: Iterable[Job]) -> Iterable[TrialSpec]:
    """The specs of the jobs, one of those that differ in fold and seed only."""
    return {id(job.like): job.like for job in jobs}.values()


def _datasets(specs: Iterable[TrialSpec], load: Load) -> Iterator[datasets.Dataset]:
    """The datasets of these trials, each once."""
    for *where, dtype in dict.fromkeys((s.dataset, s.encoder, s.magnification, s.patch_size, s.feature_dtype) for s in specs):
        yield load(*where, dtype=dtype)
