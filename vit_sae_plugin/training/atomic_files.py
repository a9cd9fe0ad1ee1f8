"""Files and folders that are whole whenever the process ends."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

_ASIDE = ".aside-"


def write_folder_atomically(target: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a folder, which then takes the place of ``target`` in one move.

    Killed at any instant, it leaves the old folder, the new one, or (between two renames) neither,
    never a part of one.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.parent / f"{_ASIDE}{uuid.uuid4().hex}"
    aside.mkdir()
    try:
        write(aside)
        for path in aside.iterdir():
            _sync(path)
        _sync(aside)
        if target.exists():
            delete_folder(target)
        aside.rename(target)
        _sync(target.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def write_text_atomically(target: Path, text: str) -> None:
    """Write a file that is the old one or the new one whenever the process ends."""
    aside = target.with_name(f"{_ASIDE}{uuid.uuid4().hex}")
    aside.write_text(text, encoding="utf-8")
    _sync(aside)
    aside.rename(target)
    _sync(target.parent)


def delete_leftovers(folder: Path) -> None:
    """Delete files and folders that interrupted writing left in ``folder``."""
    for path in folder.glob(f"{_ASIDE}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def delete_folder(folder: Path) -> None:
    """Delete a folder so that at no instant a part of it is left in its place."""
    aside = folder.with_name(f"{_ASIDE}{uuid.uuid4().hex}")
    folder.rename(aside)
    shutil.rmtree(aside)


def _sync(path: Path) -> None:
    """Wait until a file or a folder's entries are on disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders, and renames are in order there
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
