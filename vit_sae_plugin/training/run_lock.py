"""One process at a time in a run's folder."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from vit_sae_plugin.atomic_files import is_running, path_beside

_fcntl: ModuleType | None
try:
    import fcntl as _fcntl
except ImportError:  # Windows
    _fcntl = None

LOCK_FILE = "run.lock"
_HELD: set[int] = set()


class RunInUseError(OSError):
    """Another process writes in the run's folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes, and other runs of this one, out of a run's folder.

    The system's own lock on a file holds (``flock``), which ends with the process however that
    ends. On file systems without it the file's presence does: it names the process, so a file left
    by one that is gone from this machine is passed over.

    Raises:
        RunInUseError: the folder is in use; the message says by which process on which machine.
    """
    path = folder / LOCK_FILE
    descriptor = _open_locked(path)
    if descriptor is None:
        _take_by_presence(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        if descriptor is not None:
            _close(descriptor)


def check_free(folder: Path) -> None:
    """Raise a ``RunInUseError`` if a process writes in the folder now."""
    if (folder / LOCK_FILE).exists():
        with locked(folder):
            pass


def _open_locked(path: Path) -> int | None:
    """The lock file, open and locked; None where the system or the file system has no locks."""
    if _fcntl is None:
        return None
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        _HELD.add(descriptor)
        try:
            _fcntl.flock(descriptor, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
        except BlockingIOError:
            _close(descriptor)
            raise _in_use(path) from None
        except OSError:
            _close(descriptor)
            return None
        if _is_file_at(path, descriptor):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps(_ourselves()).encode())
            return descriptor
        _close(descriptor)  # its holder deleted it between our opening and locking it


def _take_by_presence(path: Path) -> None:
    """Make the lock file, with our name in it, unless a process that may still run made it."""
    beside = path_beside(path)
    while True:
        beside.write_text(json.dumps(_ourselves()), encoding="utf-8")
        try:
            os.link(beside, path)  # whole, and only if there is none
            return
        except FileExistsError:
            holder = _holder(path)
            gone = holder.get("host") == socket.gethostname() and not is_running(holder["pid"])
            if holder and not gone:
                raise _in_use(path, f" (if it is gone, delete {path})") from None
            path.unlink(missing_ok=True)
        finally:
            beside.unlink(missing_ok=True)


def _is_file_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _ourselves() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _holder(path: Path) -> dict[str, Any]:
    """Who made the lock file; empty if that can't be read."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return {**holder, "pid": int(holder["pid"])}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _in_use(path: Path, hint: str = "") -> RunInUseError:
    holder = _holder(path)
    who = "another process"
    if holder:
        who = f"process {holder['pid']} on {holder.get('host')} since {holder.get('since')}"
    return RunInUseError(
        f"{path.parent} is in use by {who}; wait for it to end, or choose another output_path{hint}"
    )


def _close(descriptor: int) -> None:
    _HELD.discard(descriptor)
    with contextlib.suppress(OSError):
        os.close(descriptor)


def _forget_in_child() -> None:
    # A forked worker shares the open file, and would hold the lock after its parent has died.
    for descriptor in list(_HELD):
        _close(descriptor)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
