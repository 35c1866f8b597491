"""Being asked to stop, by Ctrl-C, SIGTERM or SIGHUP: on the spot where nothing is at stake, at the next safe place elsewhere.

No exception is raised in the midst of whatever runs: libraries wrap those, swallow them, or abort (torch does while it is
imported). The exit code is the one a shell expects: 130, 143 or 129. Signals that were ignored when the process began (nohup,
`&` in a script) stay ignored. Imports nothing heavy: a command begins with it.
"""

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_SHOW_CURSOR = b"\x1b[?25h"


class _State:
    """Signals belong to the process, and so does what it owes before it may end."""

    unfinished: set[Path] = set()
    words: Callable[[], str] = staticmethod(lambda: "Stopped. What was finished is kept; the same command continues.")


def say_at_the_end(words: Callable[[], str]) -> None:
    """What a stopped command says last, instead of the usual sentence."""
    _State.words = staticmethod(words)


@contextmanager
def unfinished(path: Path) -> Iterator[None]:
    """Within, `path` is half a file, to be removed by whoever ends the process."""
    _State.unfinished.add(path)
    try:
        yield
    finally:
        _State.unfinished.discard(path)


def obey() -> None:
    """From now on a signal ends the process, without half a file or a child."""
    for number in _heeded():
        signal.signal(number, _stop)


@contextmanager
def obeyed() -> Iterator[None]:
    """:func:`obey`, and at the end as before."""
    with _handled_by(_stop):
        yield


@contextmanager
def noted() -> Iterator[Callable[[], bool]]:
    """Within, a signal is only noted; it takes effect at the end, as it would have without this. A second one ends the process.

    Yields:
        Whether there was one, to be asked often.
    """
    got: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if got:
            _stop(number, frame)
        got.append(number)

    try:
        with _handled_by(note):
            yield lambda: bool(got)
    finally:
        if got:
            signal.raise_signal(got[0])


@contextmanager
def held_back() -> Iterator[None]:
    """Within, signals wait: a process that is started here is deaf to them until it says what it does with them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _heeded() -> dict[int, Any]:
    """Signals that this thread may handle, with what handles them now."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    found = {number: signal.getsignal(number) for number in SIGNALS}
    return {number: handler for number, handler in found.items() if handler not in (signal.SIG_IGN, None)}


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = _heeded()
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)


def _stop(number: int, _frame: FrameType | None) -> None:
    """End the process now, whatever it is doing, and take its children along."""
    if (processes := sys.modules.get("multiprocessing.process")) is not None:
        for child in processes.active_children():
            child.kill()
    for path in list(_State.unfinished):
        with contextlib.suppress(OSError):
            path.unlink()
    with contextlib.suppress(OSError, ValueError):  # the terminal may be what went away
        if os.isatty(2):
            os.write(2, _SHOW_CURSOR)  # a progress bar hides it
        if select.select([], [1], [], 0)[1]:  # nor wait for one that was halted
            os.write(1, f"\n{_State.words()}\n".encode())
    os._exit(128 + number)
