"""The images of one shard after another, from one loader for as long as shards follow on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from vit_sae_plugin.activations.cache.cache_plan import CachePlan, ShardRange
from vit_sae_plugin.datasets import ImageSource, SkippedImages
from vit_sae_plugin.datasets.image_loader import ImageBatch, ImageLoader, Preprocess


class ImageFeed:
    """Batches of a shard's preprocessed images.

    A loader's processes decode ahead, so one that has just given a shard's last batch goes on with
    the shard after it; any other shard begins a new loader.

    Args:
        plan: the cache's.
        images: one of its sources.
        preprocess: the model's.
        n_workers: processes that decode images.
    """

    def __init__(
        self, plan: CachePlan, images: ImageSource, preprocess: Preprocess, n_workers: int = 0
    ) -> None:
        self.plan = plan
        self.images = images
        self.preprocess = preprocess
        self.n_workers = n_workers
        self._loader: ImageLoader | None = None
        self._batches: Iterator[ImageBatch] = iter(())
        self._next_batch: int | None = None
        self._waiting: ImageBatch | None = None
        self._skipped: deque[tuple[int, str, str]] = deque()

    def batches(self, shard: ShardRange, skipped: SkippedImages) -> Iterator[ImageBatch]:
        """The readable images of a shard, in order.

        Args:
            shard: which.
            skipped: the shard's unreadable images are added to it, counted in the whole cache.
        """
        first = shard.start // self.plan.batch_size_images
        end = first - (-shard.n_images // self.plan.batch_size_images)
        if self._loader is None or first != self._next_batch:
            self._open(first)
        self._next_batch = None  # in case this is left early
        number = first
        while number < end:
            batch = self._waiting or next(self._batches, None)
            self._waiting = None
            number = end if batch is None else batch.batch_number
            if batch is None or number >= end:  # the last batches held nothing readable
                self._waiting = batch
                break
            yield batch
            number += 1
        self._next_batch = end
        self._note_skipped(shard, skipped)

    def close(self) -> None:
        """End the worker processes."""
        self._loader, self._batches, self._waiting = None, iter(()), None
        self._skipped.clear()

    def _open(self, first_batch: int) -> None:
        self.close()
        self._loader = ImageLoader(
            self.images,
            self.preprocess,
            batch_size_images=self.plan.batch_size_images,
            n_workers=self.n_workers,
            start_batch=first_batch,
        )
        self._batches = iter(self._loader)

    def _note_skipped(self, shard: ShardRange, skipped: SkippedImages) -> None:
        """Hand on what was met in a shard; the loader may be in a later one by now."""
        if self._loader is None:
            return
        met, self._loader.skipped = self._loader.skipped, SkippedImages()
        self._skipped.extend(met.to_list())
        while self._skipped and self._skipped[0][0] < shard.start + shard.n_images:
            index, id, reason = self._skipped.popleft()
            skipped.add(index - shard.start + shard.first_index, id, reason)
