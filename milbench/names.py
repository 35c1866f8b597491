"""Names that become file names: of suites, tables, datasets, splits, figures.

They arrive in files that others wrote, so each passes :func:`checked` where it is read and again where it becomes a path.
"""

import re
import unicodedata
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import AfterValidator

from milbench.errors import MilbenchError

LONGEST = 160  # bytes: a file system takes 255, and names are composed
TRIAL_ID = r"^[0-9a-f]{16}$"
_A_TRIAL = re.compile(TRIAL_ID)
Family = Literal["pooling", "attention", "distillation", "structure", "transformer", "linear", "local"]  # of aggregators


def checked(name: str, what: str) -> str:
    """The name, when it can be a file's name inside one folder.

    Args:
        name: as it was given.
        what: it should name, for the message: "suite".

    Raises:
        MilbenchError: it is empty or long, begins with a dot, a dash or a space, or holds a slash or a control character.

    >>> checked("bracs-all", "suite")
    'bracs-all'
    """
    if wrong := _wrong(name):
        raise MilbenchError(f"{name!r:.60} is not a valid name for a {what}: {wrong}")
    return name


def _in_a_form(name: str) -> str:
    if wrong := _wrong(name):
        raise ValueError(f"not a valid name: {wrong}")
    return name


def _with_slashes(name: str) -> str:
    _in_a_form(name.replace("/", "-") if not name.startswith("/") else name)
    return name


Name = Annotated[str, AfterValidator(_in_a_form)]  # for the fields of a form
Encoder = Annotated[str, AfterValidator(_with_slashes)]  # hubs name them owner/model; no path is made of one as it stands


@lru_cache(maxsize=4096)
def _wrong(name: str) -> str:
    """Why it is not a valid name; empty when it is."""
    if not name:
        return "it is empty"
    if len(name.encode(errors="replace")) > LONGEST:
        return f"it is longer than {LONGEST} characters"
    if name[0] in ".-" or name != name.strip():
        return "it begins with a dot, a dash or a space, or ends with a space"
    if stray := next((c for c in name if c in "/\\" or unicodedata.category(c) in ("Cc", "Cf", "Cs", "Cn", "Zl", "Zp")), None):
        return f"it holds {stray!r}"
    return ""


def is_trial_id(text: str) -> bool:
    """Whether the text can be the name of a trial's folder.

    >>> is_trial_id("0123456789abcdef"), is_trial_id("../other")
    (True, False)
    """
    return _A_TRIAL.fullmatch(text) is not None and not text.endswith("\n")


def slug(text: str) -> str:
    """The text as a file name that LaTeX, HTML and Markdown take as it stands.

    >>> slug("rank of abmil [fold 0]")
    'rank-of-abmil-fold-0-'
    """
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text)
