"""Every check that an aggregator must hold, in the order in which a fault is easiest to understand.

milbench check aggregator mine --plugin mine.py
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from milbench import places, process
from milbench.aggregator import Aggregator
from milbench.bags import Bag
from milbench.contract.bags import IN_DIM, LARGE, bag, fresh, labelled, prepared
from milbench.contract.basics import BASICS, predicted
from milbench.contract.faults import ContractError, explained, files, require, unseeded
from milbench.contract.repeats import elsewhere, numbers, repeats
from milbench.contract.resuming import resumes
from milbench.contract.watch import Devices, Draws, Writes
from milbench.errors import SkipTrial
from milbench.ops import OPERATIONS, backends
from milbench.plugins import Variant
from milbench.recipes import get as get_recipe
from milbench.tasks import Subtyping, Survival

TASKS = (Subtyping("abc"), Survival([1.0, 2.0, 3.0]))


def untouched(variant: Variant) -> None:
    """A forward pass leaves the bag as it was."""
    model = fresh(variant)
    for training in (False, True):
        model.train(training)
        shown = bag(37, seed=4)
        before = shown.features.clone()
        with Writes(shown, files(variant)) as writes:
            model(shown)
        advice = "changes bag.{} in place, so the next method would see another bag; make a new tensor"
        require(writes.name is None, advice.format(writes.name), writes.where)
        require(torch.equal(before, shown.features), advice.format("features"), places.of_function(type(model).forward))


def devices(variant: Variant) -> None:
    """A model that moves to a GPU with its bags finds every tensor there: none is made on, or left on, the CPU."""
    torch.manual_seed(0)
    model = variant.build(IN_DIM, 3)
    with Devices(model, files(variant)) as watch:
        prepared(model)
        model.train()
        shown, target = next(labelled(TASKS[0]))
        prediction = model(shown)
        if model.trained_by_gradient:
            model.training_loss(prediction, target, TASKS[0])
    if watch.fault is not None:
        where, message = watch.fault
        require(False, message, where)


def coordinates(variant: Variant) -> None:
    """With needs_coords = False a bag without coordinates is predicted; with True the positions change the prediction."""
    model, shown = fresh(variant), bag(37, seed=1)
    if not model.needs_coords:
        try:
            with torch.no_grad():
                without = model(bag(37, seed=1, coords=False)).logits
        except Exception as error:
            when = "for a bag without coordinates; set needs_coords = True, or handle bag.coords None"
            raise explained(error, variant, when) from error
        require(
            torch.equal(without, predicted(model, shown).logits),
            "coordinates change the prediction; set needs_coords = True",
        )
        return
    scattered = torch.stack([torch.arange(37) % 7, torch.arange(37).flip(0)], dim=1) * 224 * 3
    moved = Bag(shown.features, scattered, 224.0)
    changes = not torch.equal(predicted(model, shown).logits, predicted(model, moved).logits)
    require(changes, "positions change nothing; set needs_coords = False")


def cases(variant: Variant) -> None:
    """A case of three slides, one of them a single patch, is predicted; slide_index tells which slide a patch came from.

    Where order_sensitive is False, another order and numbering of the slides changes nothing.
    """
    bags = [bag(n, seed=n) for n in (20, 1, 16)]
    slide = torch.tensor([i for i, part in enumerate(bags) for _ in range(len(part))])
    coords = torch.cat([part.coords for part in bags if part.coords is not None])
    case = Bag(torch.cat([part.features for part in bags]), coords, 224.0, slide_index=slide, slide_id="case", case_id="case")
    model = fresh(variant)
    reference = predicted(model, case).logits
    if model.order_sensitive:
        return
    back = torch.arange(len(case)).flip(0)
    turned = Bag(case.features[back], coords[back], 224.0, slide_index=2 - slide[back], slide_id="case", case_id="case")
    change = float((predicted(model, turned).logits - reference).abs().max() / reference.abs().max())
    advice = "take positions from bag.grid(), which does not depend on it, or set order_sensitive = True"
    require(change < 1e-4, f"the order of a case's slides changes the logits by {change:.1e}; {advice}")


def permutation(variant: Variant) -> None:
    """Permuting the bag changes the prediction exactly where order_sensitive says so."""
    model, shown = fresh(variant), bag(LARGE, seed=2)
    assert shown.coords is not None
    reference = predicted(model, shown).logits
    largest = 0.0
    for seed in range(3):
        order = torch.randperm(LARGE, generator=torch.Generator().manual_seed(seed))
        permuted = Bag(shown.features[order], shown.coords[order], shown.step, slide_id=shown.slide_id, case_id=shown.case_id)
        largest = max(largest, float((predicted(model, permuted).logits - reference).abs().max() / reference.abs().max()))
    if model.order_sensitive:
        only = f"order_sensitive = True, but a permutation changes the logits by {largest:.1e} only; set it to False"
        require(largest > 1e-5, only)
    else:
        require(largest < 1e-4, f"order_sensitive = False, but a permutation changes the logits by {largest:.1e}; set it to True")


def determinism(variant: Variant) -> None:
    """The same seed gives the same weights, and in eval mode the same bag the same prediction."""
    first, second, shown = fresh(variant), fresh(variant), bag(37, seed=3)
    reference = predicted(first, shown).logits
    with Draws(files(variant)) as draws:
        again = predicted(first, shown).logits
    if not torch.equal(reference, again):
        where = unseeded(variant) or draws.where
        if where is None:
            independence(variant)  # not chance, but what the model kept of the first time
        mode = "eval mode is not deterministic: the same bag is predicted differently; draw random numbers only if self.training"
        raise ContractError(mode, where)
    weights = "two models of the same seed differ; draw weights with torch's global generator"
    require(torch.equal(reference, predicted(second, shown).logits), weights, unseeded(variant))


def independence(variant: Variant) -> None:
    """The prediction of a bag does not depend on the bags that the model saw before it, in eval or in training mode."""
    model, shown, other = fresh(variant), bag(37, seed=3), bag(30, seed=5, shift=1.0)
    for mode in ("eval", "training"):
        before, reference = _state(model), predicted(model, shown).logits
        model.train(mode == "training")
        with torch.no_grad():
            model(other)
        model.eval()
        after = _state(model)
        changed = [name for name in after if name not in before or _differ(before[name], after[name])]
        name = changed[0] if changed else "the model"
        advice = "use LayerNorm in place of BatchNorm" if "running_" in name else "compute it anew in each forward"
        require(
            torch.equal(reference, predicted(model, shown).logits),
            f"{name} keeps something of one bag for the next (in {mode} mode); {advice}",
            lambda name=name: places.of_attribute(type(model), name.split(".")[0]),  # type: ignore[misc]
        )


def _state(model: Aggregator) -> dict[str, Any]:
    """Everything that a model holds: weights and buffers as copies, plain attributes as text."""
    known = ("_parameters", "_buffers", "_modules", "training")
    plain = {f"{path}.{k}".strip("."): repr(v) for path, m in model.named_modules() for k, v in vars(m).items() if k not in known}
    return plain | {name: t.clone() if isinstance(t, Tensor) else repr(t) for name, t in model.state_dict().items()}


def _differ(first: Any, second: Any) -> bool:
    return not torch.equal(first, second) if isinstance(first, Tensor) and isinstance(second, Tensor) else bool(first != second)


def gradients(variant: Variant) -> None:
    """In both tasks the loss is finite and needs no step to be defined; in subtyping it reaches every parameter."""
    for task in TASKS:
        model = fresh(variant, task.n_out)
        if not model.trained_by_gradient:
            return
        model.train()
        for shown, target in labelled(task):
            _loss(model, shown, target, task).backward()
        if task.name == "subtyping":
            # A single bias before a softmax has a gradient of rounding errors only, which is zero on some machines.
            missed = [name for name, p in model.named_parameters() if p.grad is None or (p.numel() > 1 and not p.grad.any())]
            if missed:
                where = places.of_attribute(type(model), missed[0].split(".")[0])
                raise ContractError(f"no gradient reaches {', '.join(missed)}; use or remove it", where)


def _loss(model: Aggregator, shown: Bag, target: Any, task: Subtyping | Survival) -> Tensor:
    """The training loss, if it is one finite number that can be differentiated."""
    prediction = model(shown)
    loss = model.training_loss(prediction, target, task)
    fault = ""
    if not isinstance(loss, Tensor) or loss.shape != ():
        kind = f"a Tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a value of type {type(loss).__name__}"
        fault = f"{kind}; return a Tensor of shape (), such as loss.mean()"
    elif not torch.isfinite(loss):
        fault = f"{float(loss)}, which is not finite"
    elif not loss.requires_grad:
        fault = "a Tensor without gradient; do not detach it, and compute it with torch"
    method = type(model).training_loss
    again = lambda: places.of_return(method, lambda: model.training_loss(prediction, target, task))  # noqa: E731
    require(not fault, f"training_loss returned {fault} (task {task.name})", again)
    return loss


def step(variant: Variant) -> None:
    """training_step changes the parameters and returns a finite loss, in both tasks, also for a bag of one."""
    for task in TASKS:
        model = fresh(variant, task.n_out)
        if not model.trained_by_gradient:
            return
        model.train()
        optimisers = model.optimisers(get_recipe("paper", task.name))
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        where = places.of_function(type(model).training_step)
        for shown, target in [*labelled(task), (bag(1, seed=9), next(labelled(task))[1])]:
            loss = model.training_step(shown, target, task, optimisers)
            require(bool(torch.isfinite(loss)), f"the {task.name} loss of a training step is {loss}", where)
        changed = any(not torch.equal(before[name], p) for name, p in model.named_parameters())
        require(changed, "training steps change no parameter; call loss.backward() and optimiser.step()", where)


def learns(variant: Variant) -> None:
    """Bags of two classes that a straight line separates are told apart after a few epochs."""
    task, bags = Subtyping("ab"), [bag(12, seed=50 + i, shift=0.8 * (i % 2)) for i in range(10)]
    torch.manual_seed(0)
    model = variant.build(IN_DIM, 2)
    targets = [torch.tensor(i % 2) for i in range(10)]
    model.prepare(bags, torch.Generator().manual_seed(0))
    if model.trained_by_gradient:
        optimisers = model.optimisers(get_recipe("paper", "subtyping", lr=1e-3))
        model.train()
        for _ in range(20):
            for shown, target in zip(bags, targets, strict=True):
                model.training_step(shown, target, task, optimisers)
    else:
        model.fit(bags, targets)
    model.eval()
    with torch.no_grad():
        scores = [model.scores(model(shown), task) for shown in bags]
    right = sum(int(score.argmax()) == int(target) for score, target in zip(scores, targets, strict=True))
    require(right >= 9, f"only {right} of 10 training bags of a linearly separable problem are right after 20 epochs")


def operations(variant: Variant) -> None:
    """`ops` names every operation with a choice of backends that training or prediction calls."""
    backends.forget()
    numbers(variant)
    missing = sorted(backends.used().keys() - set(variant.entry.cls.ops))
    named = ", ".join(f'"{op}"' for op in sorted({*variant.entry.cls.ops, *missing}))
    add = f"calls {', '.join(missing)}, so that a trial depends on the backend; add to the class: ops = ({named},)"
    require(not missing, add)
    unknown = sorted(set(variant.entry.cls.ops) - OPERATIONS.keys())
    require(not unknown, f"ops names {', '.join(unknown)}; operations with a choice of backends are {', '.join(OPERATIONS)}")


@dataclass(frozen=True)
class Check:
    """A named check; its docstring says what is required."""

    holds: Callable[[Variant], None]

    def run(self, variant: Variant) -> None:
        """Check, on one thread, whatever a plug-in has set.

        Raises:
            ContractError: the aggregator breaks the contract; says in which line of its author's code, and what to write.
            SkipTrial: the aggregator cannot run here.
        """
        process.settle(threads=1)
        with process.kept():
            try:
                _judged(self.holds, variant)
            except ContractError:
                for basic in BASICS[: BASICS.index(self.holds) if self.holds in BASICS else None]:
                    _judged(basic, variant)  # a simpler check may know the cause
                raise

    @property
    def name(self) -> str:
        """As printed."""
        return self.holds.__name__

    @property
    def says(self) -> str:
        """What is required."""
        return (self.holds.__doc__ or "").strip()


def _judged(holds: Callable[[Variant], None], variant: Variant) -> None:
    """Check; whatever the author's code raises is a fault, and every fault has a place."""
    try:
        holds(variant)
    except SkipTrial:
        raise
    except ContractError as fault:
        if fault.where is not None:
            raise
        raise ContractError(str(fault), places.of_class(variant.entry.cls)) from None
    except Exception as error:
        raise explained(error, variant) from error


_ALL = (
    *BASICS, untouched, determinism, independence, devices, coordinates, permutation, cases, gradients, step, learns, operations,
    repeats, resumes, elsewhere,
)  # fmt: skip
CHECKS = tuple(map(Check, _ALL))
