"""Settings: where things are and how they are read. Made once, by the command line or a notebook, then passed on and pickled.

The only room that reads the environment: whatever else a function needs to know, it is told.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from milbench.errors import MilbenchError


@dataclass(frozen=True)
class Settings:
    """Where things are.

    Args:
        data: folder of the datasets that the user added (NAME.toml); relative paths in those start here.
        results: folder of the results store.
        cache: folder of packed features; None is `.packed` in `data`.
        pack: False reads feature files directly instead of packing them into one.
        checkpoint_seconds: of training between two checkpoints of a trial; 0 writes one after every epoch.
    """

    data: Path = Path("data")
    results: Path = Path("results")
    cache: Path | None = None
    pack: bool = True
    checkpoint_seconds: float = 60.0

    @classmethod
    def from_environment(
        cls,
        *,
        data: str | Path | None = None,
        results: str | Path | None = None,
        pack: bool | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> "Settings":
        """What is given; for the rest the environment, then the defaults.

        MILBENCH_DATA, MILBENCH_RESULTS, MILBENCH_CACHE, MILBENCH_NO_PACK and MILBENCH_CHECKPOINT_SECONDS.

        Args:
            data, results, pack: as the command line has them; None where it does not say.
            environment: in place of the process's.

        Raises:
            MilbenchError: MILBENCH_CHECKPOINT_SECONDS is no number of seconds.
        """
        said = os.environ if environment is None else environment
        cache = said.get("MILBENCH_CACHE")
        return cls(
            data=Path(data or said.get("MILBENCH_DATA") or cls.data),
            results=Path(results or said.get("MILBENCH_RESULTS") or cls.results),
            cache=Path(cache) if cache else None,
            pack=not said.get("MILBENCH_NO_PACK") if pack is None else pack,
            checkpoint_seconds=_seconds(said.get("MILBENCH_CHECKPOINT_SECONDS") or cls.checkpoint_seconds),
        )

    def absolute(self) -> "Settings":
        """The same places for a process that stands in another folder."""
        here = lambda path: Path(os.path.abspath(path))  # noqa: E731 - not resolved: a link may be pointed elsewhere
        return replace(self, data=here(self.data), results=here(self.results), cache=here(self.cache) if self.cache else None)

    @property
    def packs(self) -> Path:
        """Where packed features lie."""
        return self.cache or self.data / ".packed"


def _seconds(said: str | float) -> float:
    try:
        seconds = float(said)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:  # nor is "nan" a time
        raise MilbenchError(f"MILBENCH_CHECKPOINT_SECONDS is {said!r:.40}; it is a number of seconds, 0 for after every epoch")
    return seconds
