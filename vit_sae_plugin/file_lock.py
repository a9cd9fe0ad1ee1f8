"""A lock that one process holds at a time, by a file in a folder that several may share."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from vit_sae_plugin.atomic_files import is_running, path_beside

_fcntl: ModuleType | None
try:
    import fcntl as _fcntl
except ImportError:  # Windows
    _fcntl = None

_HELD: set[int] = set()


class FileLock:
    """A lock that ends with its process, however that ends.

    The system's own lock on the file holds (`flock`). On file systems without it the file's
    presence does: it names the process, so a file left by one that is gone from this machine is
    passed over; one left by another machine's counts until somebody deletes it.

    Args:
        path: the lock's file, in a folder that exists.

    Attributes:
        by_presence: whether the file's presence was all that `acquire` could go by.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.by_presence = False
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Take the lock; False if another process, or another lock of this one, holds it.

        Raises:
            OSError: the file can't be made there.
        """
        try:
            self._descriptor = self._open_locked()
        except BlockingIOError:
            return False
        self.by_presence = self._descriptor is None
        return not self.by_presence or self._take_by_presence()

    def release(self) -> None:
        """Give the lock back, and delete its file."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
        if self._descriptor is not None:
            _close(self._descriptor)
            self._descriptor = None

    def holder(self) -> dict[str, Any]:
        """Who made the lock's file: `pid`, `host`, `since`; empty if that can't be read."""
        try:
            holder = json.loads(self.path.read_text(encoding="utf-8"))
            return {**holder, "pid": int(holder["pid"])}
        except (OSError, ValueError, TypeError, KeyError):
            return {}

    def holder_in_words(self) -> str:
        """Who holds it, such as `"process 12 on this-machine since …"`."""
        holder = self.holder()
        if not holder:
            return "another process"
        return f"process {holder['pid']} on {holder.get('host')} since {holder.get('since')}"

    def _open_locked(self) -> int | None:
        """The file, open and locked; None where the system or the file system has no locks."""
        if _fcntl is None:
            return None
        while True:
            # never a link's target: another user's link would have us empty any file of ours
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
            descriptor = os.open(self.path, flags, 0o666)
            _HELD.add(descriptor)
            try:
                _fcntl.flock(descriptor, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
            except BlockingIOError:
                _close(descriptor)
                raise
            except OSError:
                _close(descriptor)
                return None
            if _is_file_at(self.path, descriptor):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, _ourselves())
                return descriptor
            _close(descriptor)  # its holder deleted it between our opening and locking it

    def _take_by_presence(self) -> bool:
        """Make the file, with our name in it, unless a process that may still run made it."""
        while not self._made():
            holder = self.holder()
            gone = holder.get("host") == socket.gethostname() and not is_running(holder["pid"])
            if holder and not gone:
                return False
            self.path.unlink(missing_ok=True)
        return True

    def _made(self) -> bool:
        """Make the file whole, and only if there is none."""
        beside = path_beside(self.path)
        beside.write_bytes(_ourselves())
        try:
            os.link(beside, self.path)
        except FileExistsError:
            return False
        finally:
            beside.unlink(missing_ok=True)
        return True


def _ourselves() -> bytes:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}).encode()


def _is_file_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


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
