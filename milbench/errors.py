"""Errors that the reader can mend: what was wrong, where, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class MilbenchError(Exception):
    """Bad input from outside. The command line prints it in one line and exits with code 2."""


class Unwritable(MilbenchError):  # noqa: N818 - named for what it says
    """The results folder takes no more: the disk is full, or it may not be written to. No fault of the trial at hand."""


class NotHere(MilbenchError):  # noqa: N818 - named for what it says
    """A known dataset whose features of that encoder, magnification or patch size the user does not have.

    A suite that asks for them lists those trials as not run, with this reason, and runs the rest.
    """


class NothingYet(MilbenchError):  # noqa: N818 - named for what it says
    """A suite was not run into a results folder, or nothing was."""


class SkipTrial(Exception):  # noqa: N818 - not an error: the trial does not apply
    """This aggregator cannot run on this dataset; the reason is recorded as status `skipped`."""


def printable(text: str) -> str:
    """The text in one line: line breaks, control characters and bytes that are not UTF-8 are written as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def unknown(kind: str, name: str, known: Iterable[str]) -> MilbenchError:
    """The error for a name that nobody registered, with its near misses.

    Args:
        kind: what the name should have been, for example "aggregator".
        name: the name given.
        known: every valid name.
    """
    known = sorted(known)
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {few(known, 60) or 'none'}"
    return MilbenchError(f"unknown {kind} {name!r}; {hint}")


def few(names: Iterable[str], most: int = 8) -> str:
    """The first of many names, for a message."""
    names = map(printable, names)
    first = [name if len(name) <= 60 else f"{name[:57]}..." for name in islice(names, most + 1)]
    return ", ".join(first[:most]) + (", ..." if len(first) > most else "")


def from_validation(error: ValidationError, where: str | Path) -> MilbenchError:
    """Say which keys of which file were wrong, and what they may be, in one line; of many mistakes the first three."""
    wrong = error.errors(include_url=False, include_context=False)
    says = []
    for item in wrong[:3]:
        key = " ".join(".".join(f"{part!s:.60}" for part in item["loc"]).split()) or "the whole"
        what = item["msg"].removeprefix("Value error, ")
        got = "" if item["type"] == "missing" else f" (got {item['input']!r:.80})"
        says.append(f"{key}: {what[:1].lower()}{what[1:]}{got}")
    more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return MilbenchError(f"{where}: {'; '.join(says)}{more}")
