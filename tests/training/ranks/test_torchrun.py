"""``torchrun`` itself, and the command."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vit_sae_plugin.training import ViTSAETrainingRunner, read_metrics

SECONDS = 240


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no /proc names child processes")
def test_the_command_under_torchrun_when_a_process_is_killed(tmp_path) -> None:
    folder = tmp_path / "run"
    # ten buffers, and a checkpoint after every step
    settings = {
        "train_batch_size_tokens": 256,
        "n_batches_in_buffer": 3,
        "store_batch_size_images": 4,
        "log_every_n_steps": 1,
        "checkpoint_every_minutes": 0,
    }
    command = "--nproc-per-node 2 -m vit_sae_cli train --model shapes-clip --images shapes"
    command += f" --device cpu --d-sae 256 --training-tokens 1000000000 --output-path {folder}"
    for name, value in settings.items():
        command += f" --set {name}={value}"
    torchrun = [sys.executable, "-m", "torch.distributed.run", *command.split()]
    with (tmp_path / "log.txt").open("w") as log:
        agent = subprocess.Popen(torchrun, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait_until(lambda: _n_lines(folder / "metrics.jsonl") >= 5, agent)
            os.kill(_worker(agent.pid, rank=1), signal.SIGKILL)
            assert agent.wait(SECONDS) != 0
        finally:
            if agent.poll() is None:
                os.killpg(agent.pid, signal.SIGKILL)
    printed = (tmp_path / "log.txt").read_text()
    (said,) = re.findall(r"vit-sae train: error: (.*)", printed)
    assert re.match(r"rank 1 \(process \d+ on \S+\) is gone: it was killed, or crashed; ", said)
    step = int(re.search(r"last checkpoint is .*/step_(\d+)\. Go on with: torchrun", said)[1])
    assert printed.count("in 3,906,250 steps, on 2 processes (cpu)") == 1
    assert step >= 5

    runner = ViTSAETrainingRunner.resume(folder, verbose=False, training_tokens=(step + 3) * 256)
    runner.run()
    assert read_metrics(folder / "metrics.jsonl")["step"].tolist() == list(range(1, step + 4))


def _wait_until(condition, process: subprocess.Popen) -> None:
    until = time.monotonic() + SECONDS
    while not condition():
        assert process.poll() is None, "torchrun ended before it should"
        assert time.monotonic() < until, "torchrun did not get there in time"
        time.sleep(0.1)


def _n_lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def _worker(agent: int, rank: int) -> int:
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    for child in children:
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in environment:
            return int(child)
    raise AssertionError(f"torchrun has no rank {rank} among {children}")
