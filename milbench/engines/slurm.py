"""Workers under Slurm: one job array of `milbench work`, whose tasks share the trials by claims. No task per trial, since sites
limit how many tasks an array and a user may have, and a worker that has loaded torch and the data runs many trials."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from milbench.errors import MilbenchError, from_validation
from milbench.files import read_toml, write_atomically
from milbench.words import seconds

WARNING = 120  # seconds before the time limit at which Slurm sends SIGTERM: what is unfinished is then given back
MARGIN = 300  # seconds before it from which on no trial is begun that would not end


class Profile(BaseModel):
    """A site's options: the TOML file that `milbench run --engine slurm --profile FILE` reads.

    Args:
        time: limit of one worker, as Slurm writes it: "2:00:00" or "1-12:00:00".
        partition, account, qos, gres, constraint: as the options of sbatch; left out where empty.
        cpus: of one worker.
        memory: of one worker, such as "32G"; left to the site where empty.
        options: further options of sbatch, such as "--exclude=node7".
        setup: lines of shell before the worker starts, such as "module load cuda".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    time: str = "2:00:00"
    partition: str = ""
    account: str = ""
    qos: str = ""
    gres: str = ""
    constraint: str = ""
    cpus: int = Field(1, ge=1)
    memory: str = ""
    options: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()

    @field_validator("time")
    @classmethod
    def _long_enough(cls, text: str) -> str:
        if seconds(text) <= MARGIN + 60:
            raise ValueError(f"a worker needs more than {MARGIN + 60} seconds; give the time as hours:minutes:seconds")
        return text

    @classmethod
    def read(cls, path: Path | None) -> "Profile":
        """The file's, or what a site without needs would have.

        Raises:
            MilbenchError: the file is not there, or a key or value is wrong.
        """
        try:
            return cls() if path is None else cls.model_validate(read_toml(path, "profile"))
        except ValidationError as error:
            raise from_validation(error, path or "profile") from error


@dataclass(frozen=True)
class Submitted:
    """Workers that Slurm has accepted.

    Args:
        job: its number of the array.
        workers: how many tasks the array has.
        script: what was submitted; it shows the command of a worker.
        log: where the first worker's output goes.
    """

    job: str
    workers: int
    script: Path
    log: Path


def submit(command: Sequence[str], workers: int, profile: Profile, folder: Path, name: str) -> Submitted:
    """Submit an array of workers; returns at once.

    Args:
        command: words of `milbench work ...`; the time that it has is added.
        workers: tasks of the array, at most.
        profile: the site's options.
        folder: for script and logs; it must be on a disk that the nodes see.
        name: of the suite.

    Raises:
        MilbenchError: Slurm is not here, or refuses; says what it says.
    """
    if shutil.which("sbatch") is None:
        raise MilbenchError("--engine slurm: there is no sbatch here; run this on a login node of the cluster")
    workers = min(workers, _largest_array())
    script = folder / f"{name}.sh"
    write_atomically(script, _script(command, workers, profile, folder, name))
    done = subprocess.run(["sbatch", "--parsable", script], capture_output=True, text=True, check=False)
    if done.returncode:
        hint = "; a site limits how many jobs a user may have: try fewer --workers" if "limit" in done.stderr.lower() else ""
        raise MilbenchError(f"sbatch refuses {script}: {done.stderr.strip() or done.stdout.strip()}{hint}")
    job = done.stdout.strip().split(";")[0]
    return Submitted(job, workers, script, folder / f"{name}-{job}_0.log")


def _script(command: Sequence[str], workers: int, profile: Profile, folder: Path, name: str) -> str:
    """The batch script. `exec` makes the worker the process that Slurm signals."""
    wanted = {
        "job-name": f"milbench-{name}", "array": f"0-{workers - 1}", "time": profile.time, "partition": profile.partition,
        "account": profile.account, "qos": profile.qos, "gres": profile.gres, "constraint": profile.constraint,
        "cpus-per-task": str(profile.cpus), "mem": profile.memory, "output": str(folder / f"{name}-%A_%a.log"),
        "signal": f"B:TERM@{WARNING}", "open-mode": "append",
    }  # fmt: skip
    options = [f"--{key}={value}" for key, value in wanted.items() if value] + ["--requeue", *profile.options]
    until = f"{seconds(profile.time) - MARGIN:.0f}s"
    lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in options), "", *profile.setup]
    return "\n".join([*lines, f"exec {shlex.join([sys.executable, '-m', 'milbench', *command, '--until', until])}", ""])


def _largest_array() -> int:
    """How many tasks an array may have; 1,000, Slurm's default, where it does not say."""
    done = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, check=False)
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", done.stdout, re.MULTILINE)
    return max(1, int(match[1]) - 1) if match else 1000
