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
    cell: Int[Tensor, " n"]
    """Place of (image, latent) in a flattened ``[image, latent]``."""


@dataclass
class LatentBatch:
    """Latents of a few images, with their place in the data set.

    The dense tensor is read twice only (for negative values, and for its positive entries):
    everything else works on the few entries found, or on ``[image, latent]``.
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
        if self.latents_btd.min() < 0:
            return self.latents_btd.mean(dim=1, dtype=torch.float32)
        n_cells = self.n_images * self.d_sae
        total = torch.bincount(self.active.cell, self.active.value.double(), minlength=n_cells)
        return (total / self.n_tokens).float().view(self.n_images, self.d_sae)

    @cached_property
    def maximum(self) -> Float[Tensor, "batch d_sae"]:
        """Maximum over each image's tokens; 0 where none is above zero."""
        entries = self.active
        largest = torch.zeros(self.n_images * self.d_sae, device=entries.value.device)
        if largest.is_cpu:  # numpy is faster at this, as at what follows
            np.maximum.at(largest.numpy(), entries.cell.numpy(), entries.value.numpy())
        else:
            largest.scatter_reduce_(0, entries.cell, entries.value, "amax")
        return largest.view(self.n_images, self.d_sae)

    @cached_property
    def active(self) -> ActiveEntries:
        """All entries above zero."""
        flat = self.latents_btd.contiguous().view(-1)
        position = _positions_above_zero(flat)
        # positions rise, so the few ends of rows are found faster than each position's row
        ends = torch.arange(1, self.n_images * self.n_tokens + 1, device=flat.device) * self.d_sae
        n_in_row = torch.searchsorted(position, ends).diff(prepend=ends.new_zeros(1))
        row = torch.arange(len(ends), device=flat.device)
        latent = position - (row * self.d_sae).repeat_interleave(n_in_row)
        image = (row // self.n_tokens).repeat_interleave(n_in_row)
        return ActiveEntries(_take(flat, position), image, latent, image * self.d_sae + latent)

    def count_above(self, threshold: float) -> Int[Tensor, "batch d_sae"]:
        """How many tokens of each image are above a threshold of 0 or more."""
        entries = self.active
        above = (entries.value > threshold).double()
        count = torch.bincount(entries.cell, above, minlength=self.n_images * self.d_sae)
        return count.view(self.n_images, self.d_sae).int()

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


def _take(flat: Tensor, position: Tensor) -> Tensor:
    if flat.device.type != "cpu" or flat.dtype != torch.float32:
        return flat[position].float()
    return torch.from_numpy(flat.numpy().take(position.numpy()))
