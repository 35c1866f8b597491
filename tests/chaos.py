"""Faults on purpose, on this machine only: `make chaos`, or `python -m tests.chaos --rounds 50 --seconds 900 --seed 0 --only "disk full"`.

Each row does harm to commands at moments that a seed chooses, then gives the same command again. Whatever was done to it: no
finished trial is lost, replaced or run to its end twice, the summary says what is there, nothing is left behind, and the
predictions are those of a run that nobody disturbed. Needs root for mounts, in a namespace of its own; without it those rows are
left out, and named.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import h5py

from milbench import claims
from milbench.trials.audit import audit
from milbench.trials.store import Store
from tests.builders.folders import cohort

SUITE = """
title = "Chaos"
[grid]
dataset = ["{dataset}"]
encoder = ["{encoder}"]
split = ["{split}"]
fold = [0, 1]
seed = [0, 1]
standardise = true
aggregator = ["mean", "abmil", "drags"]
[recipe]
name = "paper"
max_epochs = 2
[table]
name = "chaos"
metrics = ["macro_auc"]
"""
# Claims that expire soon, a trial that takes long enough to be hit, and a line for each result that a worker has put in place.
PLUGIN = """
import os
import time
from torch import nn
from milbench import Aggregator, Prediction, claims, register
from milbench.engines import sharing
from milbench.trials.store import Store

claims.BEAT, sharing.POLL = {beat}, 0.5
write = Store.write

def noted(store, result, files=None):
    put = write(store, result, files)
    log = os.open(store.root.parent / "ends.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(log, f"{{result.trial_id}} {{result.status}}\\n".encode())
    os.close(log)
    return put

Store.write = noted

@register("drags", label="Drags")
class Drags(Aggregator):
    def __init__(self, in_dim: int, n_out: int) -> None:
        super().__init__(in_dim, n_out)
        self.head = nn.Linear(in_dim, n_out)

    def forward(self, bag):
        time.sleep(0.01)
        return Prediction(self.head(bag.features.mean(0)))
"""
BEAT = 3.0  # seconds; a busy machine must not look like a dead one
LIMIT = 300  # seconds that a command may take


@dataclass
class Row:
    """What became of the trials under one kind of fault."""

    fault: str
    rounds: int = 0
    trials: int = 0
    lost: int = 0
    corrupt: int = 0
    twice: int = 0
    left: list[str] = field(default_factory=list)
    untrue: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return self.rounds > 0 and not (self.lost or self.corrupt or self.twice or self.left or self.untrue)


class Ground:
    """A folder in which one kind of fault is done.

    Args:
        home: the folder, which is made.
        row: where it is written down.
        rng: chooses the moments.
        expected: trial id -> predictions.csv of a run that nobody disturbed; empty for that run itself.
        dataset, encoder, split: what is trained on.
    """

    def __init__(
        self, home: Path, row: Row, rng: random.Random, expected: dict[str, bytes], features: tuple[str, str, str]
    ) -> None:
        self.home, self.row, self.rng, self.expected = home, row, rng, expected
        self.store, self.ends = Store(home / "results"), home / "ends.log"
        self.finished: dict[str, tuple[int, int]] = {}  # trial -> which file its result was when first seen
        self.twice_allowed = 0
        self.settled = False  # since the last command
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        home.mkdir(parents=True)
        (home / "chaos.toml").write_text(SUITE.format(**dict(zip(("dataset", "encoder", "split"), features, strict=True))))
        (home / "chaos.py").write_text(PLUGIN.format(beat=BEAT))
        self.run_words = ["run", "--suite", "chaos.toml", "--plugin", "chaos.py", "--workers", "1"]

    def start(self, *words: str) -> subprocess.Popen[str]:
        """A command, in a session of its own."""
        self.settled = False
        return subprocess.Popen(
            [sys.executable, "-m", "milbench", *(words or self.run_words)],
            cwd=self.home, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def end_of(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        """Its exit code and all it said, when it has ended; nothing of it may live on."""
        try:
            said, _ = process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            self.row.untrue.append(f"it did not end within {LIMIT} s")
            os.killpg(process.pid, signal.SIGKILL)
            said, _ = process.communicate()
        deadline = time.monotonic() + 10
        while (alive := session(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.1)
        if alive:
            self.row.left.append(f"processes {alive}")
            for pid in alive:
                os.kill(pid, signal.SIGKILL)
        return process.returncode, said

    def command(self, *words: str) -> tuple[int, str]:
        return self.end_of(self.start(*words))

    def begun(self) -> bool:
        """Whether a worker has begun a trial and not ended it."""
        for path in self.store.claims.glob("[0-9a-f]*"):
            with contextlib.suppress(FileNotFoundError):
                if path.read_bytes().endswith(b"."):
                    return True
        return False

    def moment(self, process: subprocess.Popen[str], since: Callable[[], bool] | None = None, spread: float = 2.0) -> None:
        """Wait for a moment that chance chooses: mostly soon after `since` is true, sometimes at any time."""
        until = time.monotonic() + (LIMIT if self.rng.random() < 0.75 else self.rng.uniform(0, 8))
        while process.poll() is None and time.monotonic() < until and not (since or self.begun)():
            time.sleep(0.005)
        time.sleep(self.rng.uniform(0, spread))

    def look(self) -> None:
        """Finished trials stay as they are."""
        for trial in self.store.ids():
            if self.store.status(trial) == "ok":
                file = (self.store.folder(trial) / "trial.json").stat()
                self.row.lost += self.finished.setdefault(trial, (file.st_ino, file.st_mtime_ns)) != (
                    file.st_ino,
                    file.st_mtime_ns,
                )
        self.row.lost += len(self.finished.keys() - set(self.store.ids()))

    def count(self) -> None:
        """A round is over; a folder in which all is done is emptied for the next."""
        self.row.rounds += 1
        self.look()
        if len(self.finished) == len(self.expected):
            self.settle()

    def finish(self) -> None:
        """Settle what the last round has left."""
        if not self.settled:
            self.settle()

    def settle(self, *words: str) -> None:
        """The same command again, undisturbed, finishes all; then everything is checked, and removed."""
        self.true(*self.command(*self.run_words, *words), code=0)
        self.look()
        here = {trial: (self.store.folder(trial) / "predictions.csv").read_bytes() for trial in self.finished}
        self.row.trials += len(here)
        self.row.lost += len(self.expected.keys() - here.keys())
        self.row.corrupt += len(audit(self.store)) + sum(here[trial] != self.expected[trial] for trial in here)
        ends = Counter(line for line in self.ends.read_text().splitlines() if line.endswith(" ok")) if self.ends.exists() else {}
        self.row.twice += max(0, sum(count - 1 for count in ends.values()) - self.twice_allowed)
        self.row.left += [path.name for path in self.store.trials.glob(".*")]
        self.row.left += [path.name for path in self.store.claims.glob("*") if claims.alive(path)]
        self.finished.clear()
        self.ends.unlink(missing_ok=True)
        for path in self.store.root.iterdir():  # which may be a mount
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.settled = True

    def true(self, code_was: int, said: str, code: int, *sentences: str) -> None:
        """The command ended with this code and said so; and its counts are those of the store."""
        status = Counter(self.store.status(trial) for trial in self.store.ids())
        total = len(self.expected)
        if code == 0 and self.expected:
            sentences = (*sentences, f"{total} trials, {total} ok.")
            if status != {"ok": total}:
                self.row.untrue.append(f"it ended well with {dict(status)}")
        lacking = [sentence for sentence in sentences if sentence not in said]
        if code_was != code or lacking or "Traceback" in said:
            self.row.untrue.append(f"exit code {code_was} where {code} was due, {lacking} not said: {said[-600:]}")


def session(leader: int) -> list[int]:
    """Processes of a session that are alive."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, of = path.read_bytes().rpartition(b")")[2].split()[:4]
            if int(of) == leader and state != b"Z":
                found.append(int(path.parent.name))
    return found


def workers(process: subprocess.Popen[str]) -> list[int]:
    """Worker processes of a command."""
    found = []
    for pid in session(process.pid):
        with contextlib.suppress(OSError):
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def kill_worker(ground: Ground, rounds: Iterator[int]) -> None:
    """The command replaces it and comes to its end."""
    for _ in rounds:
        process = ground.start()
        ground.moment(process)
        for pid in workers(process)[:1]:
            os.kill(pid, signal.SIGKILL)
        ground.true(*ground.end_of(process), code=0)
        ground.count()


def kill_parent(ground: Ground, rounds: Iterator[int], *, group: bool = False) -> None:
    """What it leaves is finished by the same command."""
    for _ in rounds:
        process = ground.start()
        ground.moment(process)
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
        ground.end_of(process)
        ground.count()
    ground.finish()


def kill_group(ground: Ground, rounds: Iterator[int]) -> None:
    kill_parent(ground, rounds, group=True)


def kill_packing(ground: Ground, rounds: Iterator[int]) -> None:
    """While features are packed into one file."""
    packs = ground.home / "data" / ".packed"
    for _ in rounds:
        shutil.rmtree(packs, ignore_errors=True)
        process = ground.start()
        ground.moment(process, lambda: any(packs.glob("*.part")), spread=0.3)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        ground.end_of(process)
        ground.count()
    ground.finish()
    ground.row.left += [path.name for path in packs.glob("*") if path.suffix != ".pack"]


def kill_adding(ground: Ground, rounds: Iterator[int]) -> None:
    """While a dataset is added; the same command adds it then, or says that it is there."""
    for _ in rounds:
        shutil.rmtree(ground.home / "data")
        process = ground.start(*ADD)
        ground.moment(process, lambda: (ground.home / "data").exists(), spread=0.5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        ground.end_of(process)
        ground.command(*ADD)
        ground.row.untrue += [said for code, said in [ground.command("data", "check", "own")] if code]
        ground.count()
    ground.finish()


def kill_reporting(ground: Ground, rounds: Iterator[int]) -> None:
    """While a report is written; written again it is that of a folder in which nothing was disturbed."""
    ground.true(*ground.command(), code=0)
    words = ("report", "--suite", "chaos", "--quiet")
    ground.command(*words, "--reports", "good")
    for _ in rounds:
        process = ground.start(*words, "--reports", "out")
        ground.moment(process, (ground.home / "out").exists, spread=1.0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        ground.end_of(process)
        ground.row.untrue += [said for code, said in [ground.command(*words, "--reports", "out")] if code]
        good = report_of(ground.home / "good")
        ground.row.untrue += [] if good and report_of(ground.home / "out") == good else ["another report"]
        ground.row.rounds += 1
    ground.settle()


def report_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.csv")}


def stop(ground: Ground, rounds: Iterator[int], *, parent: bool = False) -> None:
    """One run halts for longer than three beats, another goes on; what it takes over may be run twice, one for each worker."""
    for _ in rounds:
        first = ground.start()
        ground.moment(first)
        halted = [first.pid] if parent else workers(first)[:1]
        for pid in halted:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        second = ground.start()
        time.sleep((claims.MISSED + 2) * BEAT)
        for pid in halted:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        ground.twice_allowed = 1 if parent else 0
        for process in (second, first):
            ground.true(*ground.end_of(process), code=0)
        ground.count()


def stop_worker(ground: Ground, rounds: Iterator[int]) -> None:
    stop(ground, rounds)


def stop_parent(ground: Ground, rounds: Iterator[int]) -> None:
    stop(ground, rounds, parent=True)


def two_runs(ground: Ground, rounds: Iterator[int]) -> None:
    """`run` beside `work`: they share the trials."""
    for _ in rounds:
        both = [ground.start(), ground.start("work", *ground.run_words[1:])]
        code, _ = ground.end_of(both[1])
        ground.true(*ground.end_of(both[0]), code=0)
        ground.row.untrue += [f"work ended with {code}"] if code else []
        ground.count()


@contextlib.contextmanager
def mounted(folder: Path, size: str) -> Iterator[Callable[..., None]]:
    """A small disk; yields what changes it: `change("ro")`, `change("size=64m")`."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)
    try:
        yield lambda how: subprocess.run(["mount", "-o", f"remount,{how}", folder], check=True)
    finally:
        subprocess.run(["umount", "-l", folder], check=False)


def full_results(ground: Ground, rounds: Iterator[int]) -> None:
    for _ in rounds:
        with mounted(ground.store.root, f"{ground.rng.randrange(12, 40) * 4}k") as change:
            code, said = ground.command()
            ground.true(code, said, 2, "No space left on device")
            ground.look()
            change("size=64m")
            ground.row.rounds += 1
            ground.settle()


def full_packs(ground: Ground, rounds: Iterator[int]) -> None:
    """Too small from the start, or filled up on the way."""
    ground.environment["MILBENCH_CACHE"] = str(ground.home / "packs")
    for _ in rounds:
        with mounted(ground.home / "packs", "300k") as change:
            ground.true(*ground.command(), 2, "are free; set MILBENCH_CACHE to a folder with room")
            change("size=64m")
            ground.row.rounds += 1
            ground.settle()


def read_only_packs(ground: Ground, rounds: Iterator[int]) -> None:
    """Refused before anything is packed; a pack that is there is read all the same."""
    ground.environment["MILBENCH_CACHE"] = str(ground.home / "packs")
    for _ in rounds:
        with mounted(ground.home / "packs", "64m") as change:
            change("ro")
            ground.true(*ground.command(), 2, "ead-only file system", "set MILBENCH_CACHE to a folder with room")
            change("rw")
            ground.command(*ground.run_words, "--folds", "0")
            change("ro")
            ground.row.rounds += 1
            ground.settle()


def full_reports(ground: Ground, rounds: Iterator[int]) -> None:
    ground.true(*ground.command(), code=0)
    for _ in rounds:
        with mounted(ground.home / "out", f"{ground.rng.randrange(1, 12) * 4}k") as change:
            words = ("report", "--suite", "chaos", "--quiet", "--reports", "out")
            code, said = ground.command(*words)
            if code != 2 or "no space left on device" not in said.lower() or "Traceback" in said:
                ground.row.untrue.append(f"a full disk, exit code {code}: {said[-600:]}")
            change("size=64m")
            ground.row.untrue += [said for code, said in [ground.command(*words)] if code]
            ground.row.rounds += 1
    ground.settle()


def full_temporary(ground: Ground, rounds: Iterator[int]) -> None:
    """No room in TMPDIR."""
    ground.environment["TMPDIR"] = str(ground.home / "tmp")
    for _ in rounds:
        with mounted(ground.home / "tmp", "4k"):
            (ground.home / "tmp" / "full").write_bytes(b"x" * 4096)
            ground.row.rounds += 1
            ground.settle()


def read_only(ground: Ground, rounds: Iterator[int]) -> None:
    for _ in rounds:
        with mounted(ground.store.root, "64m") as change:
            process = ground.start()
            ground.moment(process)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            ground.end_of(process)
            change("ro")
            code, said = ground.command()
            if len(ground.finished) < len(ground.expected):
                ground.true(code, said, 2, "ead-only file system")
            change("rw")
            ground.count()
            ground.finish()


def harmed(ground: Ground, rounds: Iterator[int], harm: Callable[[Path], None], *words: str) -> None:
    """A feature file changes under the reader; put back, failed trials are run again, and all is as it should be."""
    files = sorted((ground.home / "source" / "features" / "h5_files").iterdir())
    for _ in rounds:
        file = ground.rng.choice(files)
        good, before = file.read_bytes(), file.stat()
        process = ground.start(*ground.run_words, *words)
        ground.moment(process)
        harm(file)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        ground.end_of(process)
        ground.look()
        for trial in ground.finished:
            ground.row.corrupt += (ground.store.folder(trial) / "predictions.csv").read_bytes() != ground.expected.get(trial)
        file.write_bytes(good)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        ground.row.rounds += 1
        ground.settle(*words, "--retry-failed")


def _cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def _rewrite(file: Path, value: float = 7.0) -> None:
    """Other values in a file of the same size."""
    with h5py.File(file, "r+") as h5:
        h5["features"][:] = value


def truncated(ground: Ground, rounds: Iterator[int]) -> None:
    harmed(ground, rounds, _cut, "--no-pack")


def rewritten(ground: Ground, rounds: Iterator[int]) -> None:
    harmed(ground, rounds, _rewrite, "--no-pack")


def not_a_number(ground: Ground, rounds: Iterator[int]) -> None:
    harmed(ground, rounds, lambda file: _rewrite(file, float("nan")), "--no-pack")


def clock(ground: Ground, rounds: Iterator[int]) -> None:
    """The clock was set back by an hour after another machine died; its file times stand for that."""
    trials = sorted(ground.expected)
    for _ in rounds:
        ground.store.claims.mkdir(parents=True, exist_ok=True)
        for trial in ground.rng.sample(trials, 3):
            path = ground.store.claims / trial
            path.write_text(json.dumps({"machine": "gone", "pid": 1, "beat": BEAT, "claim": "x"}) + "\n.")
            os.utime(path, (time.time() + 3600,) * 2)
        ground.row.rounds += 1
        ground.settle()


ADD = (
    "data", "add", "own", "--features", "source/features", "--labels", "source/labels.csv", "--encoder", "e",
)  # fmt: skip
MUSK, OWN = ("musk1", "hand-crafted", "kfold5"), ("own", "e", "kfold5")
# What is done, on which features, its share of the rounds, and whether it mounts.
FAULTS: dict[str, tuple[Callable[[Ground, Iterator[int]], None], tuple[str, str, str], float, bool]] = {
    "kill -9 of the parent": (kill_parent, MUSK, 0.26, False),
    "kill -9 of the group": (kill_group, MUSK, 0.26, False),
    "kill -9 while packing": (kill_packing, OWN, 0.12, False),
    "kill -9 of data add": (kill_adding, OWN, 0.08, False),
    "kill -9 of report": (kill_reporting, MUSK, 0.08, False),
    "a worker is stopped": (stop_worker, MUSK, 0.04, False),
    "the parent is stopped": (stop_parent, MUSK, 0.04, False),
    "run beside work": (two_runs, MUSK, 0.02, False),
    "disk full: results": (full_results, MUSK, 0.04, True),
    "disk full: packs": (full_packs, OWN, 0.02, True),
    "disk full: reports": (full_reports, MUSK, 0.04, True),
    "disk full: TMPDIR": (full_temporary, MUSK, 0.02, True),
    "read-only results": (read_only, MUSK, 0.02, True),
    "read-only packs": (read_only_packs, OWN, 0.02, True),
    "features cut short": (truncated, OWN, 0.04, False),
    "features rewritten": (rewritten, OWN, 0.04, False),
    "features become NaN": (not_a_number, OWN, 0.04, False),
    "clock set back": (clock, MUSK, 0.02, False),
    "kill -9 of a worker": (kill_worker, MUSK, 0.2, False),  # last: a round takes longest, and has what the others leave
}


def prepared(home: Path, features: tuple[str, str, str], expected: dict[str, bytes], row: Row, seed: int) -> Ground:
    """A ground; with data of its own where the features are not built in."""
    ground = Ground(home, row, random.Random(seed), expected, features)
    if features is OWN:
        cohort(home / "source", n=20, sizes=[400 + i for i in range(20)], d=64, shift=1.0)
        code, said = ground.command(*ADD)
        assert code == 0, said
    return ground


def undisturbed(home: Path, features: tuple[str, str, str]) -> dict[str, bytes]:
    """Trial -> predictions, when nothing happens."""
    ground = prepared(home, features, {}, Row("none"), 0)
    code, said = ground.command(*ground.run_words, "--workers", "2")
    assert code == 0, said
    return {trial: (ground.store.folder(trial) / "predictions.csv").read_bytes() for trial in ground.store.ids()}


def rounds_until(count: int, deadline: float) -> Iterator[int]:
    """At least one, then as many as there is time for."""
    for number in range(count):
        if number and time.monotonic() > deadline:
            return
        yield number


def chaos(home: Path, *, rounds: int, seconds: float, seed: int, only: str = "", mounts: bool = True) -> Iterator[Row]:
    """Every kind of fault, one row each. The time that is left is shared out by rounds."""
    chosen = {
        name: how for name, how in FAULTS.items() if any(part in name for part in only.split(",")) and (mounts or not how[3])
    }
    good = {features: undisturbed(home / features[0], features) for features in {how[1] for how in chosen.values()}}
    end, share = time.monotonic() + seconds, sum(how[2] for how in chosen.values())
    for name, (fault, features, part, _) in chosen.items():
        row = Row(name)
        ground = prepared(home / name.replace(" ", "-"), features, good[features], row, seed + zlib.crc32(name.encode()))
        now = time.monotonic()
        fault(ground, rounds_until(max(1, round(rounds * part)), now + (end - now) * part / share))
        share -= part
        yield row


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=50)
    options.add_argument("--seconds", type=float, default=900, help="no further round of a fault is begun after its share of it")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--only", default="", help="faults with one of these in their name, with commas between")
    options.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    if not given.inside and os.getuid() == 0 and shutil.which("unshare"):  # mounts of our own, and nothing that outlives us
        spaces = ["unshare", "-m", "-p", "--fork", "--kill-child", "--mount-proc"]
        os.execvp("unshare", [*spaces, sys.executable, "-m", "tests.chaos", *sys.argv[1:], "--inside"])
    wrong = 0
    print(f"{'fault':24} rounds trials lost corrupt twice left summary true", flush=True)
    with tempfile.TemporaryDirectory(prefix="chaos-") as home:
        how = {"rounds": given.rounds, "seconds": given.seconds, "seed": given.seed, "only": given.only}
        for row in chaos(Path(home), **how, mounts=given.inside):
            true = "no" if row.untrue else "yes"
            numbers = f"{row.rounds:6} {row.trials:6} {row.lost:4} {row.corrupt:7} {row.twice:5} {len(row.left):4}"
            print(f"{row.fault:24} {numbers} {true}", *row.left, *row.untrue, sep="\n    ", flush=True)
            wrong += not row.good
    if not given.inside:
        print("left out, since they mount a disk, which needs root:", ", ".join(name for name, how in FAULTS.items() if how[3]))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
