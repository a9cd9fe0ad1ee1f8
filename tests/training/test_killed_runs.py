"""SIGKILL at random moments, also while a checkpoint is written, costs nothing but time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
N_KILLS = 4


def test_a_run_killed_again_and_again_ends_with_the_same_weights(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.training.killed_run", tmp_path, str(N_KILLS), "0"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert len(told["killed_at"]) == N_KILLS
    assert max(told["killed_at"]) > 0, "no life got as far as a checkpoint"

    whole = tmp_path / "whole"
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
