"""A lock that one process holds at a time, by a file in a folder that several may share."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Mapping
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
_MOMENT_SECONDS = 0.2
"""How long a file may be empty until its maker has written it, where links can't be had."""


class FileLock:
    """A lock that ends with its process, however that ends.

    The system's own lock on the file holds (`flock`). On file systems without it the file's
    presence does: it names the process, so a file left by one that is gone from this machine is
    passed over; one left by another machine's counts until somebody deletes it. A random token in
    the file tells whose it is: nobody replaces or deletes another's.

    Args:
        path: the lock's file, in a folder that exists.

    Attributes:
        by_presence: whether the file's presence was all that `acquire` could go by.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.by_presence = False
        self._descriptor: int | None = None
        self._ours: dict[str, Any] = {"token": os.urandom(8).hex()}

    def acquire(self) -> bool:
        """Take the lock; False if another process, or another lock of this one, holds it.

        Raises:
            OSError: the file can't be made there.
        """
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        self._ours |= {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        try:
            self._descriptor = self._open_locked()
        except BlockingIOError:
            return False
        self.by_presence = self._descriptor is None
        return not self.by_presence or self._take_by_presence()

    def is_held(self) -> bool:
        """Whether a process holds the lock now, this one or another. Any number may ask at once.

        Raises:
            OSError: the file can't be read.
        """
        try:
            locked = self._is_locked()
        except (FileNotFoundError, NotADirectoryError):
            return False
        self.by_presence = locked is None
        if locked is not None:
            return locked
        if not (holder := self.holder()):
            time.sleep(_MOMENT_SECONDS)  # it may be about to be written
            holder = self.holder()
        return bool(holder) and _may_run(holder)

    def release(self) -> None:
        """Give the lock back, and delete its file unless another has taken it by now."""
        with contextlib.suppress(OSError):
            if self.is_ours():
                self.path.unlink(missing_ok=True)
        if self._descriptor is not None:
            _close(self._descriptor)
            self._descriptor = None

    def is_ours(self) -> bool:
        """Whether the file is still the one that `acquire` made."""
        if self._descriptor is not None:
            return _is_file_at(self.path, self._descriptor)
        return self.holder().get("token") == self._ours["token"]

    def mark(self, **more: Any) -> None:
        """Write the file again with more in it, for others to see it change.

        Not if another has taken it by now.
        """
        if self.is_ours():
            beside = self._written(more)
            try:
                beside.replace(self.path)
            finally:
                beside.unlink(missing_ok=True)

    def take_over(self, seen: bytes) -> bool:
        """Take the lock from a holder that is gone; False if another was faster.

        Args:
            seen: the file's contents, as they were when its holder was found to be gone.
        """
        self._remove(seen)
        return self.acquire()

    def contents(self) -> bytes:
        """What the lock's file holds; empty if it can't be read."""
        return _contents(self.path)

    def holder(self) -> dict[str, Any]:
        """Who made the lock's file: `pid`, `host`, `since`; empty if that can't be read."""
        return _parsed(self.contents())

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
                os.write(descriptor, json.dumps(self._ours).encode())
                return descriptor
            _close(descriptor)  # its holder deleted it between our opening and locking it

    def _is_locked(self) -> bool | None:
        """Whether the file is locked; None where the system or the file system has no locks.

        Who asks takes a lock that others may have, too: only one that is held is in its way.
        """
        descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        _HELD.add(descriptor)
        try:
            if _fcntl is None:
                return None
            _fcntl.flock(descriptor, _fcntl.LOCK_SH | _fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return None
        finally:
            _close(descriptor)
        return False

    def _take_by_presence(self) -> bool:
        """Make the file, with our name in it, unless a process that may still run made it."""
        while not self._put(self._written()):
            seen = self.contents()
            if not (holder := _parsed(seen)):
                time.sleep(_MOMENT_SECONDS)  # it may be about to be written
            elif _may_run(holder):
                return False
            self._remove(seen)
        return True

    def _written(self, more: Mapping[str, Any] | None = None) -> Path:
        """Our name in a file beside the lock's."""
        beside = path_beside(self.path)
        beside.write_bytes(json.dumps({**self._ours, **(more or {})}).encode())
        return beside

    def _put(self, beside: Path) -> bool:
        """Move a file into the lock's place; False, and it is deleted, if there is one."""
        try:
            os.link(beside, self.path)
        except FileExistsError:
            return False
        except OSError:  # where there are no locks there are often no links either: exFAT, FUSE
            return _copy_to_new(beside, self.path)
        finally:
            beside.unlink(missing_ok=True)
        return True

    def _remove(self, seen: bytes) -> None:
        """Delete a file that was left here, if it is still as it was seen.

        Of several who try, a rename lets one have it. Who comes so late that another's new file was
        moved puts that back.
        """
        if self.contents() != seen:
            return
        aside = path_beside(self.path)
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            return
        if _contents(aside) == seen:
            aside.unlink()
        else:
            self._put(aside)


def _contents(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _parsed(contents: bytes) -> dict[str, Any]:
    try:
        holder = json.loads(contents)
        return {**holder, "pid": int(holder["pid"])}
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return {}


def _may_run(holder: Mapping[str, Any]) -> bool:
    """Whether a lock's holder may be at work still; one on another machine always may."""
    return holder.get("host") != socket.gethostname() or is_running(holder["pid"])


def _copy_to_new(source: Path, target: Path) -> bool:
    """Copy a file, unless there is one already."""
    contents = source.read_bytes()
    try:
        file = target.open("xb")
    except FileExistsError:
        return False
    with file:
        file.write(contents)
    return True


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
