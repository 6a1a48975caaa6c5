"""Threads: whether another one may have computed a part of a forward, in which no mode saw it.

A mode is on in one thread, and each thread numbers its nodes for itself. What another thread adds to a graph is in
neither count of a forward; but there has to be another thread.
"""

from __future__ import annotations

import threading
from typing import Any, ClassVar

from .handles import Locked, keep

#: The same thread may be interrupted, and begin to undo.
_counting = threading.RLock()


class StartsHandle:
    """The starts of threads are counted, until this is removed.

    A thread that a forward starts and waits for is gone when the forward ends.
    """

    holding: ClassVar[set[StartsHandle]] = set()
    #: How many threads were started while somebody counted.
    count: ClassVar[int] = 0
    #: What starts a thread, as it was, and as it is while somebody counts.
    before: ClassVar[Any] = None
    counted: ClassVar[Any] = None

    def __init__(self) -> None:
        keep(self)
        with Locked(_counting):
            self.holding.add(self)
            if threading.Thread.start is not StartsHandle.counted:
                StartsHandle.before = threading.Thread.start
                StartsHandle.counted = counting(threading.Thread.start)
                threading.Thread.start = StartsHandle.counted  # type: ignore[method-assign]

    def remove(self) -> None:
        """Count no more; what somebody else put around it meanwhile stays."""
        with Locked(_counting):
            self.holding.discard(self)
            if not self.holding and threading.Thread.start is StartsHandle.counted:
                threading.Thread.start = StartsHandle.before  # type: ignore[method-assign]


def counting(start: Any) -> Any:
    """Return what starts a thread, and counts that it does."""

    def counted(thread: threading.Thread) -> None:
        StartsHandle.count += 1
        start(thread)

    return counted


class Alone:
    """True for as long as no other thread has run since this was made."""

    def __init__(self) -> None:
        self.starts, self.was = StartsHandle.count, threading.active_count() == 1

    def __bool__(self) -> bool:
        return self.was and StartsHandle.count == self.starts and threading.active_count() == 1
