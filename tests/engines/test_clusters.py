"""Real clusters on this machine, on loopback only: one Slurm node, and two Ray nodes in a network of their own (`make test-engines`).

They need root. Slurm: apt-get install slurmctld slurmd slurm-client munge. Ray: pip install 'milbench[ray]'.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from milbench import claims
from milbench.trials.store import Store

pytestmark = pytest.mark.engines

SUITE = """
title = "Two folds of MUSK1"
[grid]
dataset = ["musk1"]
encoder = ["hand-crafted"]
split = ["kfold5"]
fold = [0, 1]
seed = [0, 1]
standardise = true
aggregator = ["slow", "mean"]
[recipe]
name = "paper"
max_epochs = 3
[table]
name = "two"
metrics = ["macro_auc"]
"""
SLOW = """
import time
from torch import nn
from milbench import Aggregator, Prediction, register

@register("slow", label="Slow")
class Slow(Aggregator):
    def __init__(self, in_dim: int, n_out: int) -> None:
        super().__init__(in_dim, n_out)
        self.head = nn.Linear(in_dim, n_out)

    def forward(self, bag):
        time.sleep(0.05)
        return Prediction(self.head(bag.features.mean(0)))
"""
SLURM = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort={port}
SlurmdPort={next_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_min_interval=200000,batch_sched_delay=0,bf_interval=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait=5
MaxArraySize=11
NodeName=n0 NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=test Nodes=n0 Default=YES MaxTime=60 State=UP OverSubscribe=NO
"""


def waited(until, seconds, what):
    """The first true value of `until()`."""
    deadline = time.monotonic() + seconds
    while not (value := until()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.5)
    return value


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "two.toml").write_text(SUITE)
    (tmp_path / "slow.py").write_text(SLOW)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def milbench(*words, **more):
    command = [sys.executable, "-m", "milbench", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, **more)


def statuses(folder):
    store = Store(folder / "results")
    return [store.status(trial) for trial in store.ids()]


def claimed(folder):
    """What those say who have trials now."""
    files = (folder / "results" / "claims").glob("[0-9a-f]*")
    return [claims.holder(path) for path in files if claims.alive(path)]


def begun(folder):
    """Process numbers of those whose workers have begun a trial."""
    files = (folder / "results" / "claims").glob("[0-9a-f]*")
    texts = [path.read_text() for path in files if claims.alive(path) and path.exists()]
    return {json.loads(text.partition("\n")[0])["pid"] for text in texts if text.endswith(".")}


@pytest.fixture
def slurm(folder, monkeypatch):
    """One node with two cores, on loopback; ended by its own process numbers."""
    if os.getuid() or not all(map(shutil.which, ("slurmctld", "slurmd", "sbatch", "munged"))):
        pytest.skip("Slurm and munge are not installed, or this is not root")
    home = folder / "slurm"
    for name in ("state", "spool"):
        (home / name).mkdir(parents=True)
    host = os.uname().nodename.split(".")[0]
    conf = home / "slurm.conf"
    conf.write_text(SLURM.format(host=host, folder=home, port=16917, next_port=16918))
    monkeypatch.setenv("SLURM_CONF", str(conf))
    key, run = Path("/etc/munge/munge.key"), Path("/run/munge")
    if not key.exists() or not key.stat().st_size:
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        shutil.chown(key, "munge", "munge")
    run.mkdir(exist_ok=True)
    shutil.chown(run, "munge", "munge")
    started = [
        subprocess.Popen(["runuser", "-u", "munge", "--", shutil.which("munged"), "-F", "-f"]),
        subprocess.Popen([shutil.which("slurmctld"), "-D", "-c", "-f", conf]),
    ]
    time.sleep(1)
    started.append(subprocess.Popen([shutil.which("slurmd"), "-D", "-N", "n0", "-f", conf]))
    try:
        waited(lambda: "idle" in subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True).stdout, 60, "Slurm")
        yield home
    finally:
        subprocess.run(["scancel", "--user=root"], check=False)
        time.sleep(1)
        for process in reversed(started):
            process.terminate()
            process.wait(30)


def queue():
    return subprocess.run(["squeue", "-h", "-r", "-o", "%A %K %T"], capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )[:-1]


def submitted(*words):
    done = milbench("run", *words, "--engine", "slurm", "--profile", "site.toml")
    assert done.returncode == 0, done.stderr
    return done.stdout.split("Slurm job ")[1].split(":")[0]


def test_slurm_workers_share_a_suite_and_survive_losses(folder, slurm):
    """One is killed, one requeued, then all are cancelled, and new ones reach their time limit.

    What is left is run here; no trial is run to its end twice, or lost.
    """
    (folder / "slow.py").write_text(SLOW.replace("0.05", "0.1"))  # longer than a minute, the shortest limit, for what is left
    site = 'time = "0:20:00"\npartition = "test"\n'
    (folder / "site.toml").write_text(site)
    how = ("--suite", "two.toml", "--plugin", "slow.py", "--seeds", "0,1,2,3", "--aggregators", "slow")
    job = submitted(*how, "--workers", "2")
    pids = waited(lambda: len(found := begun(folder)) == 2 and found, 180, "two workers at work")
    os.kill(min(pids), signal.SIGKILL)  # its claim is free at once on this machine
    (other,) = waited(lambda: len(found := queue()) == 1 and found, 60, "the end of the worker that was killed")
    task = f"{job}_{other.split()[1]}"
    waited(lambda: "ok" in statuses(folder), 180, "a result")
    subprocess.run(["scontrol", "requeue", task], check=True)
    waited(lambda: not begun(folder), 30, "the end of the worker that was requeued")
    assert not claimed(folder), "a worker that is told to end gives back what it has"
    subprocess.run(["scontrol", "update", f"JobId={task}", "StartTime=now"], check=False)  # else Slurm waits for minutes
    waited(lambda: begun(folder), 240, "the worker that was requeued")
    subprocess.run(["scancel", job], check=True)
    waited(lambda: not queue() and not claimed(folder), 60, "an empty queue")

    (folder / "site.toml").write_text(site + 'options = ["--time=2", "--signal=B:TERM@10"]\n')
    submitted(*how, "--workers", "1")
    waited(lambda: begun(folder), 180, "a worker at work")
    waited(lambda: not queue(), 180, "its time limit")
    assert not claimed(folder)
    here = milbench("run", *how)
    assert here.returncode == 0, here.stderr
    assert "8 trials, 8 ok." in here.stdout
    assert statuses(folder) == ["ok"] * 8
    log = "".join(path.read_text() for path in (folder / "results" / "slurm").glob("*.log")) + here.stdout
    own = [line for line in log.splitlines() if "] ok" in line and "by another run" not in line]
    assert len(own) == 8, "each trial was finished once"
    assert log.count("Stopped. ") == 3, "requeued, cancelled, and out of time"
    assert not list((folder / "results" / "trials").glob(".*"))


NODES = """
set -u
ip link set lo up
export RAY_USAGE_STATS_ENABLED=0 RAY_raylet_start_wait_time_s=120 OMP_NUM_THREADS=1
home=$(mktemp -d /tmp/rXXXX)  # Ray's sockets lie below it, whose names may not be long
start="-m ray.scripts.scripts start --node-ip-address=127.0.0.1 --num-gpus=1 --num-cpus=1 --object-store-memory=80000000 --block"
trap 'kill $R $B $A 2> /dev/null; wait; rm -rf "$home"' EXIT
"$PYTHON" $start --head --port=6399 --include-dashboard=false --temp-dir="$home" > head.log 2>&1 & A=$! B= R=
until "$PYTHON" -m ray.scripts.scripts health-check --address=127.0.0.1:6399 > /dev/null 2>&1; do sleep 1; kill -0 $A || exit 3; done
"$PYTHON" $start --address=127.0.0.1:6399 > node.log 2>&1 & B=$!
until grep -q "Ray runtime started" node.log; do sleep 1; kill -0 $B || exit 4; done
run="-m milbench run --suite two.toml --plugin slow.py --engine ray --workers 2"

begun() {  # at least $1 trials are, or the run has ended
  until [ "$(grep -lx '[.]*' results/claims/[0-9a-f]* 2> /dev/null | wc -l)" -ge $1 ]; do sleep 0.5; kill -0 $R || break; done
}

"$PYTHON" $run --address 127.0.0.1:6398 > wrong.log 2>&1; echo "wrong $?"
"$PYTHON" $run --address 127.0.0.1:6399 > stopped.log 2>&1 & R=$!
begun 1; kill -TERM $R; wait $R; echo "stopped $?, claims: $(ls results/claims | wc -l)"
"$PYTHON" $run --address 127.0.0.1:6399 > run.log 2>&1 & R=$!
begun 2; pkill -KILL -P $B raylet; wait $R; echo "lost $?"
"""


def test_ray_goes_on_when_a_node_is_lost(folder):
    """Before that: an address where nothing is, and a run that is stopped while it has trials begun."""
    if os.getuid() or not shutil.which("unshare") or importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed, or this is not root, which a network of its own needs")
    command = ["unshare", "-n", "-p", "--fork", "--kill-child", "--mount-proc", "bash", "-c", NODES]
    done = subprocess.run(
        command, env={**os.environ, "PYTHON": sys.executable}, timeout=600, check=False, capture_output=True, text=True
    )
    logs = {
        name: (folder / f"{name}.log").read_text() for name in ("wrong", "stopped", "run") if (folder / f"{name}.log").exists()
    }
    assert done.stdout.splitlines() == ["wrong 2", "stopped 143, claims: 0", "lost 0"], (done, logs)
    assert "--address 127.0.0.1:6398: no Ray cluster is reached there" in logs["wrong"]
    assert "trials were finished and are kept; the same command continues" in logs["stopped"]
    assert statuses(folder) == ["ok"] * 8, logs["run"]
    assert "8 trials, 8 ok." in logs["run"]
    assert not list((folder / "results" / "claims").iterdir())
