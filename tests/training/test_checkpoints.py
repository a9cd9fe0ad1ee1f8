"""Checkpoints: whole or not there, checked before use, and no more of them than needed."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path

import pytest

from vit_sae_plugin.atomic_files import path_beside, write_text_atomically
from vit_sae_plugin.training import CheckpointFolder, DamagedCheckpointError
from vit_sae_plugin.training.checkpoints import find_damage, read_state
from vit_sae_plugin.training.training_metrics import MetricsFile


def _save(folder: CheckpointFolder, step: int, keep: bool = False) -> Path:
    def write(path: Path) -> None:
        (path / "weights").write_bytes(bytes([step % 256]) * 1000)

    return folder.save(step, write, {"store": {"buffer": step}}, keep)


def _steps(folder: CheckpointFolder) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in folder.path.iterdir())


def test_the_newest_two_and_the_requested_ones_are_kept(tmp_path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints")
    for step in range(1, 8):
        _save(folder, step, keep=step == 3)
    assert _steps(folder) == [3, 6, 7]
    assert read_state(folder.folder_of(7))["store"] == {"buffer": 7}


def test_no_checkpoint_is_no_error(tmp_path) -> None:
    assert CheckpointFolder(tmp_path / "nothing").newest_intact() is None


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda c: (c / "weights").unlink(), "weights is missing"),
        (lambda c: (c / "weights").write_bytes(b"short"), "has 5 bytes where 1000 were written"),
        (lambda c: (c / "weights").write_bytes(b"x" * 1000), "contents of weights have changed"),
        (lambda c: (c / "run_state.json").write_text("{}"), "run_state.json has 2 bytes"),
        (lambda c: (c / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda c: (c / "manifest.json").write_text("{"), "manifest.json is missing or unreadable"),
        (lambda c: (c / "manifest.json").write_text("{}"), "manifest.json is incomplete"),
    ],
)
def test_a_damaged_checkpoint_is_told_and_the_one_before_used(tmp_path, damage, told) -> None:
    folder = CheckpointFolder(tmp_path)
    _save(folder, 1)
    damage(_save(folder, 2))
    with pytest.warns(UserWarning, match=told):
        assert folder.newest_intact() == folder.folder_of(1)
    shutil.rmtree(folder.folder_of(1))
    with (
        pytest.warns(UserWarning, match=told),
        pytest.raises(DamagedCheckpointError, match="all 1 checkpoints"),
    ):
        folder.newest_intact()


def test_a_checkpoint_is_written_again_in_place_of_a_damaged_one(tmp_path) -> None:
    folder = CheckpointFolder(tmp_path)
    (_save(folder, 1) / "weights").unlink()
    assert find_damage(_save(folder, 1)) is None


def test_a_failed_write_leaves_nothing(tmp_path) -> None:
    folder = CheckpointFolder(tmp_path)

    def fail(path: Path) -> None:
        (path / "weights").write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        folder.save(1, fail, {})
    assert list(tmp_path.iterdir()) == []


def test_killed_at_any_call_to_the_system_a_save_leaves_a_whole_checkpoint(tmp_path) -> None:
    """Let a process die at the 1st, 2nd, … file operation of a save, until it outlives them all."""
    outcomes = []
    for n_calls in range(200):
        folder = CheckpointFolder(tmp_path / str(n_calls))
        for step in (1, 2):
            _save(folder, step)
        child = os.fork()
        if child == 0:
            _die_at(n_calls)
            _save(folder, 3)
            os._exit(0)
        survived = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with warnings.catch_warnings(action="error"):  # none may be half there
            newest = folder.newest_intact()
        outcomes.append(int(newest.name.removeprefix("step_")))
        folder.delete_leftovers()
        assert all(find_damage(path) is None for path in folder.path.iterdir())
        _save(folder, 4)
        assert _steps(folder)[-1] == 4
        if survived:
            break
    assert survived
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {2, 3}


def _die_at(n_calls: int) -> None:
    """In this process, end at the given call of any function that touches the disk."""
    left = [n_calls]

    def counted(function):
        def call(*args, **kwargs):
            if left[0] == 0:
                os._exit(9)
            left[0] -= 1
            return function(*args, **kwargs)

        return call

    for name in ("mkdir", "open", "fsync", "rename", "rmdir", "unlink", "scandir"):
        setattr(os, name, counted(getattr(os, name)))
    Path.write_text = counted(Path.write_text)  # type: ignore[method-assign]
    Path.write_bytes = counted(Path.write_bytes)  # type: ignore[method-assign]


def test_left_overs_of_any_process_go_when_the_folder_is_held(tmp_path) -> None:
    folder = CheckpointFolder(tmp_path)
    _save(folder, 1)
    # of a process with our number, as in a container that starts again, and of another machine
    ours = path_beside(tmp_path / "step_000000002")
    for name in (ours.name, ".aside-00000000-7-abc"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").touch()
    (tmp_path / ".aside-00000000-7-def.json").touch()
    folder.delete_leftovers()
    assert _steps(folder) == [1]


def test_text_is_replaced_whole(tmp_path) -> None:
    path = tmp_path / "settings.yaml"
    for text in ("a", "b"):
        write_text_atomically(path, text)
        assert [entry.name for entry in tmp_path.iterdir()] == ["settings.yaml"]
        assert path.read_text() == text


def test_metrics_go_back_to_a_step_and_lose_a_line_cut_short(tmp_path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.rewind(0)  # nothing there yet
    for step in (5, 10, 15):
        file.append({"step": step, "loss": 1 / step})
    with file.path.open("a") as stream:
        stream.write('{"step": 2')
    file.rewind(10)
    file.append({"step": 15, "loss": 0.5})
    lines = [json.loads(line) for line in file.path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10, 15]
    assert lines[-1]["loss"] == 0.5
