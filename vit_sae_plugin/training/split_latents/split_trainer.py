"""Training steps of an SAE whose latents lie with several processes, in step with one another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import TrainStepOutput
from sae_lens.training.types import DataProvider
from torch import Tensor
from typing_extensions import override

from vit_sae_plugin.training.ranks.process_group import Ranks
from vit_sae_plugin.training.ranks.shared_scaler import SharedActivationScaler
from vit_sae_plugin.training.vit_sae_trainer import ViTSAETrainer, gradient_norm

from .latent_split import LATENT_DIMENSION
from .split_checkpoint import load_split, save_split
from .split_sae import SplitLatents
from .whole_sae import save_whole_sae


class SplitLatentsTrainer(ViTSAETrainer):
    """``ViTSAETrainer`` on one of the processes that share an SAE's latents.

    Counters of firing and dead latents, gradients and the optimizer's moments are of this process's
    latents only. ``b_dec`` is held by all: its gradient is summed over the processes, so that it
    moves alike everywhere, and counts once in the gradient's norm.

    Args:
        cfg, sae, data_provider, settings: as ``ViTSAETrainer``.
        ranks: the processes, if each is given a share of every batch's rows, which they then
            collect; None: each is given all rows.
    """

    def __init__(
        self,
        cfg: SAETrainerConfig,
        sae: SplitLatents,
        data_provider: DataProvider,
        *,
        ranks: Ranks | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(cfg, sae, data_provider, **settings)
        self.split = sae.split
        self.ranks = ranks
        if ranks is not None:
            self.activation_scaler = SharedActivationScaler(ranks)
        width = self.split.width(sae.cfg.d_sae)
        self.act_freq_scores = torch.zeros(width, device=cfg.device)
        self.n_forward_passes_since_fired = torch.zeros(width, device=cfg.device)

    @override
    def step(self, batch: Float[Tensor, "rows d_in"]) -> TrainStepOutput:
        return super().step(self.whole_batch(batch))

    @override
    def whole_batch(self, rows: Float[Tensor, "rows d_in"]) -> Float[Tensor, "all_rows d_in"]:
        return rows if self.ranks is None else self.ranks.gather_rows(rows)

    @override
    def write_sae(self, folder: Path | None) -> None:
        save_whole_sae(self.sae, folder)

    @override
    def write_files(self, folder: Path) -> None:
        save_split(self, self.split, folder)

    @override
    def read_files(self, folder: Path) -> None:
        load_split(self, self.split, folder)

    @override
    @torch.no_grad()
    def _finish_gradients(self) -> None:
        for name, parameter in self.sae.named_parameters():
            if name in LATENT_DIMENSION:
                continue
            if parameter.grad is None:  # another process may have one
                parameter.grad = torch.zeros_like(parameter)
            self.split.all_reduce_(parameter.grad)
        super()._finish_gradients()

    @override
    def _gradient_norm(self) -> Tensor:
        own: list[Tensor] = []
        whole: list[Tensor] = []
        for name, parameter in self.sae.named_parameters():
            if parameter.grad is not None:
                (own if name in LATENT_DIMENSION else whole).append(parameter.grad)
        squared = self.split.all_reduce_(gradient_norm(own).square())
        return (squared + gradient_norm(whole).square()).sqrt()

    @override
    def l0_of(self, output: TrainStepOutput) -> Tensor:
        return self.split.all_reduce_(super().l0_of(output))

    @override
    def n_dead_latents(self) -> int:
        return self.split.total(self.dead_neurons.sum())

    @override
    def maybe_reset_sparsity(self) -> dict[str, Any]:
        window = self.full_sparsity_window_log()
        if window:
            self.act_freq_scores = torch.zeros_like(self.act_freq_scores)
            self.n_frac_active_samples = 0
        return window

    @property
    @override
    def log_feature_sparsity(self) -> Tensor:
        """Of all latents: every process must ask for it."""
        return (
            self.split.all_gather(super().log_feature_sparsity.to(self.cfg.device)).flatten().cpu()
        )

    @override
    @torch.no_grad()
    def set_final_sae_metadata(self) -> None:
        if self.n_frac_active_samples > 0:
            metadata = self.sae.cfg.metadata
            metadata.l0 = self.split.all_reduce_(self.feature_sparsity.sum()).item()
            metadata.num_dead_features = self.n_dead_latents()
