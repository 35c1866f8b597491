"""Being asked to stop, by Ctrl-C, SIGTERM or SIGHUP: at once where nothing is at stake, at the next safe place elsewhere.

The exit code is the one a shell expects: 130, 143 or 129. A second request ends everything on the spot. Signals that were
ignored when the process began (nohup, `&` in a script) stay ignored. Imports nothing heavy: a command begins with it.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_WORDS = "Stopped. What was finished is kept; the same command continues."
_Handler = Callable[[int, FrameType | None], None]


class Stopped(SystemExit):
    """A signal asked this process to stop; `code` is 128 + its number. No `except Exception` takes it for a fault of its own."""

    code: int


class _State:
    """Signals belong to the process, and so does what is known of them."""

    asked: int | None = None  # the signal that was obeyed
    obeying = False
    words: Callable[[], str] = staticmethod(lambda: _WORDS)


def say_at_the_end(words: Callable[[], str]) -> None:
    """What a stopped command says last, instead of the usual sentence."""
    _State.words = staticmethod(words)


@contextmanager
def obeyed(*, last: bool = False) -> Iterator[None]:
    """Within, a signal raises :class:`Stopped`; at the end the closing words are printed and the exit code is the signal's.

    An exception may get lost or changed on its way (a validator wraps it, an import hides it), so whatever the interrupted code
    ends with, it ends as stopped.

    Args:
        last: the process ends afterwards; a signal that comes then has nothing left to wait for.

    Raises:
        Stopped: there was a signal.
    """
    if _State.obeying:
        yield
        return
    _State.obeying, _State.asked, _State.words = True, None, staticmethod(lambda: _WORDS)
    hook, sys.unraisablehook = sys.unraisablehook, _silent_once_asked
    try:
        with _handled_by(_raise):
            try:
                yield
            except BaseException:
                if _State.asked is None:
                    raise
            if _State.asked is not None:
                _say()
                raise Stopped(128 + _State.asked)
    finally:
        _State.obeying, sys.unraisablehook = False, hook
        if last:
            for number in _heeded():
                signal.signal(number, _end)


@contextmanager
def noted() -> Iterator[Callable[[], bool]]:
    """Within, a signal is only noted; it takes effect at the end, as it would have without this.

    Yields:
        Whether there was one, to be asked often.

    Raises:
        Stopped: there was a signal before.
    """
    if _State.asked is not None:
        raise Stopped(128 + _State.asked)
    got: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if got:
            _end(number)
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
def _handled_by(handler: _Handler) -> Iterator[None]:
    before = _heeded()
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)


def _raise(number: int, _frame: FrameType | None) -> None:
    if _State.asked is not None:
        _end(number)
    _State.asked = number
    raise Stopped(128 + number)


def _end(number: int, _frame: FrameType | None = None) -> None:
    """Stop without another word, and take the children along."""
    if (processes := sys.modules.get("multiprocessing.process")) is not None:
        for child in processes.active_children():
            child.kill()
    os._exit(128 + number)


def _say() -> None:
    with contextlib.suppress(OSError, ValueError):  # the terminal may be what went away
        print(f"\n{_State.words()}", flush=True)  # noqa: T201 - click may not be loaded yet


def _silent_once_asked(unraisable: "sys.UnraisableHookArgs") -> None:
    if _State.asked is None:
        sys.__unraisablehook__(unraisable)
