"""A top-k SAE of SAELens in training of which this process holds a range of latents."""

from __future__ import annotations

import torch
from jaxtyping import Float
from sae_lens import TopKTrainingSAE
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor
from torch.nn.functional import mse_loss
from typing_extensions import override

from vit_sae_plugin.saes.ghost_saes import TopKGhostTrainingSAEConfig

from .shared_top_k import select_shared_top_k
from .split_dead_latents import split_auxiliary_error, split_ghost_error
from .split_sae import SplitLatents


class SplitTopKTrainingSAE(SplitLatents, TopKTrainingSAE):
    """``topk`` or ``topk_ghost``: ReLU of the ``k`` largest latents of all processes.

    A latent that ReLU sets to zero contributes nothing, so only positive ones are chosen from.
    """

    @override
    def encode_with_hidden_pre(
        self, x: Float[Tensor, "*batch d_in"]
    ) -> tuple[Float[Tensor, "*batch m"], Float[Tensor, "*batch m"]]:
        hidden_pre = self.pre_activations(x, self.W_enc)
        if self.cfg.rescale_acts_by_decoder_norm:
            hidden_pre = hidden_pre * self.W_dec.norm(dim=-1)
        rows = hidden_pre.flatten(0, -2)
        chosen = select_shared_top_k(rows, [self.cfg.k], self.split, positive_only=True)
        values = rows.gather(-1, chosen.latents).masked_fill(~chosen.kept(), 0)
        acts = torch.zeros_like(rows).scatter(-1, chosen.latents, values).view_as(hidden_pre)
        return self.hook_sae_acts_post(acts), hidden_pre

    @override
    def decode(self, feature_acts: Float[Tensor, "*batch m"]) -> Float[Tensor, "*batch d_in"]:
        return self.reconstruction(feature_acts @ self._decoder_rows())

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """As the architecture's own; ``feature_acts`` are this process's."""
        sae_in, dead = step_input.sae_in, step_input.dead_neuron_mask
        feature_acts, hidden_pre = self.encode_with_hidden_pre(sae_in)
        decoder_rows = self._decoder_rows()
        sae_out = self.reconstruction(feature_acts @ decoder_rows)
        error = mse_loss(sae_out, sae_in, reduction="none")
        losses = {"mse_loss": error.sum(dim=-1).mean()}
        coefficient = self.cfg.aux_loss_coefficient
        has_ghosts = isinstance(self.cfg, TopKGhostTrainingSAEConfig)
        if dead is not None and (coefficient != 0 or not has_ghosts):
            auxiliary = split_auxiliary_error(
                sae_in - sae_out, hidden_pre, decoder_rows, dead, self.split
            )
            losses["auxiliary_reconstruction_loss"] = coefficient * auxiliary.sum(dim=-1).mean()
        if dead is not None and has_ghosts and self.training:
            ghost = split_ghost_error(
                sae_in, sae_out, hidden_pre, decoder_rows, dead, error, self.split
            )
            losses["ghost_grad_loss"] = ghost.sum(dim=-1).mean()
        return TrainStepOutput(
            sae_in=sae_in,
            sae_out=sae_out,
            feature_acts=feature_acts,
            hidden_pre=hidden_pre,
            loss=torch.stack(list(losses.values())).sum(),
            losses=losses,
        )

    def _decoder_rows(self) -> Tensor:
        if not self.cfg.rescale_acts_by_decoder_norm:
            return self.W_dec
        return self.W_dec / self.W_dec.norm(dim=-1, keepdim=True)
