"""How often and how strongly each latent is active, collected batch by batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vit_sae_plugin.analysis.counting.latent_batch import LatentBatch


class LatentStatistics(nn.Module):
    """Counts, sums and maxima for each latent (PatchSAE, section 3).

    Counts are whole numbers and sums are kept in double precision, so the order and the batching
    of images don't show in the result.
    """

    n_images: Tensor
    n_tokens: Tensor
    n_active_images: Tensor
    n_active_tokens: Tensor
    n_positive_means: Tensor
    sum_of_positive_means: Tensor
    maximum: Tensor

    def __init__(self, d_sae: int) -> None:
        super().__init__()
        for name in ("n_images", "n_tokens"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        for name in ("n_active_images", "n_active_tokens", "n_positive_means"):
            self.register_buffer(name, torch.zeros(d_sae, dtype=torch.int64))
        self.register_buffer("sum_of_positive_means", torch.zeros(d_sae, dtype=torch.float64))
        self.register_buffer("maximum", torch.zeros(d_sae))

    def update(self, batch: LatentBatch) -> None:
        self.n_images += batch.n_images
        self.n_tokens += batch.n_images * batch.n_tokens
        n_active, positive = batch.scan.n_active, batch.mean.clamp(min=0)
        # int32 and float32 are enough for a batch, and several times faster
        self.n_active_images += n_active.clamp(max=1).sum(dim=0, dtype=torch.int32)
        self.n_active_tokens += n_active.sum(dim=0, dtype=torch.int32)
        self.n_positive_means += positive.sign().sum(dim=0).int()
        self.sum_of_positive_means += positive.sum(dim=0, dtype=torch.float64)
        torch.maximum(self.maximum, batch.scan.maximum.amax(dim=0), out=self.maximum)

    @property
    def is_dead(self) -> Tensor:
        """Never above zero, in any token of any image. ``[d_sae]``"""
        return self.n_active_images == 0

    def frequency(self) -> Tensor:
        """Activated frequency: share of images in which any token is above 0. ``[d_sae]``"""
        return self.n_active_images / self.n_images

    def token_frequency(self) -> Tensor:
        """Share of tokens at which it is above 0. ``[d_sae]``"""
        return self.n_active_tokens / self.n_tokens

    def mean_activation(self) -> Tensor:
        """Mean over images of the image's token-mean, over the images where that is positive.

        ``[d_sae]``; missing (NaN) where there is no such image.
        """
        return (self.sum_of_positive_means / self.n_positive_means).float()

    def max_activation(self) -> Tensor:
        """Largest activation at any token. ``[d_sae]``; missing (NaN) for dead latents."""
        return self.maximum.masked_fill(self.is_dead, torch.nan)
