"""What dead latents add to the loss where they lie with several processes.

Both terms reconstruct what the SAE leaves over by dead latents alone. Of these, too, each process
decodes its own, and the sum over the processes is the reconstruction.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor

from vit_sae_plugin.saes.ghost_gradients import scaled_ghost_error

from .latent_split import LatentSplit
from .shared_top_k import select_shared_top_k
from .sum_over_shards import sum_over_shards


def split_ghost_error(
    split: LatentSplit,
    sae_in: Float[Tensor, "*batch d_in"],
    sae_out: Float[Tensor, "*batch d_in"],
    hidden_pre: Float[Tensor, "*batch m"],
    decoder_rows: Float[Tensor, "m d_in"],
    dead_neuron_mask: Bool[Tensor, " m"],
    reconstruction_error: Float[Tensor, "*batch d_in"],
) -> Float[Tensor, "*batch d_in"]:
    """``ghost_gradient_error`` of all processes' dead latents; these are one's own."""
    if split.total(dead_neuron_mask.sum()) == 0:
        return torch.zeros_like(reconstruction_error)
    dead = dead_neuron_mask.nonzero().squeeze(-1)
    ghost_acts = hidden_pre[..., dead]
    largest = ghost_acts.new_zeros(*ghost_acts.shape[:-1], 1)
    if len(dead):
        largest = ghost_acts.detach().amax(dim=-1, keepdim=True).clamp(min=0)
    split.all_reduce_(largest, dist.ReduceOp.MAX)
    part = (ghost_acts - largest).exp() @ decoder_rows[dead]
    ghost_out, residual = sum_over_shards(part, split), (sae_in - sae_out).detach()
    return scaled_ghost_error(ghost_out, residual, reconstruction_error)


def split_auxiliary_error(
    split: LatentSplit,
    residual: Float[Tensor, "rows d_in"],
    hidden_pre: Float[Tensor, "rows m"],
    decoder_rows: Float[Tensor, "m d_in"],
    dead_neuron_mask: Bool[Tensor, " m"],
) -> Float[Tensor, "rows d_in"]:
    """``auxiliary_error`` (AuxK) of all processes' dead latents; these are one's own."""
    n_dead = split.total(dead_neuron_mask.sum())
    if n_dead == 0:
        return torch.zeros_like(residual)
    most = max(residual.shape[-1] // 2, 1)
    dead = dead_neuron_mask.nonzero().squeeze(-1)
    hidden_pre, decoder_rows = hidden_pre[:, dead], decoder_rows[dead]
    chosen = select_shared_top_k(hidden_pre, [min(most, n_dead)], split, positive_only=False)
    acts = hidden_pre.gather(-1, chosen.latents).masked_fill(~chosen.kept(), 0)
    part = torch.zeros_like(hidden_pre).scatter(-1, chosen.latents, acts) @ decoder_rows
    error = (sum_over_shards(part, split) - residual.detach()).square()
    return error * min(n_dead / most, 1.0)
