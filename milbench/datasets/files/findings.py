"""What a check found: how bad, where, what, and what to do about it."""

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from milbench.errors import MilbenchError, printable
from milbench.files import write_atomically

MOST = 10  # that one message names; more are in a file
Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing that a check found, once for all slides that have it.

    Args:
        severity: an error stops a run, a warning is printed under the tables, a note is for whoever checks.
        kind: one word, the same for the same thing.
        where: a table, a split, or a set of features.
        what: a sentence without full stop.
        do: how to correct it, where that is needed.
        ids: slides, cases or files it is about.
    """

    severity: Severity
    kind: str
    where: str
    what: str
    do: str = ""
    ids: tuple[str, ...] = ()

    @property
    def reported(self) -> bool:
        """Whether a reader of the dataset's tables must know: warnings, and whatever is not used."""
        return self.severity == "warning" or self.kind in ("unlisted", "no-case")

    def __str__(self) -> str:
        said = len(self.ids) == 1 and re.match(re.escape(self.ids[0]) + r"\b", self.what)
        return printable(f"{self.where}: {self.what}{'' if said else named(self.ids)}" + (f"; {self.do}" if self.do else ""))


def kept(path: Path, lines: Sequence[str]) -> Path:
    """Write a list that is too long for a message, one a line; returns where it is.

    A data folder of others may not be written to: then it is in the folder for temporary files.
    """
    text = "".join(f"{line}\n" for line in lines)
    try:
        write_atomically(path, text)
    except MilbenchError:
        path = Path(tempfile.gettempdir()) / path.name
        write_atomically(path, text)
    return path


def named(ids: Sequence[str], most: int = 3) -> str:
    """The first of the ids, for the end of a sentence."""
    if not ids:
        return ""
    more = len(ids) - most
    first = [id if len(id) <= 200 else f"{id[:197]}..." for id in ids[:most]]
    return f": {', '.join(first)}" + (f" and {more:,} more" if more > 0 else "")
