"""Which latents are active on the same images, in memory that doesn't grow with the images.

Each latent keeps the images on which it is active that have the smallest hashes: a bottom-k
sketch (Cohen and Kaplan, 2007). It is a uniform sample of those images, the same whatever their
order, and complete while there are at most k of them. All latents hash an image alike, so what
two sketches share tells how many images two latents share.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from vit_sae_plugin.analysis.atlas.latent_tables import Partners
from vit_sae_plugin.analysis.counting.largest_keys import INDEX_LIMIT, LargestKeys, pack, unpack
from vit_sae_plugin.analysis.counting.latent_batch import LatentBatch

_PAIRS_AT_ONCE = 2**22
_CROWDED = 1 / 32
"""Share of all latents above which an image's pairs are counted by a matrix product."""


class CoActivation(nn.Module):
    """Counts the images on which two latents are both active (above 0 at any token).

    Exact for latents active on at most ``n_sampled_images`` images. Beyond, the overlap of two
    latents is estimated from a uniform sample, of that many images, of the more frequent one;
    with 256 the standard error of a share of one half is 3 %.
    """

    def __init__(self, d_sae: int, n_sampled_images: int = 256) -> None:
        super().__init__()
        self.sketch = LargestKeys(d_sae, n_sampled_images)

    def update(self, batch: LatentBatch) -> None:
        n_active, hashed = batch.scan.n_active, scramble(batch.index)
        # the smaller the hash, the larger the value; it is positive, and float32 keeps the order
        value = (INDEX_LIMIT - hashed).float()
        self.sketch.offer((n_active > 0) * value[:, None], hashed, n_active)

    @torch.no_grad()
    def partners(
        self, n_active_images: Int[Tensor, " d_sae"], n_partners: int, progress: bool = False
    ) -> Partners:
        """Each latent's partners with the largest Jaccard index.

        That is the number of images on which both are active ÷ the number on which either is.
        Among equal ones the smaller latent index comes first.

        Args:
            n_active_images: on how many images each latent is active.
        """
        self.sketch.settle()
        keys = self.sketch.keys.cpu()
        n_active = n_active_images.cpu().double()
        d_sae = len(keys)
        n_partners = min(n_partners, d_sae - 1)
        n_kept = (keys > 0).sum(dim=1)
        # an image in a sketch stands for this many of the latent's images
        weight = n_active / n_kept.clamp(min=1)
        threshold = torch.where(n_kept < keys.shape[1], 0, keys[:, -1])
        by_image = _ImageIndex(keys)

        best_latent = torch.full((d_sae, n_partners), -1)
        best_score = torch.full((d_sae, n_partners), torch.nan)
        column = torch.arange(d_sae)
        rows_at_once = max(1, _PAIRS_AT_ONCE // d_sae)
        starts = range(0, d_sae, rows_at_once)
        for start in tqdm(starts, desc="co-activation", disable=not progress, leave=False):
            rows = slice(start, min(start + rows_at_once, d_sae))
            shared = by_image.shared_counts(rows).double()
            # of two samples the one that reaches less far covers both: it belongs to the latent
            # with the larger threshold (keys fall as hashes grow)
            reaches_less = threshold[rows, None] >= threshold
            both = shared.mul_(torch.where(reaches_less, weight[rows, None], weight))
            jaccard = both.div_(n_active[rows, None] + n_active - both).clamp_(max=1).float()
            jaccard[torch.arange(len(jaccard)), column[rows]] = 0
            packed = pack(jaccard, column).masked_fill_(jaccard <= 0, 0)
            score, latent = unpack(packed.topk(n_partners, dim=1).values)
            best_latent[rows], best_score[rows] = latent, score
        return Partners(best_latent.numpy(), best_score.numpy())


class _ImageIndex:
    """The sketches turned round: for each sampled image, the latents that sampled it.

    Pairs of latents are counted in two ways. Of images that few latents sampled, each pair is
    looked up; of those that many did, as dense latents do, whole blocks of pairs are counted by a
    matrix product, for each pair looked up takes a thousand times as long as one multiplied.
    """

    def __init__(self, keys: Int[Tensor, "d_sae k"]) -> None:
        self.d_sae = len(keys)
        latent, column = (keys > 0).nonzero(as_tuple=True)
        key, order = keys[latent, column].sort(stable=True)
        latent = latent[order]
        _, group, size = key.unique_consecutive(return_inverse=True, return_counts=True)
        is_crowded = size > _CROWDED * self.d_sae
        self.crowded = torch.zeros(int(is_crowded.sum()), self.d_sae)
        """One row an image that many latents sampled: 1 where a latent did."""
        within = is_crowded[group]
        row_of_group = is_crowded.cumsum(0) - 1
        self.crowded[row_of_group[group[within]], latent[within]] = 1
        self.latent = latent[~within]
        """The other images' latents, image by image."""
        size = torch.where(is_crowded, 0, size)
        self.size = size[group[~within]]
        """For each entry, how many latents its image has."""
        self.start = (size.cumsum(0) - size)[group[~within]]
        """For each entry, where the latents of its image begin."""
        self.by_latent = self.latent.argsort(stable=True)
        """The entries, sorted by latent."""
        self.n_before = torch.bincount(self.latent + 1, minlength=self.d_sae + 1).cumsum(0)
        """For each latent, how many entries the latents before it have."""

    def shared_counts(self, rows: slice) -> Float[Tensor, "row d_sae"]:
        """How many sampled images each latent of ``rows`` shares with each latent."""
        crowded = self.crowded[:, rows].T @ self.crowded
        own = self.by_latent[int(self.n_before[rows.start]) : int(self.n_before[rows.stop])]
        if len(own) == 0:
            return crowded
        counts = torch.zeros(crowded.numel(), dtype=torch.int32)
        n_parts = int(self.size[own].sum()) // _PAIRS_AT_ONCE + 1
        for part in own.tensor_split(n_parts):
            size = self.size[part]
            first = size.cumsum(0) - size
            step = torch.arange(int(size.sum())) - first.repeat_interleave(size)
            partner = self.latent[self.start[part].repeat_interleave(size) + step]
            row = (self.latent[part] - rows.start).repeat_interleave(size)
            cell = row * self.d_sae + partner
            counts.index_add_(0, cell, torch.ones_like(cell, dtype=torch.int32))
        return crowded + counts.view_as(crowded)


def scramble(index: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Hash 32-bit whole numbers one to one (the finaliser of MurmurHash3; public domain)."""
    mask = INDEX_LIMIT - 1
    index = index & mask
    index = ((index ^ (index >> 16)) * 0x85EBCA6B) & mask
    index = ((index ^ (index >> 13)) * 0xC2B2AE35) & mask
    return index ^ (index >> 16)
