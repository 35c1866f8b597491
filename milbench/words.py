"""Numbers in words, for messages and reports, and durations as people write them."""

import re

_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def counted(number: int, noun: str) -> str:
    """`1 trial`, `2 trials`, `1,200 trials`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def duration(seconds: float) -> str:
    """How long something takes: `40 s`, `51 min`, `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def seconds(text: str) -> float:
    """A duration as people or Slurm write it, in seconds.

    >>> seconds("110m"), seconds("1.5h"), seconds("90"), seconds("2:00:00"), seconds("1-12:30:00")
    (6600.0, 5400.0, 90.0, 7200.0, 131400.0)

    Raises:
        ValueError: it is none.
    """
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d)?", text.strip()):
        return float(match[1]) * _UNITS[match[2] or "s"]
    if match := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text.strip()):
        days, hours, minutes, rest = (int(part or 0) for part in match.groups())
        return float(((days * 24 + hours) * 60 + minutes) * 60 + rest)
    raise ValueError(f"{text!r} is no duration; write 90s, 110m, 1.5h or 2:00:00")
