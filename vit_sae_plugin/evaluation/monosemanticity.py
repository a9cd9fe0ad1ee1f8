"""Monosemanticity: how alike the images are that activate a latent, under an independent encoder.

The score of sae-for-vlm (Pach et al. 2025, arXiv 2504.02821): the mean cosine similarity of all
pairs of images, each pair weighted by the product of the two images' activations, min-max scaled
for each latent. Written out that is a sum over pairs, quadratic in images. But for unit embeddings
e and weights a

    Σ_{i<j} a_i a_j e_i·e_j = ½ (‖Σ a_i e_i‖² − Σ a_i²)
    Σ_{i<j} a_i a_j         = ½ ((Σ a_i)² − Σ a_i²)

so sums over images suffice. Nor need the smallest activation be known beforehand: with a − m in
place of a, each sum changes by a term that other sums give. The scale cancels in the ratio.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_sae_plugin.evaluation.bootstrap import percentiles, resampled_counts

N_BLOCKS = 20
_MAX_VALUES = 2**24


class Monosemanticity(NamedTuple):
    """Scores of features, each with its interval; NaN where fewer than two images count."""

    score: Float[np.ndarray, " features"]
    low: Float[np.ndarray, " features"]
    high: Float[np.ndarray, " features"]
    chance: float
    """The score of a feature equally active on all images: their mean cosine similarity."""
    resampled_sum: Float[np.ndarray, " n_resamples"]
    """In each resample the sum of the scores of all features that have one."""
    resampled_n: Int[np.ndarray, " n_resamples"]
    """How many those are."""


class MonosemanticityTotals:
    """One pass over images, in memory that doesn't grow with them.

    That is ``n_blocks · n_features · d_embed · 8`` bytes: images fall into blocks by their index,
    and blocks are what the bootstrap draws anew. It weighs a pair of images by the product of how
    often their blocks were drawn, so that no image is ever paired with itself.

    Args:
        n_features: how many are scored.
        n_blocks: of images.
    """

    def __init__(self, n_features: int, n_blocks: int = N_BLOCKS):
        if n_blocks < 2:
            raise ValueError(f"n_blocks is {n_blocks}; want 2 or more, to resample")
        self.n_features, self.n_blocks = n_features, n_blocks
        self._smallest = torch.full((n_features,), torch.inf, dtype=torch.float64)
        self._sum = torch.zeros(n_blocks, n_features, dtype=torch.float64)
        self._sum_of_squares = torch.zeros(n_blocks, n_features, dtype=torch.float64)
        self._n = torch.zeros(n_blocks, dtype=torch.float64)
        self._weighted: Tensor | None = None
        self._embeddings = torch.zeros(0)

    def update(
        self,
        features: Float[Tensor, "images features"],
        embeddings: Float[Tensor, "images d_embed"],
        index: Int[Tensor, " images"],
    ) -> None:
        """Add images.

        Args:
            features: how strongly each image activates each feature.
            embeddings: of the images, of any length but 0, by an encoder other than the SAE's.
            index: the images' indices, by which they fall into blocks.

        Raises:
            ValueError: an embedding or a feature isn't finite, or an embedding has length 0.
        """
        features, unit = features.double().cpu(), unit_rows(embeddings)
        if features.shape != (len(unit), self.n_features):
            raise ValueError(
                f"features have shape {tuple(features.shape)}; want "
                f"({len(unit)}, {self.n_features}), a row for each embedding"
            )
        if not features.isfinite().all():
            raise ValueError("a feature holds NaN or infinity; want finite numbers")
        if self._weighted is None:
            width = unit.shape[1]
            shape = (self.n_blocks, self.n_features, width)
            self._weighted = torch.zeros(shape, dtype=torch.float64)
            self._embeddings = torch.zeros(self.n_blocks, width, dtype=torch.float64)
        self._smallest = torch.minimum(self._smallest, features.amin(0))
        block_of = block_of_image(index, self.n_blocks)
        for block in block_of.unique().tolist():
            chosen = block_of == block
            some, of_them = features[chosen], unit[chosen]
            self._sum[block] += some.sum(0)
            self._sum_of_squares[block] += some.square().sum(0)
            self._n[block] += len(some)
            self._weighted[block] += some.T @ of_them
            self._embeddings[block] += of_them.sum(0)

    def compute(self, n_resamples: int = 1000, seed: int = 0) -> Monosemanticity:
        """The scores of all images so far, with 95 % intervals over images.

        Raises:
            ValueError: fewer than two images.
        """
        if self._weighted is None or self._n.sum() < 2:
            raise ValueError(f"there are {int(self._n.sum())} images; want 2 or more, to compare")
        counts = torch.from_numpy(resampled_counts(self.n_blocks, n_resamples, seed))
        # the first is no resample: every block once
        counts = torch.cat([torch.ones(1, self.n_blocks, dtype=torch.float64), counts])
        scores = []
        at_once = max(1, _MAX_VALUES // (len(counts) * self.n_blocks))
        for part in torch.arange(self.n_features).split(at_once):
            scores.append(self._scores(self._weighted[:, part], part, counts))
        found = torch.cat(scores, 1).numpy()
        low, high = percentiles(found[1:])
        has_score = ~np.isnan(found[0])
        resampled = found[1:, has_score]
        return Monosemanticity(
            found[0],
            np.where(has_score, low, np.nan),
            np.where(has_score, high, np.nan),
            self._chance(),
            np.nansum(resampled, axis=1),
            (~np.isnan(resampled)).sum(axis=1),
        )

    def _scores(
        self, weighted: Tensor, part: Tensor, counts: Tensor
    ) -> Float[Tensor, "resamples features"]:
        """The score of some features when blocks count as often as said."""
        smallest = self._smallest[part]
        total = self._sum[:, part] - self._n[:, None] * smallest
        squares = self._sum_of_squares[:, part] - 2 * smallest * self._sum[:, part]
        squares = (squares + self._n[:, None] * smallest**2).clamp(min=0)
        weighted = weighted - smallest[:, None] * self._embeddings[:, None]
        alike = torch.einsum("bfd,cfd->fbc", weighted, weighted)
        own_pairs = counts.square() @ squares
        length = torch.einsum("rb,fbc,rc->rf", counts, alike, counts)
        all_pairs = (counts @ total).square() - own_pairs
        # an only image, or nothing but rounding, makes no pairs
        has_pairs = all_pairs > 1e-12 * own_pairs
        return torch.where(has_pairs, (length - own_pairs) / all_pairs, torch.nan)

    def _chance(self) -> float:
        n = self._n.sum()
        return float((self._embeddings.sum(0).square().sum() - n) / (n * n - n))


def unit_rows(embeddings: Float[Tensor, "images d_embed"]) -> Float[Tensor, "images d_embed"]:
    """Embeddings divided by their lengths, in double precision, on the CPU.

    Raises:
        ValueError: one isn't finite, or has length 0.
    """
    embeddings = embeddings.double().cpu()
    if not embeddings.isfinite().all():
        raise ValueError("an embedding holds NaN or infinity; want finite numbers")
    length = embeddings.norm(dim=-1, keepdim=True)
    if (length == 0).any():
        raise ValueError("an embedding has length 0, and so no direction; leave that image out")
    return embeddings / length


def block_of_image(index: Int[Tensor, " images"], n_blocks: int) -> Int[Tensor, " images"]:
    """The block that each image falls into, whatever the order of images and of their classes."""
    mixed = (index.long().cpu() * 0x9E3779B1) & 0xFFFFFFFF  # Fibonacci hashing (Knuth, 6.4)
    return (mixed * n_blocks) >> 32
