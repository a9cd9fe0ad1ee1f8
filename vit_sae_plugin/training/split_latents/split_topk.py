"""A top-k SAE of SAELens in training of which this process holds a range of latents."""

from __future__ import annotations

import torch
from jaxtyping import Float
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor
from torch.nn.functional import mse_loss
from typing_extensions import override

from vit_sae_plugin.saes.firing_counts import CountedStepOutput
from vit_sae_plugin.saes.ghost_saes import TopKGhostTrainingSAEConfig
from vit_sae_plugin.saes.largest_latents import ActiveLatents
from vit_sae_plugin.saes.sparse_topk_training import SparseTopKTrainingSAE, unit_rows

from .shared_top_k import select_shared_top_k
from .split_dead_latents import split_auxiliary_error, split_ghost_error
from .split_sae import SplitLatents


class SplitTopKTrainingSAE(SplitLatents, SparseTopKTrainingSAE):
    """``topk`` or ``topk_ghost``: ReLU of the ``k`` largest latents of all processes.

    A latent that ReLU sets to zero contributes nothing, so only positive ones are chosen from.
    Where ``SparseTopKTrainingSAE`` decodes and differentiates active latents only, so does this.
    """

    @override
    def largest(self, hidden_pre: Float[Tensor, "rows m"]) -> ActiveLatents:
        """Of the latents that a training step keeps, this process's."""
        chosen = select_shared_top_k(hidden_pre, [self.cfg.k], self.split, positive_only=True)
        n_kept = chosen.n_kept[:, 0].long()
        # in the order of their columns, those that aren't kept at the end
        beyond = hidden_pre.shape[-1]
        latents = chosen.latents.masked_fill(~chosen.kept(), beyond).sort(dim=-1).values
        kept = latents < beyond
        row_start = torch.cat([n_kept.new_zeros(1), n_kept.cumsum(dim=0)])
        acts = hidden_pre.gather(-1, latents.clamp(max=beyond - 1))[kept]
        return ActiveLatents(row_start, latents[kept].int(), acts)

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
        n_fired = None
        if self._can_be_sparse(sae_in):
            x = self.reshape_fn_in(sae_in.to(self.dtype))
            part, hidden_pre, active = self._code(self.run_time_activation_norm_fn_in(x))
            feature_acts = active.to_sparse(hidden_pre.shape[-1])
            n_fired = torch.bincount(active.latent, minlength=hidden_pre.shape[-1]).float()
        else:
            feature_acts, hidden_pre = self.encode_with_hidden_pre(sae_in)
            part = feature_acts @ self._decoder_rows()
        sae_out = self.reconstruction(part)
        has_dead = dead is not None and self.split.total(dead.sum()) > 0
        decoder_rows = self._decoder_rows() if has_dead else self.W_dec  # else of no use
        error = mse_loss(sae_out, sae_in, reduction="none")
        losses = {"mse_loss": error.sum(dim=-1).mean()}
        coefficient = self.cfg.aux_loss_coefficient
        has_ghosts = isinstance(self.cfg, TopKGhostTrainingSAEConfig)
        if dead is not None and (coefficient != 0 or not has_ghosts):
            auxiliary = split_auxiliary_error(
                self.split, sae_in - sae_out, hidden_pre, decoder_rows, dead
            )
            losses["auxiliary_reconstruction_loss"] = coefficient * auxiliary.sum(dim=-1).mean()
        if dead is not None and has_ghosts and self.training:
            ghost = split_ghost_error(
                self.split, sae_in, sae_out, hidden_pre, decoder_rows, dead, error
            )
            losses["ghost_grad_loss"] = ghost.sum(dim=-1).mean()
        return CountedStepOutput(
            sae_in=sae_in,
            sae_out=sae_out,
            feature_acts=feature_acts,
            hidden_pre=hidden_pre,
            loss=torch.stack(list(losses.values())).sum(),
            losses=losses,
            n_fired=n_fired,
        )

    def _decoder_rows(self) -> Tensor:
        if not self.cfg.rescale_acts_by_decoder_norm:
            return self.W_dec
        return unit_rows(self)
