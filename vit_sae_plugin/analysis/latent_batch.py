"""One batch of latents, and the few things every statistic asks of it, computed once."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_sae_plugin.aggregation import (
    CountAboveThreshold,
    ImageAggregation,
    MaxOverTokens,
    MeanOverTokens,
)


@dataclass
class ActiveEntries:
    """The positive activations of a batch, one entry for each."""

    value: Float[Tensor, " n"]
    image: Int[Tensor, " n"]
    """Position of the image in the batch."""
    latent: Int[Tensor, " n"]


@dataclass
class LatentBatch:
    """Latents of a few images, with their place in the data set.

    The dense tensor is read a handful of times only (sum, maximum, one search for its positive
    entries): everything else works on the few entries found, or on ``[image, latent]``.
    """

    latents_btd: Float[Tensor, "batch token d_sae"]
    index: Int[Tensor, " batch"]
    """Index of each image in its source."""
    label: Int[Tensor, " batch"]
    """Class index of each image, −1 for none."""
    _image_level: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def n_images(self) -> int:
        return self.latents_btd.shape[0]

    @property
    def n_tokens(self) -> int:
        """Tokens of each image."""
        return self.latents_btd.shape[1]

    @property
    def d_sae(self) -> int:
        return self.latents_btd.shape[2]

    @cached_property
    def mean(self) -> Float[Tensor, "batch d_sae"]:
        """Mean over each image's tokens."""
        return self.latents_btd.mean(dim=1, dtype=torch.float32)

    @cached_property
    def maximum(self) -> Float[Tensor, "batch d_sae"]:
        """Maximum over each image's tokens."""
        return self.latents_btd.amax(dim=1).float()

    @cached_property
    def active(self) -> ActiveEntries:
        """All entries above zero."""
        latents_btd = self.latents_btd.contiguous()
        flat = latents_btd.view(-1)
        position = _positions_above_zero(flat)
        value = flat[position].float()
        d_sae, per_image = self.d_sae, self.n_tokens * self.d_sae
        return ActiveEntries(value, _floor_divide(position, per_image), _modulo(position, d_sae))

    def count_above(self, threshold: float) -> Int[Tensor, "batch d_sae"]:
        """How many tokens of each image are above a threshold of 0 or more."""
        entries = self.active
        above = entries.value > threshold
        cell = (entries.image * self.d_sae + entries.latent)[above]
        count = torch.zeros(self.n_images * self.d_sae, dtype=torch.int32, device=cell.device)
        count.index_add_(0, cell, torch.ones_like(cell, dtype=torch.int32))
        return count.view(self.n_images, self.d_sae)

    def image_level(self, aggregation: ImageAggregation) -> Float[Tensor, "batch d_sae"]:
        """The latents of each image under an aggregation, kept for the next who asks."""
        key = repr(aggregation)
        if key not in self._image_level:
            self._image_level[key] = self._aggregate(aggregation)
        return self._image_level[key]

    def _aggregate(self, aggregation: ImageAggregation) -> Tensor:
        if aggregation.tokens == "all":
            # the common ones are at hand already
            kind = type(aggregation)
            if kind is MeanOverTokens:
                return self.mean
            if kind is MaxOverTokens:
                return self.maximum
            if isinstance(aggregation, CountAboveThreshold):
                return self.count_above(aggregation.threshold).float()
        return aggregation(self.latents_btd).float()


def _positions_above_zero(flat: Tensor) -> Tensor:
    if flat.device.type != "cpu" or flat.dtype not in (torch.float32, torch.float64):
        return (flat > 0).nonzero().flatten()
    # on the CPU numpy finds them about three times faster than torch
    return torch.from_numpy(np.flatnonzero(flat.numpy() > 0))


def _floor_divide(position: Tensor, divisor: int) -> Tensor:
    return position.div(divisor, rounding_mode="floor")


def _modulo(position: Tensor, divisor: int) -> Tensor:
    if divisor & (divisor - 1) == 0:
        return position & (divisor - 1)
    return position % divisor
