"""SIGTERM to a whole process group, as service managers send it, costs nothing: all is saved."""

from __future__ import annotations

import os
import random
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.training.small_run import small_config, small_images, small_model
from vit_sae_plugin.training import TrainingInterruptedError, ViTSAETrainingRunner
from vit_sae_plugin.training.checkpoints import find_damage

STOPPED = 7
LONG = 20_000
"""Training steps; minutes, which nobody waits for."""


def _in_a_group(train: Callable[[], Any]) -> int:
    """Train in a process that leads a group of its own; the process."""
    child = os.fork()
    if child == 0:
        os.setsid()
        warnings.simplefilter("ignore")
        code = 1
        try:
            train()
        except TrainingInterruptedError:
            code = STOPPED
        finally:
            os._exit(code)
    return child


def _exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _runner(folder: Path, **changes: Any) -> ViTSAETrainingRunner:
    config = small_config(folder, **{"training_tokens": LONG * 128, "n_workers": 2, **changes})
    return ViTSAETrainingRunner(config, small_images(), small_model())


def _saved_steps(folder: Path) -> list[int]:
    checkpoints = sorted((folder / "checkpoints").glob("step_*"))
    assert all(find_damage(checkpoint) is None for checkpoint in checkpoints)
    return [int(checkpoint.name.removeprefix("step_")) for checkpoint in checkpoints]


def _terminate_the_group() -> None:
    os.killpg(0, signal.SIGTERM)
    time.sleep(0.3)  # the workers die meanwhile, and PyTorch hears of it here


@pytest.mark.parametrize("moment", ["in a step", "in a checkpoint"])
def test_workers_that_die_disturb_neither_step_nor_checkpoint(moment, tmp_path) -> None:
    def train() -> None:
        runner = _runner(tmp_path, checkpoint_every_minutes=0 if "checkpoint" in moment else 60)
        name = "save_model" if "checkpoint" in moment else "training_forward_pass"
        act, n_calls = getattr(runner.sae, name), []

        def terminated(*args: Any, **kwargs: Any) -> Any:
            n_calls.append(None)
            if len(n_calls) == 9:
                _terminate_the_group()
            return act(*args, **kwargs)

        setattr(runner.sae, name, terminated)
        runner.run()

    assert _exit_code(_in_a_group(train)) == STOPPED
    assert _saved_steps(tmp_path)[-1] == 9


def test_a_group_killed_at_any_time_has_saved_its_last_step(tmp_path) -> None:
    generator = random.Random(0)
    folder, steps = tmp_path / "run", [0]
    metrics = folder / "metrics.jsonl"

    def train() -> None:
        if not (folder / "config.yaml").exists():
            _runner(folder, log_every_n_steps=1).run()
        ViTSAETrainingRunner.resume(folder, small_images(), small_model()).run()

    def n_lines() -> int:
        return len(metrics.read_text().splitlines()) if metrics.exists() else 0

    for _ in range(4):
        child = _in_a_group(train)
        while n_lines() <= steps[-1]:  # what comes before the first step may simply be killed
            time.sleep(0.02)
        time.sleep(generator.uniform(0.0, 0.6))
        os.killpg(child, signal.SIGTERM)
        assert _exit_code(child) == STOPPED
        steps.append(_saved_steps(folder)[-1])
        assert n_lines() == steps[-1]
    assert steps == sorted(set(steps))


def test_when_a_worker_is_killed_the_run_ends_and_has_saved(tmp_path) -> None:
    def train() -> None:
        runner = _runner(tmp_path, n_workers=1)
        step, n_steps = runner.sae.training_forward_pass, []

        def without_workers(*args: Any, **kwargs: Any) -> Any:
            n_steps.append(None)
            if len(n_steps) == 5:
                children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
                for worker in children:
                    os.kill(int(worker), signal.SIGKILL)
                time.sleep(0.2)
            return step(*args, **kwargs)

        runner.sae.training_forward_pass = without_workers
        try:
            runner.run()
        except RuntimeError as error:
            if "died" in str(error):
                os._exit(STOPPED)

    if not Path("/proc/self/task").is_dir():
        pytest.skip("there is no /proc that names child processes")
    assert _exit_code(_in_a_group(train)) == STOPPED
    assert _saved_steps(tmp_path)[-1] >= 5
