"""A cache written by two ranks of `torchrun`, one of which is killed."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.activations.cache.killing_images import KillingImages, times_read
from tests.activations.cache.small_cache import small_cache, small_model
from vit_sae_plugin.activations.cache import ActivationCache

ROOT = Path(__file__).parents[3]
N = 18


def test_torchrun_starts_killed_ranks_again_and_nothing_is_written_twice(tmp_path):
    torch.set_num_threads(1)
    alone = small_cache(tmp_path / "alone", small_model(), KillingImages(N, None))
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
        *("--max-restarts", "1", "--monitor-interval", "0.2", "--rdzv-endpoint", "localhost:0"),
        *("--rdzv-backend", "c10d", str(ROOT / "tests/activations/cache/torchrun_writer.py")),
        *(str(tmp_path), str(N), "6"),
    ]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "killed").exists()
    cache = ActivationCache(tmp_path / "cache")
    assert cache.fingerprint() == alone.fingerprint()
    times = times_read(tmp_path)
    assert set(times) == set(range(N))
    # the shards under way are begun again, by the other rank or by those that are started anew:
    # at least the killed rank's; how many more, and how far they were, is a matter of timing
    assert times[6] >= 2
    assert not (tmp_path / "read_though_finished").exists(), "what was finished stays"
    assert "Caching activations: 100%" in done.stderr
