"""The images that show best what a latent responds to."""

from __future__ import annotations

from jaxtyping import Int
from torch import Tensor, nn

from vit_sae_plugin.aggregation import ImageAggregation
from vit_sae_plugin.analysis.atlas.latent_tables import ReferenceTable
from vit_sae_plugin.analysis.counting.largest_keys import LargestKeys, unpack
from vit_sae_plugin.analysis.counting.latent_batch import LatentBatch


class ReferenceImages(nn.Module):
    """For each latent, the k images highest under one aggregation (PatchSAE, section 3).

    Only images with a positive value count, so a dead latent has none. Among equal values the
    image with the smaller index comes first.

    Args:
        aggregation: ``mean`` is what the released code ranks by, ``count`` what the paper says.
        k: number of images.
    """

    def __init__(self, d_sae: int, k: int, aggregation: ImageAggregation) -> None:
        super().__init__()
        self.aggregation = aggregation
        self.largest = LargestKeys(d_sae, k, with_payload=True)

    def update(self, batch: LatentBatch) -> Int[Tensor, " n"]:
        """Take in a batch; returns the positions in it of images that entered somewhere."""
        values = batch.image_level(self.aggregation)
        return self.largest.offer(values, batch.index, batch.scan.peak_patch)

    def table(self) -> ReferenceTable:
        self.largest.settle()
        value, image = unpack(self.largest.keys)
        peak_patch = self.largest.payload.masked_fill(image < 0, -1)
        return ReferenceTable(image.cpu().numpy(), value.cpu().numpy(), peak_patch.cpu().numpy())
