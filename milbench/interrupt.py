"""Stopping on Ctrl-C, SIGTERM or SIGHUP: at once where nothing can be lost, at the next safe place elsewhere.

No exception is raised in whatever code runs: libraries wrap it, swallow it, or abort (torch does while it is imported).
The exit code is what a shell expects: 130, 143 or 129. Signals that were ignored when the process began (nohup, `&` in a script)
stay ignored. Imports nothing heavy: a command begins with it.
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
    """What this process must do before it ends. Signals belong to the process, so this does, too."""

    unfinished: set[Path] = set()
    words: Callable[[], str] = staticmethod(lambda: "Stopped. What was finished is kept; the same command continues.")


def say_at_the_end(words: Callable[[], str]) -> None:
    """Set the last sentence of a stopped command."""
    _State.words = staticmethod(words)


@contextmanager
def unfinished(path: Path) -> Iterator[None]:
    """Within this context `path` is an incomplete file, which is removed if the process is stopped."""
    _State.unfinished.add(path)
    try:
        yield
    finally:
        _State.unfinished.discard(path)


def obey() -> None:
    """From now on a signal ends the process, its child processes too, and removes incomplete files."""
    for number in _heeded():
        signal.signal(number, _stop)


@contextmanager
def obeyed() -> Iterator[None]:
    """:func:`obey`, and at the end as before, with the last sentence as before, too."""
    words = _State.words
    try:
        with _handled_by(_stop):
            yield
    finally:
        say_at_the_end(words)


@contextmanager
def noted() -> Iterator[Callable[[], bool]]:
    """Within this context a signal is only noted, and takes effect at its end. A second signal ends the process at once.

    Yields:
        A function that says whether a signal came; call it often.
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
    """Within this context signals wait; a process that is started here gets none until it unblocks them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _heeded() -> dict[int, Any]:
    """The signals that this thread may handle, with their present handlers."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    return {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}


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
    """End the process and its child processes now."""
    if (processes := sys.modules.get("multiprocessing.process")) is not None:
        for child in processes.active_children():
            child.kill()
    for path in list(_State.unfinished):
        with contextlib.suppress(OSError):
            path.unlink()
    with contextlib.suppress(OSError, ValueError):  # the terminal may have been closed
        if os.isatty(2):
            os.write(2, _SHOW_CURSOR)  # a progress bar hides it
        if select.select([], [1], [], 0)[1]:  # and do not wait for a terminal that was halted
            os.write(1, f"\n{_State.words()}\n".encode())
    os._exit(128 + number)
