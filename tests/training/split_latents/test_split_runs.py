"""Whole runs with latents split over two processes: what they leave is what one would."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sae_lens
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

from tests.training.ranks.processes import Processes
from tests.training.small_run import (
    D_IN,
    D_SAE,
    sae_config,
    small_config,
    small_images,
    small_model,
)
from vit_sae_plugin.fingerprints import find_file_damage, read_manifest
from vit_sae_plugin.saes import MatryoshkaTopKTrainingSAEConfig
from vit_sae_plugin.training import ViTSAETrainingRunner, read_metrics
from vit_sae_plugin.training import runner as training_runner
from vit_sae_plugin.training.checkpoints import SHARD_FILES, CheckpointFolder, find_damage
from vit_sae_plugin.training.split_latents import SplitLatentsTrainer, split_checkpoint

N_STEPS, HALF = 50, 25
SCALED = {"normalize_activations": "expected_average_only_in"}
LEVELS = [4, 16, D_SAE]
RUNS: dict[str, Any] = {
    "patchsae": sae_config("patchsae", relative_l1_coefficient=0.06),
    "topk": sae_config("topk", **SCALED),
    "matryoshka_topk": MatryoshkaTopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k_list=LEVELS),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs in one process, in two, and resumed: the folder that holds them."""
    folder = tmp_path_factory.mktemp("runs")
    model, images = small_model(), small_images()

    def train(place: Path, name: str, **changes: Any) -> None:
        settings = {"sae": RUNS[name], "training_tokens": N_STEPS * 128, "lr": 2e-4, **changes}
        ViTSAETrainingRunner(small_config(place / name, **settings), images, model).run()

    def resume(place: Path, name: str) -> None:
        ViTSAETrainingRunner.resume(place / name, images, model).run()

    def split() -> None:
        for name in RUNS:
            train(folder / "two", name, n_latent_shards=2, n_checkpoints=1)

    def go_on() -> None:
        for name in RUNS:
            resume(folder / "resumed by two", name)

    for name in RUNS:
        train(folder / "one", name)
    Processes(2, split, folder / "logs").end()
    for name in RUNS:
        for place in ("resumed by two", "resumed by one"):
            _cut_at_half(folder / "two" / name, folder / place / name)
    Processes(2, go_on, folder / "logs of resumed").end()
    for name in RUNS:
        resume(folder / "resumed by one", name)
    return folder


def _cut_at_half(run: Path, target: Path) -> None:
    """A copy of a run that was killed in the middle."""
    shutil.copytree(run, target)
    shutil.rmtree(target / "sae")
    shutil.rmtree(CheckpointFolder(target / "checkpoints").folder_of(N_STEPS))


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "sae" / "sae_weights.safetensors")


@pytest.mark.parametrize("name", RUNS)
def test_the_folder_is_that_of_a_run_in_one_process(name, runs):
    one, two = runs / "one" / name, runs / "two" / name
    names = [sorted(path.name for path in (run / "sae").iterdir()) for run in (one, two)]
    assert names[1] == names[0]
    torch.testing.assert_close(_weights(two), _weights(one), rtol=1e-5, atol=1e-5)
    sae = sae_lens.SAE.load_from_disk(two / "sae")
    assert sae.cfg.d_sae == D_SAE
    assert find_file_damage(two / "sae", read_manifest(two / "sae")) is None
    metrics = [read_metrics(run / "metrics.jsonl") for run in (one, two)]
    for column in ("step", "loss", "l0", "explained_variance", "n_dead_latents"):
        assert metrics[1][column].tolist() == pytest.approx(metrics[0][column].tolist(), rel=2e-3)


@pytest.mark.parametrize("name", RUNS)
def test_a_checkpoint_is_written_by_both_and_hashed_whole(name, runs):
    folder = CheckpointFolder(runs / "two" / name / "checkpoints")
    checkpoint = folder.newest_intact()
    assert checkpoint == folder.folder_of(N_STEPS)
    shards = sorted(checkpoint.glob(SHARD_FILES))
    assert len(shards) == 2
    held = [load_file(shard)["sae.W_dec"].shape for shard in shards]
    assert held == [torch.Size([D_SAE // 2, D_IN])] * 2
    assert {shard.name for shard in shards} <= json.loads(
        (checkpoint / "manifest.json").read_text()
    ).keys()
    assert find_damage(checkpoint) is None


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_ends_as_the_undisturbed_one(name, runs):
    wanted = _weights(runs / "two" / name)
    by_two, by_one = (_weights(runs / f"resumed by {n}" / name) for n in ("two", "one"))
    torch.testing.assert_close(by_two, wanted, rtol=0, atol=0)
    torch.testing.assert_close(by_one, wanted, rtol=1e-5, atol=1e-5)


def test_one_killed_process_ends_the_other_which_says_so_and_nothing_is_lost(runs):
    model, images = small_model(), small_images()
    run = runs / "killed"

    def train() -> None:
        settings = {"sae": RUNS["topk"], "training_tokens": N_STEPS * 128, "n_latent_shards": 2}
        runner = ViTSAETrainingRunner(small_config(run, n_checkpoints=1, **settings), images, model)
        step = SplitLatentsTrainer.step

        def step_or_die(trainer, batch):
            if trainer.n_training_steps == 40 and runner.ranks.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(trainer, batch)

        SplitLatentsTrainer.step = step_or_die
        runner.run()

    printed = Processes(2, train, runs / "logs of killed").end(1, -signal.SIGKILL)
    assert "rank 1" in printed[0].splitlines()[-1]
    assert "is gone: it was killed, or crashed; the last checkpoint is" in printed[0]
    saved = CheckpointFolder(run / "checkpoints").newest_intact()
    assert saved is not None
    assert list(saved.glob(SHARD_FILES))
    assert not (run / "sae").exists()


FIRST = HALF + 1  # past half of the budget
FULL_DISKS: dict[str, tuple[int, Any, str, int]] = {
    "a part": (1, HuggingFaceStorageWriter, "write_data", 2),
    "what is no latent's": (0, split_checkpoint, "_save_rest", 2),
    "the SAE": (0, training_runner, "write_manifest", 1),
}
"""What of the last files doesn't fit: whose it is, what writes it, and at which call it fails."""


def _full_at_call(number: int, write: Callable) -> Callable:
    calls = []

    def full(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x")
        return write(*args, **kwargs)

    return full


@pytest.mark.parametrize("name", FULL_DISKS)
def test_a_full_disk_ends_both_which_say_so_and_nothing_is_lost(name, runs):
    model, images = small_model(), small_images()
    run, logs = runs / "full" / name, runs / f"logs of {name}"
    rank, place, write, number = FULL_DISKS[name]

    def train() -> None:
        settings = {"sae": RUNS["topk"], "training_tokens": N_STEPS * 128, "lr": 2e-4}
        begun = ViTSAETrainingRunner(
            small_config(run, n_latent_shards=2, n_checkpoints=1, **settings), images, model
        )
        if begun.ranks.rank == rank:
            setattr(place, write, _full_at_call(number, getattr(place, write)))
        begun.run()

    printed = Processes(2, train, logs).end(1, 1)
    checkpoints = CheckpointFolder(run / "checkpoints")
    saved = checkpoints.newest()
    assert saved == checkpoints.folder_of(N_STEPS if name == "the SAE" else FIRST)
    assert find_damage(saved) is None
    assert not (run / "sae").exists()
    full = "OSError: [Errno 28] No space left on device: 'x'"
    lost = f"RankLostError: rank {rank} stopped: {full}; the last checkpoint is {saved}. Go on with"
    assert printed[rank].splitlines()[-1] == full
    assert printed[1 - rank].splitlines()[-1].startswith(lost)

    ViTSAETrainingRunner.resume(run, images, model).run()
    wanted = _weights(runs / "two" / "topk")
    torch.testing.assert_close(_weights(run), wanted, rtol=1e-5, atol=1e-5)


def test_settings_that_cannot_be_split_are_refused(tmp_path):
    def config(**changes: Any):
        return small_config(tmp_path / "run", **{"n_latent_shards": 2, **changes})

    with pytest.raises(ValueError, match="number of processes 1; want one for each: torchrun"):
        ViTSAETrainingRunner(config(), small_images(), small_model())
    with pytest.raises(ValueError, match="n_latent_shards is 0; want a number above 0"):
        config(n_latent_shards=0)
    with pytest.raises(ValueError, match="d_sae is 96 with n_latent_shards=5"):
        config(n_latent_shards=5)
    with pytest.raises(ValueError, match=r"architecture is 'gated'.*or n_latent_shards=1"):
        config(sae=sae_config("gated"))
    with pytest.raises(ValueError, match="compile_sae is True with n_latent_shards=2; want False"):
        config(compile_sae=True)
