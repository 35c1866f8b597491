"""A trial that is cut off in any epoch and begun again ends as one that was not, to the byte."""

import errno
import json
import random
import threading
import weakref
from collections import deque
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from milbench import Aggregator, datasets, plugins, register
from milbench.analysis.subjects import Trained
from milbench.config import Settings
from milbench.datasets import Fold
from milbench.training import checkpoint as checkpoints
from milbench.training.state import changed, packed, plain_state, unpacked
from milbench.trials import run, unfinished
from milbench.trials.store import Store
from tests.builders.aggregators import SMALL
from tests.builders.datasets import lattice_dataset, toy_dataset
from tests.builders.keeping import KEPT, LOST, ExtraState, Owns
from tests.builders.training import trial_of


class Killed(BaseException):
    """Ends a trial where it stands, as the end of its process would: nothing is recorded."""


@pytest.fixture(autouse=True)
def quick(unflushed, monkeypatch):
    monkeypatch.setattr(checkpoints, "flush", lambda path: None)
    monkeypatch.setattr(checkpoints.machine, "release_memory", lambda: None)


class Runs:
    """One trial, in a results folder of its own each time it is run as a whole."""

    def __init__(self, folder, monkeypatch, data, spec):
        monkeypatch.setattr(datasets, "load", lambda *names, **more: data)
        self.folder, self.spec, self.seconds = folder, spec, 0.0

    def attempt(self, name, stop=None):
        """Run it in the folder `name`, cut off at the end of epoch number `stop` of this attempt, before its checkpoint."""
        seen = []

        def on_epoch(epoch, row):
            seen.append(epoch)
            if len(seen) == stop:
                raise Killed

        settings = Settings(checkpoint_seconds=self.seconds)
        status = run.run_trial(self.spec, self.store(name), {}, keep_model=True, on_epoch=on_epoch, settings=settings)
        return status, seen

    def store(self, name):
        return Store(self.folder / name)

    def file(self, name):
        return self.store(name).checkpoints / f"{self.spec.trial_id}.safetensors"

    def straight(self):
        status, _ = self.attempt("straight")
        assert status == "ok", self.store("straight").read(self.spec.trial_id).traceback
        return self.bytes("straight")

    def cut(self, name, stop=2):
        """Cut off at the end of that epoch."""
        with pytest.raises(Killed):
            self.attempt(name, stop)

    def in_pieces(self):
        """Cut off in every epoch: each attempt ends one epoch, and is killed in the next."""
        while True:
            try:
                status, _ = self.attempt("pieces", stop=2)
            except Killed:
                continue
            assert status == "ok", self.result("pieces").traceback
            return self.bytes("pieces")

    def result(self, name):
        return self.store(name).read(self.spec.trial_id)

    def bytes(self, name):
        """All that a trial writes but times, memory and provenance; and nothing unfinished is left."""
        store = self.store(name)
        assert not list(store.checkpoints.glob("*")) and not list(store.trials.glob(".*"))
        folder = store.folder(self.spec.trial_id)
        content = json.loads((folder / "trial.json").read_text())
        del (
            content["provenance"],
            content["cost"]["seconds"],
            content["cost"]["seconds_per_step"],
            content["cost"]["peak_memory_bytes"],
        )
        return content | {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "trial.json"}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    def make(text="mean[hidden=8]", data=None, **how):
        data = data or toy_dataset()
        return Runs(tmp_path, monkeypatch, data, trial_of(text, data, **{"max_epochs": 4, "lr": 0.01, **how}))

    return make


def same(trial):
    whole = trial.straight()
    assert trial.in_pieces() == whole
    epochs = whole["selected"]["epochs_run"]
    assert trial.result("pieces").provenance["resumed"] == list(range(1, epochs))
    assert trial.result("straight").provenance["resumed"] == []
    assert len({row["train_loss"] for row in whole["curve"]}) > 1, "epochs changed the model"


STATEFUL = {  # name: recipe
    "abmil[hidden=16]": {},
    "transmil[landmarks=16,hidden=64]": {"recipe": "official"},  # Lookahead, accumulation
    "dgrmil[dim=32,plain_epochs=1,shuffle=true]": {},  # counts steps, moves buffers, draws
    "acmil[hidden=16]": {},
    "clam-sb[hidden=16]": {"recipe": "official"},  # the last of equal epochs
    "dtfd-afs[hidden=16]": {"recipe": "official"},  # counts draws, four optimisers
    "amisl": {},  # clusters
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name.startswith(("amisl", "transmil", "dgrmil")) else [])
        for name in STATEFUL
    ],
)
def test_methods_with_a_state_of_their_own(name, runs):
    same(runs(name, lattice_dataset(), **STATEFUL[name]))


@pytest.mark.parametrize("name", ["abmil[hidden=16]", pytest.param("dgrmil[dim=32,plain_epochs=1]", marks=pytest.mark.slow)])
def test_survival_with_gradients_that_wait(name, runs):
    """Eight bags an epoch, a step every fifth."""
    for left_over in ("carry", "restart", "flush"):
        trial = runs(name, lattice_dataset("survival"), accumulate=5, left_over=left_over, clip=1.0)
        trial.folder /= left_over
        same(trial)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["subtyping", "survival"])
@pytest.mark.parametrize("recipe", ["paper", "official"])
@pytest.mark.parametrize("name", [entry.name for entry in plugins.entries() if entry.cls.fit is Aggregator.fit])
def test_every_registered_method(name, recipe, task, runs):
    if name == "gigapath-pretrained":
        pytest.skip("needs weights that are gated")
    text = SMALL.get(name, name)
    if task == "survival" and "lineage=original" in text:
        pytest.skip("published for subtyping only")
    same(runs(text, lattice_dataset(task), recipe=recipe, max_epochs=3, patience=None))


RECIPES = {
    "adam": {"optimiser": "adam", "eps": 1e-6},
    "sgd": {"optimiser": "sgd"},
    "lookahead": {"optimiser": "lookahead-radam", "max_epochs": 5},
    "lookahead over bags": {"optimiser": "lookahead-radam", "accumulate": 3, "left_over": "carry", "max_epochs": 6},
    "carry": {"accumulate": 4, "left_over": "carry"},
    "restart": {"accumulate": 4, "left_over": "restart"},
    "never a step": {"accumulate": 40, "left_over": "carry", "max_epochs": 6},
    "flush": {"accumulate": 4, "left_over": "flush", "clip": 0.1},
    "vectors": {"decay_vectors": False},
    "cosine": {"schedule": "cosine", "warmup_epochs": 2, "final_lr": 1e-4},
    "per step": {"schedule": "cosine-per-step", "accumulate": 3},
    "multistep": {"schedule": "multistep", "milestones": (2,), "gamma": 0.1},
    "balanced": {"sampling": "class-balanced"},
    "part of the bags": {"epoch_bags": 7, "accumulate": 2},
    "accuracy": {"select": "best val accuracy", "ties": "first", "patience": 2, "max_epochs": 8},
    "accuracy and AUCs": {"select": "best val accuracy and AUCs", "ties": "last", "patience": 2, "max_epochs": 8},
    "loss": {"select": "best val loss", "patience": 1, "min_epochs": 3, "max_epochs": 8, "lr": 3.0},
    "late": {"select_after": 2},
    "enough": {"enough": 0.1, "min_epochs": 3},
    "last": {"select": "last"},
    "optimistic": {"optimistic_epochs": 2},
}


@pytest.mark.parametrize("name", RECIPES)
def test_every_optimiser_schedule_and_selection(name, runs):
    trial = runs("abmil[hidden=8]", toy_dataset(shift=0.2), **RECIPES[name])
    whole = trial.straight()
    assert trial.in_pieces() == whole


def test_standardised_features_and_a_start_from_weights(runs, tmp_path):
    donor = plugins.resolve("abmil[hidden=8]").build(6, 3)
    torch.save(donor.state_dict(), tmp_path / "weights.pt")
    same(runs(f"abmil[hidden=8,weights={tmp_path / 'weights.pt'},trained_on=TOY]", standardise=True))


@pytest.mark.gpu
def test_random_numbers_of_a_gpu_and_optimisers_on_it(runs):
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    trial = runs("dgrmil[dim=32,plain_epochs=1]", lattice_dataset(), optimiser="lookahead-radam", accumulate=3)
    trial.spec = trial.spec.model_copy(update={"device": "cuda"})
    same(trial)


def test_a_trial_without_a_validation_part(runs):
    data = toy_dataset(30, task="survival")
    ids = [s.id for s in data.samples]
    same(runs(data=replace(data, splits={"one": lambda: [Fold(tuple(ids[::2]), (), tuple(ids[1::2]))]})))


@pytest.mark.parametrize("cls", KEPT)
def test_what_a_plugin_keeps_comes_back(cls, runs):
    register("kept", label="Kept")(cls)
    same(runs("kept"))


def test_weights_are_read_again_without_what_is_no_weight(runs):
    class Deep(ExtraState):
        def __init__(self, in_dim: int, n_out: int) -> None:
            super().__init__(in_dim, n_out)
            self.body = nn.Linear(in_dim, 2)

    register("kept", label="Kept")(Deep)
    trial = runs("kept", select="last")
    trial.straight()
    stored = Trained.find(trial.store("straight"), trial.spec.trial_id)
    again, started = stored.model(), plugins.resolve(f"kept[weights={stored.weights}]").build(6, 3)
    assert again.steps == started.steps == 0
    kept = safetensors.torch.load_file(stored.weights)
    assert set(kept) == {"head.weight", "head.bias", "body.weight", "body.bias"}
    assert torch.equal(started.body.weight, kept["body.weight"])
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in kept.items())


@pytest.mark.parametrize(("cls", "says"), LOST.items())
def test_what_cannot_come_back_is_told_and_the_trial_begins_anew(cls, says, runs):
    register("kept", label="Kept")(cls)
    trial = runs("kept")
    whole = trial.straight()
    (message,) = whole["messages"]
    assert says in message and "if it is cut off, this trial begins anew" in message
    trial.cut("cut", 3)
    assert not trial.file("cut").exists()
    status, seen = trial.attempt("cut")
    assert (status, seen) == ("ok", [1, 2, 3, 4])
    assert trial.bytes("cut") == whole


def test_short_trials_write_none(runs, monkeypatch):
    trial = runs()
    trial.seconds = 60
    trial.cut("a", 4)
    assert not trial.store("a").checkpoints.exists()
    clock = [0.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: clock[0])
    written = []
    monkeypatch.setattr(checkpoints.Checkpoint, "_write", lambda self, *what: written.append(clock[0]))
    settings = Settings(checkpoint_seconds=60)

    def on_epoch(epoch, row):
        clock[0] += 25

    assert run.run_trial(trial.spec.model_copy(update={"recipe": trial.spec.recipe.model_copy(update={"max_epochs": 9, "patience": None})}), trial.store("b"), {}, on_epoch=on_epoch, settings=settings) == "ok"  # fmt: skip
    assert written == [75, 150], "the last of nine epochs needs none"


def test_writing_takes_a_small_share_of_the_time(runs, monkeypatch):
    clock, written = [0.0], []

    def write(*what):
        written.append(clock[0])
        clock[0] += 30

    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(checkpoints.Checkpoint, "_write", write)
    trial = runs(max_epochs=30, patience=None)

    def on_epoch(epoch, row):
        clock[0] += 60

    run.run_trial(trial.spec, trial.store("a"), {}, on_epoch=on_epoch, settings=Settings(checkpoint_seconds=60))
    assert written == [60, 690, 1320], "30 seconds of writing after at least 600 of training"


@pytest.mark.parametrize("status", ["ok", "failed", "oom", "skipped"])
def test_it_is_gone_when_the_trial_has_its_result(status, runs, monkeypatch):
    trial = runs()
    trial.cut("a", 3)
    assert trial.file("a").exists()
    if status != "ok":
        error = {"failed": ValueError, "oom": MemoryError, "skipped": run.SkipTrial}[status]
        monkeypatch.setattr(run, "build_model", lambda *args: (_ for _ in ()).throw(error("no")))
    assert trial.attempt("a")[0] == status
    assert not list(trial.store("a").checkpoints.iterdir())


def test_a_failure_that_others_record_forgets_it_too(runs):
    """As the supervisor does of a worker that took too long: a trial that is run again begins anew."""
    trial = runs()
    trial.cut("a", 3)
    trial.store("a").write(run.failure(trial.spec, "failed", "it took too long"))
    assert not trial.file("a").exists()
    assert trial.attempt("a")[1] == [1, 2, 3, 4]


def test_what_a_halted_writer_leaves_is_swept(runs):
    trial = runs()
    trial.cut("a", 3)
    left = trial.file("a").read_bytes()
    trial.attempt("a")
    trial.file("a").write_bytes(left)
    (trial.store("a").checkpoints / "notes.safetensors").write_text("of somebody")
    other = trial.spec.model_copy(update={"seed": 1})
    kept = trial.file("a").with_name(f"{other.trial_id}.safetensors")
    kept.write_bytes(left)
    unfinished.sweep(trial.store("a"))
    assert sorted(path.name for path in trial.store("a").checkpoints.iterdir()) == sorted([kept.name, "notes.safetensors"])


def damaged(data):
    """A file with something wrong in it: what and how."""
    yield "empty", b""
    yield "no file of tensors", b"\x00" * 100
    yield "cut", data[: len(data) // 2]
    yield "cut by a byte", data[:-1]
    yield "longer", data + b"\0"
    generator = random.Random(0)
    for _ in range(40):
        at = generator.randrange(len(data))
        yield f"a bit at {at}", data[:at] + bytes([data[at] ^ 1 << generator.randrange(8)]) + data[at + 1 :]


def test_a_damaged_checkpoint_is_never_used(runs):
    trial = runs()
    trial.seconds = 0
    whole = trial.straight()
    trial.cut("a", 3)
    data = trial.file("a").read_bytes()
    for number, (how, bad) in enumerate(damaged(data)):
        trial.file(f"b{number}").parent.mkdir(parents=True)
        trial.file(f"b{number}").write_bytes(bad)
        status, seen = trial.attempt(f"b{number}")
        assert (status, seen) == ("ok", [1, 2, 3, 4]), how
        now = trial.bytes(f"b{number}")
        (message,) = now.pop("messages")
        assert "the checkpoint of this trial is not used, since it is broken" in message, how
        assert now == {key: value for key, value in whole.items() if key != "messages"}
    trial.file("folder").mkdir(parents=True)
    assert trial.attempt("folder")[1] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "elsewhere"),
    [
        ("torch", lambda: {**unfinished.code(), "torch": "2.5.0"}),
        ("milbench", lambda: {**unfinished.code(), "milbench": "other"}),
        ("numba", lambda: {key: value for key, value in unfinished.code().items() if key != "numba"}),
    ],
)
def test_a_checkpoint_of_other_code_is_not_used(name, elsewhere, runs, monkeypatch):
    trial, code = runs(), elsewhere()
    with monkeypatch.context() as there:
        there.setattr(unfinished, "code", lambda: code)
        trial.cut("a", 3)
    status, seen = trial.attempt("a")
    assert (status, seen) == ("ok", [1, 2, 3, 4])
    assert f"since another {name} wrote it" in trial.result("a").messages[0]
    assert trial.result("a").provenance["resumed"] == []


def test_a_checkpoint_of_another_trial_or_cpu_is_not_used(runs, monkeypatch):
    trial = runs()
    trial.cut("a", 3)
    other = Runs(trial.folder, monkeypatch, toy_dataset(), trial.spec.model_copy(update={"seed": 1}))
    trial.file("a").rename(other.file("a"))
    assert other.attempt("a")[1] == [1, 2, 3, 4]
    assert "since another trial wrote it" in other.result("a").messages[0]
    trial.cut("a", 3)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert trial.attempt("a")[1] == [1, 2, 3, 4]
    assert "since another CPU wrote it" in trial.result("a").messages[0]


def test_every_file_of_code_counts():
    assert set(unfinished.code()) == {"milbench", "Python", "torch", "numpy", "numba", "nystrom-attention"}
    assert len(unfinished.code()["milbench"].split()) == 2, "the package and the registry"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_full_disk_costs_the_checkpoint_and_not_the_trial(number, runs, monkeypatch):
    trial = runs()
    whole = trial.straight()
    write = Path.write_bytes

    def full(path, data):
        if path.parent.name.endswith("-checkpoint"):
            write(path, data[:100])
            raise OSError(number, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    assert trial.attempt("a")[0] == "ok"
    now = trial.bytes("a")
    assert now.pop("messages") == ["no checkpoint could be written (No space left on device); if it is cut off, this trial begins anew or further back"]  # fmt: skip
    assert now == {key: value for key, value in whole.items() if key != "messages"}


def test_messages_seconds_and_memory_are_those_of_all_attempts(runs, monkeypatch):
    trial = runs("clam-sb[hidden=8]")  # bags of fewer than 2 k instances
    whole = trial.straight()
    assert len(whole["messages"]) == 1
    clock = [0.0]
    monkeypatch.setattr(run.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(run.machine, "peak_memory", lambda device: 5000 - int(clock[0]))

    def epochs(stop):
        seen = []

        def on_epoch(epoch, row):
            clock[0] += 100
            seen.append(epoch)
            if epoch == stop:
                raise Killed

        with pytest.raises(Killed) if stop else nullcontext():
            run.run_trial(
                trial.spec, trial.store("a"), {}, keep_model=True, on_epoch=on_epoch, settings=Settings(checkpoint_seconds=0)
            )
        return seen

    assert [epochs(3), epochs(4), epochs(None)] == [[1, 2, 3], [3, 4], [4]]
    result = trial.result("a")
    assert result.cost["seconds"] == 400, "200 until the first checkpoint, 100 until the second, 100"
    assert result.cost["peak_memory_bytes"] == 4900, "after the first epoch, when it was highest"
    assert result.provenance["resumed"] == [2, 3]
    assert trial.bytes("a") == whole


def test_states_come_back_as_they_were():
    state = {
        "numbers": [0, -1, 2**70, True, None, 0.1, -0.0, float("inf"), float("-inf"), 1e-320],
        3: ("text", "\ud800", (), [], {}, {"a": {(1, 2): "b"}}),
        "tensors": [
            torch.randn(2, 3).T, torch.zeros(0, 4), torch.tensor(1.5), torch.tensor([True, False]), torch.randn(3).bfloat16(),
            torch.randn(2, dtype=torch.complex64), torch.randn(2, dtype=torch.complex128).conj(), torch.arange(5)[::2],
            torch.ones(1).expand(3), torch.tensor([float("nan"), -0.0]), nn.Parameter(torch.ones(2)),
        ],
    }  # fmt: skip
    tensors = {}
    said = json.loads(json.dumps(packed(state, "state", tensors)))
    back = unpacked(said, tensors)
    assert repr(back["numbers"]) == repr(state["numbers"])
    assert back[3] == state[3]
    for ours, theirs in zip(back["tensors"], state["tensors"], strict=True):
        assert ours.dtype == theirs.dtype and type(ours) is torch.Tensor
        torch.testing.assert_close(ours, theirs.detach().resolve_conj(), rtol=0, atol=0, equal_nan=True)
    assert all(t.data_ptr() != other.data_ptr() for t in back["tensors"] if t.numel() for other in tensors.values())
    (nan,) = unpacked(json.loads(json.dumps(packed([float("nan")], "n", {}))), {})
    assert nan != nan
    for bad in ({1, 2}, deque(), np.zeros(2), np.int64(1), object(), torch.zeros(2).to_sparse(), {torch.zeros(1): 1}):
        with pytest.raises(TypeError, match=r"x\.0 is a .*; it can be numbers, text and tensors"):
            packed([bad], "x", {})


def test_what_stays_as_it_is_does_not_count_as_changed():
    """Much of it cannot be pickled."""

    class Local:
        def __init__(self):
            self.value = 1

    model, lock = Owns(3, 2), threading.RLock()
    model.rnn = nn.LSTM(3, 2)
    model.tools = [
        Local(),
        Local,
        weakref.ref(model),
        lock,
        threading.Lock(),
        lambda: lock,
        np,
        torch.Generator(),
        np.random.default_rng(0),
    ]
    model.more = {"partial": partial(model.factor), "set": {1, 2}, "device": torch.device("cpu"), "loop": []}
    model.more["loop"].append(model.more)
    before = plain_state(model, [])
    model.rnn(torch.zeros(1, 3))[0].sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert changed(before, plain_state(model, [])) is None
    model.tools[0].value = 2
    assert changed(before, plain_state(model, [])) == "tools"
    model.tools[0].value = 1
    model.tools[-2].manual_seed(3)
    assert changed(before, plain_state(model, [])) == "tools"


def test_plain_state_notices_what_changes_and_nothing_else():
    model = Owns(3, 2)
    optimisers = model.optimisers(None)
    before = plain_state(model, optimisers)
    for optimiser in optimisers:
        model(type("B", (), {"features": torch.ones(2, 3)})).logits.sum().backward()
        optimiser.step()
    assert changed(before, plain_state(model, optimisers)) is None
    model.some.append(1)
    assert changed(before, plain_state(model, optimisers)) == "some"
    model.some.pop()
    model.new = 1
    assert changed(before, plain_state(model, optimisers)) == "new"
    del model.new, model.mine
    assert changed(before, plain_state(model, optimisers)) == "mine"
