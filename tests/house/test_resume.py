"""SIGKILL in the midst of a trial, from the command line: whoever begins it again goes on, and its files are those of a quiet run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")

SUITE = """
title = "One trial that takes a while"
[grid]
dataset = ["musk1"]
encoder = ["hand-crafted"]
split = ["kfold5"]
fold = [0]
seed = [0]
aggregator = ["steady"]
[recipe]
name = "paper"
max_epochs = 8
accumulate = 8
lr = 1e-3
[table]
name = "one"
metrics = ["macro_auc"]
reference = "steady"
"""

STEADY = """
import random
import time

import numpy as np
from torch import nn
from milbench import Aggregator, Prediction, register

@register("steady", label="Steady")
class Steady(Aggregator):
    carried = ("steps",)

    def __init__(self, in_dim: int, n_out: int) -> None:
        super().__init__(in_dim, n_out)
        self.body, self.head, self.steps = nn.Sequential(nn.Linear(in_dim, 16), nn.Dropout(0.5)), nn.Linear(16, n_out), 0

    def forward(self, bag):
        noise = 1.0
        if self.training:
            time.sleep(0.01)
            self.steps += 1
            noise += (np.random.rand() + random.random()) / self.steps
        return Prediction(self.head(noise * self.body(bag.features).mean(0)))
"""


class Run:
    """`milbench run` of the suite in a folder of its own, with a checkpoint after every epoch."""

    def __init__(self, folder, *words):
        folder.mkdir(exist_ok=True)
        (folder / "one.toml").write_text(SUITE)
        (folder / "steady.py").write_text(STEADY)
        self.folder = folder
        command = [sys.executable, "-m", "milbench", "run", "--suite", "one.toml", "--plugin", "steady.py", "--workers", "1"]
        self.process = subprocess.Popen(
            [*command, "--keep-models", "all", *words],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "MILBENCH_CHECKPOINT_SECONDS": "0"},
        )

    def done(self):
        out, _ = self.process.communicate(timeout=300)
        assert self.process.returncode == 0, out
        (folder,) = (self.folder / "results" / "trials").iterdir()
        assert not list((self.folder / "results" / "unfinished").iterdir())
        result = json.loads((folder / "trial.json").read_text())
        assert result["status"] == "ok"
        return result, {name: (folder / name).read_bytes() for name in ("predictions.csv", "model.safetensors")}

    def new_checkpoint(self, old=None):
        """Waits until there is another one than `old`; returns when it was written."""
        until = time.monotonic() + 300
        while time.monotonic() < until:
            assert self.process.poll() is None, self.process.communicate()
            for path in (self.folder / "results" / "unfinished").glob("*.safetensors"):
                if (at := path.stat().st_mtime_ns) != old:
                    return at
            time.sleep(0.01)
        pytest.fail("waited for a checkpoint, in vain")

    def worker(self):
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        (worker,) = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        return int(worker)


@pytest.mark.slow
def test_a_killed_trial_ends_as_one_that_was_not(tmp_path):
    """First its worker is killed, and the same run goes on; then the run itself, and another goes on."""
    quiet, whole = Run(tmp_path / "quiet").done()
    assert quiet["provenance"]["resumed"] == []

    killed = Run(tmp_path / "killed")
    first = killed.new_checkpoint()
    os.kill(killed.worker(), signal.SIGKILL)
    killed.new_checkpoint(first)
    killed.process.kill()
    killed.process.communicate()
    result, pieces = Run(tmp_path / "killed").done()

    assert pieces == whole
    assert len(result["provenance"]["resumed"]) == 2
    assert result["trial_id"] == quiet["trial_id"]
    changing = ("provenance", "cost")
    assert {k: v for k, v in result.items() if k not in changing} == {k: v for k, v in quiet.items() if k not in changing}
    assert result["cost"]["seconds"] > 0 and result["cost"]["parameters"] == quiet["cost"]["parameters"]
