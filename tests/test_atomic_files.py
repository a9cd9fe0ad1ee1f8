"""Writing beside and moving in place: whole or not there, left-overs gone, readable by others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vit_sae_plugin import atomic_files
from vit_sae_plugin.atomic_files import (
    delete_leftovers,
    path_beside,
    write_file_atomically,
    write_folder_atomically,
    write_into_folder,
    write_text_atomically,
)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("can_swap", [True, False])
def test_a_folder_takes_the_place_of_the_former_one(tmp_path, monkeypatch, can_swap) -> None:
    if not can_swap:
        monkeypatch.setattr(atomic_files, "_swap", lambda one, other: False)
    target = tmp_path / "target"
    write_folder_atomically(target, lambda folder: (folder / "old").write_text("old"))
    write_folder_atomically(target, lambda folder: (folder / "new").write_text("new"))
    assert _names(tmp_path) == ["target"]
    assert _names(target) == ["new"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux swaps folders")
def test_linux_swaps_two_folders_in_one_step(tmp_path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"was-{name}").touch()
    if not atomic_files._swap(tmp_path / "one", tmp_path / "other"):
        pytest.skip("this file system swaps no folders")
    assert _names(tmp_path / "one") == ["was-other"]
    assert _names(tmp_path / "other") == ["was-one"]


def test_what_fails_leaves_what_was_there(tmp_path) -> None:
    def fail(path: Path) -> None:
        (path / "half" if path.is_dir() else path).write_text("half")
        raise OSError(28, "No space left on device")

    write_folder_atomically(tmp_path / "folder", lambda folder: (folder / "a").write_text("a"))
    write_text_atomically(tmp_path / "file.txt", "old")
    with pytest.raises(OSError, match="No space"):
        write_folder_atomically(tmp_path / "folder", fail)
    with pytest.raises(OSError, match="No space"):
        write_file_atomically(tmp_path / "file.txt", fail)
    assert _names(tmp_path) == ["file.txt", "folder"]
    assert _names(tmp_path / "folder") == ["a"]
    assert (tmp_path / "file.txt").read_text() == "old"


def test_leftovers_of_ended_processes_go_and_those_of_running_ones_stay(tmp_path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    own = path_beside(tmp_path / "weights.safetensors")
    assert own.suffix == ".safetensors"
    own.touch()
    for process_id in (ended.pid, os.getppid()):
        (tmp_path / own.name.replace(f"-{os.getpid()}-", f"-{process_id}-")).mkdir()
    elsewhere = tmp_path / ".aside-00000000-1-abc"
    elsewhere.mkdir()
    long_ago = tmp_path / ".aside-00000000-2-abc"
    long_ago.mkdir()
    os.utime(long_ago, (0, 0))
    (tmp_path / ".aside-0123456789abcdef0123456789abcdef").mkdir()  # an earlier release's
    (tmp_path / "kept").touch()
    delete_leftovers(tmp_path)
    parent = own.name.replace(f"-{os.getpid()}-", f"-{os.getppid()}-")
    assert _names(tmp_path) == sorted(["kept", own.name, parent, elsewhere.name])


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
def test_weights_are_as_readable_as_other_files(tmp_path) -> None:
    former = os.umask(0o027)
    try:
        write_file_atomically(
            tmp_path / "w.safetensors", lambda path: save_file({"w": torch.zeros(2)}, path)
        )
        write_folder_atomically(
            tmp_path / "sae", lambda folder: save_file({"w": torch.zeros(2)}, folder / "w.st")
        )
    finally:
        os.umask(former)
    assert (tmp_path / "w.safetensors").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "sae" / "w.st").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("can_swap", [True, False])
def test_files_take_their_places_among_others(tmp_path, monkeypatch, can_swap) -> None:
    if not can_swap:
        monkeypatch.setattr(atomic_files, "_swap", lambda one, other: False)
    (tmp_path / "others").write_text("mine")

    def fill(text: str, n: int):
        def write(aside: Path) -> None:
            (aside / "mark").write_text(text)
            (aside / "data").mkdir()
            for i in range(n):
                (aside / f"data/{i}").write_text(text)

        return write

    write_into_folder(tmp_path, fill("old", 3), last="mark")
    write_into_folder(tmp_path, fill("new", 2), last="mark")
    assert _names(tmp_path) == ["data", "mark", "others"]
    assert _names(tmp_path / "data") == ["0", "1"]
    assert {p.read_text() for p in (tmp_path / "data").iterdir()} == {"new"}

    def fail(aside: Path) -> None:
        fill("broken", 1)(aside)
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_into_folder(tmp_path, fail, last="mark")
    assert _names(tmp_path) == ["data", "mark", "others"]
    assert (tmp_path / "mark").read_text() == "new"
