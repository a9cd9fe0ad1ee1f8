"""Ghost gradients: a second reconstruction by dead latents only, which pulls them back to life.

Anthropic, *Circuits Updates January 2024*, "Ghost grads"; used by PatchSAE (Lim et al., ICLR
2025, arXiv 2412.05276). A latent that never fires gets no gradient from ReLU or top-k; here it
acts through ``exp`` of its pre-activation, and is trained towards what the SAE left over.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .dead_latents import DeadLatents

EPSILON = 1e-6


def ghost_gradient_error(
    sae_in: Float[Tensor, "*batch d_in"],
    sae_out: Float[Tensor, "*batch d_in"],
    hidden_pre: Float[Tensor, "*batch d_sae"],
    decoder_rows: Float[Tensor, "d_sae d_in"],
    dead_neuron_mask: Bool[Tensor, " d_sae"],
    reconstruction_error: Float[Tensor, "*batch d_in"],
    *,
    n_dead_at_most: int | None = None,
) -> Float[Tensor, "*batch d_in"]:
    """The ghost term, element by element; reduce it as the reconstruction error is reduced.

    With ``r = z − ẑ`` and ``g = exp(h_pre[dead]) W_dec[dead]``, scaled to half the length of
    ``r``: ``e = (g − r)² / ‖r‖₂``, then rescaled elementwise to the size of the reconstruction
    error. All scales and ``r`` are constants of the gradient, so only the dead latents (and,
    through the encoder, ``b_dec``) feel it. Its value says nothing: it is the reconstruction
    error, but for the 1e-6 that keeps divisions finite.

    Args:
        sae_in: the SAE's input ``z``.
        sae_out: its reconstruction ``ẑ``.
        hidden_pre: latents before the activation function.
        decoder_rows: the rows by which latents are decoded.
        dead_neuron_mask: True where a latent counts as dead.
        reconstruction_error: the loss's elementwise error, before any weight of single tokens.
        n_dead_at_most: so many latents are dead, or fewer: then nothing is asked of a device. None:
            they are counted.

    Returns:
        Zeros if no latent is dead.
    """
    some_may_live = True
    if torch.compiler.is_compiling():
        # Selecting rows by a mask breaks the compiled graph; the product over all latents, in
        # which the living weigh exp(-inf) = 0, doesn't, and costs one more decoding.
        ghost_acts = hidden_pre.masked_fill(~dead_neuron_mask, -torch.inf)
    else:
        # Without a bound a GPU is waited for here. By then it has encoding and decoding to do, and
        # the product over all latents would cost three more such products at every step, dead
        # latents or not.
        dead, is_dead = DeadLatents.of(dead_neuron_mask, n_dead_at_most)
        if dead.numel() == 0:
            return torch.zeros_like(reconstruction_error)
        ghost_acts, decoder_rows = hidden_pre[..., dead], decoder_rows[dead]
        some_may_live = is_dead is not None
        if is_dead is not None:
            ghost_acts = ghost_acts.masked_fill(~is_dead, -torch.inf)
    ghost_out = exponential_acts(ghost_acts) @ decoder_rows
    ghost = scaled_ghost_error(ghost_out, (sae_in - sae_out).detach(), reconstruction_error)
    if some_may_live:  # all of them, perhaps
        ghost = torch.where(dead_neuron_mask.any(), ghost, torch.zeros_like(ghost))
    return ghost


def exponential_acts(hidden_pre: Float[Tensor, "*batch dead"]) -> Float[Tensor, "*batch dead"]:
    """``exp`` of dead latents before the activation function, up to a factor common to a token's.

    Dead latents of a top-k SAE may have large pre-activations. The factor cancels when ``g`` is
    scaled, and without it exp overflows.
    """
    largest = hidden_pre.detach().amax(dim=-1, keepdim=True).clamp(min=0)
    return (hidden_pre - largest).exp()


def scaled_ghost_error(
    ghost_out: Float[Tensor, "*batch d_in"],
    residual: Float[Tensor, "*batch d_in"],
    reconstruction_error: Float[Tensor, "*batch d_in"],
) -> Float[Tensor, "*batch d_in"]:
    """The ghost term of what the dead latents decode, ``exponential_acts(...) @ W_dec[dead]``."""
    residual_norm = residual.norm(dim=-1, keepdim=True)
    ghost_norm = ghost_out.detach().norm(dim=-1, keepdim=True)
    ghost_out = ghost_out * (residual_norm / (2 * ghost_norm + EPSILON))
    # A perfectly reconstructed token has r = g = 0 and no error, not 0 / 0.
    smallest = torch.finfo(residual_norm.dtype).tiny
    error = (ghost_out - residual).square() / residual_norm.clamp(min=smallest)
    return error * (reconstruction_error / (error + EPSILON)).detach()
