"""How much each class, and the whole data set, activates each latent."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vit_sae_plugin.analysis.counting.latent_batch import LatentBatch


class ClassCounts(nn.Module):
    """Class-level and data-set-level counts (PatchSAE, Eq. 4).

    The count of an image is its number of tokens above the batch's threshold; a class sums its
    images, the data set all images, those without a label too. ``counts`` ``[n_classes, d_sae]``
    holds 32-bit whole numbers, the one table whose size grows with the classes.

    Args:
        n_classes: rows to begin with; more are added when a larger label is seen.
    """

    counts: Tensor
    n_images: Tensor
    dataset_counts: Tensor

    def __init__(self, d_sae: int, n_classes: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(n_classes, d_sae, dtype=torch.int32))
        self.register_buffer("n_images", torch.zeros(n_classes, dtype=torch.int64))
        self.register_buffer("dataset_counts", torch.zeros(d_sae, dtype=torch.int64))

    def update(self, batch: LatentBatch) -> None:
        counts = batch.scan.n_above
        self.dataset_counts += counts.sum(dim=0, dtype=torch.int32)
        labelled = batch.label >= 0
        label = batch.label[labelled]
        if len(label) == 0:
            return
        self._grow(int(label.max()) + 1)
        self.counts.index_add_(0, label, counts[labelled])
        self.n_images.index_add_(0, label, torch.ones_like(label))

    def _grow(self, n_classes: int) -> None:
        missing = n_classes - len(self.n_images)
        if missing > 0:
            more = self.counts.new_zeros(missing, self.counts.shape[1])
            self.counts = torch.cat([self.counts, more])
            self.n_images = torch.cat([self.n_images, self.n_images.new_zeros(missing)])

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:  # type: ignore[no-untyped-def]
        # a saved state may have more classes than were known at the start
        self._grow(len(state_dict[prefix + "n_images"]))
        super()._load_from_state_dict(state_dict, prefix, *args)
