"""Where compiled kernels are kept, so that each machine compiles a source once.

A folder of the user's own, into which nobody else can write. A library's name ends in the hash of
its bytes, so that a file that was cut off or changed is seen. Nothing is loaded from its path here,
where another file could take its place after it was looked at, if others may write in a folder
above: callers get the bytes that were checked, and load those.
"""

from __future__ import annotations

import hashlib
import os
import platform
import stat
import sys
import tempfile
from pathlib import Path

CACHE_VARIABLE = "VIT_SAE_KERNEL_CACHE"
"""The environment variable that names another folder."""

_PROCESSOR_FIELDS = frozenset(
    "vendor_id;cpu family;model;model name;stepping;flags;Features;CPU implementer;"
    "CPU architecture;CPU variant;CPU part".split(";")
)


class UnsafeFolderError(OSError):
    """Others could have put a library into the folder, or it can't be made."""


def cache_folder() -> Path:
    """The folder, which may not be there yet."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen)
    if sys.platform == "darwin":
        caches = Path.home() / "Library" / "Caches"
    elif os.name == "nt":
        caches = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "vit_sae_plugin" / "kernels"


def make_private(folder: Path) -> None:
    """Make a folder that only its owner can enter, or see that it is one that only he can change.

    Raises:
        UnsafeFolderError: it isn't, or it can't be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise UnsafeFolderError(
            f"{folder} can't be made ({error.strerror}); let {CACHE_VARIABLE} name another folder"
        ) from error
    if not _is_own(found):
        raise UnsafeFolderError(
            f"{folder} is not yours alone (mode {stat.S_IMODE(found.st_mode):o}); chmod 700 it if "
            f"it is yours, or let {CACHE_VARIABLE} name another folder"
        )


def find(folder: Path, key: str) -> bytes | None:
    """The library kept under a key, if its bytes are those that were kept."""
    for path in sorted(folder.glob(f"{key}-*.so")):
        data = _own_bytes(path)
        if data is not None and path.name == _name(key, data):
            return data
    return None


def keep(folder: Path, key: str, data: bytes) -> None:
    """Put a library into the folder, in one move; another process may be doing the same."""
    handle, aside = tempfile.mkstemp(dir=folder, suffix=".part")  # only its owner may open it
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, folder / _name(key, data))
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def key_of(*parts: str | bytes) -> str:
    """A key that changes with each of its parts."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:32]


def processor() -> dict[str, str]:
    """What tells one kind of processor from another."""
    about = {"machine": platform.machine(), "system": platform.system()}
    try:
        block = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return about | {"processor": platform.processor()}
    fields = (line.partition(":") for line in block.splitlines())
    return about | {k.strip(): v.strip() for k, _, v in fields if k.strip() in _PROCESSOR_FIELDS}


def _name(key: str, data: bytes) -> str:
    return f"{key}-{hashlib.sha256(data).hexdigest()}.so"


def _own_bytes(path: Path) -> bytes | None:
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return None
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        return file.read() if stat.S_ISREG(found.st_mode) and _is_own(found) else None


def _is_own(found: os.stat_result) -> bool:
    if os.name == "nt":
        return True  # access there is not a matter of modes; a user's folders are his own
    return found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
