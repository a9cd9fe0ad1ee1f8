"""Which writer writes which shard, when several work in one folder."""

from __future__ import annotations

import contextlib
import json
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
    """The right to write a shard, until it is released or its process ends."""

    def __init__(self, lock: FileLock) -> None:
        self._lock = lock
        self._over = threading.Event()
        self._writing = threading.Lock()
        if lock.by_presence:
            threading.Thread(target=self._beat, daemon=True).start()

    def release(self) -> None:
        """Let others write the shard."""
        with self._writing:
            self._over.set()
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _beat(self) -> None:
        """Change the claim's file now and then: what another machine can see of our being alive."""
        holder, n_beats = self._lock.holder(), 0
        while not self._over.wait(_BEAT_SECONDS):
            n_beats += 1
            with self._writing, contextlib.suppress(OSError):
                if not self._over.is_set() and self._lock.path.exists():
                    beside = path_beside(self._lock.path)
                    beside.write_text(json.dumps({**holder, "beats": n_beats}), encoding="utf-8")
                    beside.replace(self._lock.path)


class ShardClaims:
    """Claims on the shards of a cache, by the system's locks.

    A claim ends with its process, however that ends, and no clock is compared with another's. On a
    file system without locks a claim is a file that its writer changes every few seconds; one of
    another machine that doesn't change for a minute is passed over. Should two writers hold a shard
    after all (one was stopped for longer than that), each writes beside it and the later one's
    takes its place: the rows are the same.

    Args:
        cache: the cache's folder.
    """

    def __init__(self, cache: Path) -> None:
        self.folder = cache / CLAIMS_FOLDER
        self._seen: dict[int, tuple[str, float]] = {}

    def take(self, number: int) -> ShardClaim | None:
        """Claim a shard; None if another writer has it.

        Raises:
            OSError: claims can't be written there.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / f"shard-{number:06d}.lock")
        if lock.acquire():
            self._seen.pop(number, None)
            return ShardClaim(lock)
        if lock.by_presence and self._is_silent(number, lock):
            lock.path.unlink(missing_ok=True)
            return ShardClaim(lock) if lock.acquire() else None
        return None

    def holder_in_words(self, number: int) -> str:
        """Who writes a shard."""
        return FileLock(self.folder / f"shard-{number:06d}.lock").holder_in_words()

    def _is_silent(self, number: int, lock: FileLock) -> bool:
        if lock.holder().get("host") == socket.gethostname():
            return False  # its process is asked instead
        try:
            text = lock.path.read_text(encoding="utf-8")
        except OSError:
            return False
        before, since = self._seen.get(number, ("", 0.0))
        if text != before:
            self._seen[number] = (text, time.monotonic())
            return False
        return time.monotonic() - since > _SILENT_SECONDS


def delete_unfinished(shards: Path, number: int) -> None:
    """Delete what a writer that is gone left of a shard. Only for who holds the claim."""
    for path in shards.glob(f"{_unfinished(number)}*"):
        shutil.rmtree(path, ignore_errors=True)


def unfinished_folder(shards: Path, number: int) -> Path:
    """A new name for a shard that is being written."""
    return shards / f"{_unfinished(number)}{os.urandom(6).hex()}"


def _unfinished(number: int) -> str:
    return f".unfinished-{number:06d}-"
