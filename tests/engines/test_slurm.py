"""What is handed to Slurm: one array of workers, whose command is the run that was asked for."""

import shlex
import time
from dataclasses import replace

import click
import pytest

from milbench.api import clusters, runs
from milbench.api.runs import RunOptions
from milbench.cli.work import work
from milbench.config import Settings
from milbench.engines.slurm import Profile, submit
from milbench.errors import MilbenchError
from milbench.trials.run import failure
from tests.builders.command import milbench

SBATCH = """#!/bin/sh
cp "$2" {folder}/submitted.sh
echo {says}
exit {code}
"""
SCONTROL = """#!/bin/sh
echo 'MaxArraySize            = 5'
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A login node whose sbatch keeps the script."""

    def put(says="17;cluster", code=0):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        for name, text in (("sbatch", SBATCH.format(folder=tmp_path, says=says, code=code)), ("scontrol", SCONTROL)):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        return tmp_path / "submitted.sh"

    return put


def test_an_array_of_workers_with_the_site_s_options(tmp_path, site):
    kept = site()
    profile = Profile(
        time="1:00:00", partition="gpu", gres="gpu:1", memory="32G", options=("--exclude=n7",), setup=("module load x",)
    )
    done = submit(["work", "--suite", "a b.toml"], 3, profile, tmp_path / "slurm", "mine")
    assert (done.job, done.workers) == ("17", 3)
    lines = kept.read_text().splitlines()
    for option in (
        "array=0-2",
        "time=1:00:00",
        "partition=gpu",
        "gres=gpu:1",
        "mem=32G",
        "exclude=n7",
        "requeue",
        "signal=B:TERM@120",
    ):
        assert f"#SBATCH --{option}" in lines
    assert not any("account" in line for line in lines), "what the site does not ask for is not there"
    assert lines[-2] == "module load x"
    words = shlex.split(lines[-1])
    assert words[0] == "exec" and words[2:] == ["-m", "milbench", "work", "--suite", "a b.toml", "--until", "3300s"]


def test_the_site_s_largest_array_is_kept_to(tmp_path, site):
    site()
    assert submit(["work"], 100, Profile(), tmp_path, "mine").workers == 4


def test_a_refusal_is_told(tmp_path, site):
    site(says="error: MaxSubmitJobs limit >&2", code=1)
    with pytest.raises(MilbenchError, match=r"sbatch refuses .*MaxSubmitJobs limit; .* try fewer --workers"):
        submit(["work"], 2, Profile(), tmp_path, "mine")


def test_without_slurm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MilbenchError, match="there is no sbatch here"):
        submit(["work"], 2, Profile(), tmp_path, "mine")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('time = "0:05:00"', "time: .*a worker needs more than 360 seconds"),
        ('time = "soon"', "is no duration"),
        ('partion = "gpu"', "partion"),
        ("cpus = 0", "cpus"),
    ],
)
def test_a_wrong_profile_is_an_error_with_the_key(tmp_path, text, says):
    path = tmp_path / "site.toml"
    path.write_text(text)
    with pytest.raises(MilbenchError, match=f"site.toml.*{says}|{says}"):
        Profile.read(path)


@pytest.mark.parametrize(
    "options",
    [
        RunOptions(workers=3),
        RunOptions(
            size="small", aggregators="mean,transmil[landmarks=32]", seeds=[0, 2], folds=[1], epochs=3, recipe="official",
            dtype="float16", device="cuda", backends=("fla", "window=torch"), workers=9, gpus=[0, 1], per_gpu=2, threads=2,
            keep_models="none", retry_failed=True, trial_timeout=90.0, plugin=("p.py",),
        ),
    ],
)  # fmt: skip
def test_the_worker_s_command_is_the_run_that_was_asked_for(tmp_path, monkeypatch, options):
    """Its words, parsed as the command line does, give the same options; paths hold in any folder."""
    monkeypatch.chdir(tmp_path)
    settings = Settings(results=tmp_path / "r", data=tmp_path / "d", pack=False)
    words = list(clusters.command("mine.toml", options, settings))
    with click.Context(work) as context:
        work.parse_args(context, words[1:])
        said = context.params
    assert words[0] == "work" and said.pop("suite") == str(tmp_path / "mine.toml")
    assert (said.pop("results"), said.pop("data_folder"), said.pop("no_pack")) == (tmp_path / "r", tmp_path / "d", True)
    assert said.pop("plugin_files") == tuple(str(tmp_path / file) for file in options.plugin)
    assert said.pop("workers") == (4 if options.gpus else 1), "a task of the array has its GPUs for itself"
    said.pop("quiet")
    asked_at = said.pop("failed_before")
    assert (asked_at is not None) == options.retry_failed
    for name, value in said.items():
        expected = getattr(options, name)
        assert value == (tuple(expected) if name == "backends" else expected), name


def test_a_submission_needs_a_number_of_workers_and_a_suite(tmp_path, site):
    site()
    settings = Settings(results=tmp_path / "r")
    with pytest.raises(MilbenchError, match="say how many workers"):
        clusters.submit("quickstart", RunOptions(), settings)
    with pytest.raises(MilbenchError, match="did you mean quickstart"):
        clusters.submit("quikstart", RunOptions(workers=2), settings)
    assert clusters.submit("quickstart", RunOptions(workers=2), settings).job == "17"


def test_a_worker_that_starts_later_leaves_alone_what_failed_since_the_submission(tmp_path):
    how = RunOptions(aggregators="mean", folds=[0, 1, 2], device="cpu", retry_failed=True)
    planned = runs.plan("quickstart", how, Settings(results=tmp_path, data=tmp_path / "data", cache=tmp_path / "cache"))
    failed, failed_since, pending = planned.jobs
    store = planned.store
    store.write(failure(failed.spec, "failed", "no luck"))
    moment = store.clock()
    time.sleep(0.05)
    store.write(failure(failed_since.spec, "oom", "no luck again"))
    assert [*planned.prepare().jobs] == planned.jobs, "a command given now asks for all of them"
    later = replace(planned, options=replace(how, failed_before=moment))
    assert [*later.prepare().jobs] == [failed, pending]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--failed-before", "2026-11-30T12:00"], "--failed-before says which failures --retry-failed runs again; give both"),
        (["--retry-failed", "--failed-before", "noon"], "--failed-before 'noon': write date and time, such as 2026-11-30T12:00"),
    ],
)
def test_a_moment_that_means_nothing_is_refused(words, says):
    assert milbench("work", "--suite", "quickstart", *words, code=2) == f"milbench: {says}\n"
