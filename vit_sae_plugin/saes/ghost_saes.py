"""SAELens's ``standard`` and ``topk`` with ghost gradients: ``standard_ghost``, ``topk_ghost``.

Ghost gradients only matter in training, so both are saved as plain ``standard`` and ``topk``
SAEs, which load where this package is not installed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sae_lens import (
    StandardSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKSAEConfig,
    TopKTrainingSAEConfig,
)
from sae_lens.saes.sae import SAEConfig, TrainStepInput
from torch import Tensor
from typing_extensions import override

from .dead_latents import n_dead_at_most
from .ghost_gradients import ghost_gradient_error
from .sparse_topk_training import SparseTopKTrainingSAE, unit_rows


@dataclass
class StandardGhostTrainingSAEConfig(StandardTrainingSAEConfig):
    """SAELens's ``standard`` settings; the ghost term has none of its own."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "standard_ghost"

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return StandardSAEConfig


class StandardGhostTrainingSAE(StandardTrainingSAE):
    """``StandardTrainingSAE`` plus the ghost term, summed over features as its squared error is."""

    cfg: StandardGhostTrainingSAEConfig

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: Tensor,
        hidden_pre: Tensor,
        sae_out: Tensor,
    ) -> dict[str, Tensor]:
        losses = super().calculate_aux_loss(step_input, feature_acts, hidden_pre, sae_out)
        dead, at_most = step_input.dead_neuron_mask, n_dead_at_most(step_input)
        if self.training and dead is not None:
            losses["ghost_grad_loss"] = _summed_ghost_loss(
                step_input.sae_in, sae_out, hidden_pre, self.W_dec, dead, at_most
            )
        return losses


@dataclass
class TopKGhostTrainingSAEConfig(TopKTrainingSAEConfig):
    """SAELens's ``topk`` settings, with one other default."""

    aux_loss_coefficient: float = 0.0
    """Weight of SAELens's own term for dead latents (AuxK). Here ghost gradients take its place;
    above zero both are used."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "topk_ghost"

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return TopKSAEConfig


class TopKGhostTrainingSAE(SparseTopKTrainingSAE):
    """``TopKTrainingSAE`` with ghost gradients in place of (or beside) its auxiliary loss."""

    cfg: TopKGhostTrainingSAEConfig

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: Tensor,
        hidden_pre: Tensor,
        sae_out: Tensor,
    ) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        if self.cfg.aux_loss_coefficient != 0:
            losses = super().calculate_aux_loss(step_input, feature_acts, hidden_pre, sae_out)
        dead = step_input.dead_neuron_mask
        if self.training and dead is not None:
            losses["ghost_grad_loss"] = self._ghost_loss(
                step_input.sae_in, sae_out, hidden_pre, dead, n_dead_at_most(step_input)
            )
        return losses

    def _ghost_loss(
        self,
        sae_in: Tensor,
        sae_out: Tensor,
        hidden_pre: Tensor,
        dead: Tensor,
        at_most: int | None,
    ) -> Tensor:
        may_be_dead = dead.any if at_most is None else lambda: at_most > 0
        if not torch.compiler.is_compiling() and not may_be_dead():
            return sae_out.new_zeros(())  # as it comes out below, for less
        rows = unit_rows(self) if self.cfg.rescale_acts_by_decoder_norm else self.W_dec
        return _summed_ghost_loss(sae_in, sae_out, hidden_pre, rows, dead, at_most)


def _summed_ghost_loss(
    sae_in: Tensor,
    sae_out: Tensor,
    hidden_pre: Tensor,
    decoder_rows: Tensor,
    dead: Tensor,
    at_most: int | None,
) -> Tensor:
    error = torch.nn.functional.mse_loss(sae_out, sae_in, reduction="none")
    ghost = ghost_gradient_error(
        sae_in, sae_out, hidden_pre, decoder_rows, dead, error, n_dead_at_most=at_most
    )
    return ghost.sum(dim=-1).mean()
