"""Ctrl-C and SIGTERM as a request to stop at the next moment at which nothing is lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")


class TrainingInterruptedError(KeyboardInterrupt):
    """Training was stopped by Ctrl-C or SIGTERM; the message says how to go on."""


class _StopWaiting(BaseException):
    """Leaves what is being waited for; not an Exception, so that nothing on the way catches it."""


class InterruptRequest:
    """While entered, the first SIGINT or SIGTERM is noted; a second SIGINT stops at once.

    Outside the main thread signals can't be handled, and nothing changes.
    """

    def __init__(self) -> None:
        self.requested = False
        self._waiting = False
        self._process = os.getpid()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> InterruptRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def wait_for(self, function: Callable[[], T]) -> T | None:
        """What ``function`` returns, or None if a signal came before it did.

        For code that may be left anywhere, because what it does can be done again.
        """
        try:
            self._waiting = True
            result = None if self.requested else function()
            self._waiting = False
            return result
        except _StopWaiting:
            return None
        finally:
            self._waiting = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A forked worker process has inherited this handler. Ctrl-C reaches it too, but it
            # is for the parent to end it.
            if number == signal.SIGTERM:
                os._exit(0)
            return
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt("interrupted twice: stopped without saving")
        self.requested = True
        if self._waiting:
            raise _StopWaiting
