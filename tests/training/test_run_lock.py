"""One process at a time in a run's folder; what dies holds nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.training.small_run import small_config, small_images, small_model
from vit_sae_plugin import file_lock
from vit_sae_plugin.training import ViTSAETrainingRunner
from vit_sae_plugin.training.run_lock import LOCK_FILE, RunInUseError, check_free, locked


@pytest.fixture(params=["system's lock", "lock file"])
def any_lock(request, monkeypatch):
    if request.param == "lock file":
        monkeypatch.setattr(file_lock, "_fcntl", None)
    return request.param


def _hold(folder: Path) -> int:
    """A process that holds the folder until it is killed, and has a worker of its own."""
    child = os.fork()
    if child == 0:
        with locked(folder):
            if os.fork() == 0:
                while not (folder / "over").exists():
                    time.sleep(0.05)
                os._exit(0)
            (folder / "held").touch()
            time.sleep(30)
        os._exit(0)
    while not (folder / "held").exists():
        time.sleep(0.01)
    return child


def test_another_process_is_named_and_kept_out(any_lock, tmp_path) -> None:
    child = _hold(tmp_path)
    holder = f"{tmp_path} is in use by process {child} on {socket.gethostname()} since 20"
    try:
        for _ in range(2):
            with pytest.raises(RunInUseError, match=holder), locked(tmp_path):
                pass
        with pytest.raises(RunInUseError, match=holder):
            check_free(tmp_path)
        with pytest.raises(RunInUseError, match=holder):
            ViTSAETrainingRunner(small_config(tmp_path), small_images(), small_model())
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    try:  # killed, it holds nothing, though a process that it forked lives on
        with locked(tmp_path):
            assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    finally:
        (tmp_path / "over").touch()
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_run_keeps_other_runs_of_its_process_out(any_lock, tmp_path) -> None:
    with locked(tmp_path), pytest.raises(RunInUseError), locked(tmp_path):
        pass
    check_free(tmp_path)


def test_a_lock_file_of_another_machine_counts_until_it_is_deleted(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(file_lock, "_fcntl", None)
    holder = {"pid": 1, "host": "elsewhere", "since": "yesterday"}
    (tmp_path / LOCK_FILE).write_text(json.dumps(holder))
    message = rf"process 1 on elsewhere since yesterday; .* \(if it is gone, delete .*{LOCK_FILE}\)"
    with pytest.raises(RunInUseError, match=message), locked(tmp_path):
        pass
    (tmp_path / LOCK_FILE).write_text("")  # cut short
    with locked(tmp_path):
        pass


def test_a_run_writes_nothing_while_another_holds_its_folder(tmp_path) -> None:
    runner = ViTSAETrainingRunner(small_config(tmp_path), small_images(), small_model())
    with locked(tmp_path):
        before = sorted(tmp_path.iterdir())
        with pytest.raises(RunInUseError):
            runner.run()
        assert sorted(tmp_path.iterdir()) == before
