"""AuxK: dead latents reconstruct what the living left over.

Gao et al., *Scaling and evaluating sparse autoencoders* (arXiv 2406.04093), section 2.4 and
appendix A.2, as SAELens's ``topk`` has it.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .dead_latents import DeadLatents


def auxiliary_error(
    residual: Float[Tensor, "*batch d_in"],
    hidden_pre: Float[Tensor, "*batch d_sae"],
    decoder_rows: Float[Tensor, "d_sae d_in"],
    dead_neuron_mask: Bool[Tensor, " d_sae"],
    *,
    n_dead_at_most: int | None = None,
) -> Float[Tensor, "*batch d_in"]:
    """Squared error of a reconstruction of ``residual`` by the largest dead latents alone.

    Half of ``d_in`` dead latents take part; while fewer are dead the error is scaled down in
    proportion. Reduce it as the reconstruction error is reduced.

    Args:
        residual: the SAE's input minus its reconstruction; a constant of the gradient.
        hidden_pre: latents before the activation function.
        decoder_rows: the rows by which latents are decoded.
        dead_neuron_mask: True where a latent counts as dead.
        n_dead_at_most: as ``ghost_gradient_error`` takes it.

    Returns:
        Zeros if no latent is dead.
    """
    dead, is_dead = DeadLatents.of(dead_neuron_mask, n_dead_at_most)
    most = max(residual.shape[-1] // 2, 1)
    if len(dead) == 0:
        return torch.zeros_like(residual)
    acts = hidden_pre.index_select(-1, dead)
    share: float | Tensor = min(len(dead) / most, 1.0)
    if is_dead is not None:
        share = (is_dead.sum() / most).clamp(max=1.0)
        acts = acts.masked_fill(~is_dead, -torch.inf)
    if len(dead) > most:
        values, latents = acts.topk(most, dim=-1, sorted=False)
        if is_dead is not None:
            values = values.masked_fill(~is_dead[latents], 0)
        acts = torch.zeros_like(acts).scatter(-1, latents, values)
    elif is_dead is not None:
        acts = acts.masked_fill(~is_dead, 0)
    return (acts @ decoder_rows[dead] - residual.detach()).square() * share
