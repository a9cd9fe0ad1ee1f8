"""A PatchSAE in training of which this process holds a range of latents."""

from __future__ import annotations

import torch
from jaxtyping import Float
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor
from typing_extensions import override

from vit_sae_plugin.saes.patch_sae import PatchTrainingSAE
from vit_sae_plugin.saes.unit_norm_decoder import tangent_rows

from .initial_weights import draw_columns
from .split_dead_latents import split_ghost_error
from .split_sae import SplitLatents
from .sum_over_shards import sum_over_shards


class SplitPatchTrainingSAE(SplitLatents, PatchTrainingSAE):
    """``PatchTrainingSAE``: of the loss, ``Σ|h|`` too is a sum over the processes."""

    @override
    @torch.no_grad()
    def initialize_weights(self) -> None:
        super().initialize_weights()
        cfg = self.cfg
        encoder = draw_columns(cfg.d_in, cfg.d_sae, self.split.own(cfg.d_sae), self.dtype)
        self.W_enc.data = encoder.to(self.device)

    @override
    def encode_with_hidden_pre(
        self, x: Float[Tensor, "*batch d_in"]
    ) -> tuple[Float[Tensor, "*batch m"], Float[Tensor, "*batch m"]]:
        hidden_pre = self.pre_activations(x, self.W_enc)
        return self.hook_sae_acts_post(hidden_pre.relu()), hidden_pre

    @override
    def decode(self, feature_acts: Float[Tensor, "*batch m"]) -> Float[Tensor, "*batch d_in"]:
        return self.reconstruction(feature_acts @ self.W_dec)

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """As ``PatchTrainingSAE.training_forward_pass``; ``feature_acts`` are this process's."""
        sae_in, dead = step_input.sae_in, step_input.dead_neuron_mask
        if self.training:
            self._start_step(sae_in, step_input.n_training_steps)
        decoder_rows = tangent_rows(self.W_dec)
        feature_acts, hidden_pre = self.encode_with_hidden_pre(sae_in)
        sae_out = self.reconstruction(feature_acts @ decoder_rows)

        error = self._reconstruction_error(sae_in, sae_out)
        sum_dtype = torch.promote_types(feature_acts.dtype, torch.float32)
        l1 = sum_over_shards(feature_acts.sum(dim=-1, dtype=sum_dtype).mean(), self.split)
        if self.cfg.relative_l1_coefficient is not None:
            l1 = l1 * self.l1_scale
        losses = {"mse_loss": error.mean(), "l1_loss": step_input.coefficients["l1"] * l1}
        if self.cfg.use_ghost_grads and self.training and dead is not None:
            ghost = split_ghost_error(
                self.split, sae_in, sae_out, hidden_pre, decoder_rows, dead, error
            )
            losses["ghost_grad_loss"] = ghost.mean()
        return TrainStepOutput(
            sae_in=sae_in,
            sae_out=sae_out,
            feature_acts=feature_acts,
            hidden_pre=hidden_pre,
            loss=torch.stack(list(losses.values())).sum(),
            losses=losses,
        )

    @override
    @torch.no_grad()
    def _start_step(self, sae_in: Tensor, n_training_steps: int) -> None:
        super()._start_step(sae_in, n_training_steps)
        if n_training_steps == 0:
            # what each works out from the first batch may differ in the last bit
            self.split.broadcast_(self.b_dec)
            if self.cfg.relative_l1_coefficient is not None:
                self.split.broadcast_(self.l1_scale)
