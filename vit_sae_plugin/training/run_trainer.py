"""Who takes a run's steps: this process, several on the same batches, or several that each hold a
part of the latents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sae_lens.saes.sae import TrainingSAE
from sae_lens.util import temporary_seed

from vit_sae_plugin.activations.row_store import RowStore
from vit_sae_plugin.saes import new_training_sae
from vit_sae_plugin.training.checkpoints import CheckpointFolder
from vit_sae_plugin.training.ranks.data_parallel import DataParallelTrainer
from vit_sae_plugin.training.ranks.process_group import Ranks
from vit_sae_plugin.training.run_folder import checkpoints_of
from vit_sae_plugin.training.runner_config import ViTSAERunnerConfig
from vit_sae_plugin.training.vit_sae_trainer import ViTSAETrainer

# What splits latents is imported where it is used: it takes a second, and few runs do.
if TYPE_CHECKING:
    from vit_sae_plugin.training.split_latents import LatentSplit


def split_of_run(cfg: ViTSAERunnerConfig, ranks: Ranks | None) -> LatentSplit | None:
    """The share of the latents that this process holds; None: all.

    Raises:
        ValueError: there isn't one process for each share.
    """
    n_shards = cfg.n_latent_shards
    if n_shards == 1:
        return None
    n_processes = 1 if ranks is None else ranks.n_ranks
    if n_processes != n_shards:
        raise ValueError(
            f"n_latent_shards is {n_shards}, but the number of processes {n_processes}; want "
            f"one for each: torchrun --nproc-per-node {n_shards} --no-python vit-sae train …"
        )
    from vit_sae_plugin.training.split_latents import LatentSplit

    return LatentSplit.of_all_processes(cfg.device, ranks)


def sae_of_run(cfg: ViTSAERunnerConfig, split: LatentSplit | None) -> TrainingSAE[Any]:
    """A new SAE, or this process's share of one, with the initial weights that the seed gives."""
    # The global generator gives them; on the CPU they are the same everywhere.
    with temporary_seed(cfg.seed):
        if split is None:
            return new_training_sae(cfg.sae, device="cpu")
        from vit_sae_plugin.training.split_latents import split_training_sae

        return split_training_sae(cfg.sae, split, device="cpu")


def trainer_of_run(
    cfg: ViTSAERunnerConfig,
    sae: TrainingSAE[Any],
    store: RowStore,
    ranks: Ranks | None,
    split: LatentSplit | None,
) -> ViTSAETrainer:
    """The trainer of this process's SAE.

    Args:
        cfg, sae, store: of the run.
        ranks: the processes that train it together; None: this one alone.
        split: which latents of the SAE these are; None: all.
    """
    settings: dict[str, Any] = {
        "clip_grad_norm": cfg.clip_grad_norm,
        "optimizer": cfg.optimizer,
        "adam_eps": cfg.adam_eps,
        "weight_decay": cfg.weight_decay,
        "freeze_decoder": cfg.freeze_decoder,
        "n_parts": cfg.train_batch_parts,
    }
    trainer_cfg = cfg.to_sae_trainer_config()
    if split is not None:
        from vit_sae_plugin.training.split_latents import SplitLatentsTrainer

        own: Any = sae  # as sae_of_run made it
        return SplitLatentsTrainer(trainer_cfg, own, store, ranks=ranks, **settings)
    if ranks is None:
        return ViTSAETrainer(trainer_cfg, sae, store, **settings)
    return DataParallelTrainer(trainer_cfg, sae, store, ranks=ranks, **settings)


def checkpoints_of_trainer(
    cfg: ViTSAERunnerConfig,
    trainer: ViTSAETrainer,
    ranks: Ranks | None,
    split: LatentSplit | None,
) -> CheckpointFolder | None:
    """Where this process writes checkpoints; None: it doesn't."""
    checkpoints = checkpoints_of(cfg)
    if split is None or ranks is None or checkpoints is None:
        return checkpoints if ranks is None or ranks.is_first else None
    from vit_sae_plugin.training.split_latents import SharedCheckpoints

    return SharedCheckpoints(checkpoints.path, ranks, trainer.write_files)
