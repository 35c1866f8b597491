"""Errors that the reader can mend: what was wrong, where, and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from pydantic import ValidationError


class MilbenchError(Exception):
    """Bad input from outside. The command line prints it in one line and exits with code 2."""


class Unwritable(MilbenchError):  # noqa: N818 - named for what it says
    """The results folder takes no more: the disk is full, or it may not be written to. No fault of the trial at hand."""


class NotHere(MilbenchError):  # noqa: N818 - named for what it says
    """A known dataset whose features of that encoder, magnification or patch size the user does not have.

    A suite that asks for them lists those trials as not run, with this reason, and runs the rest.
    """


class SkipTrial(Exception):  # noqa: N818 - not an error: the trial does not apply
    """This aggregator cannot run on this dataset; the reason is recorded as status `skipped`."""


def unknown(kind: str, name: str, known: Iterable[str]) -> MilbenchError:
    """The error for a name that nobody registered, with its near misses.

    Args:
        kind: what the name should have been, for example "aggregator".
        name: the name given.
        known: every valid name.
    """
    known = sorted(known)
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known) or 'none'}"
    return MilbenchError(f"unknown {kind} {name!r}; {hint}")


def from_validation(error: ValidationError, where: str | Path) -> MilbenchError:
    """Say which key of which file was wrong, and what it may be, in one line per mistake."""
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "the whole"
        lines.append(f"{where}: {key}: {item['msg'][0].lower()}{item['msg'][1:]} (got {item['input']!r:.80})")
    return MilbenchError("\n".join(lines))
