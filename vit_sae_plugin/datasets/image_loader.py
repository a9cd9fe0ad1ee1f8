"""From an image source to batches of pixels, decoded and preprocessed by worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int64
from PIL import Image
from torch.utils.data import DataLoader, Dataset, default_collate

from vit_sae_plugin.datasets.batch_plan import BatchPlan, BatchTask
from vit_sae_plugin.datasets.image_source import (
    ImageRecord,
    ImageSource,
    NoReadableImagesError,
    UnreadableImageError,
)
from vit_sae_plugin.datasets.skipped_images import SkippedImages
from vit_sae_plugin.datasets.worker_processes import (
    next_or_death,
    start_worker,
    start_workers,
    worker_context,
    worker_died,
)

Preprocess = Callable[[Image.Image], torch.Tensor]


@dataclass
class ImageBatch:
    """Preprocessed images and where they came from; unreadable images are left out."""

    pixels: Float[torch.Tensor, "batch 3 height width"]
    """What the model takes, float32."""
    index: Int64[torch.Tensor, " batch"]
    """Position in the source's own order."""
    label: Int64[torch.Tensor, " batch"]
    """Index of the class, -1 for none."""
    ids: list[str]
    """Each image's id in the source."""
    batch_number: int
    """Counts all batches from the first epoch's first on. A loader with
    ``start_batch=batch_number + 1`` continues right after this one."""
    starts_epoch: bool = False
    """True for the first batch of an epoch."""


class ImageLoader:
    """Iterate over a source in batches. The order never depends on the number of workers.

    Args:
        source: where the images come from.
        preprocess: PIL RGB picture → float tensor ``[3, height, width]``, the same size for every
            image; the model's own ``model.preprocess``.
        batch_size_images: images a batch, before unreadable ones are dropped.
        n_workers: processes that decode and preprocess; 0 does it in this process.
        shuffle: draw a new order for each epoch from ``(seed, epoch)``. A stream is shuffled
            through a buffer of ``shuffle_buffer_images`` undecoded records.
        seed: of the shuffle.
        n_epochs: passes over the source; None repeats for ever.
        start_batch: first batch to give, ``batch_number + 1`` of the last one seen. The batches
            that follow are exactly those of an uninterrupted run. (A stream is walked up to there
            without decoding.)
        shuffle_buffer_images: see ``shuffle``. It is held in memory, undecoded.
        share: ``(rank, n_ranks)``: give only the batches whose number leaves ``rank`` when divided
            by ``n_ranks``, and decode no others. Then a batch without a usable image is given
            too, empty, for whoever deals batches out has to know of each; and whether a whole
            epoch gave nothing is for them to see.

    Attributes:
        skipped: the unusable images of the batches given so far.

    Raises (while iterating):
        NoReadableImagesError: a whole epoch gave no usable image.
        WorkerDiedError: a worker was killed, mostly for want of memory.
        ValueError, TypeError: ``preprocess`` returns something else than asked for.
    """

    def __init__(
        self,
        source: ImageSource,
        preprocess: Preprocess,
        *,
        batch_size_images: int,
        n_workers: int = 0,
        shuffle: bool = False,
        seed: int = 0,
        n_epochs: int | None = 1,
        start_batch: int = 0,
        shuffle_buffer_images: int = 1000,
        share: tuple[int, int] | None = None,
    ) -> None:
        if n_workers < 0:
            raise ValueError(f"n_workers is {n_workers}; want 0 (this process) or more")
        self.source = source
        self.preprocess = preprocess
        self.n_workers = n_workers
        self._plan = BatchPlan(
            source,
            batch_size_images=batch_size_images,
            shuffle=shuffle,
            seed=seed,
            n_epochs=n_epochs,
            start_batch=start_batch,
            shuffle_buffer_images=shuffle_buffer_images,
            share=share or (0, 1),
        )
        self._is_shared = share is not None
        self.skipped = SkippedImages()

    @property
    def n_batches(self) -> int | None:
        """Batches that iterating goes through; None if that cannot be known before."""
        return self._plan.n_batches

    def __iter__(self) -> Iterator[ImageBatch]:
        epoch = _EpochTally(self.source.name)
        image_shape: torch.Size | None = None
        for decoded in self._decoded_batches():
            for index, id, reason in decoded.skipped:
                self.skipped.add(index, id, reason)
            pixels = decoded.pixels
            if not self._is_shared:
                epoch.count(decoded)
            elif pixels is None:
                pixels = torch.empty(0, 3, *(image_shape or (3, 0, 0))[1:])
            if pixels is None:
                continue
            if len(pixels) > 0:
                image_shape = image_shape or pixels.shape[1:]
                if pixels.shape[1:] != image_shape:
                    raise _sizes_differ(decoded.ids[0], pixels.shape[1:], image_shape)
            yield ImageBatch(
                pixels=pixels,
                index=torch.tensor(decoded.index, dtype=torch.int64),
                label=torch.tensor(decoded.label, dtype=torch.int64),
                ids=decoded.ids,
                batch_number=decoded.batch_number,
                starts_epoch=decoded.starts_epoch,
            )
        epoch.end()

    def _decoded_batches(self) -> Iterator[_DecodedBatch]:
        # A generator of its own, so that making a loader leaves torch's global one as it was.
        loader = DataLoader(
            _BatchDecoder(None if self.source.is_streaming else self.source, self.preprocess),
            sampler=self._plan,  # type: ignore[arg-type]
            batch_size=None,
            num_workers=self.n_workers,
            collate_fn=_unchanged,
            generator=torch.Generator(),
            worker_init_fn=start_worker,
            multiprocessing_context=worker_context() if self.n_workers else None,
        )
        batches, workers = start_workers(loader)
        try:
            while True:
                decoded, death = next_or_death(batches, workers)
                if death is not None:
                    raise worker_died(self.source.name, death)
                if decoded is None:
                    return
                if decoded.error is not None:
                    raise decoded.error
                yield decoded
        finally:
            # An exception keeps this frame alive; its workers must end now all the same.
            del batches


@dataclass
class _DecodedBatch:
    """What a worker makes of a task. ``error`` is a mistake in ``preprocess``, not in an image."""

    batch_number: int
    starts_epoch: bool
    pixels: torch.Tensor | None = None
    index: list[int] = field(default_factory=list)
    label: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    skipped: list[tuple[int, str, str]] = field(default_factory=list)
    error: Exception | None = None


class _BatchDecoder(Dataset):
    """The work of a worker process; its keys are tasks."""

    def __init__(self, source: ImageSource | None, preprocess: Preprocess) -> None:
        self.source = source
        self.preprocess = preprocess

    def __getitem__(self, task: BatchTask) -> _DecodedBatch:
        batch = _DecodedBatch(task.batch_number, task.starts_epoch)
        pixels: list[torch.Tensor] = []
        for record in self._records(task):
            try:
                image_pixels = self._pixels(record)
            except UnreadableImageError as unreadable:
                batch.skipped.append((record.index, record.id, unreadable.reason))
                continue
            batch.error = _mistake_in(image_pixels, record.id, pixels)
            if batch.error is not None:
                return batch
            pixels.append(image_pixels.float())
            batch.index.append(record.index)
            batch.label.append(-1 if record.label is None else record.label)
            batch.ids.append(record.id)
        if pixels:
            # In a worker this stacks straight into the memory it shares with the main process.
            batch.pixels = default_collate(pixels)
        return batch

    def _records(self, task: BatchTask) -> Iterator[ImageRecord]:
        for image in task.images:
            if isinstance(image, ImageRecord):
                yield image
            elif self.source is not None:
                yield self.source.record(int(image))

    def _pixels(self, record: ImageRecord) -> torch.Tensor:
        image = record.load()
        try:
            return self.preprocess(image)
        except Exception as error:
            seen = f"{type(error).__name__}: {error} ({image.width} x {image.height})"
            raise UnreadableImageError("preprocessing failed", seen) from None


def _mistake_in(pixels: torch.Tensor, id: str, before: list[torch.Tensor]) -> Exception | None:
    wanted = "want a float tensor [3, height, width], the same size for every image"
    if not isinstance(pixels, torch.Tensor):
        return TypeError(f"preprocess returned {type(pixels).__name__} for {id!r}; {wanted}")
    if not pixels.is_floating_point():
        return TypeError(f"preprocess returned {pixels.dtype} for {id!r}; {wanted}")
    if pixels.ndim != 3 or pixels.shape[0] != 3:
        return ValueError(f"preprocess returned {list(pixels.shape)} for {id!r}; {wanted}")
    if before and pixels.shape != before[0].shape:
        return _sizes_differ(id, pixels.shape, before[0].shape)
    return None


def _sizes_differ(id: str, seen: torch.Size, first: torch.Size) -> ValueError:
    return ValueError(
        f"preprocess returned {list(seen)} for {id!r} but {list(first)} for an image before it; "
        "want the same size for every image: resize and crop to the model's image size"
    )


def _unchanged(decoded: Any) -> Any:
    return decoded


class _EpochTally:
    """Notices an epoch in which no image could be used."""

    def __init__(self, source_name: str) -> None:
        self.source_name = source_name
        self.n_read = 0
        self.tried: SkippedImages | None = None

    def count(self, decoded: _DecodedBatch) -> None:
        if decoded.starts_epoch:
            self.end()
            self.n_read, self.tried = 0, SkippedImages()
        self.n_read += len(decoded.index)
        if self.n_read == 0 and self.tried is not None:
            for index, id, reason in decoded.skipped:
                self.tried.add(index, id, reason)

    def end(self) -> None:
        """Raise ``NoReadableImagesError`` if a whole epoch, tried from its start, gave nothing."""
        if self.tried is None or self.n_read:
            return
        examples = self.tried.to_frame().head(3)
        shown = "; ".join(f"{row.id!r}: {row.reason}" for row in examples.itertuples())
        reasons = ", ".join(f"{n} {kind}" for kind, n in self.tried.counts.items())
        raise NoReadableImagesError(
            f"none of the {len(self.tried)} images tried in {self.source_name} can be used "
            f"({reasons}); want some that can, unlike {shown}"
        )
