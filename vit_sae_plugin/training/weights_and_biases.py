"""A run in Weights & Biases, under the names that SAELens's own runner gives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, SPARSITY_FILENAME
from sae_lens.saes.sae import TrainStepOutput

from vit_sae_plugin.training.runner_config import ViTSAERunnerConfig
from vit_sae_plugin.training.vit_sae_trainer import ViTSAETrainer


class WeightsAndBiases:
    """What goes to Weights & Biases; nothing, unless the settings' ``logger`` asks for it.

    Args:
        cfg: the run's settings.
        writes: False for those of several processes that only help to work out what one logs.
    """

    def __init__(self, cfg: ViTSAERunnerConfig, writes: bool = True) -> None:
        self.cfg = cfg
        self._is_wanted = cfg.logger.log_to_wandb
        self.is_on = self._is_wanted and writes

    @contextmanager
    def run(self) -> Iterator[None]:
        """Begin the run there, and end it."""
        if not self.is_on:
            yield
            return
        import wandb

        logger, sae = self.cfg.logger, self.cfg.sae
        size = f"{sae.architecture()}-{sae.d_sae}-LR-{self.cfg.lr}"
        wandb.init(
            project=logger.wandb_project,
            entity=logger.wandb_entity,
            config=self.cfg.to_dict(),
            name=logger.run_name or f"{size}-Tokens-{self.cfg.training_tokens:3.3e}",
            id=logger.wandb_id,
        )
        try:
            yield
        finally:
            wandb.finish()

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Log values by name."""
        if self.is_on:
            import wandb

            wandb.log(metrics, step=step)

    def log_step(self, trainer: ViTSAETrainer, output: TrainStepOutput) -> None:
        """Log what SAELens logs of a step, as often as ``logger.wandb_log_frequency`` says."""
        if self._is_wanted and trainer.n_training_steps % self.cfg.logger.wandb_log_frequency == 0:
            metrics = trainer.build_train_step_log_dict(output, trainer.n_training_samples)
            self.log(metrics, trainer.n_training_steps)

    def log_line(self, metrics: dict[str, Any], step: int) -> None:
        """Log those of a metrics file's line that SAELens doesn't log itself."""
        rates = {name: value for name, value in metrics.items() if "per_second" in name}
        ours = {name: value for name, value in metrics.items() if name.startswith("held_out_")}
        ours |= {name: metrics[name] for name in ("grad_norm", "share_grad_norm_above_1")}
        named = {f"metrics/{name}": value for name, value in ours.items()}
        self.log(named | {f"details/{name}": value for name, value in rates.items()}, step)

    def log_sae(self, trainer: ViTSAETrainer, folder: Path) -> None:
        """Upload the finished SAE, if ``logger.log_weights_to_wandb``."""
        if self.is_on:
            self.cfg.logger.log(
                trainer,
                folder / SAE_WEIGHTS_FILENAME,
                folder / SAE_CFG_FILENAME,
                sparsity_path=folder / SPARSITY_FILENAME,
                wandb_aliases=["final_model"],
            )
