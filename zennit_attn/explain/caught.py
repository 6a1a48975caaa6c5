"""Warnings of one thread: ``warnings.catch_warnings`` is one for all threads, of which each would get the others'."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

from ..engine.handles import Kept, Locked
from .loading import first_line

_lock = threading.RLock()
#: Those who are listening, the innermost of each thread last.
_listening: list[_Listener] = []
#: How warnings are shown, and which, while nobody listens.
_before: list[warnings.catch_warnings[Any]] = []


class _Listener:
    """Somebody who collects the messages of a thread."""

    def __init__(self, kept: list[Any]) -> None:
        self.messages: list[str] = []
        self.thread = get_ident()
        kept.append(self)
        with Locked(_lock):
            if not _listening:
                start()
            _listening.append(self)

    def remove(self) -> None:
        """Stop listening; the last one puts back how warnings were shown."""
        with Locked(_lock):
            if self in _listening:
                _listening.remove(self)
            if not _listening and _before:
                _before[-1].__exit__(None, None, None)
                _before.clear()


def start() -> None:
    """Give every message to who listens in its thread, and to who would have got it where nobody does."""
    catching = warnings.catch_warnings()
    catching.__enter__()
    _before[:] = [catching]
    shown = warnings.showwarning

    def show(message: Any, category: Any, filename: Any, lineno: Any, file: Any = None, line: Any = None) -> None:
        mine = [listener for listener in list(_listening) if listener.thread == get_ident()]
        if mine:
            mine[-1].messages.append(first_line(str(message)))
        else:
            shown(message, category, filename, lineno, file, line)

    warnings.showwarning = show
    warnings.simplefilter("always")


@contextmanager
def caught_here() -> Iterator[list[str]]:
    """Collect the first lines of what is warned of in this thread; the others' warnings are shown as they are."""
    with Kept() as kept:
        yield _Listener(kept).messages
