"""Where the latents of an analysis come from: images through a model, or rows of embeddings."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from vit_sae_plugin.activations.activation_source import describe_preprocessing
from vit_sae_plugin.analysis.counting.atlas_builder import AtlasBuilder
from vit_sae_plugin.attached_sae import AttachedSAE, CachedRun, CachedSAE, RowCoder
from vit_sae_plugin.datasets import ImageBatch, ImageSource
from vit_sae_plugin.datasets.image_lookup import images_by_index
from vit_sae_plugin.fingerprints import known_model_fingerprint
from vit_sae_plugin.hooked_vit.token_layout import TokenLayout

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.activations.embedding_rows import EmbeddingRows
    from vit_sae_plugin.activations.image_walk import ImageWalk

_FEWEST_SAMPLED, _MOST_SAMPLED, _SHARE_SAMPLED = 4, 32, 1 / 16


class LatentFeed(Protocol):
    """Latents of images, batch by batch."""

    layout: TokenLayout
    """What each token is."""
    data_name: str
    """What the images are called."""
    n_images: int | None
    """How many there are; None if that isn't known."""

    def facts(self) -> dict[str, Any]:
        """What an atlas says of model and data, by the names of ``AtlasInfo``."""

    def sample(self) -> Iterator[Float[Tensor, "... d_sae"]]:
        """Latents of some images, the same at each call, in whatever order images come."""

    def batches(self, start_batch: int, progress: bool) -> Iterator[tuple[int, Any]]:
        """Batches for ``take_in``, each with the number of the next one."""

    def take_in(self, builder: AtlasBuilder, batch: Any) -> None:
        """Give the latents of a batch to a builder, a few images at a time."""

    @property
    def n_skipped(self) -> int:
        """Images of the batches given so far that could not be read."""

    def skipped(self) -> pd.DataFrame:
        """Those images, with the reason."""


class ImageFeed:
    """The latents of pictures."""

    def __init__(
        self, attached: AttachedSAE, images: ImageSource, *, batch_size_images: int, n_workers: int
    ) -> None:
        self._attached, self._images = attached, images
        self._settings = {"batch_size_images": batch_size_images, "n_workers": n_workers}
        self._walk: ImageWalk = attached.walk(images, **self._settings)  # checks the settings
        self.layout = attached.layout
        self.data_name = images.name
        self.n_images = images.n_images

    def facts(self) -> dict[str, Any]:
        return {
            "model_sha256": known_model_fingerprint(self._attached.model),
            "data_sha256": self._images.fingerprint(),
            "sae_metadata": self._attached.source.to_metadata(),
            "model_preprocessing": describe_preprocessing(self._attached.model.preprocess),
            "class_names": self._images.class_names,
        }

    def sample(self) -> Iterator[Float[Tensor, "part token d_sae"]]:
        preprocess = self._attached.model.require_preprocess()
        wanted = sampled_places(None if self._images.is_streaming else self._images.n_images)
        found = images_by_index(self._images, wanted, missing={})
        pixels = [preprocess(image) for _, image in found]
        if pixels:  # else reading them all will say why
            acts_btd = self._attached.activations(torch.stack(pixels))
            yield from (latents for _, latents in self._attached.encode_parts(acts_btd))

    def batches(self, start_batch: int, progress: bool) -> Iterator[tuple[int, ImageBatch]]:
        self._walk = self._attached.walk(
            self._images,
            start_batch=start_batch,
            progress=progress,
            description="analyze",
            **self._settings,
        )
        for batch in self._walk:
            yield batch.batch_number + 1, batch

    def take_in(self, builder: AtlasBuilder, batch: ImageBatch) -> None:
        take_in(builder, self._attached, batch)

    @property
    def n_skipped(self) -> int:
        return len(self._walk.skipped)

    def skipped(self) -> pd.DataFrame:
        return self._walk.skipped.to_frame()


class CacheFeed:
    """The latents of activations from disk."""

    def __init__(self, cached: CachedSAE, *, batch_size_images: int) -> None:
        if batch_size_images < 1:
            raise ValueError(f"batch_size_images is {batch_size_images}; want 1 or more")
        self._cached, self._batch_size = cached, batch_size_images
        self.layout = cached.layout
        self.data_name = cached.images.name
        self.n_images = cached.images.n_images
        self._skipped = cached.cache.skipped.to_frame()
        self._last_index = -1

    def facts(self) -> dict[str, Any]:
        model = self._cached.cache.plan.model
        return {
            "model_sha256": model["model_sha256"],
            "data_sha256": self._cached.images.fingerprint(),
            "sae_metadata": self._cached.source.to_metadata(),
            "model_preprocessing": model["preprocessing"],
            "class_names": self._cached.images.class_names,
        }

    def sample(self) -> Iterator[Float[Tensor, "part token d_sae"]]:
        images = self._cached.images
        for acts in self._cached.acts_of(
            sampled_places(None if images.is_streaming else images.n_images)
        ):
            yield from (latents for _, latents in self._cached.rows.encode_parts(acts))

    def batches(self, start_batch: int, progress: bool) -> Iterator[tuple[int, CachedRun]]:
        first = max(0, start_batch - 1)
        batches = self._cached.batches(
            self._batch_size, start_batch=first, progress=progress, description="analyze"
        )
        for number, batch in enumerate(batches, start=first):
            self._last_index = int(batch.index[-1])
            if number < start_batch:  # read for its place alone: skipped images before it are known
                self._skipped = self._skipped[self._skipped["index"] > self._last_index]
                continue
            yield number + 1, batch
        self._last_index = sys.maxsize

    def take_in(self, builder: AtlasBuilder, batch: CachedRun) -> None:
        for part, latents in self._cached.rows.encode_parts(batch.acts_btd):
            builder.update(latents, batch.index[part], batch.label[part], batch.ids[part])

    @property
    def n_skipped(self) -> int:
        return int((self._skipped["index"] <= self._last_index).sum())

    def skipped(self) -> pd.DataFrame:
        return self._skipped


class RowFeed:
    """The latents of embeddings, one row an image.

    Args:
        sae: any SAELens SAE.
        rows: the embeddings.
        images: where the pictures are, with the rows' ids; their places and labels are those that
            the atlas keeps. None: rows are known by their number and have no labels.

    Raises:
        ValueError: a row's id is that of no image, or of several.
    """

    def __init__(
        self, sae: SAE[Any], rows: EmbeddingRows, images: ImageSource | None, *, batch_size: int
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size_rows is {batch_size}; want 1 or more")
        self._coder, self._rows, self._images = RowCoder(sae), rows, images
        self._coder.standardize(rows.tensor(slice(0, 1)))  # raises where widths differ
        self._batch_size = batch_size
        self.layout = TokenLayout((1, 1), ("image",), (-1,))
        self.data_name = rows.name if images is None else images.name
        self.n_images: int | None = len(rows)
        self._index, self._label = _places(rows, images)

    def facts(self) -> dict[str, Any]:
        embeddings = self._rows.fingerprint()
        return {
            "model_sha256": None,
            "data_sha256": embeddings if self._images is None else self._images.fingerprint(),
            "embeddings_sha256": embeddings,
            "sae_metadata": self._coder.sae.cfg.metadata.to_dict(),
            "model_preprocessing": None,
            "class_names": None if self._images is None else self._images.class_names,
        }

    def sample(self) -> Iterator[Float[Tensor, "row d_sae"]]:
        rows = np.argsort(self._index)[sampled_places(len(self._rows))]
        yield self._coder.encode(self._rows.tensor(rows))

    def batches(self, start_batch: int, progress: bool) -> Iterator[tuple[int, slice]]:
        n, step = len(self._rows), self._batch_size
        with tqdm(
            total=n, initial=min(n, start_batch * step), desc="analyze", disable=not progress
        ) as bar:
            for start in range(start_batch * step, n, step):
                yield start // step + 1, slice(start, min(start + step, n))
                bar.update(min(start + step, n) - bar.n)

    def take_in(self, builder: AtlasBuilder, batch: slice) -> None:
        rows = self._rows.tensor(batch)
        for part in self._coder.parts(len(rows)):
            latents = self._coder.encode(rows[part])[:, None]
            places = range(batch.start + part.start, batch.start + part.stop)
            index, label = (torch.from_numpy(a[places]) for a in (self._index, self._label))
            builder.update(latents, index, label, [self._rows.id(row) for row in places])

    @property
    def n_skipped(self) -> int:
        return 0

    def skipped(self) -> pd.DataFrame:
        return pd.DataFrame()


def _places(rows: EmbeddingRows, images: ImageSource | None) -> tuple[np.ndarray, np.ndarray]:
    """For each row its image's index in the source, and its label (−1: none)."""
    if images is None:
        return np.arange(len(rows)), np.full(len(rows), -1)
    row_of_id = {rows.id(row): row for row in range(len(rows))}
    if len(row_of_id) < len(rows):
        raise ValueError(
            f"{rows.name}: {len(rows) - len(row_of_id)} ids occur twice; want one a row"
        )
    index, label = np.full(len(rows), -1), np.full(len(rows), -1)
    for record in images.records():
        row = row_of_id.get(record.id)
        if row is None:
            continue
        if index[row] >= 0:
            raise ValueError(f"{images.name} has two images with the id {record.id!r}; want one")
        index[row], label[row] = record.index, -1 if record.label is None else record.label
    lost = np.flatnonzero(index < 0)
    if len(lost):
        raise ValueError(
            f"{len(lost)} of {len(rows)} rows of {rows.name} have no image in {images.name}, such "
            f"as {rows.id(int(lost[0]))!r}; want the images that were embedded"
        )
    return index, label


def take_in(builder: AtlasBuilder, attached: AttachedSAE, batch: ImageBatch) -> None:
    """Run a batch of images through model and SAE, a few at a time, into the builder."""
    for part, latents in attached.encode_parts(attached.activations(batch.pixels)):
        builder.update(latents, batch.index[part], batch.label[part], batch.ids[part])


def sampled_places(n_images: int | None) -> list[int]:
    """A sixteenth of all images, 4 to 32 of them, spread evenly; of a stream the first 16."""
    if n_images is None:
        return list(range(16))
    n = min(n_images, max(_FEWEST_SAMPLED, min(_MOST_SAMPLED, round(n_images * _SHARE_SAMPLED))))
    return [int(place) for place in np.linspace(0, n_images - 1, n).round()]
