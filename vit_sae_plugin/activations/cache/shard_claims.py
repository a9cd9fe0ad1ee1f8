"""Which writer writes which shard, when several work in one folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
import time
from pathlib import Path
from typing import Self

from vit_sae_plugin.atomic_files import path_beside
from vit_sae_plugin.file_lock import FileLock

CLAIMS_FOLDER = "claims"
_BEAT_SECONDS = 5.0
_SILENT_SECONDS = 60.0
"""How long a claim of another machine may be silent, on our own steady clock."""


class ShardClaim:
    """The right to write a shard, until it is released or its process ends.

    Args:
        lock: held.
        number: of the shard.
        passed_over: whether a writer was passed over that may yet be alive.
    """

    def __init__(self, lock: FileLock, number: int, passed_over: bool = False) -> None:
        self._lock = lock
        self._number = number
        self._passed_over = passed_over
        self._over = threading.Event()
        self._writing = threading.Lock()
        if lock.by_presence:
            threading.Thread(target=self._beat, daemon=True).start()

    def release(self) -> None:
        """Let others write the shard."""
        with self._writing:
            self._over.set()
            self._lock.release()

    def delete_unfinished(self, shards: Path) -> None:
        """Delete what writers that are gone left of the shard.

        Nothing if we have been passed over ourselves; and of what a writer left that was passed
        over only what hasn't changed for a minute: it may be awake again, and writing.
        """
        if not self._lock.is_ours():
            return
        for path in shards.glob(f"{_unfinished(self._number)}*"):
            if not (self._passed_over and _changed_lately(path)):
                shutil.rmtree(path, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _beat(self) -> None:
        """Change the claim's file now and then: what another machine can see of our being alive."""
        n_beats = 0
        while not self._over.wait(_BEAT_SECONDS):
            n_beats += 1
            with self._writing, contextlib.suppress(OSError):
                if not self._over.is_set():
                    self._lock.mark(beats=n_beats)


class ShardClaims:
    """Claims on the shards of a cache, by the system's locks.

    A claim ends with its process, however that ends, and no clock is compared with another's. On a
    file system without locks a claim is a file that its writer changes every few seconds; one of
    another machine that doesn't change for a minute is passed over. Should its writer wake up after
    all, it leaves the claim to the other; each writes beside the shard, and the later one's takes
    its place: the rows are the same. Only files that it was writing when it fell silent are deleted
    with the claim; then it ends with a `CacheWriteError`.

    Args:
        cache: the cache's folder.
    """

    def __init__(self, cache: Path) -> None:
        self.folder = cache / CLAIMS_FOLDER
        self._seen: dict[int, tuple[bytes, float]] = {}

    def take(self, number: int) -> ShardClaim | None:
        """Claim a shard; None if another writer has it.

        Raises:
            OSError: claims can't be written there.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / f"shard-{number:06d}.lock")
        if lock.acquire():
            self._seen.pop(number, None)
            return ShardClaim(lock, number)
        if lock.by_presence and self._is_silent(number, lock):
            contents, _ = self._seen.pop(number)
            return ShardClaim(lock, number, True) if lock.take_over(contents) else None
        return None

    def holder_in_words(self, number: int) -> str:
        """Who writes a shard."""
        return FileLock(self.folder / f"shard-{number:06d}.lock").holder_in_words()

    def _is_silent(self, number: int, lock: FileLock) -> bool:
        if lock.holder().get("host") == socket.gethostname():
            return False  # its process is asked instead
        contents = lock.contents()
        if not contents:
            return False
        before, since = self._seen.get(number, (b"", 0.0))
        if contents != before:
            self._seen[number] = (contents, time.monotonic())
            return False
        return time.monotonic() - since > _SILENT_SECONDS


def unfinished_folder(shards: Path, number: int) -> Path:
    """A new name for a shard that is being written."""
    return shards / f"{_unfinished(number)}{os.urandom(6).hex()}"


def _unfinished(number: int) -> str:
    return f".unfinished-{number:06d}-"


def _changed_lately(folder: Path) -> bool:
    """Whether somebody wrote in a folder within the last minute, by its file system's own clock."""
    probe = path_beside(folder)
    try:
        probe.touch()
        now = probe.stat().st_mtime
        changes = [path.stat().st_mtime for path in (folder, *folder.iterdir())]
    except OSError:  # it was moved into its place just now
        return True
    finally:
        probe.unlink(missing_ok=True)
    return now - max(changes) < _SILENT_SECONDS
