"""One batch of latents, and the few things every statistic asks of it, computed once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Float, Int
from torch import Tensor

from vit_sae_plugin.aggregation import (
    CountAboveThreshold,
    ImageAggregation,
    MaxOverTokens,
    MeanOverTokens,
)
from vit_sae_plugin.analysis.counting.token_scan import TokenScan


@dataclass
class LatentBatch:
    """Latents of a few images, with their place in the data set."""

    latents_btd: Float[Tensor, "batch token d_sae"]
    index: Int[Tensor, " batch"]
    """Index of each image in its source."""
    label: Int[Tensor, " batch"]
    """Class index of each image, −1 for none."""
    scan: TokenScan
    """What the tokens say of each image and latent."""
    threshold: float
    """Of the tokens counted."""

    @property
    def n_images(self) -> int:
        return self.latents_btd.shape[0]

    @property
    def n_tokens(self) -> int:
        """Tokens of each image."""
        return self.latents_btd.shape[1]

    @cached_property
    def mean(self) -> Float[Tensor, "batch d_sae"]:
        """Mean over each image's tokens."""
        return (self.scan.total / self.n_tokens).float()

    def image_level(self, aggregation: ImageAggregation) -> Float[Tensor, "batch d_sae"]:
        """The latents of each image under an aggregation."""
        if aggregation.tokens == "all":
            # the common ones are at hand already
            kind = type(aggregation)
            if kind is MeanOverTokens:
                return self.mean
            if kind is MaxOverTokens:
                return self.scan.maximum
            if kind is CountAboveThreshold and aggregation.threshold == self.threshold:
                return self.scan.n_above.float()
        return aggregation(self.latents_btd).float()
