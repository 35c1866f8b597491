"""Every registered aggregator keeps the contract, and the contract notices one that does not."""

import contextlib
import random
import re
from typing import Literal, get_args, get_origin

import numpy as np
import pytest
import torch
from torch import nn

from milbench import Aggregator, Prediction, contract, plugins, register
from milbench.errors import SkipTrial
from milbench.ops import full_attention
from tests.builders.aggregators import SMALL

# Training takes seconds: that of the other methods is watched by the slow tests.
TRAINED_HERE = {"abmil", "dsmil", "gcn-mil"}


def every_check():
    """Of each registered method; what is registered tomorrow is watched at once."""
    for entry in plugins.entries():
        for check in (check for check in contract.CHECKS if check.name != "elsewhere"):
            slow = check.name in ("learns", "resumes") and entry.name not in TRAINED_HERE
            marks = [pytest.mark.slow] if slow else []
            yield pytest.param(entry.name, check, marks=marks, id=f"{entry.name}-{check.name}")


@pytest.mark.parametrize(("name", "check"), list(every_check()))
def test_registered_aggregator_keeps_the_contract(name, check):
    try:
        check.run(plugins.resolve(SMALL.get(name, name)))
    except SkipTrial as skip:
        pytest.skip(f"{name}: {skip}")


@pytest.mark.slow
def test_registered_aggregators_give_the_same_bytes_in_other_processes():
    """One process for all, where the check itself starts its own."""
    variants = [plugins.resolve(SMALL.get(entry.name, entry.name)) for entry in plugins.entries()]
    variants = [variant for variant in variants if variant.entry.name != "gigapath-pretrained"]
    here = {variant.name: contract.numbers(variant) for variant in variants}
    assert contract.in_other_processes(variants) == [here, here]


@pytest.mark.slow
@pytest.mark.parametrize("name", [entry.name for entry in plugins.entries()])
def test_every_variant_calls_no_more_than_its_class_names(name):
    """By the choices that a parameter offers: each value of each Literal, and dropout, which may ask for another backend."""
    entry = plugins.resolve(name).entry
    small = dict(item.split("=") for item in re.findall(r"[a-z_]+=\w+", SMALL.get(name, "")))
    for key, field in entry.parameters.model_fields.items():
        values = [*get_args(field.annotation)] if get_origin(field.annotation) is Literal else [0.1] if key == "dropout" else []
        for value in values:
            text = ",".join(f"{k}={v}" for k, v in {**small, key: value}.items())
            with contextlib.suppress(SkipTrial):
                contract.operations(plugins.resolve(f"{name}[{text}]"))


class Sound(Aggregator):
    """Keeps the contract; each test below breaks it in one place."""

    def __init__(self, in_dim: int, n_out: int, *, hidden: int = 16) -> None:
        super().__init__(in_dim, n_out)
        self.body = nn.Sequential(nn.Linear(in_dim, hidden), nn.Tanh())
        self.head = nn.Linear(hidden, n_out)

    def forward(self, bag):
        return Prediction(self.head(self.body(bag.features).mean(0)))


class WrongShape(Sound):
    def forward(self, bag):
        return Prediction(super().forward(bag).logits[None])


class OneInstanceIsNan(Sound):
    def forward(self, bag):
        h = self.body(bag.features)
        return Prediction(self.head(h.sum(0) / (len(h) - 1)))


class SeesTheOrder(Sound):
    def forward(self, bag):
        weight = torch.linspace(0, 1, len(bag) + 2)[1:-1, None]
        return Prediction(self.head((weight * self.body(bag.features)).mean(0)))


class NeedsNoOrder(Sound):
    order_sensitive = True


class SeesPositions(Sound):
    def forward(self, bag):
        shift = 0.0 if bag.coords is None else 1.0
        return Prediction(super().forward(bag).logits + shift)


class NeedsNoPositions(Sound):
    needs_coords = True


class DropsInEval(Sound):
    def forward(self, bag):
        return Prediction(nn.functional.dropout(super().forward(bag).logits, 0.5, training=True))


class WritesIntoTheBag(Sound):
    def forward(self, bag):
        bag.features.mul_(2)
        return super().forward(bag)


class DeadParameter(Sound):
    def __init__(self, in_dim: int, n_out: int, *, hidden: int = 16) -> None:
        super().__init__(in_dim, n_out, hidden=hidden)
        self.unused = nn.Linear(3, 3)


class NeverLearns(Sound):
    def training_step(self, bag, target, task, optimisers):
        return task.loss(self(bag).logits, target).detach()


class UnseededInTraining(Sound):
    def forward(self, bag):
        noise = np.random.default_rng().normal() if self.training else 0.0
        return Prediction(super().forward(bag).logits * (1 + noise))


class UnseededWeights(Sound):
    def __init__(self, in_dim: int, n_out: int, *, hidden: int = 16) -> None:
        super().__init__(in_dim, n_out, hidden=hidden)
        generator = torch.Generator()
        generator.seed()
        nn.init.normal_(self.head.weight, generator=generator)


class UnseededPrediction(Sound):
    def forward(self, bag):
        return Prediction(super().forward(bag).logits + (0 if self.training else random.Random().random()))


class RemembersEarlierModels(Sound):
    built = 0

    def __init__(self, in_dim: int, n_out: int, *, hidden: int = 16) -> None:
        super().__init__(in_dim, n_out, hidden=hidden)
        type(self).built += 1
        nn.init.constant_(self.head.bias, type(self).built)


class SeededDraws(Sound):
    """What every trial seeds may be drawn from: this one is sound."""

    def __init__(self, in_dim: int, n_out: int, *, hidden: int = 16) -> None:
        super().__init__(in_dim, n_out, hidden=hidden)
        nn.init.constant_(self.head.bias, random.random() + np.random.rand())  # noqa: NPY002

    def forward(self, bag):
        noise = np.random.normal() if self.training else 0.0  # noqa: NPY002
        return Prediction(super().forward(bag).logits * (1 + noise))


class CallsAnOperation(Sound):
    def forward(self, bag):
        x = self.body(bag.features)[None]
        return Prediction(self.head(full_attention(x, x, x)[0].mean(0)))


class LearnsNonsense(Sound):
    def training_loss(self, prediction, target, task):
        return -super().training_loss(prediction, target, task).clamp(max=2.0)


@pytest.mark.parametrize(
    ("cls", "check"),
    [
        (WrongShape, "shapes"),
        (OneInstanceIsNan, "shapes"),
        (SeesTheOrder, "permutation"),
        (NeedsNoOrder, "permutation"),
        (SeesPositions, "coordinates"),
        (NeedsNoPositions, "coordinates"),
        (DropsInEval, "determinism"),
        (WritesIntoTheBag, "untouched"),
        (DeadParameter, "gradients"),
        (NeverLearns, "step"),
        (LearnsNonsense, "learns"),
        (UnseededInTraining, "repeats"),
        (UnseededWeights, "repeats"),
        (UnseededPrediction, "repeats"),
        (RemembersEarlierModels, "repeats"),
        (CallsAnOperation, "operations"),
    ],
)
def test_contract_catches_a_broken_aggregator(cls, check):
    register("sound", label="Sound")(Sound)
    register("broken", label="Broken")(cls)
    run = next(c.run for c in contract.CHECKS if c.name == check)
    run(plugins.resolve("sound"))
    with pytest.raises(contract.ContractError):
        run(plugins.resolve("broken"))


MISTAKES = {  # name: a piece of a sound file, what the author writes there, what the check says
    "tensor": ("return Prediction(logits=self.head(h.mean(0)))", "return self.head(h.mean(0))", "forward returned a Tensor; return Prediction(logits=...)"),
    "tuple": ("return Prediction(logits=self.head(h.mean(0)))", "return self.head(h.mean(0)), h", "forward returned a tuple; return Prediction(logits=..., attention=...)"),
    "nothing": ("return Prediction(logits=self.head(h.mean(0)))", "self.head(h.mean(0))", "forward returned nothing; return Prediction(logits=...)"),
    "batched": ("h.mean(0)))", "h.mean(0, keepdim=True)))", "logits of a bag of 37 are (1, 2), expected (2,); return logits[0]"),
    "attention": ("h.mean(0)))", "h.mean(0)), attention=h[:, :1])", "attention of a bag of 37 is (37, 1), expected (37,); return attention[:, 0]"),
    "super": ("super().__init__(in_dim, n_out)", "self.n = 1", "call super().__init__(in_dim, n_out) in the first line of __init__"),
    "positional": ("n_out: int, *, hidden: int = 16", "n_out: int, hidden: int = 16", "hidden is positional, so positional[hidden=...] cannot set it; write *, before it"),
    "starred": ("n_out: int, *, hidden: int = 16", "n_out: int, *hidden: int", "*hidden hides the parameters"),
    "default": ("*, hidden: int = 16", "*, hidden: int", "hidden has no default; write hidden: int = ..., with the right type"),
    "untyped": ("*, hidden: int = 16", "*, hidden=16", "hidden has no type, so a wrong value is not refused"),
    "mapping": ("*, hidden: int = 16", "*, hidden: int = 16, options: dict = {}", "options is a dict, which mapping[options=...] cannot hold"),
    "widths": ("self, in_dim: int, n_out: int, *, hidden: int = 16", "self", "__init__ must take two widths"),
    "listed": ("self.body = nn.Linear(in_dim, hidden)", "self.body = [nn.Linear(in_dim, hidden)]", "self.body is a plain list with weights, which are neither trained nor saved; use nn.ModuleList(...)"),
    "constant": ("h = self.body(bag.features)", "h = self.body(bag.features) * torch.ones(len(bag), 1)", "what ones makes stays on the CPU when the model moves to a GPU; add device=bag.features.device"),
    "numpy": ("h = self.body(bag.features)", "h = self.body(bag.features) + float(bag.features.numpy().mean())", "NumPy cannot read a tensor on a GPU; write .detach().cpu().numpy()"),
    "plain": ("self.body = nn.Linear(in_dim, hidden)", "self.body = nn.Linear(in_dim, hidden); self.shift = torch.zeros(hidden); self.body.register_forward_hook(lambda m, i, o: o + self.shift)", 'self.shift is a plain tensor, which stays on the CPU when the model moves to a GPU; write self.register_buffer("shift", ...'),
    "written": ("h = self.body(bag.features)", "h = self.body(bag.features.relu_())", "changes bag.features in place"),
    "assigned": ("h = self.body(bag.features)", "bag.features -= 1; h = self.body(bag.features)", "a bag cannot be changed; make a new tensor"),
    "positions": ("h = self.body(bag.features)", "h = self.body(bag.features) + 0 * bag.coords.sum()", "for a bag without coordinates; set needs_coords = True"),
    "drawn": ("h = self.body(bag.features)", "h = self.body(bag.features) + torch.rand(1)", "eval mode is not deterministic"),
    "unseeded": ("h = self.body(bag.features)", "h = self.body(bag.features) + np.random.default_rng().normal()", "eval mode is not deterministic"),
    "kept": ("h = self.body(bag.features)", "self.seen = getattr(self, 'seen', 0) + 1; h = self.body(bag.features) + self.seen", "seen keeps something of one bag for the next (in eval mode)"),
    "remembers": ("h = self.body(bag.features)", "m = bag.features.mean(); p = getattr(self, 'last', m); self.last = m; h = self.body(bag.features) + p", "last keeps something of one bag for the next (in eval mode); compute it anew"),
    "normed": ("self.body = nn.Linear(in_dim, hidden)", "self.body = nn.Sequential(nn.Linear(in_dim, hidden), nn.BatchNorm1d(hidden))", "use LayerNorm in place of BatchNorm"),
    "width": ("nn.Linear(in_dim, hidden)", "nn.Linear(384, hidden)", "features are 24 wide here; make the layer in_dim wide"),
}  # fmt: skip
PLUGIN = """
import numpy as np
import torch
from torch import nn
from milbench import Aggregator, Prediction, register


@register("{name}", label="Mistaken")
class Mistaken(Aggregator):
    def __init__(self, in_dim: int, n_out: int, *, hidden: int = 16) -> None:
        super().__init__(in_dim, n_out)
        self.body = nn.Linear(in_dim, hidden)
        self.head = nn.Linear(hidden, n_out)

    def forward(self, bag):
        h = self.body(bag.features)
        return Prediction(logits=self.head(h.mean(0)))
"""
OTHER_LINE = {"super": "self.body = ", "width": "h = self.body", "normed": "self.body = "}  # not at the line that is changed


def first_fault(name):
    for check in contract.CHECKS[:-5]:
        try:
            check.run(plugins.resolve(name))
        except contract.ContractError as fault:
            return str(fault)
    return ""


def test_the_file_of_the_mistakes_is_sound(tmp_path):
    (tmp_path / "sound.py").write_text(PLUGIN.replace("{name}", "sound"))
    plugins.discover([tmp_path / "sound.py"])
    assert first_fault("sound") == ""


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_with_its_line_and_what_to_write(tmp_path, name):
    before, after, says = MISTAKES[name]
    text = PLUGIN.replace("{name}", name)
    assert before in text
    text = text.replace(before, after)
    path = tmp_path / f"{name}.py"
    path.write_text(text)
    plugins.discover([path])
    fault = first_fault(name)
    part = OTHER_LINE.get(name, after.split(";")[0])
    line = next(number for number, content in enumerate(text.splitlines(), 1) if part in content)
    assert says in fault
    assert f"{name}.py:{line}: " in fault


def test_a_loss_that_is_no_number_is_named():
    class NoLoss(Sound):
        def training_loss(self, prediction, target, task):
            return prediction.logits

    register("no-loss", label="No loss")(NoLoss)
    with pytest.raises(
        contract.ContractError, match=r"training_loss returned a Tensor of shape \(3,\); return a Tensor of shape \(\)"
    ):
        next(c.run for c in contract.CHECKS if c.name == "gradients")(plugins.resolve("no-loss"))


def test_the_contract_says_what_differs_and_what_to_write():
    register("draws", label="Draws")(UnseededInTraining)
    with pytest.raises(contract.ContractError, match="the weights after training differ in a second run of the same seed"):
        contract.repeats(plugins.resolve("draws"))
    register("calls", label="Calls")(CallsAnOperation)
    with pytest.raises(contract.ContractError, match=r'calls full_attention, .* add to the class: ops = \("full_attention",\)$'):
        contract.operations(plugins.resolve("calls"))
    register("seeded", label="Seeded")(SeededDraws)
    contract.repeats(plugins.resolve("seeded"))


HASHES = """
import torch
from torch import nn
from milbench import Aggregator, Prediction, register

@register("by-hash", label="By hash")
class ByHash(Aggregator):
    def __init__(self, in_dim: int, n_out: int, *, kind: str = "seed") -> None:
        super().__init__(in_dim, n_out)
        if kind == "seed":
            torch.manual_seed(hash("by-hash"))
        words = ["alpha", "beta", "gamma", "delta", "epsilon"]
        names = set(words) if kind == "set" else words
        self.heads = nn.ModuleDict([(name, nn.Linear(in_dim, n_out)) for name in names])

    def forward(self, bag):
        return Prediction(self.heads["alpha"](bag.features.mean(0)))
"""


@pytest.mark.slow
def test_the_order_of_a_set_and_hashes_of_text_are_noticed(tmp_path):
    (tmp_path / "hashes.py").write_text(HASHES)
    plugins.discover([tmp_path / "hashes.py"])
    variants = [plugins.resolve(f"by-hash[kind={kind}]") for kind in ("none", "set", "seed")]
    sound, ordered, seeded = variants
    here = {variant.name: contract.numbers(variant) for variant in variants}
    for there in contract.in_other_processes(variants, hash_seeds=[1]):
        assert there[sound.name] == here[sound.name]
        for variant in (ordered, seeded):
            assert there[variant.name]["the fresh weights"] != here[variant.name]["the fresh weights"]
