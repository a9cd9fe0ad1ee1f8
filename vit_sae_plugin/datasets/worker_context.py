"""How worker processes are started, and how they hear that they are no longer needed."""

from __future__ import annotations

import copy
import ctypes
import multiprocessing
from multiprocessing.context import BaseContext
from typing import Any


class LockFreeEvent:
    """What a ``DataLoader`` needs of ``multiprocessing.Event``, without the lock in it.

    Workers ask for the event before each batch. One that is killed while it asks takes an event's
    lock with it, and the main process would wait for ever to tell the others that they may end.
    """

    def __init__(self, context: BaseContext) -> None:
        self._flag: Any = context.RawValue(ctypes.c_bool, False)

    def set(self) -> None:
        """Say it to all processes."""
        self._flag.value = True

    def is_set(self) -> bool:
        """Whether it was said."""
        return self._flag.value


def worker_context() -> BaseContext:
    """The start method in use, for a ``DataLoader``, with events that no killed worker can hold."""
    context = copy.copy(multiprocessing.get_context())
    vars(context)["Event"] = lambda: LockFreeEvent(context)
    return context
