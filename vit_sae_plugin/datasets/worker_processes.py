"""Worker processes that decode images: how they start, end, and die."""

from __future__ import annotations

import copy
import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from types import FrameType, TracebackType
from typing import Any, TypeVar

from torch.utils.data._utils import signal_handling

T = TypeVar("T")

_LONGEST_DEATH_SECONDS = 5.0


class WorkerDiedError(RuntimeError):
    """A worker process was killed or crashed while it decoded images."""


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


def start_worker(worker: int) -> None:
    """Called in each worker. A forked one must not collect garbage of the process it came from:
    among it may be earlier loaders, which would try to stop workers that are not their children."""
    gc.freeze()
    sys.excepthook = _quiet_about_the_end
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        os._exit(1)  # torch's loop takes whoever is the parent from now on for the one it serves


def _quiet_about_the_end(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """A main process that is interrupted may leave in the middle of fetching a batch."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def start_workers(loader: Iterable[T]) -> tuple[Iterator[T], list[BaseProcess]]:
    """The batches of a ``DataLoader``, and its workers, which are started here.

    That one of them has died is noticed where the next batch is waited for, within seconds, and
    nowhere else: torch would raise an error wherever the main process happens to be, in the middle
    of a training step or of a file.
    """
    others = multiprocessing.active_children()
    batches: Iterator[T] = iter(())
    try:
        with _interrupted_after():
            batches = iter(loader)
            if getattr(batches, "_worker_pids_set", False):
                signal_handling._remove_worker_pids(id(batches))
                vars(batches)["_worker_pids_set"] = False  # or it would do so again
            workers = [c for c in multiprocessing.active_children() if c not in others]
    except BaseException:
        del batches  # or the error's traceback would keep the workers alive
        raise
    return batches, workers


@contextmanager
def _interrupted_after() -> Iterator[None]:
    """SIGINT and SIGTERM come at the end of the block: an error from within a fork is printed,
    forgotten, and may leave locks behind."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if threading.current_thread() is not threading.main_thread() or None in handlers.values():
        yield
        return
    seen: list[int] = []
    process = os.getpid()

    def note(number: int, frame: FrameType | None) -> None:
        if os.getpid() == process:
            seen.append(number)
        elif number == signal.SIGTERM:
            os._exit(1)  # a worker that has just been forked

    for number in handlers:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for came in seen:
        signal.raise_signal(came)


def worker_died(source_name: str, death: str) -> WorkerDiedError:
    """The error for a message that a worker process died."""
    return WorkerDiedError(
        f"a worker process that decodes {source_name} died: {death}; most often memory ran out: "
        "use fewer n_workers or a smaller batch_size_images, or give the container more shared "
        "memory (--shm-size); with n_workers=0 the cause shows in this process"
    )


def next_or_death(
    batches: Iterator[T], workers: Sequence[BaseProcess]
) -> tuple[T | None, str | None]:
    """The next batch (None after the last), or a message if a worker died, mostly torch's."""
    try:
        try:
            return next(batches, None), None
        except (EOFError, ConnectionError, FileNotFoundError):
            death = _soon_dead(workers)
            if death is None:
                raise
            return None, death
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        return None, str(error)


def _soon_dead(workers: Sequence[BaseProcess]) -> str | None:
    """That one of the workers is dead or soon will be: what a dying process has sent can't be
    fetched any more from a moment on at which it doesn't count as dead yet."""
    until = time.monotonic() + _LONGEST_DEATH_SECONDS
    while workers and time.monotonic() < until:
        for worker in workers:
            if worker.exitcode is not None:
                return f"DataLoader worker (pid {worker.pid}) ended with code {worker.exitcode}"
        time.sleep(0.01)
    return None
