"""What every aggregator must keep, as checks: the test suite runs them over the registry, authors run them on their own.

milbench check aggregator mine --plugin mine.py
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from milbench import plugins, process
from milbench.aggregator import Aggregator
from milbench.bags import Bag
from milbench.ops import OPERATIONS, backends
from milbench.plugins import Variant
from milbench.recipes import get as get_recipe
from milbench.tasks import Subtyping, Survival, SurvivalTarget

IN_DIM = 24
SIZES = (1, 2, 7, 37)


class ContractError(AssertionError):
    """An aggregator breaks the contract; the message says how, and what would mend it."""


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ContractError(message)


def _bag(n: int, seed: int, shift: float = 0.0, *, coords: bool = True) -> Bag:
    """n patches on an irregular piece of a 224-pixel lattice."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, IN_DIM, generator=generator) + shift
    if not coords:
        return Bag(x, slide_id=f"check-{seed}", case_id=f"check-{seed}")
    side = int((2 * n) ** 0.5) + 2
    cell = torch.randperm(side * side, generator=generator)[:n].sort().values
    xy = torch.stack([cell % side, cell // side], dim=1) * 224
    return Bag(x, xy, 224.0, slide_id=f"check-{seed}", case_id=f"check-{seed}")


def _fresh(variant: Variant, n_out: int = 3, seed: int = 0) -> Aggregator:
    torch.manual_seed(seed)
    model = variant.build(IN_DIM, n_out)
    bags = [_bag(n, seed=100 + n) for n in (20, 21, 22, 23, 24, 25)]
    model.prepare(bags, torch.Generator().manual_seed(0))
    if not model.trained_by_gradient:
        model.fit(bags, [torch.tensor(i % n_out) for i in range(len(bags))])
    return model.eval()


def shapes(variant: Variant) -> None:
    """Logits are (n_out,) and finite, attention is None or (n,), for bags of 1, 2, 7 and 37, for both tasks."""
    for n_out in (2, 3, 4):
        model = _fresh(variant, n_out)
        for n in SIZES:
            with torch.no_grad():
                prediction = model(_bag(n, seed=n))
            _require(
                prediction.logits.shape == (n_out,),
                f"logits of a bag of {n} are {tuple(prediction.logits.shape)}, expected ({n_out},)",
            )
            _require(bool(torch.isfinite(prediction.logits).all()), f"logits of a bag of {n} are not finite")
            a = prediction.attention
            _require(
                a is None or a.shape == (n,),
                f"attention of a bag of {n} is {None if a is None else tuple(a.shape)}, expected ({n},)",
            )
            scores = model.scores(prediction, Subtyping([str(c) for c in range(n_out)]))
            _require(scores.shape == (n_out,), f"scores are {tuple(scores.shape)}, expected ({n_out},)")


def coordinates(variant: Variant) -> None:
    """With needs_coords = False a bag without coordinates is predicted; with True the positions change the prediction."""
    model, bag = _fresh(variant), _bag(37, seed=1)
    if not model.needs_coords:
        with torch.no_grad():
            without = model(_bag(37, seed=1, coords=False)).logits
        _require(torch.equal(without, model(bag).logits), "predicts otherwise without coordinates; set needs_coords = True")
        return
    scattered = torch.stack([torch.arange(37) % 7, torch.arange(37).flip(0)], dim=1) * 224 * 3
    moved = Bag(bag.features, scattered, 224.0)
    with torch.no_grad():
        _require(not torch.equal(model(bag).logits, model(moved).logits), "positions change nothing; set needs_coords = False")


def cases(variant: Variant) -> None:
    """A case of three slides, one of them a single patch, is predicted; slide_index tells which slide a patch came from."""
    model, bags = _fresh(variant), [_bag(n, seed=n) for n in (20, 1, 16)]
    slide = torch.tensor([i for i, bag in enumerate(bags) for _ in range(len(bag))])
    coords = torch.cat([bag.coords for bag in bags if bag.coords is not None])
    case = Bag(torch.cat([bag.features for bag in bags]), coords, 224.0, slide_index=slide, slide_id="case", case_id="case")
    with torch.no_grad():
        logits = model(case).logits
    _require(
        logits.shape == (3,) and bool(torch.isfinite(logits).all()), f"logits of a case of three slides are {logits.tolist()}"
    )


def permutation(variant: Variant) -> None:
    """Permuting the bag changes the prediction exactly where order_sensitive says so."""
    model, bag = _fresh(variant), _bag(37, seed=2)
    largest = 0.0
    with torch.no_grad():
        reference = model(bag).logits
        for seed in range(3):
            order = torch.randperm(37, generator=torch.Generator().manual_seed(seed))
            assert bag.coords is not None
            permuted = Bag(bag.features[order], bag.coords[order], bag.step, slide_id=bag.slide_id, case_id=bag.case_id)
            largest = max(largest, float((model(permuted).logits - reference).abs().max() / reference.abs().max()))
    if model.order_sensitive:
        _require(largest > 1e-5, f"order_sensitive = True, but a permutation changes the logits by {largest:.1e} only")
    else:
        _require(largest < 1e-4, f"order_sensitive = False, but a permutation changes the logits by {largest:.1e}")


def determinism(variant: Variant) -> None:
    """The same seed gives the same weights, the same bag the same prediction, in eval mode, after training mode too."""
    first, second, bag = _fresh(variant), _fresh(variant), _bag(37, seed=3)
    with torch.no_grad():
        reference = first(bag).logits
        _require(
            torch.equal(reference, second(bag).logits),
            "two models of the same seed differ; draw weights with torch's generator only",
        )
        first.train()
        first(bag)
        first.eval()
        _require(
            torch.equal(reference, first(bag).logits),
            "eval mode is not deterministic, or a forward in training mode left a trace",
        )


def untouched(variant: Variant) -> None:
    """A forward pass leaves the bag as it was."""
    model, bag = _fresh(variant), _bag(37, seed=4)
    before = bag.features.clone()
    model(bag)
    _require(torch.equal(before, bag.features), "the forward pass changed bag.features in place")


def _steps(model: Aggregator, task: Subtyping | Survival) -> Iterator[tuple[Bag, Tensor | SurvivalTarget]]:
    for i in range(2 * task.n_out):
        bag = _bag(30 + i, seed=10 + i, shift=0.3 * (i % task.n_out))
        target = torch.tensor(i % task.n_out)
        yield bag, target if isinstance(task, Subtyping) else SurvivalTarget(target, torch.tensor(i % 2 == 0))


def gradients(variant: Variant) -> None:
    """In both tasks the loss is finite and needs no step to be defined; in subtyping it reaches every parameter."""
    for task in (Subtyping("abc"), Survival([1.0, 2.0, 3.0])):
        model = _fresh(variant, task.n_out)
        if not model.trained_by_gradient:
            return
        model.train()
        for bag, target in _steps(model, task):
            loss = model.training_loss(model(bag), target, task)
            _require(
                loss.shape == () and bool(torch.isfinite(loss)), f"the {task.name} loss is {loss}, expected one finite number"
            )
            loss.backward()
        if task.name == "subtyping":
            missed = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
            _require(not missed, f"no gradient reaches {', '.join(missed)}; use or remove it")


def step(variant: Variant) -> None:
    """training_step changes the parameters and returns a finite loss, in both tasks, also for a bag of one."""
    for task in (Subtyping("abc"), Survival([1.0, 2.0, 3.0])):
        model = _fresh(variant, task.n_out)
        if not model.trained_by_gradient:
            return
        model.train()
        optimisers = model.optimisers(get_recipe("paper", task.name))
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        for bag, target in [*_steps(model, task), (_bag(1, seed=9), next(_steps(model, task))[1])]:
            loss = model.training_step(bag, target, task, optimisers)
            _require(bool(torch.isfinite(loss)), f"the {task.name} loss of a training step is {loss}")
        _require(
            any(not torch.equal(before[name], p) for name, p in model.named_parameters()), "training steps change no parameter"
        )


def learns(variant: Variant) -> None:
    """Bags of two classes that a straight line separates are told apart after a few epochs."""
    task, bags = Subtyping("ab"), [_bag(12, seed=50 + i, shift=0.8 * (i % 2)) for i in range(10)]
    torch.manual_seed(0)
    model = variant.build(IN_DIM, 2)
    targets = [torch.tensor(i % 2) for i in range(10)]
    model.prepare(bags, torch.Generator().manual_seed(0))
    if model.trained_by_gradient:
        optimisers = model.optimisers(get_recipe("paper", "subtyping", lr=1e-3))
        model.train()
        for _ in range(20):
            for bag, target in zip(bags, targets, strict=True):
                model.training_step(bag, target, task, optimisers)
    else:
        model.fit(bags, targets)
    model.eval()
    with torch.no_grad():
        right = sum(
            int(model.scores(model(bag), task).argmax()) == int(target) for bag, target in zip(bags, targets, strict=True)
        )
    _require(right >= 9, f"only {right} of 10 training bags of a linearly separable problem are right after 20 epochs")


def operations(variant: Variant) -> None:
    """`ops` names every operation with a choice of backends that training or prediction calls."""
    backends.forget()
    numbers(variant)
    missing = sorted(backends.used().keys() - set(variant.entry.cls.ops))
    named = ", ".join(f'"{op}"' for op in sorted({*variant.entry.cls.ops, *missing}))
    _require(
        not missing, f"calls {', '.join(missing)}, so that a trial depends on the backend; add to the class: ops = ({named},)"
    )
    strangers = sorted(set(variant.entry.cls.ops) - OPERATIONS.keys())
    _require(not strangers, f"ops names {', '.join(strangers)}; operations with a choice of backends are {', '.join(OPERATIONS)}")


def numbers(variant: Variant) -> dict[str, str]:
    """A trial in small, from its seed on: digests of the fresh weights, of the weights after training and of predictions."""
    task, digests = Subtyping("abc"), {}
    process.seed(0)
    model = variant.build(IN_DIM, 3)
    digests["the fresh weights"] = _digest(model.state_dict().items())
    bags, targets = zip(*_steps(model, task), strict=True)
    model.prepare(bags, torch.Generator().manual_seed(0))
    if model.trained_by_gradient:
        optimisers = model.optimisers(get_recipe("paper", "subtyping"))
        model.train()
        for bag, target in zip(bags, targets, strict=True):
            model.training_step(bag, target, task, optimisers)
    else:
        model.fit(bags, targets)
    digests["the weights after training"] = _digest(model.state_dict().items())
    model.eval()
    with torch.no_grad():
        digests["the predictions"] = _digest((str(n), model(_bag(n, seed=n)).logits) for n in SIZES)
    return digests


def _digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, t in sorted(tensors, key=lambda item: item[0]):
        digest.update(name.encode() + t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def repeats(variant: Variant) -> None:
    """The same trial twice in one process gives the same weights and predictions, to the byte."""
    mend = "draw from the global generators of torch, NumPy or Python, which every trial seeds; keep nothing from model to model"
    _same(numbers(variant), numbers(variant), "a second run of the same seed", mend)


def elsewhere(variant: Variant) -> None:
    """The same trial in other processes, which hash text otherwise, gives the same weights and predictions, to the byte."""
    here = numbers(variant)
    if here != numbers(variant):
        return  # not even in this process, as `repeats` says
    for there in in_other_processes([variant]):
        _same(here, there[variant.name], "another process", "sort what comes out of a set, and take no seed from hash()")


def _same(one: dict[str, str], other: dict[str, str], where: str, mend: str) -> None:
    differ = [what for what, digest in one.items() if other[what] != digest]
    _require(not differ, f"{differ[0] if differ else ''} differ in {where}: {mend}")


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
    found = []
    for child in running:
        out, errors = child.communicate()
        _require(child.returncode == 0, f"does not run in another process: {(errors.strip().splitlines() or ['?'])[-1]}")
        found.append(json.loads(out.splitlines()[-1]))
    return found


def print_numbers(names: str, files: str) -> None:
    """Body of such a process: print one line of JSON."""
    plugins.discover(json.loads(files))
    process.settle(threads=1)
    print(json.dumps({name: numbers(plugins.resolve(name)) for name in json.loads(names)}))  # noqa: T201 - its answer


@dataclass(frozen=True)
class Check:
    """A named check; its docstring says what is required."""

    holds: Callable[[Variant], None]

    def run(self, variant: Variant) -> None:
        """Check, on one thread, whatever a plug-in has set.

        Raises:
            ContractError: the aggregator breaks the contract.
        """
        process.settle(threads=1)
        with process.kept():
            self.holds(variant)

    @property
    def name(self) -> str:
        """As printed."""
        return self.holds.__name__

    @property
    def says(self) -> str:
        """What is required."""
        return (self.holds.__doc__ or "").strip()


_ALL = [shapes, coordinates, cases, permutation, determinism, untouched, gradients, step, learns, operations, repeats, elsewhere]
CHECKS = tuple(map(Check, _ALL))
