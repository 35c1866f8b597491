"""A few training steps and predictions of every distinct model on stand-in bags of two sizes, with their time and memory."""

import json
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from milbench import machine, process, tasks
from milbench.aggregator import Aggregator
from milbench.bags import Bag
from milbench.config import Settings
from milbench.datasets import Dataset
from milbench.errors import MilbenchError
from milbench.files import write_atomically
from milbench.nn.optimisers import Optimiser
from milbench.rehearsal.stand_in import dataset_of, sizes_of, stand_in
from milbench.seeds import derive_seed
from milbench.tasks import Task, to_device
from milbench.training import Bags
from milbench.trials import plan as plans
from milbench.trials.plan import Job
from milbench.trials.run import Files, OnEpoch, build_model
from milbench.trials.spec import TrialSpec
from milbench.trials.store import Result, Store

STEPS, PREDICTIONS = 4, 2  # for each distinct model and size of bag
COARSE = 4  # the smaller of the two sizes is this much smaller


def mark(store: Store, scale: float) -> None:
    """Mark the store as a rehearsal's, so that no report takes it for results.

    Raises:
        MilbenchError: results are in it.
    """
    if plans.names(store):
        raise MilbenchError(f"{store.root} holds results; a rehearsal needs a folder of its own")
    text = {"REHEARSAL": "stand-in bags: nothing in this folder is a result", "scale": scale}
    write_atomically(plans.marker(store), json.dumps(text, indent=1) + "\n")


def distinct(jobs: Sequence[Job], scale: float, settings: Settings | None = None) -> dict[str, Job]:
    """Trial id -> the job that is rehearsed for it: one for each aggregator with its parameters, width, task and size of bag."""
    first: dict[str, Job] = {}
    chosen = {}
    for job in jobs:
        s = job.spec
        data = dataset_of(job, scale, settings)
        sizes = sizes_of(data).values()
        # The rate of dropout costs nothing, but whether there is dropout does.
        params = {**s.params, **({"dropout": bool(s.params["dropout"])} if "dropout" in s.params else {})}
        key = [s.aggregator, params, s.recipe.optimiser, data.in_dim, data.task, len(data.classes), s.threads, s.device]
        key.append(round(sum(sizes) / len(sizes)))
        chosen[s.trial_id] = first.setdefault(json.dumps(key, sort_keys=True), job)
    return chosen


def measured(
    spec: TrialSpec, keep_model: bool, on_epoch: OnEpoch, *, scale: float, settings: Settings | None = None
) -> tuple[Result, Files]:
    """The body of a rehearsed trial: a few steps and predictions at two sizes, with their time and memory in the result's cost.

    Args:
        spec: from :func:`milbench.suites.expand` with stand-in datasets.
        keep_model, on_epoch: not used; every body of a trial takes them.
        scale: real bags are this much larger.
        settings: where datasets are; what the environment says unless given.
    """
    where = (spec.dataset, spec.encoder, spec.magnification, spec.patch_size)
    dataset = stand_in(scale, *where, dtype=spec.feature_dtype, settings=settings)
    fold = dataset.folds(spec.split)[spec.fold]
    task = tasks.for_fold(dataset, fold.train)
    process.seed(derive_seed(*spec.axes, "weights"))
    model = build_model(spec, dataset, task.n_out)
    meter = _Meter(model, task, model.optimisers(spec.recipe) if model.trained_by_gradient else [], spec.device)
    for size in (COARSE * scale, scale):
        data = stand_in(size, *where, dtype=spec.feature_dtype, settings=settings)
        meter.measure(
            Bags(data, _typical(data, fold.train, STEPS), device=spec.device),
            Bags(data, _typical(data, fold.val or fold.test, PREDICTIONS), device=spec.device),
        )
    cost = {"parameters": sum(p.numel() for p in model.parameters()), "rehearsal": meter.costs}
    return Result(trial_id=spec.trial_id, spec=spec, status="ok", cost=cost, messages=["REHEARSAL"]), {}


class _Meter:
    """Measures one model; `costs` has [instances, seconds] of each step and prediction, and [instances, bytes] of each size."""

    def __init__(self, model: Aggregator, task: Task, optimisers: Sequence[Optimiser], device: str) -> None:
        self._model, self._task, self._optimisers, self._device = model, task, optimisers, device
        self.costs: dict[str, Any] = {"train": [], "predict": [], "peak": [], "prepare_seconds": 0.0}

    def measure(self, train: Bags, held_out: Bags) -> None:
        """Train on some bags of about one size and predict others, all of which are read first."""
        tested, bags = list(held_out), list(train)
        targets = [to_device(self._task.target(sample), self._device) for sample in train.samples]
        self._reset_peak()
        self.costs["prepare_seconds"] = self._seconds(partial(self._model.prepare, bags, torch.Generator().manual_seed(0)))
        self._model.train()
        if self._model.trained_by_gradient:
            self._train(bags, targets)
        else:
            seconds = self._seconds(partial(self._model.fit, bags, targets)) / len(bags)
            self.costs["train"] += [[len(bag), seconds] for bag in bags]
        self.costs["peak"].append([max(map(len, bags)), machine.peak_memory(self._device) or 0])
        self._model.eval()
        for bag in tested:
            self.costs["predict"].append([len(bag), self._seconds(partial(self._predict, bag))])

    def _train(self, bags: Sequence[Bag], targets: Sequence[Any]) -> None:
        for number, (bag, target) in enumerate(zip(bags, targets, strict=True)):
            if number == 1:  # the first step loads libraries and makes the optimiser's state
                self._reset_peak()
            self.costs["train"].append([len(bag), self._seconds(partial(self._step, bag, target))])

    def _step(self, bag: Bag, target: Any) -> None:
        loss = float(self._model.training_step(bag, target, self._task, self._optimisers))
        if not math.isfinite(loss):
            raise ArithmeticError(f"the training loss is {loss} on a stand-in bag of {len(bag)} instances")

    @torch.no_grad()
    def _predict(self, bag: Bag) -> None:
        if not torch.isfinite(self._model.scores(self._model(bag), self._task)).all():
            raise ArithmeticError(f"the prediction is not finite on a stand-in bag of {len(bag)} instances")

    def _reset_peak(self) -> None:
        machine.release_memory()
        machine.reset_peak_memory(self._device)

    def _seconds(self, call: Callable[[], object]) -> float:
        wait = torch.cuda.synchronize if self._device == "cuda" else lambda: None
        wait()
        started = time.perf_counter()
        call()
        wait()
        return time.perf_counter() - started


def _typical(dataset: Dataset, ids: Sequence[str], count: int) -> list[str]:
    """The ids whose bags are nearest to the average size; the first again where there are not enough."""
    sizes = sizes_of(dataset)
    mean = sum(sizes[id] for id in ids) / len(ids)
    nearest = sorted(ids, key=lambda id: (abs(sizes[id] - mean), id))[:count]
    return nearest + nearest[:1] * (count - len(nearest))
