"""Settings: where things are and how they are read. Made once, by the command line or a notebook, then passed on and pickled.

The only room that reads the environment: whatever else a function needs to know, it is told.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """Where things are.

    Args:
        data: folder of the datasets that the user added (NAME.toml); relative paths in those start here.
        results: folder of the results store.
        cache: folder of packed features; None is `.packed` in `data`.
        pack: False reads feature files directly instead of packing them into one.
    """

    data: Path = Path("data")
    results: Path = Path("results")
    cache: Path | None = None
    pack: bool = True

    @classmethod
    def from_environment(
        cls,
        *,
        data: str | Path | None = None,
        results: str | Path | None = None,
        pack: bool | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> "Settings":
        """What is given; for the rest MILBENCH_DATA, MILBENCH_RESULTS, MILBENCH_CACHE and MILBENCH_NO_PACK, then the defaults.

        Args:
            data, results, pack: as the command line has them; None where it does not say.
            environment: in place of the process's.
        """
        said = os.environ if environment is None else environment
        cache = said.get("MILBENCH_CACHE")
        return cls(
            data=Path(data or said.get("MILBENCH_DATA") or cls.data),
            results=Path(results or said.get("MILBENCH_RESULTS") or cls.results),
            cache=Path(cache) if cache else None,
            pack=not said.get("MILBENCH_NO_PACK") if pack is None else pack,
        )

    def absolute(self) -> "Settings":
        """The same places for a process that stands in another folder."""
        here = lambda path: Path(os.path.abspath(path))  # noqa: E731 - not resolved: a link may be pointed elsewhere
        return replace(self, data=here(self.data), results=here(self.results), cache=here(self.cache) if self.cache else None)

    @property
    def packs(self) -> Path:
        """Where packed features lie."""
        return self.cache or self.data / ".packed"
