"""A training step with latents split over two processes, beside the same step in one.

768 → 12,288, batch 1,024, float32, whole steps of the trainers (optimizer included). The two
processes have one thread each and talk by gloo over loopback; the one has two threads and runs
while they wait, in turn with them. So on two cores both have the same processor, and the ratio is
what splitting costs: the exchange of reconstructions and counts, and that the steps of whole SAEs
run in kernels of their own. What splitting saves is memory: the peak of creation and of three steps
in one of the two processes, beside that in the one, beyond what was in use before.

    python -m benchmarks.split_cost
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from sae_lens import TopKTrainingSAEConfig
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.sae import TrainingSAEConfig

from benchmarks.peak_memory import peak_bytes
from benchmarks.ratios import Ratio, ratio_of
from vit_sae_plugin import MatryoshkaTopKTrainingSAEConfig, PatchTrainingSAEConfig
from vit_sae_plugin.saes import new_training_sae
from vit_sae_plugin.training import ViTSAETrainer
from vit_sae_plugin.training.split_latents import (
    LatentSplit,
    SplitLatentsTrainer,
    split_training_sae,
)

D_IN, D_SAE, BATCH = 768, 12_288, 1_024
SIZES: dict[str, Any] = {"d_in": D_IN, "d_sae": D_SAE}
CASES: dict[str, TrainingSAEConfig] = {
    "patchsae": PatchTrainingSAEConfig(**SIZES),
    "topk at 64": TopKTrainingSAEConfig(**SIZES, k=64),
    "matryoshka_topk, 64 … 12,288": MatryoshkaTopKTrainingSAEConfig(**SIZES),
}
N_STEPS_FOR_MEMORY = 3


def new_trainer(cfg: TrainingSAEConfig, split: LatentSplit | None) -> ViTSAETrainer:
    """Of the whole SAE, or of this process's part."""
    torch.manual_seed(0)
    trainer_cfg = SAETrainerConfig(
        total_training_samples=BATCH * 1000,
        train_batch_size_samples=BATCH,
        lr=1e-4,
        lr_end=1e-4,
        lr_scheduler_name="constant",
        lr_warm_up_steps=0,
        lr_decay_steps=0,
        n_restart_cycles=1,
        adam_beta1=0.9,
        adam_beta2=0.999,
        device="cpu",
        autocast=False,
        dead_feature_window=1000,
        feature_sampling_window=2000,
        n_checkpoints=0,
        logger=LoggingConfig(log_to_wandb=False),
    )
    if split is None:
        return ViTSAETrainer(trainer_cfg, new_training_sae(cfg, device="cpu"), iter(()))
    return SplitLatentsTrainer(trainer_cfg, split_training_sae(cfg, split), iter(()))


def rows() -> torch.Tensor:
    """Rows off the origin, as activations are: ``[BATCH, D_IN]``."""
    return torch.randn(BATCH, D_IN, generator=torch.Generator().manual_seed(1)) + 0.3


def _train(trainer: ViTSAETrainer, batch: torch.Tensor, n_steps: int = 1) -> None:
    for _ in range(n_steps):
        trainer.step(batch)
        trainer.n_training_steps += 1


def _peak(cfg: TrainingSAEConfig, split: LatentSplit | None) -> int:
    batch = rows()
    _give_back_memory()
    return peak_bytes(lambda: _train(new_trainer(cfg, split), batch, N_STEPS_FOR_MEMORY))


def _give_back_memory() -> None:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free but still the process's hides a peak


def _one_of_two(rank: int, rendezvous: str, rounds: int, results: Any) -> None:
    """Measure on one of two processes; the first one tells."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    split, alone = LatentSplit.of_all_processes("cpu"), rank == 0
    for name, cfg in CASES.items():
        memory = {"two": _peak(cfg, split)}
        dist.barrier()
        if alone:
            memory["one"] = _peak(cfg, None)
            _give_back_memory()
        dist.barrier()
        seconds = _seconds(cfg, split, alone, rounds)
        if alone:
            results.put((name, memory, seconds))
    dist.barrier()
    dist.destroy_process_group()


def _seconds(
    cfg: TrainingSAEConfig, split: LatentSplit, alone: bool, rounds: int
) -> dict[str, list[float]]:
    """Of steps by two processes, and by one of them with both threads while the other waits."""
    batch, of_two = rows(), new_trainer(cfg, split)
    of_one = new_trainer(cfg, None) if alone else None
    seconds: dict[str, list[float]] = {"two": [], "one": []}
    for number, way in itertools.product(range(-1, rounds), seconds):
        dist.barrier()
        start = time.perf_counter()
        if way == "two":
            _train(of_two, batch)
        elif of_one is not None:
            torch.set_num_threads(2)
            _train(of_one, batch)
            torch.set_num_threads(1)
        if number >= 0:
            seconds[way].append(time.perf_counter() - start)
    return seconds


def measure(rounds: int = 7) -> list[Ratio]:
    """Time and memory of each case, two processes ÷ one."""
    results = mp.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (f"file://{Path(folder) / 'rendezvous'}", rounds, results)
        mp.start_processes(_one_of_two, args=arguments, nprocs=2, start_method="spawn")
    return [line for _ in CASES for line in _lines(*results.get())]


def _lines(name: str, memory: dict[str, int], seconds: dict[str, list[float]]) -> list[Ratio]:
    two, one = (statistics.median(seconds[way]) for way in ("two", "one"))
    share = memory["two"] / memory["one"]
    return [
        ratio_of(
            f"{name}: step, latents split over two processes",
            seconds["two"],
            seconds["one"],
            "the step in one process on the same cores",
            note=f"{two:.2f} s against {one:.2f} s",
        ),
        Ratio(
            f"{name}: memory of each of two processes",
            share,
            share,
            share,
            "the one process's",
            note=f"{memory['two'] / 2**20:.0f} MiB against {memory['one'] / 2**20:.0f} MiB",
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    for line in measure(parser.parse_args().rounds):
        print(f"{line.name}: {line.ratio:.2f} ({line.low:.2f} to {line.high:.2f}) of {line.against}"
              f"; {line.note}")  # fmt: skip


if __name__ == "__main__":
    main()
