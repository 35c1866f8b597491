"""A trial in small, as digests: the same in a second run and in other processes, to the byte."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from milbench import plugins, process
from milbench.contract.bags import IN_DIM, SIZES, bag, labelled
from milbench.contract.faults import require, unseeded
from milbench.plugins import Variant
from milbench.recipes import get as get_recipe
from milbench.tasks import Subtyping
from milbench.training.state import as_bytes


def numbers(variant: Variant) -> dict[str, str]:
    """A trial in small, from its seed on: digests of the fresh weights, of the weights after training and of predictions."""
    task, digests = Subtyping("abc"), {}
    process.seed(0)
    model = variant.build(IN_DIM, 3)
    digests["the fresh weights"] = _digest(model.state_dict().items())
    bags, targets = zip(*labelled(task), strict=True)
    model.prepare(bags, torch.Generator().manual_seed(0))
    if model.trained_by_gradient:
        optimisers = model.optimisers(get_recipe("paper", "subtyping"))
        model.train()
        for shown, target in zip(bags, targets, strict=True):
            model.training_step(shown, target, task, optimisers)
    else:
        model.fit(bags, targets)
    digests["the weights after training"] = _digest(model.state_dict().items())
    model.eval()
    with torch.no_grad():
        digests["the predictions"] = _digest((str(n), model(bag(n, seed=n)).logits) for n in SIZES)
    return digests


def _digest(values: Iterable[tuple[str, Any]]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(values, key=lambda item: item[0]):
        digest.update(name.encode())
        digest.update(as_bytes(value) if isinstance(value, Tensor) else repr(value).encode())
    return digest.hexdigest()


def repeats(variant: Variant) -> None:
    """The same trial twice in one process gives the same weights and predictions, to the byte."""
    advice = "draw from the global generators of torch, NumPy or Python, which trials seed; keep nothing from model to model"
    _same(numbers(variant), numbers(variant), "a second run of the same seed", advice, unseeded(variant))


def elsewhere(variant: Variant) -> None:
    """The same trial in other processes, which hash text otherwise, gives the same weights and predictions, to the byte."""
    here = numbers(variant)
    if here != numbers(variant):
        return  # not even in this process, as `repeats` says
    for there in in_other_processes([variant]):
        _same(here, there[variant.name], "another process", "sort what comes out of a set, and take no seed from hash()")


def _same(first: dict[str, str], second: dict[str, str], which: str, advice: str, where: str | None = None) -> None:
    differ = [what for what, digest in first.items() if second[what] != digest]
    require(not differ, f"{differ[0] if differ else ''} differ in {which}: {advice}", where)


def in_other_processes(variants: Sequence[Variant], hash_seeds: Sequence[int] = (1, 2)) -> list[dict[str, dict[str, str]]]:
    """Name -> :func:`numbers` of each variant, once for every seed of Python's hash, each in a process of its own.

    Raises:
        ContractError: such a process fails, as it does for a class that is in no file that milbench has loaded.
    """
    code = "import sys; from milbench import contract; contract.print_numbers(*sys.argv[1:])"
    what = json.dumps([variant.name for variant in variants]), json.dumps([str(path) for path in plugins.files()])
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, *what],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},  # noqa: TID251 - handed on
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in hash_seeds
    ]
    answers = []
    for child in running:
        out, errors = child.communicate()
        require(child.returncode == 0, f"does not run in another process: {(errors.strip().splitlines() or ['?'])[-1]}")
        answers.append(json.loads(out.splitlines()[-1]))
    return answers


def print_numbers(names: str, files: str) -> None:
    """Body of such a process: print one line of JSON."""
    plugins.discover(json.loads(files))
    process.settle(threads=1)
    print(json.dumps({name: numbers(plugins.resolve(name)) for name in json.loads(names)}))  # noqa: T201 - its answer
