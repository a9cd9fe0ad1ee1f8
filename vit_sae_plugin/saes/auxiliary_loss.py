"""AuxK: dead latents reconstruct what the living left over.

Gao et al., *Scaling and evaluating sparse autoencoders* (arXiv 2406.04093), section 2.4 and
appendix A.2, as SAELens's ``topk`` has it.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def auxiliary_error(
    residual: Float[Tensor, "*batch d_in"],
    hidden_pre: Float[Tensor, "*batch d_sae"],
    decoder_rows: Float[Tensor, "d_sae d_in"],
    dead_neuron_mask: Bool[Tensor, " d_sae"],
) -> Float[Tensor, "*batch d_in"]:
    """Squared error of a reconstruction of ``residual`` by the largest dead latents alone.

    Half of ``d_in`` dead latents take part; while fewer are dead the error is scaled down in
    proportion. Reduce it as the reconstruction error is reduced.

    Args:
        residual: the SAE's input minus its reconstruction; a constant of the gradient.
        hidden_pre: latents before the activation function.
        decoder_rows: the rows by which latents are decoded.
        dead_neuron_mask: True where a latent counts as dead.

    Returns:
        Zeros if no latent is dead.
    """
    dead = dead_neuron_mask.nonzero().squeeze(-1)
    n_dead, most = len(dead), max(residual.shape[-1] // 2, 1)
    if n_dead == 0:
        return torch.zeros_like(residual)
    acts = hidden_pre.index_select(-1, dead)
    if n_dead > most:
        values, latents = acts.topk(most, dim=-1, sorted=False)
        acts = torch.zeros_like(acts).scatter(-1, latents, values)
    return (acts @ decoder_rows[dead] - residual.detach()).square() * min(n_dead / most, 1.0)
