"""Whatever a plan, a result or a suite holds, and wherever a folder points: one line and an exit code, never a traceback."""

import copy
import csv
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from milbench.cli import main
from milbench.trials import plan as plans
from milbench.trials.spec import id_of
from milbench.trials.store import Store
from tests.builders.results import made_up_suite, sign

ODD = ["", "../../x", "/etc/passwd", "..", ".", "a\nb", "a\0b", "-x", ".x", "x" * 300, "a/b", "a\\b", "é\u202e", " x"]


def told(*words, code=2):
    """What the command says: one line, and no traceback."""
    done = CliRunner().invoke(main, [*map(str, words)])
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    assert done.exit_code == code, done.output
    if code == 2:
        assert len(done.output.strip().splitlines()) == 1, done.output
        assert len(done.output) < 1500
    return done.output


@pytest.fixture
def store(tmp_path):
    store, _ = made_up_suite(tmp_path / "results", {"abmil": 1.0, "mean": 2.0}, n=9)
    return store


def of(store, number=0):
    return plans.read(store, "made-up").cells[number].trial_id


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def asked(store, *, code=2, tests=False):
    words = ["report", "--results", store.root, "--reports", store.root.parent / "reports"]
    return told(*words, *([] if tests else ["--no-tests"]), code=code)


# Results that are not what they say.


def test_swapped_folders_are_noticed(store):
    one, other = store.folder(of(store, 0)), store.folder(of(store, 1))
    one.rename(store.root / "aside")
    other.rename(one)
    (store.root / "aside").rename(other)
    assert "says to be trial" in asked(store)
    assert "says to be trial" in told("status", "--results", store.root)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d["metrics"]["test"].update(macro_auc=7.5), "metrics.test.macro_auc cannot be 7.5"),
        (lambda d: d["metrics"]["test"].update(macro_auc=-0.1), "metrics.test.macro_auc cannot be -0.1"),
        (lambda d: d["metrics"]["test"].update(macro_auc=True), "metrics.test.macro_auc cannot be True"),
        (lambda d: d["metrics"]["test"].update(macro_auc="0.9"), "metrics.test.macro_auc cannot be '0.9'"),
        (lambda d: d["metrics"]["test"].update(macro_auc=10**400), "metrics.test.macro_auc cannot be 1000"),
        (lambda d: d["spec"].update(seed=5), "its spec is"),
        (lambda d: d.update(trial_id="0" * 16), "says to be trial 0000"),
        (lambda d: d.pop("metrics"), "metrics is missing"),
        (lambda d: d.pop("spec"), "spec is missing"),
        (lambda d: d.update(cost={"seconds": -1}), "cost.seconds cannot be -1"),
        (lambda d: d.update(metrics={}), "is finished and has no test metrics"),
        (lambda d: d.update(schema=1), "bring the store over with: milbench results migrate --results"),
    ],
)
def test_an_impossible_result_is_refused(store, change, says):
    edit(store.folder(of(store)) / "trial.json", change)
    assert says in asked(store)


@pytest.mark.parametrize("text", ["NaN", "1e999", "-Infinity"])
def test_a_number_that_is_none_is_refused(store, text):
    path = store.folder(of(store)) / "trial.json"
    content = json.loads(path.read_text())
    stored = json.dumps(content["metrics"]["test"]["macro_auc"])
    path.write_text(path.read_text().replace(f'"macro_auc": {stored}', f'"macro_auc": {text}'))
    assert "trial.json" in asked(store)


def test_predictions_that_were_changed_are_noticed_and_so_are_forged_ones(store):
    path = store.folder(of(store)) / "predictions.csv"
    before = path.read_text()
    path.write_text(before.replace("p0,p1,p2", "p1,p0,p2"))
    assert "another SHA-256" in asked(store, tests=True)
    sign(store, of(store))
    assert "disagree: macro_auc is stored as" in asked(store, tests=True)
    path.write_text(before)
    sign(store, of(store))
    asked(store, code=0)


def test_a_trial_in_anothers_place_is_noticed(store):
    def swap(plan):
        first, second = (next(c for c in plan["cells"] if c["aggregator"] == name) for name in ("abmil", "mean"))
        first["trial_id"], second["trial_id"] = second["trial_id"], first["trial_id"]

    edit(plans.path_of(store, "made-up"), swap)
    assert "is of aggregator mean, not abmil" in asked(store)


def test_check_names_every_bad_trial(store):
    assert "6 trials, all are what they say." in told("results", "check", "--results", store.root, code=0)
    ids = [of(store, number) for number in range(5)]
    edit(store.folder(ids[0]) / "trial.json", lambda d: d["metrics"]["test"].update(macro_f1=0.123))
    shutil.copyfile(store.folder(ids[2]) / "predictions.csv", store.folder(ids[1]) / "predictions.csv")
    (store.folder(ids[2]) / "trial.json").unlink()
    (store.folder(ids[3]) / "stray.txt").write_text("")
    (store.folder(ids[4]) / "predictions.csv").unlink()
    lines = told("results", "check", "--results", store.root, code=1).splitlines()
    assert lines[-1] == "6 trials, 5 bad."
    for trial, says in zip(ids, ["macro_f1 is stored as 0.123", "SHA-256", "has no trial.json", "stray", "missing"], strict=True):
        (line,) = [line for line in lines if trial in line]
        assert says in line
    found = json.loads(told("results", "check", "--json", "--results", store.root, code=1))
    assert {row["trial_id"] for row in found["bad"]} == set(ids)
    assert found["trials"] == 6


def test_metrics_come_out_of_predictions_exactly(tmp_path):
    """Scores are float32, and nine digits give them back."""
    from milbench import stats
    from milbench.trials import predictions

    rng = np.random.default_rng(0)
    score = rng.dirichlet([1, 1, 1], size=50).astype(np.float32)
    target = np.arange(50) % 3
    rows = [
        {"slide": f"s{i:02d}", "case": f"-c{i}", "fold": 0, "target": int(y), **{f"p{c}": v for c, v in enumerate(p)}}
        for i, (y, p) in enumerate(zip(target, score, strict=True))
    ]
    predictions.write(tmp_path / "p.csv", rows)
    columns = predictions.parsed(tmp_path / "p.csv")
    assert (columns["score"].astype(np.float32) == score).all()
    assert predictions.metrics(columns) == stats.of_subtyping(target, score)
    assert columns["case"].tolist() == [f"-c{i}" for i in range(50)]


@given(st.lists(st.text(max_size=8), min_size=1, max_size=20, unique=True))
@settings(max_examples=40)
def test_ids_come_back_exactly_and_none_is_a_formula(ids):
    from milbench.trials import predictions

    ids = [id for id in ids if id.encode(errors="ignore").decode() == id and "\0" not in id] or ["=cmd()"]
    rows = [{"slide": id, "case": id, "fold": 0, "target": 0, "p0": np.float32(1), "p1": np.float32(0)} for id in ids]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.csv"
        predictions.write(path, rows)
        assert sorted(predictions.parsed(path)["slide"].tolist()) == sorted(ids)
        with path.open(newline="") as file:
            assert not any(cell.startswith(("=", "@", "+c", "-x", "\t=")) for row in csv.reader(file) for cell in row)


def test_a_text_that_a_spreadsheet_would_run_is_quoted_and_a_number_is_not():
    from milbench.files import csv_cell

    cells = ["=cmd()", "+x", "-x", "@x", "\tx", "\rx", "'x", "-0.12", "+3e-5", "a=b", "", -0.12, None]
    quoted = ["'=cmd()", "'+x", "'-x", "'@x", "'\tx", "'\rx", "''x", "-0.12", "+3e-5", "a=b", "", -0.12, None]
    assert [csv_cell(cell) for cell in cells] == quoted


# Names that would be paths.


@pytest.mark.parametrize("name", ODD)
def test_a_name_that_would_be_another_path_is_refused(store, tmp_path, name):
    before = sorted(path for path in tmp_path.rglob("*") if "results" not in path.parts)
    plan = plans.path_of(store, "made-up")
    text = plan.read_text()
    edit(plan, lambda d: d["definition"]["table"].update(name=name))
    asked(store)
    plan.write_text(text)
    edit(plan, lambda d: d["cells"][0].update(trial_id=name) or d["cells"][0].update(missing="" if name else "x"))
    told("status", "--results", store.root, code=0 if not name else 2)
    plan.write_text(text)
    edit(plan, lambda d: d.update(suite=name))
    asked(store)
    plan.write_text(text)
    edit(plan, lambda d: d["definition"].update(includes=[name]))
    asked(store)
    suite = tmp_path / "own.toml"
    suite.write_text(SUITE.replace('title = "A suite"', f'title = "A suite"\nname = {json.dumps(name)}'))
    told("run", "--suite", suite, "--dry-run", "--results", store.root)
    for key in ("dataset", "encoder", "split"):
        suite.write_text(SUITE.replace(f"{key} = [", f"{key} = [{json.dumps(name)}, "))
        told("run", "--suite", suite, "--dry-run", "--results", store.root)
    if "\0" not in name:
        told("report", "--suite", name, "--results", store.root, code=2)
    suite.unlink()
    assert sorted(path for path in tmp_path.rglob("*") if "results" not in path.parts) == before


@pytest.mark.parametrize("name", ODD)
def test_an_analysis_cannot_name_foreign_files(store, tmp_path, name):
    folder = store.root / "analysis"
    folder.mkdir()
    (folder / "fine.json").write_text(json.dumps({"name": name, "title": "T", "caption": "C"}))
    asked(store)


def test_an_analysis_that_links_to_somewhere_else_is_refused(store, tmp_path):
    from milbench.plots.figure import Figure

    def draw():
        from matplotlib import pyplot as plt

        return plt.figure(figsize=(1, 1))

    folder = store.root / "analysis"
    Figure("odd #1_%", "T", "C", [{"x": 1}], draw).save(folder)
    asked(store, code=0)
    reports = tmp_path / "reports" / "made-up"
    assert (reports / "figures" / "odd-1_-.pdf").is_file(), "a name that LaTeX takes as it stands"
    assert "figures/odd-1_-.pdf" in (reports / "report.tex").read_text()
    secret = tmp_path / "secret.pdf"
    secret.write_text("not yours")
    (folder / "odd #1_%.pdf").unlink()
    (folder / "odd #1_%.pdf").symlink_to(secret)
    assert "is a link to somewhere else" in asked(store)
    (folder / "odd #1_%.json").unlink()
    (folder / "rank-x.csv").symlink_to("rank-x.csv")
    assert "rank-x.csv" in told("report", "--results", store.root, "--reports", tmp_path / "r", code=0) or True


# Folders and files that are something else.


def test_a_folder_that_is_a_file_or_a_loop(tmp_path, store):
    file, loop = tmp_path / "file", tmp_path / "loop"
    file.write_text("")
    loop.symlink_to(loop)
    for root in (file, loop, file / "below"):
        for command in (["status"], ["report"], ["status", "--suite", "x"]):
            told(*command, "--results", root)
        told("results", "check", "--results", root, code=2)
    few = ["run", "--suite", "quickstart", "--aggregators", "mean", "--folds", "0", "--epochs", "1"]
    for root in (file, loop):
        told(*few, "--results", root)
    told("report", "--no-tests", "--results", store.root, "--reports", file)
    told("report", "--no-tests", "--results", store.root, "--reports", loop)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only(tmp_path, store):
    (tmp_path / "locked").mkdir(mode=0o500)
    told("report", "--no-tests", "--results", store.root, "--reports", tmp_path / "locked")
    told("run", "--suite", "quickstart", "--aggregators", "mean", "--results", tmp_path / "locked" / "r")


def test_a_file_that_is_something_else(store):
    path = store.folder(of(store)) / "trial.json"
    plan = plans.path_of(store, "made-up")
    for place in (path, plan):
        whole = place.read_bytes()
        for content in (b"", b"[]", b"null", b"{", b"[" * 100_000, b'{"a":' * 5000, b"\xff\xfe", b"9" * 5000, b'"\\ud800"'):
            place.write_bytes(content)
            asked(store)
            told("status", "--results", store.root)
        place.unlink()
        place.mkdir()
        asked(store)
        place.rmdir()
        place.write_bytes(whole)
    edit(plan, lambda d: d["definition"].pop("table"))
    assert "definition: table: field required" in asked(store)


SUITE = """
title = "A suite"
[grid]
dataset = ["musk1"]
encoder = ["hand-crafted"]
split = ["kfold5"]
seed = [0]
aggregator = ["abmil", "mean"]
[recipe]
name = "paper"
[table]
name = "mine"
metrics = ["macro_auc"]
reference = "abmil"
"""


@pytest.mark.parametrize(
    "text",
    [
        b"\xff\xfe",
        b"a = " + b"[" * 5000,
        b"a = " + b"{a=" * 400,
        b"a = " + b"9" * 5000,
        SUITE.replace("seed = [0]", "seed = [1e400]").encode(),
        SUITE.replace("seed = [0]", f"seed = [{10**30}]").encode(),
        SUITE.replace('name = "paper"', 'name = "paper"\nlr = nan').encode(),
        SUITE.replace('name = "paper"', 'name = "paper"\nlr = inf').encode(),
        SUITE.replace('name = "paper"', 'name = "paper"\nlr = 1979-05-27').encode(),
        SUITE.replace('name = "paper"', "name = 5").encode(),
        SUITE.replace('name = "paper"', 'name = "paper"\non = 5').encode(),
        SUITE.replace('name = "paper"', 'name = "paper"\non = {musk1 = 5}').encode(),
        SUITE.replace('["abmil", "mean"]', '[["abmil"]]').encode(),
        SUITE.replace('["abmil", "mean"]', '["abmil[hidden=' + "9" * 5000 + ']"]').encode(),
    ],
)
def test_a_suite_that_is_none(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_bytes(text)
    told("run", "--suite", path, "--dry-run", "--results", tmp_path / "r")


@pytest.mark.parametrize("value", ["", " ", ",", "0,,1", "x", "-1", "1.5", "9" * 5000])
def test_lists_of_nothing(tmp_path, value):
    run = ["run", "--suite", "quickstart", "--dry-run", "--results", tmp_path / "r"]
    assert "--seeds" in told(*run, "--seeds", value)
    assert "--folds" in told(*run, "--folds", value)
    if not value.strip(" ,"):
        assert "--aggregators" in told(*run, "--aggregators", value)


# Anything at all.

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.sampled_from(ODD) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


def places(value, at=()):
    """Every way into a document."""
    yield at
    inside = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, one in inside:
        yield from places(one, (*at, key))


@st.composite
def damaged(draw, document):
    """The document with one to three places changed, taken away or renamed."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        *above, last = draw(st.sampled_from([at for at in places(document) if at]))
        holder = document
        for key in above:
            holder = holder[key]
        how = draw(st.sampled_from(["change", "change", "remove", "rename"]))
        if how == "change" or isinstance(holder, list):
            holder[last] = draw(JSON)
        else:
            value = holder.pop(last)
            if how == "rename":
                holder[draw(st.text(max_size=8))] = value
    return document


def quiet(*words):
    """The command ends in its own words."""
    done = CliRunner().invoke(main, [*map(str, words)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code in (0, 1, 2)
    if done.exit_code == 2:
        assert len(done.output) < 2000, done.output
        assert len(done.output.strip().splitlines()) == 1, done.output


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    root = tmp_path_factory.mktemp("sound")
    made_up_suite(root / "results", {"abmil": 1.0, "mean": 2.0}, n=6, folds=1)
    return root


def fuzz(data, sound):
    store = Store(sound / "results")
    trial = sorted(store.ids())[0]
    what = data.draw(st.sampled_from(["plan", "trial", "spec", "predictions", "suite"]))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        here = Store(shutil.copytree(store.root, root / "results"))
        plan, result = here.root / "suites" / "made-up.json", here.trials / trial / "trial.json"
        if what == "plan":
            plan.write_text(json.dumps(data.draw(damaged(json.loads(plan.read_text())))))
        elif what == "trial":
            result.write_text(json.dumps(data.draw(damaged(json.loads(result.read_text())))))
        elif what == "spec":  # a forger's: the id fits
            content = json.loads(result.read_text())
            content["spec"] = data.draw(damaged(content["spec"]))
            try:
                content["trial_id"] = id_of(content["spec"])
            except ValueError:
                return
            result.write_text(json.dumps(content))
            result.parent.rename(here.trials / content["trial_id"])
            plan.write_text(plan.read_text().replace(trial, content["trial_id"]))
        elif what == "predictions":
            path = result.parent / "predictions.csv"
            lines = path.read_text().split("\n")
            at = data.draw(st.integers(0, len(lines) - 1))
            cells = lines[at].split(",")
            cells[data.draw(st.integers(0, len(cells) - 1))] = data.draw(
                st.text(max_size=8) | st.sampled_from(["nan", "-1", "9" * 400])
            )
            lines[at] = ",".join(cells)
            path.write_bytes("\n".join(lines).encode(errors="surrogateescape"))
            sign(here, trial)
        else:
            import tomllib

            suite = data.draw(damaged(tomllib.loads(SUITE)))
            (root / "mine.toml").write_text(toml(suite), errors="replace")
            quiet("run", "--suite", root / "mine.toml", "--dry-run", "--results", root / "r")
            return
        quiet("status", "--results", here.root)
        quiet("results", "check", "--results", here.root)
        tests = [] if what == "predictions" else ["--no-tests"]
        quiet("report", *tests, "--results", here.root, "--reports", root / "reports", "--format", "csv,md,latex")
        assert {path.name for path in root.iterdir()} <= {"results", "reports"}, "nothing is written elsewhere"


def toml(value):
    """A document as TOML, tables inline."""
    if isinstance(value, dict):
        pairs = ", ".join(f"{json.dumps(key)} = {toml(one)}" for key, one in value.items() if one is not None)
        return "{" + pairs + "}" if value is not None else "{}"
    if isinstance(value, list):
        return "[" + ", ".join(toml(one) for one in value if one is not None) + "]"
    return repr(value).lower() if isinstance(value, float | bool) else json.dumps(value)


OPTIONS = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


@given(data=st.data())
@settings(max_examples=40, **OPTIONS)
def test_no_document_ends_in_a_traceback(data, sound):
    fuzz(data, sound)


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=3000, **OPTIONS)
def test_no_document_of_many_ends_in_a_traceback(data, sound):
    fuzz(data, sound)
