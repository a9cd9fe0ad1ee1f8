"""SIGKILL at random moments, also while a checkpoint is written, costs nothing but time."""

from __future__ import annotations

import json
import os
import random
import signal
import time
import warnings
from pathlib import Path

from tests.training.small_run import small_config, small_images, small_model
from vit_sae_plugin.training import ViTSAETrainingRunner

N_KILLS, N_STEPS = 4, 40


def _train(folder: Path, checkpoint_every_minutes: float) -> None:
    """Begin the run in this folder, or go on with it."""
    warnings.simplefilter("ignore")
    model, images = small_model(), small_images(12)
    if (folder / "config.yaml").exists():
        ViTSAETrainingRunner.resume(folder, images, model).run()
        return
    config = small_config(
        folder,
        training_tokens=N_STEPS * 128,
        lr_decay_steps=10,
        n_checkpoints=2,
        checkpoint_every_minutes=checkpoint_every_minutes,
    )
    ViTSAETrainingRunner(config, images, model).run()


def _live(folder: Path, seconds: float | None, checkpoint_every_minutes: float = 0.0) -> bool:
    """Train in a fork of this process, killed after some seconds; whether it came to its end."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _train(folder, checkpoint_every_minutes)
            code = 0
        finally:
            os._exit(code)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), f"a life ended with exit code {code}"
    return code == 0


def test_a_run_killed_again_and_again_ends_with_the_same_weights(tmp_path: Path) -> None:
    generator = random.Random(0)
    whole, started = tmp_path / "whole", time.monotonic()
    assert _live(whole, None, checkpoint_every_minutes=60.0)
    # a life is about as long as it takes to start and to write a few checkpoints
    seconds = max(0.2, time.monotonic() - started)
    killed_at, n_runs = [], 1
    while len(killed_at) < N_KILLS:
        run = tmp_path / f"killed_{n_runs}"
        if _live(run, generator.uniform(0.1, 1.0) * seconds):
            n_runs += 1  # it was faster than its killer: go on with another run
            continue
        steps = (run / "checkpoints").glob("step_*")
        killed_at.append(max((int(path.name.removeprefix("step_")) for path in steps), default=0))
    assert _live(run, None)
    assert max(killed_at) > 0, "no life got as far as a checkpoint"

    for killed in tmp_path.glob("killed_*"):
        for name in ("sae_weights.safetensors", "sparsity.safetensors", "cfg.json"):
            assert (whole / "sae" / name).read_bytes() == (killed / "sae" / name).read_bytes(), name
        assert _without_times(whole) == _without_times(killed)


def _without_times(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    for line in metrics:
        del line["tokens_per_second"], line["tokens_per_second_since_last_line"]
    return metrics
