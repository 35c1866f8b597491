"""Ctrl-C, SIGTERM and SIGHUP at any moment: the exit code of a shell, no process and no half file left, and the next run goes on."""

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from milbench import interrupt
from milbench.files import replacing, write_atomically
from milbench.trials.store import Store
from tests.builders.results import made_up_suite

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")

SUITE = """
title = "Two trials of which one never ends"
[grid]
dataset = ["musk1"]
encoder = ["hand-crafted"]
split = ["kfold5"]
fold = [0]
seed = [0]
aggregator = ["mean", "endless"]
[recipe]
name = "paper"
max_epochs = 1
[table]
name = "two"
metrics = ["macro_auc"]
reference = "mean"
"""

# A call into C that never gives Python a chance, in a worker that would not listen to SIGTERM either.
ENDLESS = """
import signal
from pathlib import Path
from torch import nn
from milbench import Aggregator, Prediction, register

@register("endless", label="Endless")
class Endless(Aggregator):
    def __init__(self, in_dim: int, n_out: int) -> None:
        super().__init__(in_dim, n_out)
        self.head = nn.Linear(in_dim, n_out)

    def forward(self, bag):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        Path("endless-began").touch()
        sum(range(10**12))
"""

RUN = ["run", "--suite", "two.toml", "--plugin", "endless.py", "--workers", "2"]


class Command:
    """A command in a folder of its own, with a mark by which all its processes are found."""

    def __init__(self, folder, *words):
        self.mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            [sys.executable, "-m", "milbench", *words],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "MARK": self.mark},
            preexec_fn=self._heed,
        )
        # From here on it is our code that runs, and not yet Python that starts.
        self.wait(lambda: self.signals_caught() & 1 << signal.SIGHUP - 1)

    @staticmethod
    def _heed():
        # What a shell starts in the background ignores Ctrl-C, and so does all that it starts.
        for number in interrupt.SIGNALS:
            signal.signal(number, signal.SIG_DFL)

    def signals_caught(self):
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.split("SigCgt:")[1].split()[0], 16)

    def wait(self, happened, seconds=120):
        until = time.monotonic() + seconds
        while not happened():
            assert self.process.poll() is None, self.process.communicate()
            if time.monotonic() > until:
                self.process.kill()  # its endless trial would go on after the test
                pytest.fail(f"waited {seconds} s, in vain")
            time.sleep(0.001)

    def alive(self):
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (path / "environ").read_bytes():
                    found.append(int(path.name))
            except OSError:
                continue
        return found

    def nobody_left(self, seconds):
        until = time.monotonic() + seconds
        while self.alive() and time.monotonic() < until:
            time.sleep(0.02)
        assert not self.alive()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "two.toml").write_text(SUITE)
    (tmp_path / "endless.py").write_text(ENDLESS)
    return tmp_path


def hidden(folder):
    return list(folder.rglob(".*"))


def stop_after(folder, sign, seconds, number):
    """The run ends as it should when the signal comes so many seconds after that file appears, or after the first line of code."""
    for left in SIGNS[1:]:
        (folder / left).unlink(missing_ok=True)
    command = Command(folder, *RUN)
    command.wait((folder / sign).exists)
    time.sleep(seconds)
    command.process.send_signal(number)
    out, err = command.process.communicate(timeout=60)
    assert command.process.returncode == 128 + number, (seconds, out, err)
    assert out.rstrip().endswith("the same command continues."), (seconds, out)
    assert out.count("Stopped.") == 1
    assert not err, (seconds, err)
    command.nobody_left(5)
    assert not hidden(folder)
    store = Store(folder / "results")
    finished = [path.name for path in store.trials.glob("*")]
    assert all(store.read(name).status == "ok" for name in finished)
    if "trials were finished" in out:
        assert f"Stopped. {out.count('] ok')} of " in out
        assert out.count("] ok") <= len(finished) <= 1
    return out


# What tells that a command has begun, that it hires workers, and that one of them trains.
SIGNS = [".", "results/suites/two.json", "endless-began"]


def moments(count, signs=SIGNS):
    drawn = random.Random(20)
    return [(signs[i % len(signs)], drawn.uniform(0, 2), drawn.choice(interrupt.SIGNALS)) for i in range(count)]


def test_a_run_stops_while_it_trains(folder):
    """While a worker trains; twenty moments are slow, and `make chaos` takes fifty."""
    stop_after(folder, *moments(len(SIGNS))[-1])


@pytest.mark.slow
def test_a_run_stops_at_twenty_moments(folder):
    """Imports, planning, hiring, training; then the next run finds what was finished."""
    told = [stop_after(folder, *moment) for moment in moments(20)]
    assert any(" trials were finished and are kept" in out for out in told)
    done = subprocess.run(
        [sys.executable, "-m", "milbench", *RUN, "--aggregators", "mean"], cwd=folder, capture_output=True, text=True, check=True
    )
    assert "1 trials, 1 ok." in done.stdout


@pytest.mark.slow
def test_a_killed_run_takes_its_workers_along(folder):
    """Even one that is in the midst of a call into C."""
    command = Command(folder, *RUN, "--aggregators", "endless")
    command.wait((folder / "endless-began").exists)
    assert len(command.alive()) >= 2
    command.process.kill()
    command.nobody_left(5)
    assert command.process.communicate()[1] == "", "nor do they say anything"


@pytest.mark.slow
def test_the_second_request_ends_it_at_once(folder):
    command = Command(folder, *RUN, "--aggregators", "endless")
    command.wait((folder / "endless-began").exists)
    command.process.send_signal(signal.SIGSTOP)  # so that both are there when it looks
    command.process.send_signal(signal.SIGINT)
    command.process.send_signal(signal.SIGTERM)
    command.process.send_signal(signal.SIGCONT)
    _, err = command.process.communicate(timeout=60)
    assert command.process.returncode in (130, 143)
    assert not err
    command.nobody_left(5)


@pytest.mark.slow
def test_a_report_stops_at_any_moment(tmp_path):
    """Files of the report are old, new or not there."""
    made_up_suite(tmp_path / "results", {"abmil": 0.5, "max": 1.0, "mean": 1.5}, folds=5, seeds=2)
    whole = subprocess.run([sys.executable, "-m", "milbench", "report", "--reports", "whole"], cwd=tmp_path, check=True, capture_output=True)  # fmt: skip
    assert whole.returncode == 0
    expected = {
        path.relative_to(tmp_path / "whole"): path.read_bytes() for path in (tmp_path / "whole").rglob("*") if path.is_file()
    }
    for _, seconds, number in moments(25, SIGNS[:1]):
        command = Command(tmp_path, "report")
        time.sleep(3 * seconds)
        command.process.send_signal(number)
        out, err = command.process.communicate(timeout=60)
        # While Python itself ends, after the last word, nobody answers but the system; a shell says 128 + number all the same.
        assert command.process.returncode in (0, 128 + number, -number), (out, err)
        assert command.process.returncode != -number or "Written:" in out
        assert "Traceback" not in err
        found = {
            path.relative_to(tmp_path / "reports"): path.read_bytes()
            for path in (tmp_path / "reports").rglob("*")
            if path.is_file()
        }
        assert found.items() <= expected.items()


def test_a_signal_is_noted_and_takes_effect_at_the_end():
    order = []

    def work():
        with interrupt.noted() as asked:
            assert not asked()
            signal.raise_signal(signal.SIGINT)
            assert asked()
            order.append("went on")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert order == ["went on"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_process_where_it_stands(number, code, tmp_path, monkeypatch, capfd):
    """Nothing is raised that a library could wrap or swallow; half files and closing words are seen to."""
    ends = []
    monkeypatch.setattr(interrupt.os, "_exit", ends.append)
    monkeypatch.setattr(interrupt._State, "words", interrupt._State.words)
    before = signal.getsignal(number)
    with interrupt.obeyed(), replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("ha")
        signal.raise_signal(number)
        assert list(tmp_path.iterdir()) == []
        interrupt.say_at_the_end(lambda: "Stopped. 2 of 3.")
        signal.raise_signal(number)
        temporary.write_text("only a test comes so far")
    assert ends == [code, code]
    assert capfd.readouterr().out.split("\n") == ["", "Stopped. What was finished is kept; the same command continues.", "", "Stopped. 2 of 3.", ""]  # fmt: skip
    assert signal.getsignal(number) is before


def test_a_second_signal_does_not_wait_for_a_safe_place(monkeypatch):
    ends = []
    monkeypatch.setattr(interrupt.os, "_exit", ends.append)
    with interrupt.obeyed(), interrupt.noted():
        signal.raise_signal(signal.SIGINT)
        assert ends == []
        signal.raise_signal(signal.SIGTERM)
        assert ends == [143]
    assert ends == [143, 130], "and the first would have had its turn"


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupt.obeyed(), interrupt.noted() as asked:
            signal.raise_signal(signal.SIGHUP)
            assert not asked()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_file_is_old_or_new(tmp_path):
    path = tmp_path / "a.txt"
    write_atomically(path, "old")

    def interrupted():
        with replacing(path) as temporary:
            temporary.write_text("ha")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
