"""Which images make up which batch: decided in one process, before anything is decoded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from vit_sae_plugin.datasets.image_source import ImageRecord, ImageSource, NoReadableImagesError


@dataclass
class BatchTask:
    """One batch to be read and decoded by whoever is free."""

    batch_number: int
    """Counted from the first batch of the first epoch."""
    starts_epoch: bool
    """True for the first batch of an epoch."""
    images: np.ndarray | list[ImageRecord]
    """Indices into a map-style source; the undecoded records themselves of a stream."""


class BatchPlan:
    """The batches of all epochs in order, from ``start_batch`` on.

    The plan runs in the main process. A stream is therefore read exactly once, whatever the number
    of workers, and its undecoded records are sent to them; of a map-style source only the indices
    are sent. The last batch of an epoch may be smaller; no batch holds images of two epochs.

    With ``share=(rank, n_ranks)`` the plan has only the batches whose number leaves ``rank`` when
    divided by ``n_ranks``. (Of a stream the others' records are passed over, undecoded.)
    """

    def __init__(
        self,
        source: ImageSource,
        *,
        batch_size_images: int,
        shuffle: bool,
        seed: int,
        n_epochs: int | None,
        start_batch: int,
        shuffle_buffer_images: int,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        _at_least(1, batch_size_images=batch_size_images)
        _at_least(1, shuffle_buffer_images=shuffle_buffer_images)
        _at_least(0, seed=seed, start_batch=start_batch)
        if n_epochs is not None:
            _at_least(1, n_epochs=n_epochs)
        self.source = source
        self.batch_size_images = batch_size_images
        self.shuffle = shuffle
        self.seed = seed
        self.n_epochs = n_epochs
        self.start_batch = start_batch
        self.shuffle_buffer_images = shuffle_buffer_images
        self.share = share

    @property
    def n_batches(self) -> int | None:
        """Batches from ``start_batch`` to the end; None if endless or not known before."""
        if self.source.is_streaming or self.source.n_images is None or self.n_epochs is None:
            return None
        return max(0, self._n_batches(self.source.n_images) * self.n_epochs - self.start_batch)

    def __iter__(self) -> Iterator[BatchTask]:
        rank, n_ranks = self.share
        streams = self.source.is_streaming
        tasks = self._tasks_of_stream() if streams else self._tasks_of_indices()
        return (task for task in tasks if task.batch_number % n_ranks == rank)

    def _n_batches(self, n_images: int) -> int:
        return -(-n_images // self.batch_size_images)

    def _goes_on(self, epoch: int) -> bool:
        return self.n_epochs is None or epoch < self.n_epochs

    def _random(self, epoch: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch])

    def _tasks_of_indices(self) -> Iterator[BatchTask]:
        n_images = self.source.n_images or 0
        if n_images == 0:
            raise _no_records(self.source)
        epoch, position = divmod(self.start_batch, self._n_batches(n_images))
        number = self.start_batch
        while self._goes_on(epoch):
            order = self._random(epoch).permutation(n_images) if self.shuffle else None
            for start in range(position * self.batch_size_images, n_images, self.batch_size_images):
                end = min(start + self.batch_size_images, n_images)
                indices = np.arange(start, end) if order is None else order[start:end]
                yield BatchTask(number, starts_epoch=start == 0, images=indices)
                number += 1
            epoch, position = epoch + 1, 0

    def _tasks_of_stream(self) -> Iterator[BatchTask]:
        epoch, position = 0, self.start_batch
        number = self.start_batch
        while self._goes_on(epoch):
            n_given = 0
            for records in self._batches_of_stream(epoch, position):
                yield BatchTask(number, starts_epoch=position + n_given == 0, images=records)
                number += 1
                n_given += 1
            if n_given:
                epoch, position = epoch + 1, 0
                continue
            # Nothing lies at or after ``position``: count the stream to learn which epoch it is in.
            n_images = sum(1 for _ in self.source.records()) if position else 0
            if n_images == 0:
                raise _no_records(self.source)
            n_epochs_passed, position = divmod(position, self._n_batches(n_images))
            epoch += n_epochs_passed

    def _batches_of_stream(self, epoch: int, position: int) -> Iterator[list[ImageRecord]]:
        start = position * self.batch_size_images
        records: Iterator[ImageRecord]
        if self.shuffle:
            all_records = self.source.records()
            shuffled = shuffled_stream(all_records, self.shuffle_buffer_images, self._random(epoch))
            records = islice(shuffled, start, None)
        else:
            records = self.source.records(start)
        while batch := list(islice(records, self.batch_size_images)):
            yield batch


def shuffled_stream(
    records: Iterable[ImageRecord], buffer_size: int, random: np.random.Generator
) -> Iterator[ImageRecord]:
    """Give ``records`` in an order drawn with ``random``, holding ``buffer_size`` at a time.

    Each record leaves in place of a later one, so images far apart in the stream stay apart: a
    stream sorted by class wants a buffer of several classes' size.
    """
    buffer: list[ImageRecord] = []
    for record in records:
        if len(buffer) < buffer_size:
            buffer.append(record)
            continue
        place = int(random.integers(buffer_size))
        yield buffer[place]
        buffer[place] = record
    for place in random.permutation(len(buffer)):
        yield buffer[place]


def _at_least(least: int, **settings: int) -> None:
    for name, value in settings.items():
        if value < least:
            raise ValueError(f"{name} is {value}; want {least} or more")


def _no_records(source: ImageSource) -> NoReadableImagesError:
    return NoReadableImagesError(
        f"{source.name} holds 0 images; want 1 or more: check its path and, for shards, that the "
        "samples have an image"
    )
