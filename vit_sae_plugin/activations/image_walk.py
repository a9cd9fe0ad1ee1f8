"""Walk over images once, in batches that a model can take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from vit_sae_plugin.datasets.image_loader import ImageLoader

if TYPE_CHECKING:
    from vit_sae_plugin.datasets import ImageSource, SkippedImages
    from vit_sae_plugin.datasets.image_loader import ImageBatch
    from vit_sae_plugin.hooked_vit import HookedViT


class ImageWalk:
    """Batches of preprocessed images, with a progress bar that ends at 100 %.

    Args:
        model: whose preprocessing, device and precision the pixels are for.
        images: where they come from.
        batch_size_images: images in a batch.
        n_images: how many to visit; None: all.
        shuffle: visit a map-style source in a random order fixed by ``seed``, so that ``n_images``
            is a fair sample of it; a stream keeps its own order.
        seed: of that order.
        n_workers: processes that decode images.
        start_batch: the first batch to visit, to go on with a walk that was interrupted.
        progress: show a progress bar.
        description: in front of the bar.

    Attributes:
        n_seen: images given so far in this walk, readable ones only.
        next_batch: number of the batch after the last one given.

    Raises:
        ValueError: the model has no preprocessing, or a number is too small.
    """

    def __init__(
        self,
        model: HookedViT,
        images: ImageSource,
        *,
        batch_size_images: int = 32,
        n_images: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
        n_workers: int = 0,
        start_batch: int = 0,
        progress: bool = False,
        description: str | None = None,
    ):
        if batch_size_images < 1:
            raise ValueError(f"batch_size_images is {batch_size_images}; want 1 or more")
        if n_images is not None and n_images < 1:
            raise ValueError(f"n_images is {n_images}; want 1 or more, or None for all")
        self.model = model
        self.images = images
        self.batch_size_images = batch_size_images
        self.n_images = n_images
        self.progress = progress
        self.description = description
        self.n_seen = 0
        self.next_batch = start_batch
        self.loader = ImageLoader(
            images,
            model.require_preprocess(),
            batch_size_images=batch_size_images,
            n_workers=n_workers,
            shuffle=shuffle and not images.is_streaming,
            seed=seed,
            start_batch=start_batch,
        )

    @property
    def skipped(self) -> SkippedImages:
        """The images that could not be used so far."""
        return self.loader.skipped

    def __iter__(self) -> Iterator[ImageBatch]:
        cfg = self.model.cfg
        n_there = self.images.n_images
        total = n_there if self.n_images is None else min(self.n_images, n_there or self.n_images)
        with tqdm(
            total=total,
            initial=min(self.next_batch * self.batch_size_images, total or 0),
            desc=self.description,
            unit=" images",
            disable=not self.progress,
        ) as bar:
            for batch in self.loader:
                if self.n_images is not None:
                    batch = _first(batch, self.n_images - self.n_seen)
                batch.pixels = batch.pixels.to(cfg.device, cfg.dtype)
                self.n_seen += len(batch.ids)
                self.next_batch = batch.batch_number + 1
                # unreadable images count as visited, so that the bar keeps its share
                n_visited = self.next_batch * self.batch_size_images
                bar.update(min(n_visited, total or n_visited) - bar.n)
                yield batch
                if self.n_seen == self.n_images:
                    break
            if total is not None:
                bar.update(total - bar.n)  # the last batches may hold no readable image


def _first(batch: ImageBatch, n: int) -> ImageBatch:
    if len(batch.ids) > n:
        batch.pixels, batch.index = batch.pixels[:n], batch.index[:n]
        batch.label, batch.ids = batch.label[:n], batch.ids[:n]
    return batch
