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


class StopWaiting(BaseException):
    """Leaves what is being waited for; not an Exception, so that nothing on the way catches it."""


class InterruptRequest:
    """While entered, the first SIGINT or SIGTERM is noted; a second SIGINT stops at once.

    Outside the main thread signals can't be handled, and nothing changes.

    Args:
        with_others: this is one of several processes that ``torchrun`` has started. It passes on
            to them what a terminal has sent them already, so a second SIGINT means nothing; and
            once they stop it sends them SIGTERM, which must not cut short what they have to say:
            if an error ends the block, both are ignored from then on.
    """

    def __init__(self, with_others: bool = False) -> None:
        self.requested = False
        self._with_others = with_others
        self._waiting = False
        self._process = os.getpid()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> InterruptRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        ends = self._with_others and error is not None
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_IGN if ends else handler)

    def wait_for_all(self, function: Callable[[], T]) -> T | None:
        """What ``function`` returns, or None if it raised ``StopWaiting``.

        For code that several processes run together: it can be left only when all leave it, which
        they must agree on.
        """
        try:
            return function()
        except StopWaiting:
            return None

    def wait_for(self, function: Callable[[], T]) -> T | None:
        """What ``function`` returns, or None if a signal came before it did.

        For code that may be left anywhere, because what it does can be done again.
        """
        try:
            self._waiting = True
            if self.requested:
                return None
            result = function()
            self._waiting = False
            return result
        except StopWaiting:
            return None
        except Exception:
            if self.requested:
                return None  # worker processes were stopped together with this one
            raise
        finally:
            self._waiting = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A forked worker process has inherited this handler. Ctrl-C reaches it too, but it
            # is for the parent to end it.
            if number == signal.SIGTERM:
                os._exit(0)
            return
        if self.requested and number == signal.SIGINT and not self._with_others:
            raise KeyboardInterrupt("interrupted twice: stopped without saving")
        self.requested = True
        if self._waiting:
            raise StopWaiting
