"""Spatial coherence: whether the patches that activate a latent lie together.

Moran's I (1950) of a latent's map over patches, whose eight neighbours weigh the same: near 1 where
neighbours are alike, −1 ÷ (patches − 1) on average where patches lie in random order.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from vit_sae_plugin.evaluation.bootstrap import resampled_counts
from vit_sae_plugin.evaluation.monosemanticity import N_BLOCKS, block_of_image

FEWEST_ACTIVE, LARGEST_SHARE_ACTIVE = 5, 0.9


class SpatialCoherence(NamedTuple):
    """Mean of Moran's I over the maps of each feature; NaN where too few maps count."""

    score: Float[np.ndarray, " features"]
    n_maps: Int[np.ndarray, " features"]
    chance: float
    """What maps of patches in random order have on average."""
    resampled: Float[np.ndarray, " n_resamples"]
    """Mean over the features that have a score, in each resample of the images."""


def morans_i(
    maps: Float[Tensor, "images rows columns features"],
) -> Float[Tensor, "images features"]:
    """Moran's I of each map over a grid, with eight neighbours; NaN of a constant map.

    ``N/W · Σ_ij w_ij (x_i − x̄)(x_j − x̄) / Σ_i (x_i − x̄)²``, with w_ij = 1 for neighbours.
    """
    rows, columns = maps.shape[1:3]
    n_pairs = 2 * (4 * rows * columns - 3 * (rows + columns) + 2)
    if n_pairs == 0:
        return maps.new_full((len(maps), maps.shape[3]), torch.nan)
    centred = (maps - maps.mean((1, 2), keepdim=True)).permute(0, 3, 1, 2)
    around = 9 * functional.avg_pool2d(centred, 3, stride=1, padding=1) - centred
    products = (centred * around).sum((2, 3))
    spread = centred.square().sum((2, 3))
    scale = rows * columns / n_pairs
    return torch.where(spread > 0, scale * products / spread, torch.nan)


class SpatialCoherenceTotals:
    """One pass over images; the maps that count have at least 5 active patches and at most 90 %.

    Args:
        n_features: how many are scored.
        grid: rows and columns of patches.
        min_maps: features with fewer maps that count have no score.
        n_blocks: of images, which the bootstrap draws anew.
    """

    def __init__(
        self, n_features: int, grid: tuple[int, int], min_maps: int = 50, n_blocks: int = N_BLOCKS
    ):
        self.n_patches = grid[0] * grid[1]
        self.min_maps, self.n_blocks = min_maps, n_blocks
        self._sum = torch.zeros(n_blocks, n_features, dtype=torch.float64)
        self._n = torch.zeros(n_blocks, n_features, dtype=torch.float64)

    def update(
        self,
        maps: Float[Tensor, "images rows columns features"],
        index: Int[Tensor, " images"],
    ) -> None:
        """Add the maps of images; a patch is active above 0."""
        n_active = (maps > 0).sum((1, 2))
        most = LARGEST_SHARE_ACTIVE * self.n_patches
        counts = (n_active >= FEWEST_ACTIVE) & (n_active <= most)
        score = morans_i(maps.float())
        counts &= score.isfinite()
        score = torch.where(counts, score, 0).double().cpu()
        block = block_of_image(index, self.n_blocks)
        self._sum.index_add_(0, block, score)
        self._n.index_add_(0, block, counts.double().cpu())

    def compute(self, n_resamples: int = 1000, seed: int = 0) -> SpatialCoherence:
        """The means of all maps so far."""
        n, total = self._n.numpy(), self._sum.numpy()
        shown = n.sum(0) >= max(1, self.min_maps)
        drawn = resampled_counts(self.n_blocks, n_resamples, seed)
        with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
            warnings.simplefilter("ignore", RuntimeWarning)  # of means of nothing
            score = np.where(shown, total.sum(0) / n.sum(0), np.nan)
            resampled = np.nanmean((drawn @ total[:, shown]) / (drawn @ n[:, shown]), axis=1)
        chance = -1 / max(1, self.n_patches - 1)
        return SpatialCoherence(score, n.sum(0).astype(int), chance, resampled)
