"""The command as a user types it; through its entry point, in a process of its own, where that is what matters."""

import csv
import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
from click.testing import CliRunner

from milbench import files, plugins
from milbench.api.results import Results, trials
from milbench.cli import main, progress
from milbench.names import Family
from tests.builders import folders
from tests.builders.command import milbench
from tests.builders.results import made_up_suite

MILBENCH = [str(Path(sys.executable).parent / "milbench")]


def started(*words, code=0, cwd=None):
    """As `milbench` of tests.builders.command, but in a process of its own, which takes seconds to load torch."""
    done = subprocess.run([*MILBENCH, *map(str, words)], capture_output=True, text=True, check=False, cwd=cwd)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stdout + done.stderr


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_from_run_to_report(tmp_path, here, run_here):
    """The two commands of the README, in small."""
    few = ["run", "--suite", "quickstart", "--aggregators", "abmil,mean", "--folds", "0,1", "--epochs", "2"]
    dry = milbench(*few, "--dry-run")
    assert "4 trials: 4 to run. Nothing was run." in dry
    assert list(tmp_path.iterdir()) == [], "a dry run writes nothing"

    first = milbench(*few)
    assert "4 trials, 4 ok." in first
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*.json")}
    assert len(before) == 5
    (split,) = (tmp_path / "results" / "splits").iterdir()
    rows = list(csv.DictReader(split.open()))
    assert split.name.startswith("ucsb-breast-kfold5-")
    assert len(rows) == 5 * 58
    assert {tuple(sorted(row)) for row in rows} == {("case", "fold", "id", "part")}
    tested = [row["id"] for row in rows if row["part"] == "test"]
    assert len(tested) == len(set(tested)) == 58
    (trial,) = [json.loads(p.read_text()) for p in before if p.name == "trial.json"][:1]
    assert split.stem.endswith(trial["spec"]["split_fingerprint"].removeprefix("sha256:"))
    second = milbench(*few)
    assert "Nothing to run: 4 trials, 4 ok." in second
    assert {p: p.stat().st_mtime_ns for p in before if "trials" in p.parts} == {
        p: t for p, t in before.items() if "trials" in p.parts
    }
    assert "4 trials: 4 done. Nothing was run." in milbench(*few, "--dry-run")

    told = milbench("report", "--suite", "quickstart")
    assert "(n = 24 slides)" in told or "(n = 23 slides)" in told
    for path in told.split("Written:")[1].split():
        assert (tmp_path / path).stat().st_size > 0
    again = {path: path.read_bytes() for path in (tmp_path / "reports").rglob("*") if path.is_file()}
    milbench("report")
    assert again == {path: path.read_bytes() for path in again}, "same results, same bytes"

    state = json.loads(milbench("status", "--json"))
    assert state == {
        "suites": [
            {"suite": "quickstart", "trials": 4, "ok": 4, "failed": 0, "oom": 0, "skipped": 0, "pending": 0, "not_here": 0}
        ],
        "not_ok": [],
        "not_here": [],
        "running": 0,
    }
    assert "quickstart" in milbench("status")


def test_a_failed_trial_is_told_and_retried_when_asked(tmp_path, here, run_here):
    flag = tmp_path / "mended"
    (tmp_path / "shaky.py").write_text(
        "from pathlib import Path\nfrom torch import nn\nfrom milbench import Aggregator, Prediction, register\n"
        "@register('shaky', label='Shaky')\nclass Shaky(Aggregator):\n"
        "    def __init__(self, in_dim: int, n_out: int) -> None:\n        super().__init__(in_dim, n_out)\n        self.head = nn.Linear(in_dim, n_out)\n"
        f"    def forward(self, bag):\n        if not Path({str(flag)!r}).exists():\n            raise ValueError('not yet')\n"
        "        return Prediction(self.head(bag.features.mean(0)))\n"
    )
    few = ["run", "--suite", "quickstart", "--plugin", "shaky.py", "--aggregators", "mean,shaky", "--folds", "0", "--epochs", "1"]
    told = milbench(*few, code=1)
    assert "failed: Shaky · ucsb-breast hand-crafted · fold 0 · seed 0: ValueError: not yet" in told
    assert "Retry with: milbench run --suite quickstart --retry-failed" in told
    flag.touch()
    assert "Nothing to run" in milbench(*few, code=1), "a failed trial waits until it is asked for"
    assert "2 trials, 2 ok." in milbench(*few, "--retry-failed")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "--suite", "quikstart"], "unknown suite 'quikstart'; did you mean quickstart?"),
        (["run", "--suite", "quickstart", "--aggregators", "mean,abmill"], "unknown aggregator 'abmill'; did you mean abmil"),
        (
            ["run", "--suite", "quickstart", "--aggregators", "abmil[gate=1]"],
            "unknown parameter of abmil 'gate'; did you mean gated?",
        ),
        (["run", "--suite", "quickstart", "--seeds", "0,x"], "--seeds '0,x': write whole numbers from 0 up"),
        (["run", "--suite", "quickstart", "--seeds", "-1"], "--seeds '-1': write whole numbers from 0 up"),
        (["run", "--suite", "quickstart", "--folds", "9"], "has folds 0 to 4, not 9"),
        (["run", "--suite", "quickstart", "--plugin", "nowhere.py"], "--plugin nowhere.py: no such file"),
        (["run", "--suite", "quickstart", "--device", "cuda"], "--device cuda: not available here; available: cpu"),
        (
            ["run", "--suite", "quickstart", "--backend", "local_attention_2d=flex"],
            "backend flex of local_attention_2d was asked for and does not work on cpu: needs cuda",
        ),
        (["run", "--suite", "quickstart", "--backend", "flax"], "unknown backend 'flax'; did you mean"),
        (["run", "--suite", "quickstart", "--recipe", "offical"], "unknown recipe 'offical'; did you mean official?"),
        (["report", "--suite", "quickstart"], "nothing was run into results yet; start with: milbench run --suite quickstart"),
        (["status"], "nothing was run into results yet"),
        (["check", "aggregator", "abmill"], "unknown aggregator 'abmill'"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(words, says, tmp_path, here, unforced):
    if "cuda" in words:
        import torch

        if torch.cuda.is_available():
            pytest.skip("there is a CUDA device here")
    one_line(milbench(*words, code=2), says)
    assert list(tmp_path.iterdir()) == []


def one_line(told, says):
    assert told.startswith(f"milbench: {says}") or says in told
    assert len(told.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "--suite", "quickstart", "--plugin", "nowhere.py"], "--plugin nowhere.py: no such file"),
        pytest.param(
            ["report", "--suite", "quickstart"],
            "nothing was run into results yet; start with: milbench run --suite quickstart",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_mistake_is_one_line_in_a_process_of_its_own(words, says, tmp_path):
    """With torch and without: nothing else is printed, and the exit code is 2."""
    one_line(started(*words, code=2, cwd=tmp_path), says)
    assert list(tmp_path.iterdir()) == []


def test_lists():
    names = {row["name"]: row for row in json.loads(milbench("ls", "aggregators", "--json"))}
    assert names["abmil"]["parameters_384"] == 461_572
    assert names["abmil"]["parameters_1024"] == 789_252
    assert names["transmil"]["parameters_1024"] == 2_672_659
    order = [(get_args(Family).index(row["family"]), row["year"] or 0) for row in names.values()]
    assert order == sorted(order)
    found = {row["name"]: row for row in json.loads(milbench("ls", "suites", "--json"))}
    assert found["bracs-encoders"]["reproduces"] == "Table 1 of LongMIL (NeurIPS 2024)"
    assert {"quickstart", "bracs-all", "bracs-tuned", "paper-all"} <= set(found)
    assert {row["name"]: row["available"] for row in json.loads(milbench("ls", "datasets", "--json"))}["ucsb-breast"]
    assert {"name": "uni", "width": 1024} in json.loads(milbench("ls", "encoders", "--json"))
    chosen = {row["op"]: row["backend"] for row in json.loads(milbench("ls", "backends", "--json")) if row["chosen"]}
    assert set(chosen) == {"full_attention", "local_attention_2d", "retention", "gated_linear_attention", "selective_scan"}
    params = json.loads(milbench("ls", "aggregators", "abmil", "--params", "--json"))
    assert {"aggregator": "abmil", "parameter": "lineage", "type": "clam | original", "default": "clam"} in params
    assert {"aggregator": "abmil", "parameter": "gated", "type": "bool", "default": True} in params
    every = json.loads(milbench("ls", "aggregators", "--params", "--json"))
    has = {(row["aggregator"], row["parameter"]) for row in every}
    assert {(name, what) for name in names for what in ("heads", "dropout", "positions")} <= has
    recipes = {(row["name"], row["task"]): row for row in json.loads(milbench("ls", "recipes", "--json"))}
    assert recipes["paper", "subtyping"]["lr"] == 1e-4
    assert ("classic", "survival") not in recipes
    official = {(row["method"], row["task"]): row for row in json.loads(milbench("ls", "recipes", "--json")) if row["method"]}
    assert (official["abmil", "survival"]["left_over"], official["transmil", "subtyping"]["left_over"]) == ("restart", "flush")
    assert official["dsmil", "subtyping"]["parameters"] == {"orthogonal": True}
    assert official["max[pick=instance]", "subtyping"]["min_epochs"] == 52
    assert ("max", "subtyping") not in official
    assert official["gcn-mil", "survival"]["source"].startswith("mahmoodlab/Patch-GCN")
    assert official["gcn-mil", "survival"]["not_followed"].startswith("time bins come from the training fold")
    for what in ("aggregators", "suites", "datasets", "encoders", "backends", "recipes"):
        assert len(milbench("ls", what).splitlines()) > 3


@pytest.mark.slow
def test_a_new_aggregator_holds_from_the_start(tmp_path, here):
    check = ["check", "aggregator", "my-own", "--plugin", "my_own.py"]
    assert "Next: milbench check aggregator my-own --plugin my_own.py" in milbench("new", "aggregator", "my-own")
    with plugins.restored():
        assert "all 17 checks hold" in milbench(*check)
    assert "my_own.py exists" in milbench("new", "aggregator", "my-own", code=2)
    text = (tmp_path / "my_own.py").read_text().replace("softmax(dim=0)", "cumsum(dim=0)")
    (tmp_path / "my_own.py").write_text(text)
    assert "FAIL  permutation: my_own.py:8: order_sensitive = False, but" in milbench(*check, code=1)


def test_a_new_suite_runs_from_the_start_and_reports_take_its_file(tmp_path, here):
    assert "Next: milbench run --suite mine.toml --dry-run" in milbench("new", "suite", "mine")
    assert "20 trials: 20 to run. Nothing was run." in milbench("run", "--suite", "mine.toml", "--dry-run")
    assert "mine.toml exists" in milbench("new", "suite", "mine", code=2)
    assert "cannot be the name of a suite" in milbench("new", "suite", "a b", code=2)
    made_up_suite(tmp_path / "results", {"abmil": 0.5, "max": 1.0}, name="mine")
    assert "reports/mine/report.md" in milbench("report", "--suite", "mine.toml", "--no-tests")
    (suite,) = json.loads(milbench("status", "--suite", "elsewhere/mine.toml", "--json"))["suites"]
    assert (suite["suite"], suite["ok"]) == ("mine", 6)


def test_trials_in_a_list(tmp_path, here):
    skip = {("max", 1, 0): "failed", ("max", 0, 0): "pending"}
    made_up_suite(tmp_path / "results", {"abmil": 0.5, "max": 1.0}, folds=2, skip=skip)
    rows = json.loads(milbench("ls", "trials", "--suite", "made-up", "--json"))
    assert rows == json.loads(milbench("ls", "trials", "--json"))
    assert [(row["aggregator"], row["fold"], row["status"]) for row in rows] == [
        ("abmil", 0, "ok"), ("abmil", 1, "ok"), ("max", 0, "pending"), ("max", 1, "failed"),
    ]  # fmt: skip
    said = milbench("ls", "trials")
    assert said.startswith("toy · none · one\n"), "what all trials are measured on stands above"
    line = next(line for line in said.splitlines() if rows[0]["trial_id"] in line)
    words = " ".join(line.split()[1:])
    assert words == f"abmil:fold0:seed0 ok macro auc {rows[0]['metrics']['macro_auc']:.3f}"


@pytest.mark.slow
def test_quiet_commands_say_errors_only_and_end_alike(tmp_path, here, run_here):
    few = ["run", "--suite", "quickstart", "--aggregators", "mean", "--folds", "0", "--epochs", "1"]
    assert started(*few, "--workers", 1, "--quiet", cwd=tmp_path) == "", "nor do its workers say anything"
    assert milbench("report", "-q", "--no-tests") == ""
    assert (tmp_path / "reports" / "quickstart" / "report.html").is_file()
    (tmp_path / "bad.py").write_text(
        "from milbench import Aggregator, register\n@register('bad', label='Bad')\nclass Bad(Aggregator):\n"
        "    def forward(self, bag):\n        raise ValueError('never')\n"
    )
    words = ["run", "--suite", "quickstart", "--plugin", "bad.py", "--aggregators", "bad", "--folds", "0", "--quiet"]
    failed, retry = milbench(*words, code=1).splitlines()
    assert failed.startswith("failed: Bad · ucsb-breast hand-crafted · fold 0 · seed 0: ")
    assert retry.startswith("Retry with: ")
    assert milbench("report", "-q", "--suite", "nothing", code=2).startswith("milbench: unknown suite")


READING = [
    "--help",
    "status",
    "report --help",
    "report",
    "results check",
    "compare abmil max",
    "ls trials",
    "ls suites",
    "ls datasets",
    "ls encoders",
    "data check mine",
    "new suite mine",
]


def heavy(words, modules, cwd):
    """command -> those of `modules` that are loaded once it has run, and run well, after the others in one process."""
    code = f"""
import json, sys
from milbench.cli import main
loaded = {{}}
for words in {words!r}:
    try:
        main(words.split())
    except SystemExit as end:
        assert not end.code, words
    loaded[words] = [name for name in {modules!r} if name in sys.modules]
print(json.dumps(loaded))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=cwd)
    return json.loads(done.stdout.splitlines()[-1])


def test_reading_imports_no_torch(tmp_path, here):
    made_up_suite(tmp_path / "results", {"abmil": 0.5, "max": 1.0})
    root = folders.cohort(tmp_path / "in")
    milbench("data", "add", "mine", "--encoder", "uni", "--features", root / "features", "--labels", root / "labels.csv")
    assert heavy(READING, ["torch"], tmp_path) == {words: [] for words in READING}


def test_help_loads_nothing_heavy(tmp_path):
    assert heavy(["--help"], ["torch", "pandas", "scipy", "numpy", "pydantic", "rich"], tmp_path) == {"--help": []}


@pytest.mark.slow
def test_running_loads_no_distributions(tmp_path):
    """Each worker would load them, which takes a second."""
    dry = "run --suite quickstart --dry-run"
    assert heavy([dry], ["scipy.stats", "scipy.optimize"], tmp_path) == {dry: []}


def test_a_trial_without_a_result_is_told(tmp_path, capsys):
    """The exit code is 0 only when everything that was asked for is there."""
    skip = {("abmil", 1, 0): "pending", ("abmil", 2, 0): "pending"}
    store, _ = made_up_suite(tmp_path / "results", {"abmil": 0.5}, skip=skip)
    results = Results("made-up", store.root, tuple(trials("made-up", results=store.root)), ran=3)
    assert progress.summary(results, "made-up", progress.View(quiet=False)) == 1
    out, err = capsys.readouterr()
    assert "3 trials, 1 ok, 2 pending." in out
    assert "Next:" not in out
    assert err == (
        f"2 trials have no result in {store.trials}: ABMIL · toy none · fold 1 · seed 0; ABMIL · toy none · fold 2 · seed 0. "
        "The same command runs what is missing.\n"
    )
    assert progress.summary(results, "made-up", progress.View(quiet=True)) == 1
    assert capsys.readouterr() == ("", err)
    assert progress.summary(replace(results, trials=results.trials[:1]), "made-up", progress.View(quiet=False)) == 0


def test_time_left_is_what_waits_at_the_mean_of_its_kind(monkeypatch):
    """Against the sum over every waiting trial, for trials that take 1 s to 9 s, on three workers."""
    now, took, waiting = [100.0], {}, {}
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "duration", lambda seconds: f"{seconds:.9f}")
    jobs = [SimpleNamespace(trial_id=str(i), cell=SimpleNamespace(aggregator=f"a{i % 4}")) for i in range(40)]
    clock = progress._Clock(jobs, 3)
    waiting = {job.trial_id: job.cell.aggregator for job in jobs}
    since = {}
    for i in range(40):
        for j in range(i, min(40, i + 3)):
            if str(j) not in since:
                clock.start(str(j))
                since[str(j)] = now[0]
        now[0] += 1 + i * 7 % 9
        took.setdefault(waiting.pop(str(i)), []).append(clock.stop(str(i)))
        assert took[f"a{i % 4}"][-1] == now[0] - since[str(i)]
        every = [seconds for some in took.values() for seconds in some]
        expected = 0.0
        for trial, kind in waiting.items():
            own = took.get(kind, every)
            expected += max(0.0, sum(own) / len(own) - (now[0] - since.get(trial, now[0])))
        assert clock.left() == (f"{expected / 3:.9f} left" if waiting else "")


def test_an_event_costs_the_same_however_many_trials_there_are():
    """Counted in lines of Python that run, with an aggregator for each trial."""

    def lines(count):
        jobs = [SimpleNamespace(trial_id=str(i), cell=SimpleNamespace(aggregator=f"a{i}")) for i in range(count)]
        clock, ran = progress._Clock(jobs, 2), [0]

        def trace(frame, event, arg):
            ran[0] += event == "line"
            return trace

        clock.start("0")
        sys.settrace(trace)
        try:
            clock.stop("0")
            clock.start("1")
            clock.pass_over("2")
            clock.left()
        finally:
            sys.settrace(None)
        return ran[0]

    assert lines(10) == lines(10_000)


def test_a_folder_that_takes_nothing_is_one_line(tmp_path, here, monkeypatch):
    def refused(path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(files, "flush", refused)
    done = CliRunner().invoke(main, ["run", "--suite", "quickstart", "--aggregators", "mean", "--folds", "0"])
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("milbench: cannot use ") and line.endswith(": read-only file system")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
