"""Locks that a forked process finds free."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from types import TracebackType


class Lock:
    """Reentrant lock for ``with``. A child process that is forked while another thread holds it gets a new one.

    The thread that holds it does not exist in the child, so an ordinary lock would never be released there.

    Args:
        on_lost: called in such a child, to put in order what the lost thread may have left half changed.
    """

    def __init__(self, on_lost: Callable[[], None] | None = None) -> None:
        self._lock = threading.RLock()
        self._on_lost = on_lost
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.release()

    def renew_if_lost(self) -> None:
        """In a forked child: replace the lock if a thread holds it that was not forked."""
        if self._lock.acquire(blocking=False):  # free, or held by the thread that forked, which goes on here
            self._lock.release()
            return
        self._lock = threading.RLock()
        if self._on_lost is not None:
            self._on_lost()


_locks: weakref.WeakSet[Lock] = weakref.WeakSet()


def _renew_lost_locks() -> None:
    for lock in list(_locks):
        lock.renew_if_lost()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_renew_lost_locks)
