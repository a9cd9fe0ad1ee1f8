"""Which latents are active on the same images, in memory that doesn't grow with the images.

Each latent keeps the images on which it is active that have the smallest hashes: a bottom-k
sketch (Cohen and Kaplan, 2007). It is a uniform sample of those images, the same whatever their
order, and complete while there are at most k of them. All latents hash an image alike, so what
two sketches share tells how many images two latents share.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor, nn
from tqdm import tqdm

from vit_sae_plugin.analysis.atlas.latent_tables import Partners
from vit_sae_plugin.analysis.counting.largest_keys import INDEX_LIMIT, LargestKeys, pack, unpack
from vit_sae_plugin.analysis.counting.latent_batch import LatentBatch

_PAIRS_AT_ONCE = 2**24


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
        rows_at_once = max(1, _PAIRS_AT_ONCE // d_sae)
        starts = range(0, d_sae, rows_at_once)
        for start in tqdm(starts, desc="co-activation", disable=not progress, leave=False):
            rows = slice(start, min(start + rows_at_once, d_sae))
            shared = by_image.shared_counts(rows).double()
            # of two samples the one that reaches less far covers both: it belongs to the latent
            # with the larger threshold (keys fall as hashes grow)
            reaches_less = threshold[rows, None] >= threshold
            both = shared * torch.where(reaches_less, weight[rows, None], weight)
            jaccard = (both / (n_active[rows, None] + n_active - both)).clamp(max=1)
            jaccard[torch.arange(len(jaccard)), torch.arange(rows.start, rows.stop)] = 0
            row, column = (jaccard > 0).nonzero(as_tuple=True)
            packed = torch.zeros(jaccard.shape, dtype=torch.int64)
            packed[row, column] = pack(jaccard[row, column].float(), column)
            score, latent = unpack(packed.topk(n_partners, dim=1).values)
            best_latent[rows], best_score[rows] = latent, score
        return Partners(best_latent.numpy(), best_score.numpy())


class _ImageIndex:
    """The sketches turned round: for each sampled image, the latents that sampled it."""

    def __init__(self, keys: Int[Tensor, "d_sae k"]) -> None:
        self.d_sae = len(keys)
        latent, column = (keys > 0).nonzero(as_tuple=True)
        key, order = keys[latent, column].sort(stable=True)
        self.latent = latent[order]
        _, group, size = key.unique_consecutive(return_inverse=True, return_counts=True)
        self.size = size[group]
        """For each entry, how many latents its image has."""
        self.start = (size.cumsum(0) - size)[group]
        """For each entry, where the latents of its image begin."""

    def shared_counts(self, rows: slice) -> Int[Tensor, "row d_sae"]:
        """How many sampled images each latent of ``rows`` shares with each latent."""
        in_rows = ((self.latent >= rows.start) & (self.latent < rows.stop)).nonzero().flatten()
        counts = torch.zeros((rows.stop - rows.start) * self.d_sae, dtype=torch.int32)
        reach = self.size[in_rows].cumsum(0)
        n_parts = int(reach[-1]) // _PAIRS_AT_ONCE + 1 if len(in_rows) else 0
        for part in in_rows.tensor_split(n_parts) if n_parts else ():
            size = self.size[part]
            first = size.cumsum(0) - size
            step = torch.arange(int(size.sum())) - first.repeat_interleave(size)
            partner = self.latent[self.start[part].repeat_interleave(size) + step]
            row = (self.latent[part] - rows.start).repeat_interleave(size)
            cell = row * self.d_sae + partner
            counts.index_add_(0, cell, torch.ones_like(cell, dtype=torch.int32))
        return counts.view(-1, self.d_sae)


def scramble(index: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Hash 32-bit whole numbers one to one (the finaliser of MurmurHash3; public domain)."""
    mask = INDEX_LIMIT - 1
    index = index & mask
    index = ((index ^ (index >> 16)) * 0x85EBCA6B) & mask
    index = ((index ^ (index >> 13)) * 0xC2B2AE35) & mask
    return index ^ (index >> 16)
