"""Results of schema 1 come over to schema 2: ids, plans, contexts, and what stays behind."""

import hashlib
import json
from dataclasses import replace

import pytest

from milbench import MilbenchError, plugins
from milbench.errors import NotHere
from milbench.report import build
from milbench.trials import plan as plans
from milbench.trials import predictions
from milbench.trials.audit import audit
from milbench.trials.migrate import KEPT, migrate, upgraded
from milbench.trials.spec import id_of
from milbench.trials.store import Store
from tests.builders.datasets import toy_dataset
from tests.builders.results import made_up_suite, spec

METHODS = {"abmil": 1.0, "mean": 2.0}


def toy(**changes):
    """The dataset of the made-up trials, whose split has their fingerprint."""
    data = replace(toy_dataset(), **changes)
    object.__setattr__(data, "split_fingerprint", lambda split: "sha256:1")
    return data


def give(*_where, dtype):
    return toy()


def old_spec(new):
    """What schema 1 wrote of a spec."""
    return {key: value for key, value in new.items() if key != "backends"} | {"result_schema": 1}


def old_context(old, recipe):
    shared = {k: v for k, v in old.items() if k not in ("aggregator", "params", "implementation", "fold", "seed", "recipe")}
    return hashlib.sha256(json.dumps([shared, recipe], sort_keys=True).encode()).hexdigest()[:12]


@pytest.fixture
def old(tmp_path):
    """A store as schema 1 left it, and the plan that a run of today would write."""
    store, plan = made_up_suite(tmp_path / "results", METHODS, n=6)
    path = plans.path_of(store, "made-up")
    content, ids = json.loads(path.read_text()), {}
    for trial_id in store.ids():
        folder = store.folder(trial_id)
        trial = json.loads((folder / "trial.json").read_text())
        trial["spec"] = old_spec(trial["spec"])
        trial["schema"], trial["trial_id"] = 1, id_of(trial["spec"])
        trial["provenance"]["backends"] = {"full_attention": "torch"}
        del trial["sha256"]
        ids[trial_id] = trial["trial_id"]
        context = old_context(trial["spec"], {"name": "paper"})
        (folder / "trial.json").write_text(json.dumps(trial))
        folder.rename(store.trials / trial["trial_id"])
    for cell in content["cells"]:
        cell.update(trial_id=ids[cell["trial_id"]], context=context)
    path.write_text(json.dumps({**content, "schema": 1}))
    return store, plan, ids


def test_old_results_are_refused_with_the_command_that_brings_them_over(old):
    store, _, _ = old
    for read in (lambda: build(store, "made-up"), lambda: store.raw(store.ids()[0])):
        with pytest.raises(
            MilbenchError, match="schema 1, this milbench reads 2; bring the store over with: milbench results migrate"
        ):
            read()


def test_trials_and_plans_come_over(old):
    store, _, ids = old
    before = {path: path.read_bytes() for path in store.root.rglob("*.json")}
    dry = migrate(store, store, give, dry_run=True)
    assert before == {path: path.read_bytes() for path in store.root.rglob("*.json")}, "a dry run writes nothing"
    done = migrate(store, store, give)
    assert (done.carried, done.left, done.suites) == (dry.carried, {}, ["made-up"])
    assert set(done.carried) == set(ids.values())
    assert audit(store) == {}
    assert sorted(store.ids()) == sorted(done.carried.values())
    plan = plans.read(store, "made-up")
    for cell in plan.cells:
        result = store.read(cell.trial_id)
        assert (cell.aggregator, cell.fold) == (result.spec.aggregator, result.spec.fold)
        assert cell.context == result.spec.context({"name": "paper"}), "so that a run of today adds to these cells"
        assert result.provenance["migrated"] == "migrated from schema 1"
        assert done.carried[result.provenance["former_trial_id"]] == cell.trial_id
        assert result.spec.backends == {}, "these classes name no operation"
    table = build(store, "made-up").sections[0].table
    assert len(table.rows) == 2
    assert table.partial == ""
    assert len(Store(store.root / KEPT).ids()) == 6, "nothing is thrown away"
    assert migrate(store, store, give).carried == {}, "a second time is nothing"


def test_into_another_store_the_old_one_stays_as_it_is(old, tmp_path):
    store, _, _ = old
    (store.root / "splits").mkdir()
    (store.root / "splits" / "s.csv").write_text("x")
    before = {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()}
    target = Store(tmp_path / "new")
    assert len(migrate(store, target, give).carried) == 6
    assert before == {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()}
    assert audit(target) == {}
    assert (target.root / "splits" / "s.csv").read_text() == "x"
    build(target, "made-up", tests=False)


def test_what_stays_behind_is_to_run_and_can_be_brought_over_later(old):
    store, _, _ = old
    bad = store.ids()[0]
    path = store.folder(bad) / "predictions.csv"
    text = path.read_text()
    path.write_text(text.replace("p0,p1,p2", "p1,p0,p2"))
    done = migrate(store, store, give)
    assert list(done.left) == [bad]
    assert "its predictions disagree with its trial.json (macro_auc is stored as" in done.left[bad]
    assert build(store, "made-up", tests=False).sections[0].table.partial, "one cell is still to run"
    kept = Store(store.root / KEPT)
    (kept.folder(bad) / "predictions.csv").write_text(text)
    assert not migrate(kept, store, give).left
    assert build(store, "made-up", tests=False).sections[0].table.partial == ""


def absent(*_where, dtype):
    raise NotHere("dataset toy is not here; add it with: milbench data add toy")


def former(*_where, dtype):
    return toy(fingerprint="sha256:all-bytes", former_fingerprint="sha256:0")


@pytest.mark.parametrize(
    ("load", "changes", "says"),
    [
        (absent, {}, "dataset toy cannot be read: dataset toy is not here"),
        (lambda *w, dtype: toy(fingerprint="sha256:9"), {}, "dataset toy is not the one that the trial was trained on"),
        (give, {"split_fingerprint": "sha256:7"}, "split one of dataset toy is not the one"),
        (give, {"implementation": "mine@sha256:0123456789abcdef"}, "the plug-in of mine is not here; give it with --plugin"),
        (give, {"unit": "organ"}, "its spec: unit: input should be 'slide' or 'case'"),
    ],
)
def test_why_a_spec_cannot_be_upgraded(load, changes, says):
    assert says in upgraded(old_spec(spec().model_dump(mode="json")) | changes, {}, load)


def test_a_fingerprint_of_all_bytes_takes_the_place_of_the_former_one():
    new = upgraded(old_spec(spec().model_dump(mode="json")), {}, former)
    assert new.fingerprint == "sha256:all-bytes"
    assert new == spec(fingerprint="sha256:all-bytes")


def test_backends_are_those_that_computed_the_old_trial():
    old = old_spec(spec(aggregator="full-attention", implementation="full-attention@1", params={}).model_dump(mode="json"))
    assert upgraded(old, {"backends": {"full_attention": "flash-attn"}}, give).backends == {"full_attention": "flash-attn"}
    assert set(upgraded(old, {}, give).backends) == {"full_attention"}


def test_a_plug_in_with_helpers_is_known_by_its_file(tmp_path):
    (tmp_path / "beside.py").write_text("X = 1\n")
    path = tmp_path / "mine.py"
    path.write_text(
        "from milbench import Aggregator, register\n"
        "def later():\n    import beside\n"
        "@register('mine', label='Mine')\nclass Mine(Aggregator):\n"
        "    def __init__(self, in_dim: int, n_out: int) -> None:\n        super().__init__(in_dim, n_out)\n"
    )
    plugins.discover([path])
    now = plugins.resolve("mine").entry.implementation
    then = f"mine@sha256:{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
    assert now != then
    old = old_spec(spec(aggregator="mine", implementation=then, params={}).model_dump(mode="json"))
    assert upgraded(old, {}, give).implementation == now
    assert "is not the one that the trial ran" in upgraded(old | {"implementation": then[:-1] + "x"}, {}, give)


def test_ids_of_schema_1_that_a_spreadsheet_would_run_come_over(old):
    store, _, _ = old
    path = store.folder(store.ids()[0]) / "predictions.csv"
    path.write_text(path.read_text().replace("f", "=f").replace("=fold", "fold"))
    done = migrate(store, store, give)
    new = Store(store.root).folder(done.carried[path.parent.name]) / "predictions.csv"
    assert all(slide.startswith("=f") for slide in predictions.parsed(new)["slide"])
    assert "\n'=f" in new.read_text()
