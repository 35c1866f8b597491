"""The results store: whole or not at all, whoever writes and whatever crashes."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from milbench import MilbenchError
from milbench.errors import Unwritable
from milbench.recipes import Recipe
from milbench.trials.spec import TrialSpec
from milbench.trials.store import Store
from tests.builders.results import finished, predictions_file, spec

SCORE = np.array([[0.25, 0.75], [0.5, 0.5]])
FILES = predictions_file(["a", "b"], [0, 1], SCORE)


def test_trial_id_is_fixed_for_ever():
    assert spec().trial_id == "b06e5198e08edf4b", (
        "the identity of trials changed: raise the result schema, or every store is orphaned"
    )


@pytest.mark.parametrize("field", [name for name in TrialSpec.model_fields if name != "result_schema"])
def test_everything_that_decides_a_number_changes_the_id(field):
    other = {
        "unit": "case", "task": "survival", "magnification": 40, "patch_size": 448, "feature_dtype": "float16", "standardise": True,
        "params": {"hidden": 9}, "fold": 1, "seed": 1, "recipe": Recipe(name="paper", lr=2e-4), "threads": 2, "device": "cuda",
        "backends": {"full_attention": "sdpa"},
    }.get(field, "other")  # fmt: skip
    assert spec(**{field: other}).trial_id != spec().trial_id


def test_methods_of_one_column_share_a_context():
    asked = {"name": "official"}
    other = spec(aggregator="max", params={}, implementation="max@3", fold=4, seed=9, recipe=Recipe(name="official", lr=1.0))
    assert other.context(asked) == spec().context(asked)
    assert spec().context({"name": "paper"}) != spec().context(asked)
    assert spec(backends={"retention": "fla"}).context(asked) == spec().context(asked)
    assert spec(threads=2).context(asked) != spec().context(asked)


def test_a_result_comes_back_as_it_was(tmp_path):
    store, result = Store(tmp_path), finished(spec(), curve=[{"epoch": 1, "train_loss": 0.5, "val_macro_auc": None}])
    assert store.read(result.trial_id) is None
    assert store.status(result.trial_id) == "pending"
    assert store.write(result, FILES)
    assert store.read(result.trial_id) == result
    assert store.raw(result.trial_id)["schema"] == 2
    assert (store.folder(result.trial_id) / "predictions.csv").read_text().splitlines()[1] == "a,a,0,0,0.25,0.75"


def test_a_crash_while_writing_leaves_nothing(tmp_path):
    store = Store(tmp_path)

    def crash(path: Path):
        path.write_text("half a fi")
        raise OSError("disk full")

    with pytest.raises(Unwritable, match="disk full"):
        store.write(finished(spec()), {"predictions.csv": crash})
    assert list(store.trials.iterdir()) == []


def _write_and_die(root):
    Path.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # the moment between write and rename
    Store(root).write(finished(spec()))


def test_a_killed_writer_leaves_no_trial_and_its_rest_is_swept(tmp_path):
    writer = multiprocessing.get_context("fork").Process(target=_write_and_die, args=(tmp_path,))
    writer.start()
    writer.join()
    assert writer.exitcode == -signal.SIGKILL
    store = Store(tmp_path)
    assert store.read(spec().trial_id) is None
    (left,) = store.trials.iterdir()
    store.sweep()
    assert left.exists(), "another writer may be at it"
    os.utime(left, (time.time() - 7200,) * 2)
    store.sweep()
    assert list(store.trials.iterdir()) == []
    assert store.write(finished(spec()))


def test_a_finished_trial_is_never_replaced_and_a_failed_one_is(tmp_path):
    store, trial = Store(tmp_path), spec()
    assert store.write(finished(trial, status="failed", reason="first"))
    assert store.write(finished(trial, status="failed", reason="second"))
    assert store.read(trial.trial_id).reason == "second"
    assert store.write(finished(trial, {"macro_auc": 0.9}))
    assert not store.write(finished(trial, {"macro_auc": 0.1}))
    assert not store.write(finished(trial, status="failed"))
    assert store.read(trial.trial_id).metrics["test"] == {"macro_auc": 0.9}
    assert [path.name for path in store.trials.iterdir()] == [trial.trial_id]


def _write(root, number, barrier, out):
    barrier.wait()
    result = finished(spec(), {"macro_auc": number / 10})
    files = predictions_file([f"w{number}"] * 200, [number] * 200, np.full((200, 2), number))
    out.put((number, Store(root).write(result, files)))


def test_of_concurrent_writers_one_wins_and_nothing_is_mixed(tmp_path):
    context = multiprocessing.get_context("fork")  # which imports nothing anew
    barrier, out = context.Barrier(4), context.Queue()
    writers = [context.Process(target=_write, args=(tmp_path, number, barrier, out)) for number in range(4)]
    for writer in writers:
        writer.start()
    told = dict(out.get(timeout=120) for _ in writers)
    for writer in writers:
        writer.join()
    (winner,) = [number for number, won in told.items() if won]
    store = Store(tmp_path)
    assert store.read(spec().trial_id).metrics["test"]["macro_auc"] == winner / 10
    rows = (store.folder(spec().trial_id) / "predictions.csv").read_text().splitlines()[1:]
    assert len(rows) == 200
    assert {row.split(",")[0] for row in rows} == {f"w{winner}"}
    assert len(list(store.trials.iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.update(schema=3), "result schema 3, this milbench reads 2"),
        (lambda d: d.pop("schema"), "result schema None"),
        (
            lambda d: d.update(status="fine"),
            r"trial\.json: status: input should be 'ok', 'failed', 'oom' or 'skipped' \(got 'fine'\)",
        ),
        (lambda d: d["spec"].update(fold=-1), r"spec\.fold: input should be greater than or equal to 0"),
    ],
)
def test_a_result_that_cannot_be_read_is_refused_with_what_to_do(tmp_path, change, says):
    store, result = Store(tmp_path), finished(spec())
    store.write(result)
    path = store.folder(result.trial_id) / "trial.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(MilbenchError, match=says):
        store.read(result.trial_id)


def test_a_broken_file_is_named(tmp_path):
    store = Store(tmp_path)
    store.write(finished(spec()))
    (store.folder(spec().trial_id) / "trial.json").write_text("{")
    with pytest.raises(MilbenchError, match=r"trial\.json: not JSON .* remove the folder"):
        store.status(spec().trial_id)
