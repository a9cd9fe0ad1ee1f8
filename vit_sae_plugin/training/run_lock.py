"""One process at a time in a run's folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vit_sae_plugin.file_lock import FileLock

LOCK_FILE = "run.lock"


class RunInUseError(OSError):
    """Another process writes in the run's folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes, and other runs of this one, out of a run's folder.

    Raises:
        RunInUseError: the folder is in use; the message says by which process on which machine.
    """
    lock = FileLock(folder / LOCK_FILE)
    if not lock.acquire():
        raise _in_use(lock)
    try:
        yield
    finally:
        lock.release()


def check_free(folder: Path) -> None:
    """Raise a `RunInUseError` if a process writes in the folder now.

    Several may ask at once, such as those that train together.
    """
    lock = FileLock(folder / LOCK_FILE)
    if lock.is_held():
        raise _in_use(lock)


def _in_use(lock: FileLock) -> RunInUseError:
    hint = f" (if it is gone, delete {lock.path})" if lock.by_presence else ""
    return RunInUseError(
        f"{lock.path.parent} is in use by {lock.holder_in_words()}; wait for it to end, or choose "
        f"another output_path{hint}"
    )
