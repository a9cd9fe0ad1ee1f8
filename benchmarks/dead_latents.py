"""How many latents die, with and without ghost gradients, on data whose directions are known.

Rows are sparse sums of known unit vectors plus an offset. Learning rates are set high, because
that is what kills latents; the two runs of a pair share seed, data and initial weights.

    python -m benchmarks.dead_latents
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
import torch
from sae_lens import (
    LoggingConfig,
    SAETrainer,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
    TrainingSAE,
)
from sae_lens.config import SAETrainerConfig
from torch import Tensor

from vit_sae_plugin.saes import (
    PatchTrainingSAEConfig,
    StandardGhostTrainingSAEConfig,
    TopKGhostTrainingSAEConfig,
)

D_IN, D_SAE, N_DIRECTIONS, BATCH_SIZE = 32, 128, 64, 256


class KnownDirections(Iterator[Tensor]):
    """Endless batches ``[n_rows, D_IN]``: each of 64 directions is on with probability 3 %."""

    def __init__(self, seed: int, n_rows: int = BATCH_SIZE) -> None:
        self.n_rows = n_rows
        self.generator = torch.Generator().manual_seed(seed)
        directions = torch.randn(N_DIRECTIONS, D_IN, generator=self.generator)
        self.directions = torch.nn.functional.normalize(directions, dim=-1)
        self.offset = 0.3 * torch.randn(D_IN, generator=self.generator)

    def __next__(self) -> Tensor:
        shape = (self.n_rows, N_DIRECTIONS)
        is_on = torch.rand(shape, generator=self.generator) < 0.03
        size = 0.5 + torch.rand(shape, generator=self.generator)
        return (is_on * size) @ self.directions + self.offset


@dataclass
class Outcome:
    """What a trained SAE does on 16,384 rows that it has not seen."""

    dead_share: float
    explained_variance: float
    l0: float
    directions_found: float


def train(cfg: Any, seed: int, lr: float, n_steps: int, dead_feature_window: int = 16) -> Outcome:
    """Train under SAELens's own trainer and evaluate; weights and data follow from ``seed``."""
    torch.manual_seed(seed)
    sae = TrainingSAE.from_dict(cfg.to_dict())
    data = KnownDirections(seed)
    trainer = SAETrainer(trainer_config(lr, n_steps, dead_feature_window), sae, data)
    trainer.fit()
    data.n_rows = 16_384
    return evaluate(sae.eval(), next(data), data.directions)


def trainer_config(lr: float, n_steps: int, dead_feature_window: int) -> SAETrainerConfig:
    """A constant learning rate, no files, no logging."""
    return SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=n_steps * BATCH_SIZE,
        device="cpu",
        autocast=False,
        lr=lr,
        lr_end=lr,
        lr_scheduler_name="constant",
        lr_warm_up_steps=0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=0,
        n_restart_cycles=1,
        train_batch_size_samples=BATCH_SIZE,
        dead_feature_window=dead_feature_window,
        feature_sampling_window=n_steps + 1,
        logger=LoggingConfig(log_to_wandb=False),
    )


@torch.no_grad()
def evaluate(sae: TrainingSAE[Any], rows: Tensor, directions: Tensor) -> Outcome:
    """A direction counts as found if a living latent's decoder row has a cosine above 0.9."""
    latents = sae.encode(rows)
    residual = rows - sae.decode(latents)
    is_alive = (latents > 0).any(dim=0)
    cosine = directions @ torch.nn.functional.normalize(sae.W_dec[is_alive], dim=-1).T
    return Outcome(
        dead_share=1 - is_alive.float().mean().item(),
        explained_variance=1
        - (residual.square().sum() / (rows - rows.mean(dim=0)).square().sum()).item(),
        l0=(latents > 0).float().sum(dim=-1).mean().item(),
        directions_found=(cosine.amax(dim=1) > 0.9).float().mean().item(),
    )


@dataclass
class Pair:
    """The same architecture without and with ghost gradients."""

    name: str
    without: Any
    ghost: Any
    lr: float


def pairs() -> list[Pair]:
    sizes: dict[str, Any] = {"d_in": D_IN, "d_sae": D_SAE}
    patch = {**sizes, "l1_coefficient": 0.008}
    standard = {**sizes, "l1_coefficient": 0.4}
    topk = {**sizes, "k": 3, "aux_loss_coefficient": 0.0}
    plain_patch = PatchTrainingSAEConfig(**patch, use_ghost_grads=False)
    return [
        Pair("patchsae, lr 0.01", plain_patch, PatchTrainingSAEConfig(**patch), lr=0.01),
        Pair("patchsae, lr 0.04", plain_patch, PatchTrainingSAEConfig(**patch), lr=0.04),
        Pair(
            "standard, lr 0.01",
            StandardTrainingSAEConfig(**standard),
            StandardGhostTrainingSAEConfig(**standard),
            lr=0.01,
        ),
        Pair(
            "topk without AuxK, lr 0.04",
            TopKTrainingSAEConfig(**topk),
            TopKGhostTrainingSAEConfig(**topk),
            lr=0.04,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-steps", type=int, default=1000)
    parser.add_argument("--n-seeds", type=int, default=3)
    arguments = parser.parse_args()
    table = pd.DataFrame(
        {
            "pair": pair.name,
            "seed": seed,
            "ghost": ghost,
            **asdict(train(cfg, seed, pair.lr, arguments.n_steps)),
        }
        for pair in pairs()
        for seed in range(arguments.n_seeds)
        for ghost, cfg in (("without", pair.without), ("with", pair.ghost))
    )
    wide = table.pivot(index=["pair", "seed"], columns="ghost").swaplevel(axis=1)
    wide = wide[["without", "with"]]
    print(wide.to_string(float_format="%.3f"))
    means = table.groupby(["pair", "ghost"])["dead_share"].mean().unstack()
    print("\nShare of dead latents, with / without ghost gradients (means over seeds):")
    print((means["with"] / means["without"]).to_string(float_format="%.2f"))


if __name__ == "__main__":
    main()
