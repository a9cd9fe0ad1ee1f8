"""Train a small SAE in a process that is killed again and again (run by test_killed_runs.py).

Usage: ``python -m tests.training.killed_run FOLDER N_KILLS SEED``. Each life is a fork of this
process, so that the slow imports are paid for once; this process itself never computes anything.
Prints a JSON line that says what the kills met.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

from tests.training.small_run import small_config, small_images, small_model
from vit_sae_plugin.training import ViTSAETrainingRunner

N_STEPS = 40


def train(folder: Path, checkpoint_every_minutes: float) -> None:
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


def live(folder: Path, seconds: float | None, checkpoint_every_minutes: float = 0.0) -> bool:
    """Train in a process of its own, killed after some seconds; whether it came to its end."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            train(folder, checkpoint_every_minutes)
            code = 0
        finally:
            os._exit(code)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"a life ended with exit code {code}")
    return code == 0


def main() -> None:
    folder, n_kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    generator = random.Random(seed)
    started = time.monotonic()
    if not live(folder / "whole", None, checkpoint_every_minutes=60.0):
        raise RuntimeError("the undisturbed run did not end")
    # a life is about as long as it takes to start and to write a few checkpoints
    seconds = max(0.2, time.monotonic() - started)
    killed_at, n_while_writing, n_runs = [], 0, 1
    while len(killed_at) < n_kills:
        run = folder / f"killed_{n_runs}"
        if live(run, generator.uniform(0.1, 1.0) * seconds):
            n_runs += 1  # it was faster than its killer: go on with another run
            continue
        checkpoints = run / "checkpoints"
        steps = [int(path.name.removeprefix("step_")) for path in checkpoints.glob("step_*")]
        killed_at.append(max(steps, default=0))
        n_while_writing += any(checkpoints.glob(".aside-*"))
    if not live(folder / f"killed_{n_runs}", None):
        raise RuntimeError("the last life did not end")
    print(json.dumps({"killed_at": killed_at, "n_while_writing": n_while_writing}))


if __name__ == "__main__":
    main()
