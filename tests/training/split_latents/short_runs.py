"""Short training runs of small SAEs on drawn rows, plain or with split latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sae_lens import TopKTrainingSAEConfig
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.sae import TrainingSAE, TrainingSAEConfig
from torch import Tensor

from vit_sae_plugin import MatryoshkaTopKTrainingSAEConfig, PatchTrainingSAEConfig
from vit_sae_plugin.saes import TopKGhostTrainingSAEConfig
from vit_sae_plugin.training import ViTSAETrainer
from vit_sae_plugin.training.split_latents import (
    LatentSplit,
    SplitLatentsTrainer,
    split_training_sae,
)
from vit_sae_plugin.training.split_latents.latent_split import LATENT_DIMENSION
from vit_sae_plugin.training.training_metrics import step_metrics

D_IN, D_SAE, N_ROWS, N_STEPS = 16, 48, 64, 50
SIZES: dict[str, Any] = {"d_in": D_IN, "d_sae": D_SAE}
K_LIST = [2, 5, 12, 30]

CASES: dict[str, TrainingSAEConfig] = {
    "patchsae": PatchTrainingSAEConfig(**SIZES, l1_coefficient=0.2, l1_warm_up_steps=5),
    "patchsae, relative": PatchTrainingSAEConfig(
        **SIZES, relative_l1_coefficient=0.5, mse_normalization="none", use_ghost_grads=False
    ),
    "topk": TopKTrainingSAEConfig(**SIZES, k=4),
    "topk, other settings": TopKTrainingSAEConfig(
        **SIZES,
        k=4,
        rescale_acts_by_decoder_norm=False,
        apply_b_dec_to_input=False,
        aux_loss_coefficient=0.1,
        decoder_init_norm=0.1,
    ),
    "topk_ghost": TopKGhostTrainingSAEConfig(**SIZES, k=4),
    "matryoshka_topk": MatryoshkaTopKTrainingSAEConfig(
        **SIZES, k_list=K_LIST, use_ghost_grads=True, aux_loss_coefficient=0.1
    ),
    "matryoshka_topk, tied": MatryoshkaTopKTrainingSAEConfig(
        **SIZES, k_start=3, tied_weights=True, level_weights="reverse", soft_cap=5.0,
        reconstruction_loss="nmse",
    ),
}  # fmt: skip
LR = 2e-4
UNCLIPPED = ("patchsae",)


def draw_batches() -> Tensor:
    """Rows that few directions make up, off the origin: ``[steps, rows, d_in]``."""
    generator = torch.Generator().manual_seed(7)
    directions = torch.randn(40, D_IN, generator=generator)
    strengths = torch.rand(N_STEPS, N_ROWS, 40, generator=generator)
    rows = torch.where(strengths > 0.9, strengths, 0) @ directions
    noise = torch.randn(N_STEPS, N_ROWS, D_IN, generator=generator)
    return 0.03 * (rows + 0.5 + 0.05 * noise)


def new_trainer(name: str, split: LatentSplit | None) -> ViTSAETrainer:
    """A trainer of the case; ``split`` None: the plain one of a plain SAE."""
    cfg = CASES[name]
    torch.manual_seed(11)
    settings: dict[str, Any] = {
        "clip_grad_norm": None if name in UNCLIPPED else 0.5,
        "optimizer": "adamw" if "matryoshka" in name else "adam",
        "weight_decay": 0.01,
    }
    trainer_cfg = SAETrainerConfig(
        total_training_samples=N_STEPS * N_ROWS,
        train_batch_size_samples=N_ROWS,
        lr=LR,
        lr_end=LR / 10,
        lr_scheduler_name="constant",
        lr_warm_up_steps=5,
        lr_decay_steps=20,
        n_restart_cycles=1,
        adam_beta1=0.9,
        adam_beta2=0.999,
        device="cpu",
        autocast=False,
        dead_feature_window=3,
        feature_sampling_window=35,
        n_checkpoints=0,
        logger=LoggingConfig(log_to_wandb=False),
    )
    if split is None:
        sae = TrainingSAE.from_dict(type(cfg).from_dict(cfg.to_dict()).to_dict())
        _silence_some(sae, slice(0, D_SAE))
        return ViTSAETrainer(trainer_cfg, sae, iter(()), **settings)
    split_sae = split_training_sae(cfg, split)
    _silence_some(split_sae, split.own(D_SAE))
    return SplitLatentsTrainer(trainer_cfg, split_sae, iter(()), **settings)


def _silence_some(sae: TrainingSAE[Any], own: slice) -> None:
    """Latents that won't fire, most of them in the first half: there is something for ghosts."""
    bias = torch.zeros(D_SAE)
    bias[: D_SAE // 2 : 3] = bias[-2:] = -1.0
    sae.b_enc.data += bias[own]


def train(
    trainer: ViTSAETrainer, batches: Tensor, until: int = N_STEPS
) -> list[dict[str, float | int]]:
    """Go on to a step; returns each step's metrics."""
    metrics = []
    while trainer.n_training_steps < until:
        trainer.maybe_reset_sparsity()
        output = trainer.step(batches[trainer.n_training_steps])
        trainer.n_training_steps += 1
        metrics.append(step_metrics(trainer, output))
    return metrics


def resumed(name: str, split: LatentSplit, folder: Path) -> SplitLatentsTrainer:
    trainer = new_trainer(name, split)
    trainer.read_files(folder)
    return trainer


def whole_weights(trainer: SplitLatentsTrainer) -> dict[str, Tensor]:
    """All weights and counters, of which every process gathers all."""
    shards = {
        name: trainer.split.as_global(tensor, LATENT_DIMENSION.get(name))
        for name, tensor in trainer.sae.state_dict().items()
    }
    for name in ("act_freq_scores", "n_forward_passes_since_fired"):
        shards[name] = trainer.split.as_global(getattr(trainer, name), 0)
    if trainer.split.mesh is None:
        return shards
    return {name: shard.full_tensor() for name, shard in shards.items()}


def tied_rows_of_latents() -> Tensor:
    """Latents of few different values, so that levels part equals, and rows of one value only."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.randint(-2, 4, (300, D_SAE), generator=generator).float()
    rows[:5] = torch.tensor([[1.0], [0.0], [-1.0], [torch.nan], [torch.inf]])
    rows[5, ::3] = torch.nan
    rows[6:100] += torch.rand(94, D_SAE, generator=generator)
    return rows
