"""From images to classes and to the data set, one batch at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vit_sae_plugin.aggregation.registry import register_aggregation


class ClassAggregation(nn.Module, ABC):
    """Collects image-level latents into one row for each class (PatchSAE, Eq. 4).

    :meth:`update` with each batch, then :meth:`compute` and :meth:`compute_dataset`; or call the
    module with all images at once. Classes are told apart by index, never by name. Sums are kept
    in double precision, so neither the order nor the batching of images shows in the result.

    Args:
        n_classes: number of classes; labels are 0 … n_classes − 1, and −1 where an image has none.
        d_sae: number of latents.
    """

    level: ClassVar[str] = "class"
    registered_name: ClassVar[str] = ""
    sums: Tensor
    n_images: Tensor

    def __init__(self, *, n_classes: int, d_sae: int) -> None:
        super().__init__()
        self.n_classes = n_classes
        # the last row collects images without a label: part of the data set, of no class
        self.register_buffer("sums", torch.zeros(n_classes + 1, d_sae, dtype=torch.float64))
        self.register_buffer("n_images", torch.zeros(n_classes + 1, dtype=torch.int64))

    def reset(self) -> None:
        """Forget all images."""
        self.sums.zero_()
        self.n_images.zero_()

    @torch.no_grad()
    def update(
        self, image_latents: Float[Tensor, "image d_sae"], labels: Int[Tensor, " image"]
    ) -> None:
        """Add images.

        Args:
            image_latents: dense or sparse.
            labels: class index of each image, −1 for none.

        Raises:
            ValueError: a label is out of range, or there is not one for each image.
        """
        if len(labels) != len(image_latents):
            raise ValueError(f"got {len(image_latents)} images and {len(labels)} labels")
        if len(labels) and not -1 <= int(labels.min()) <= int(labels.max()) < self.n_classes:
            raise ValueError(
                f"labels run from {int(labels.min())} to {int(labels.max())}; want -1 (none) to "
                f"{self.n_classes - 1}"
            )
        if image_latents.is_sparse:
            image_latents = image_latents.to_dense()
        rows = torch.where(labels < 0, self.n_classes, labels).to(self.sums.device)
        self.sums.index_add_(0, rows, image_latents.to(self.sums))
        self.n_images.index_add_(0, rows, torch.ones_like(rows))

    def forward(
        self, image_latents: Float[Tensor, "image d_sae"], labels: Int[Tensor, " image"]
    ) -> Float[Tensor, "n_classes d_sae"]:
        """The class rows of these images alone; what was collected before is forgotten."""
        self.reset()
        self.update(image_latents, labels)
        return self.compute()

    @abstractmethod
    def compute(self) -> Float[Tensor, "n_classes d_sae"]:
        """One row for each class, over all images seen since the last reset."""

    @abstractmethod
    def compute_dataset(self) -> Float[Tensor, " d_sae"]:
        """The data set's row: all images, those without a label too."""


@register_aggregation("sum")
class ClassSum(ClassAggregation):
    """Sum over the images of a class."""

    def compute(self) -> Float[Tensor, "n_classes d_sae"]:
        return self.sums[:-1].clone()

    def compute_dataset(self) -> Float[Tensor, " d_sae"]:
        return self.sums.sum(dim=0)


@register_aggregation("mean")
class ClassMean(ClassAggregation):
    """Mean over the images of a class; NaN for a class without images.

    The data set's row is the mean over images, not over classes.
    """

    def compute(self) -> Float[Tensor, "n_classes d_sae"]:
        return self.sums[:-1] / self.n_images[:-1, None]

    def compute_dataset(self) -> Float[Tensor, " d_sae"]:
        return self.sums.sum(dim=0) / self.n_images.sum()
