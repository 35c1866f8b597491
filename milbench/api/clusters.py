"""A suite on a cluster: the command of one worker, and its submission."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from milbench import plugins, suites
from milbench.api.runs import RunOptions
from milbench.config import Settings
from milbench.engines import slurm
from milbench.engines.slurm import Profile, Submitted
from milbench.errors import MilbenchError
from milbench.trials.store import Store

__all__ = ["Profile", "Submitted", "command", "submit"]


def submit(suite: str | Path, options: RunOptions, settings: Settings, profile: str | Path | None = None) -> Submitted:
    """Submit workers of a suite to Slurm; returns at once. `milbench status --suite SUITE --follow` shows how far they are.

    Nothing is planned here: the login node need not have the nodes' GPU, and what a trial is depends on it.

    Args:
        suite: a built-in suite or a TOML file.
        options: how it is run; `workers` are the tasks of the array.
        settings: where data and results are, on a disk that the nodes see.
        profile: TOML file with the site's options, see :class:`milbench.engines.slurm.Profile`.

    Raises:
        MilbenchError: an unknown suite, no number of workers, a wrong profile, or Slurm is not here or refuses.
    """
    plugins.discover(options.plugin)
    name = suites.load(suites.sized(str(suite), options.size)).name
    if options.workers is None:
        raise MilbenchError("--engine slurm: say how many workers, such as --workers 8; each is one task of a job array")
    settings = settings.absolute()
    site = Profile.read(None if profile is None else Path(profile))
    return slurm.submit(list(command(suite, options, settings)), options.workers, site, settings.results / "slurm", name)


def command(suite: str | Path, options: RunOptions, settings: Settings) -> Iterator[str]:
    """The words of `milbench work` that run these trials, whatever the current folder."""
    path = Path(suite)
    yield from ("work", "--suite", str(path.absolute()) if str(suite).endswith(".toml") else str(suite))
    if options.size:
        yield f"--{options.size}"
    lists = {"aggregators": options.names, "seeds": options.seeds, "folds": options.folds, "gpus": options.gpus}
    for name, values in lists.items():
        if values is not None:
            yield from (f"--{name}", ",".join(map(str, values)))
    given = {
        "epochs": options.epochs, "recipe": options.recipe, "dtype": options.dtype, "device": options.device,
        "per-gpu": options.per_gpu, "threads": options.threads, "keep-models": options.keep_models,
        "trial-timeout": None if options.trial_timeout is None else f"{options.trial_timeout:g}s",
        "workers": options.per_gpu * len(options.gpus or [0]),
        "results": settings.results, "data": settings.data,
    }  # fmt: skip
    for name, value in given.items():
        if value is not None:
            yield from (f"--{name}", str(value))
    for backend in options.backends:
        yield from ("--backend", backend)
    for file in options.plugin:
        yield from ("--plugin", str(Path(file).absolute()))
    if options.retry_failed:
        # Now, for all workers: one that starts later must not run again what failed under this submission.
        yield from ("--retry-failed", "--failed-before", Store(settings.results).clock().isoformat())
    if not settings.pack:
        yield "--no-pack"
