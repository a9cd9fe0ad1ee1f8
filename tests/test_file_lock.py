"""A lock by its file's presence, without locks and links; what else may lie in the file's place."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from vit_sae_plugin import file_lock
from vit_sae_plugin.file_lock import FileLock

_DEAD = {"pid": 99, "host": socket.gethostname(), "since": "yesterday"}


@pytest.fixture(params=[None, errno.EPERM, errno.ENOTSUP])
def no_locks(request, monkeypatch):
    """A file system without the system's locks, and one without hard links as well."""
    monkeypatch.setattr(file_lock, "_fcntl", None)
    monkeypatch.setattr(file_lock, "is_running", lambda pid: pid != _DEAD["pid"])
    if request.param is not None:

        def refuse(*args):
            raise OSError(request.param, os.strerror(request.param))

        monkeypatch.setattr(os, "link", refuse)


def test_of_two_that_find_a_dead_owners_file_one_gets_the_lock(
    no_locks, tmp_path, monkeypatch
) -> None:
    path = tmp_path / "a.lock"
    path.write_text(json.dumps(_DEAD))
    one, late = FileLock(path), FileLock(path)
    rename = Path.rename

    def after_the_other(self, target):
        monkeypatch.setattr(Path, "rename", rename)
        assert one.acquire()
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", after_the_other)
    assert not late.acquire()
    assert one.is_ours()
    late.release()
    assert one.is_ours()
    one.release()
    assert list(tmp_path.iterdir()) == []


def test_who_was_passed_over_neither_writes_nor_deletes_anothers_file(no_locks, tmp_path) -> None:
    silent, other = FileLock(tmp_path / "a.lock"), FileLock(tmp_path / "a.lock")
    assert silent.acquire()
    silent.mark(beats=1)
    seen = silent.contents()
    assert json.loads(seen)["beats"] == 1
    silent.mark(beats=2)
    assert not other.take_over(seen)  # it was alive after all
    assert other.take_over(silent.contents())
    before = other.contents()
    silent.mark(beats=3)
    silent.release()
    assert other.contents() == before
    assert FileLock(tmp_path / "a.lock").acquire() is False
    other.release()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_about_to_be_written_is_waited_for(no_locks, tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.lock"
    path.touch()
    holder = {**_DEAD, "pid": os.getpid()}
    clock = SimpleNamespace(
        strftime=time.strftime, sleep=lambda _: path.write_text(json.dumps(holder))
    )
    monkeypatch.setattr(file_lock, "time", clock)
    assert not FileLock(path).acquire()
    assert json.loads(path.read_text()) == holder


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="links can't be told from files here")
def test_a_link_in_the_locks_place_does_not_empty_what_it_points_at(tmp_path) -> None:
    diary = tmp_path / "diary"
    diary.write_text("dear diary")
    (tmp_path / "a.lock").symlink_to(diary)
    with pytest.raises(OSError, match="symbolic links"):
        FileLock(tmp_path / "a.lock").acquire()
    assert diary.read_text() == "dear diary"


@pytest.mark.parametrize("locks", ["system's locks", "no locks"])
def test_any_number_may_ask_at_once_and_only_a_holder_is_in_their_way(
    locks, tmp_path, monkeypatch
) -> None:
    if locks == "no locks":
        monkeypatch.setattr(file_lock, "_fcntl", None)
    path = tmp_path / "a.lock"
    assert not FileLock(path).is_held()
    assert not path.exists(), "who asks leaves nothing"
    path.write_text(json.dumps(_DEAD | {"pid": 2**22 + 1}))  # its process was killed
    assert not FileLock(path / "run.lock").is_held(), "a file, not a folder"
    answers: list[bool] = []
    askers = [
        threading.Thread(target=lambda: answers.extend(FileLock(path).is_held() for _ in range(50)))
        for _ in range(4)
    ]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert answers == [False] * 200
    holder = FileLock(path)
    assert holder.acquire()
    assert FileLock(path).is_held()
    holder.release()
    assert not FileLock(path).is_held()
