"""What the cells of a table say of follow-up: one rule for everything that reads tables.

A column of events has 1 where the event was seen, a column of censoring has 0 there. Words of death and life mean the same in
both. cBioPortal writes a flag and a word: `1:DECEASED`.
"""

import re
from collections.abc import Iterable, Mapping

# What stands for "nobody knows" in the tables of cBioPortal, GDC, TCGA-CDR, R, pandas and spreadsheets; in lower case.
MISSING = frozenset(
    (
        "", "na", "n/a", "n.a.", "n. a.", "#n/a", "#na", "<na>", "nan", "nat", "none", "null", "nil", "missing", "unknown", "unk",
        "not available", "not applicable", "not reported", "not evaluated", "not known", "discrepancy", "completed", "pending",
        "-", "--", "'--", "---", "\u2013", "\u2014", ".", "?", "#value!", "#ref!", "#div/0!", "#name?", "#null!", "#num!",
    )
)  # fmt: skip
_YES, _NO = {"1", "true", "yes", "y", "t"}, {"0", "false", "no", "n", "f"}
_SEEN = {"dead", "deceased", "died", "death", "event", "uncensored"}
_CENSORED = {"alive", "living", "lost to follow-up", "censored", "no event", "event-free"}


def missing(cell: str) -> bool:
    """Whether a cell says that nobody knows: `N/A`, `[Not Available]`, `#N/A`, `-` and their like, in any case."""
    word = " ".join(cell.split()).lower()
    return word in MISSING or (word[:1] + word[-1:] in ("[]", "()", "<>") and word[1:-1].strip() in MISSING)


def seen(cell: str, *, censorship: bool) -> frozenset[bool]:
    """Whether a cell says that the event was seen: what its flag and its word mean, so two answers where they differ.

    Args:
        cell: `1`, `0.0`, `Dead`, `0:LIVING` and their like; nothing follows from any other.
        censorship: whether the column is one of censoring, in which 0 is an event.
    """
    said: set[bool] = set()
    for part in (re.sub(r"^([01])\.0*$", r"\1", part.strip()) for part in cell.lower().split(":")):
        if part in _YES | _NO:
            said.add((part in _YES) != censorship)
        elif part in _SEEN | _CENSORED:
            said.add(part in _SEEN)
    return frozenset(said)


def contradiction(cells: Mapping[str, str], censorship: Iterable[str]) -> str:
    """What columns of one row say against each other about the event; empty where they agree.

    Args:
        cells: column -> cell, of every column that tells of the event.
        censorship: which of them are of censoring.
    """
    inverse = set(censorship)
    said = {column: seen(cell, censorship=column in inverse) for column, cell in cells.items()}
    if len(frozenset[bool]().union(*said.values())) < 2:
        return ""
    means = [
        f"{column} {cells[column]!r} means {' and '.join('an event' if one else 'no event' for one in sorted(some))}"
        for column, some in said.items()
        if some
    ]
    return ", ".join(means)
