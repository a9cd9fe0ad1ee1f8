"""Files and folders that are whole whenever the process ends: written beside, then moved in place.

Everything that this package writes and later reads back goes through here. What is being written
carries a name that begins with ``.aside-``, the machine and the process; ``delete_leftovers``
removes those whose process is gone.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import sys
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_ASIDE = ".aside-"
_OTHER_MACHINES_SECONDS = 86_400
"""Left-overs of another machine, whose processes can't be asked, are deleted after a day."""


def write_folder_atomically(target: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a folder, which then takes the place of ``target`` in one move.

    If anything fails, a folder that was there before stays as it was. Where the system can swap
    two folders (Linux), ``target`` exists at every instant; elsewhere there is one between two
    renames at which it doesn't.
    """
    with folder_beside(target) as aside:
        write(aside)


@contextmanager
def folder_beside(target: Path, aside: Path | None = None) -> Iterator[Path]:
    """A new folder to fill, which takes the place of ``target`` when the block ends well.

    Args:
        target: the place.
        aside: what to call it until then, in the same folder; its left-overs are the caller's to
            delete. None: a name that ``delete_leftovers`` knows.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = path_beside(target) if aside is None else aside
    aside.mkdir()
    try:
        yield aside
        _settle(aside)
        _move_folder(aside, target)
        _sync(target.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def write_into_folder(folder: Path, write: Callable[[Path], object], *, last: str) -> None:
    """Let ``write`` fill a folder, whose contents then take their places in ``folder``.

    Other files in ``folder`` stay, and it is never moved itself, so it may be a mounted volume. If
    ``write`` fails, nothing has changed. Each file and folder is moved in one step, ``last`` after
    all others: with hashes in it, it shows whether the others belong to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    aside = path_beside(folder / last).with_suffix("")
    aside.mkdir()
    try:
        write(aside)
        _settle(aside)
        for path in sorted(aside.iterdir(), key=lambda path: (path.name == last, path.name)):
            target = folder / path.name
            if path.is_dir():
                _move_folder(path, target)
            else:
                path.replace(target)
        _sync(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_file_atomically(target: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` write one file, which then takes the place of ``target`` in one move.

    The path that ``write`` is given ends as ``target`` does, for writers that go by the ending.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = path_beside(target)
    try:
        write(aside)
        _give_usual_mode(aside)
        _sync(aside)
        aside.replace(target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _sync(target.parent)


def write_text_atomically(target: Path, text: str) -> None:
    """Write a text file that is the old one or the new one whenever the process ends."""
    write_file_atomically(target, lambda path: path.write_text(text, encoding="utf-8"))


def path_beside(target: Path) -> Path:
    """A name that nothing has yet, in the folder of ``target`` and with its ending."""
    unique = f"{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:12]}"
    return target.with_name(f"{_ASIDE}{unique}{target.suffix}")


def delete_leftovers(folder: Path, exclusive: bool = False) -> None:
    """Delete what writing that was cut off left in ``folder``; what is being written stays.

    Args:
        folder: where to look.
        exclusive: nobody else writes there, and the caller doesn't either now. Then nothing need be
            asked of processes, whose numbers come again: in a container every time.
    """
    for path in folder.glob(f"{_ASIDE}*"):
        if not exclusive and not _is_left_over(path):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def delete_folder(folder: Path) -> None:
    """Delete a folder so that at no instant a part of it is left in its place."""
    aside = path_beside(folder)
    folder.rename(aside)
    shutil.rmtree(aside)


def _is_left_over(path: Path) -> bool:
    parts = path.name.removeprefix(_ASIDE).split("-")
    if len(parts) < 3 or not parts[1].isdigit():
        return True  # as earlier releases named them
    if parts[0] != _machine():
        try:
            return time.time() - path.stat().st_mtime > _OTHER_MACHINES_SECONDS
        except FileNotFoundError:
            return False
    return int(parts[1]) != os.getpid() and not is_running(int(parts[1]))


def is_aside(path: Path) -> bool:
    """Whether a file or folder is one that is being written, or was when its process ended."""
    return path.name.startswith(_ASIDE)


def is_running(process_id: int) -> bool:
    """Whether a process of this machine is running."""
    if os.name == "nt":
        return True  # os.kill would end it there
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _settle(folder: Path) -> None:
    """Give all that a folder holds its usual mode, and wait until it is on disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            _give_usual_mode(path)
        _sync(path)
    _sync(folder)


def _move_folder(aside: Path, target: Path) -> None:
    """Put a folder in the place of another, which is deleted."""
    if not target.exists():
        aside.rename(target)
    elif _swap(aside, target):
        shutil.rmtree(aside)
    else:
        former = path_beside(target)
        target.rename(former)
        aside.rename(target)
        shutil.rmtree(former)


def _machine() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _give_usual_mode(path: Path) -> None:
    """Let others read a file as the user's settings say: safetensors keeps it to its owner."""
    if os.name == "nt":
        return
    probe = path_beside(path)
    probe.touch()
    try:
        shutil.copymode(probe, path)
    finally:
        probe.unlink()


def _swap(one: Path, other: Path) -> bool:
    """Exchange two paths in one step; False where the system can't."""
    if not sys.platform.startswith("linux"):
        return False
    at_working_folder, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of renameat2(2)
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    return (
        renameat2(
            at_working_folder, os.fsencode(one), at_working_folder, os.fsencode(other), exchange
        )
        == 0
    )


def _sync(path: Path) -> None:
    """Wait until a file or a folder's entries are on disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders, and renames are in order there
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
