"""A Matryoshka TopK SAE in training of which this process holds a range of latents."""

from __future__ import annotations

import torch
from jaxtyping import Float
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor
from typing_extensions import override

from vit_sae_plugin.saes.level_losses import level_losses
from vit_sae_plugin.saes.matryoshka_topk import cap_softly
from vit_sae_plugin.saes.matryoshka_topk_training import MatryoshkaTopKTrainingSAE
from vit_sae_plugin.saes.nested_decoding import nested_decode
from vit_sae_plugin.saes.nested_levels import loss_weights
from vit_sae_plugin.saes.nested_topk_selection import UNUSED, NestedSelection

from .latent_split import LatentSplit
from .shared_top_k import select_shared_top_k
from .split_dead_latents import split_auxiliary_error, split_ghost_error
from .split_sae import SplitLatents
from .sum_over_shards import sum_over_shards


class SplitMatryoshkaTopKTrainingSAE(SplitLatents, MatryoshkaTopKTrainingSAE):
    """``MatryoshkaTopKTrainingSAE``: each level's k counts the latents of all processes.

    A level's reconstruction ``[n, d_in]`` is a sum over the processes, of all levels in one.
    """

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        if self.cfg.tied_weights:
            self.W_enc.data = self.W_dec.data.T.contiguous()

    @override
    def encode(
        self, x: Float[Tensor, "*batch d_in"], k: int | None = None
    ) -> Float[Tensor, "*batch m"]:
        """This process's of the latents that ``MatryoshkaTopKTrainingSAE.encode`` gives."""
        k = self.cfg.k if k is None else k
        hidden_pre = self.pre_activations(x, self.W_enc)
        return self.hook_sae_acts_post(self._kept(hidden_pre, k))

    @override
    def encode_with_hidden_pre(
        self, x: Float[Tensor, "*batch d_in"]
    ) -> tuple[Float[Tensor, "*batch m"], Float[Tensor, "*batch m"]]:
        hidden_pre = self.pre_activations(x, self.W_enc)
        return self.hook_sae_acts_post(self._kept(hidden_pre, self.cfg.k)), hidden_pre

    @override
    def decode(self, feature_acts: Float[Tensor, "*batch m"]) -> Float[Tensor, "*batch d_in"]:
        return self.reconstruction(feature_acts @ self.W_dec)

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """As ``MatryoshkaTopKTrainingSAE.training_forward_pass``, but ``feature_acts`` are this
        process's."""
        sae_in, dead, k_list = step_input.sae_in, step_input.dead_neuron_mask, self.cfg.levels()
        if self.training:
            self._start_step()
        decoder_rows, encoder = self._weights_of_a_step()
        hidden_pre = self.pre_activations(sae_in, encoder).flatten(0, -2)
        selection = select_nested_levels(hidden_pre, k_list, self.split)
        acts = cap_softly(hidden_pre.relu(), self.cfg.soft_cap)
        decoded_acts = hidden_pre if self.cfg.soft_cap is None else acts
        part = nested_decode(decoded_acts, decoder_rows, selection)
        decoded = sum_over_shards(part, self.split)
        target, scale = (sae_in - self.own_bias).flatten(0, -2), self._loss_scale(sae_in)
        scale = None if scale is None else scale.flatten(0, -2)
        by_level = level_losses(decoded, target, scale)
        losses_of_k = torch.stack([by_level[level] for level in selection.level_of_k])
        weights = losses_of_k.new_tensor(loss_weights(self.cfg.level_weights, k_list))
        name = f"{self.cfg.reconstruction_loss}_loss"
        losses = {name: (weights * losses_of_k).sum() / weights.sum()}

        sae_out = self.hook_sae_recons(decoded[-1].view_as(sae_in) + self.own_bias)
        if self.training and dead is not None:
            losses |= self._dead_latent_losses(sae_in, sae_out, hidden_pre, decoder_rows, dead)
        if k_list[-1] < self.cfg.d_sae:
            acts = acts.masked_fill(selection.first_level == UNUSED, 0)
        return TrainStepOutput(
            sae_in=sae_in,
            sae_out=sae_out,
            feature_acts=self.hook_sae_acts_post(acts),
            hidden_pre=hidden_pre,
            loss=torch.stack(list(losses.values())).sum(),
            losses=losses,
            metrics={
                f"{name}_k_{k}": level_loss
                for k, level_loss in zip(k_list, losses_of_k.detach(), strict=True)
            },
        )

    @override
    def _auxiliary_error(self, *of_step: Tensor) -> Tensor:
        return split_auxiliary_error(self.split, *of_step)

    @override
    def _ghost_error(self, *of_step: Tensor) -> Tensor:
        return split_ghost_error(self.split, *of_step)

    def _kept(self, hidden_pre: Tensor, k: int | None) -> Tensor:
        acts = hidden_pre.relu()
        if k is not None and k < self.cfg.d_sae:
            first_level = select_nested_levels(acts.flatten(0, -2), [k], self.split).first_level
            acts = acts.masked_fill((first_level == UNUSED).view_as(acts), 0)
        return cap_softly(acts, self.cfg.soft_cap)


@torch.no_grad()
def select_nested_levels(
    hidden_pre: Float[Tensor, "rows m"], k_list: list[int], split: LatentSplit
) -> NestedSelection:
    """``select_nested_topk`` where the latents lie with several processes; of this one's."""
    chosen = select_shared_top_k(hidden_pre, k_list, split, positive_only=True)
    position = torch.arange(chosen.latents.shape[-1], device=hidden_pre.device)
    position = position.to(torch.int32).expand(len(hidden_pre), -1).contiguous()
    # of the counts, which rise from level to level, the first above a candidate's place
    level = torch.searchsorted(chosen.n_kept, position, right=True, out_int32=True)
    level = level.masked_fill(level == len(k_list), UNUSED).to(torch.uint8)
    first_level = torch.full_like(hidden_pre, UNUSED, dtype=torch.uint8)
    first_level.scatter_(-1, chosen.latents, level)
    last = chosen.n_levels - 1
    return NestedSelection(
        first_level, chosen.n_levels, tuple(min(i, last) for i in range(len(k_list)))
    )
