"""What the statistics need to know of a batch of latents, read off its tokens in one go."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_sae_plugin.aggregation.activation_histogram import ActivationHistogram
from vit_sae_plugin.cpu_kernels import load_kernels, run_kernel


@dataclass(frozen=True)
class TokenScan:
    """What each image's tokens say of each latent."""

    total: Float[Tensor, "batch d_sae"]
    """Sum of the activations, in double precision."""
    maximum: Float[Tensor, "batch d_sae"]
    """Largest activation; 0 where none is above 0."""
    n_active: Int[Tensor, "batch d_sae"]
    """Number of tokens above 0."""
    n_above: Int[Tensor, "batch d_sae"]
    """Number of tokens above the threshold."""
    peak_patch: Int[Tensor, "batch d_sae"]
    """The patch with the largest activation, the first of equal ones; −1 if none is above 0."""


def scan_tokens(
    latents_btd: Float[Tensor, "batch token d_sae"],
    patch_of_token: Int[Tensor, " token"],
    threshold: float,
    histogram: ActivationHistogram,
) -> TokenScan:
    """Look at every token of some images, once.

    Args:
        patch_of_token: patch number of each token, rising; −1: not a patch.
        threshold: 0 or more.
        histogram: the positive activations are added to it.
    """
    kernels = load_kernels(__file__) if latents_btd.is_cpu else None
    if kernels is None:
        histogram.add(latents_btd)
        return _scan(latents_btd, patch_of_token.to(latents_btd.device), threshold)
    latents = latents_btd.float().contiguous()
    n_images, n_tokens, d_sae = latents.shape
    shape = (n_images, d_sae)
    total = torch.zeros(shape, dtype=torch.float64)
    maximum, peak = torch.zeros(shape), torch.zeros(shape)
    n_active, n_above = (torch.zeros(shape, dtype=torch.int32) for _ in range(2))
    peak_patch = torch.full_like(n_active, -1)
    patch = patch_of_token.int().contiguous()
    found = (total, maximum, n_active, n_above, peak, peak_patch)
    sizes = (histogram.n_bins, n_images, n_tokens, d_sae)
    tensors = (latents, patch, histogram.edges, *found, histogram.counts)
    run_kernel(kernels.scan_tokens, *tensors, float(threshold), *sizes)
    return TokenScan(total, maximum, n_active, n_above, peak_patch)


def _scan(latents_btd: Tensor, patch: Tensor, threshold: float) -> TokenScan:
    is_patch = patch >= 0
    peak_patch = torch.full_like(latents_btd[:, 0], -1, dtype=torch.int32)
    if is_patch.any():
        largest, place = latents_btd[:, is_patch].max(dim=1)
        peak_patch = torch.where(largest > 0, patch[is_patch].int()[place], peak_patch)
    return TokenScan(
        latents_btd.sum(dim=1, dtype=torch.float64),
        latents_btd.amax(dim=1).clamp(min=0).float(),
        (latents_btd > 0).sum(dim=1, dtype=torch.int32),
        (latents_btd > threshold).sum(dim=1, dtype=torch.int32),
        peak_patch,
    )
