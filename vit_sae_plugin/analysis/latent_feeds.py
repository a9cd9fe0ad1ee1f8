"""Where the latents of an analysis come from: images through a model, or rows of embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from vit_sae_plugin.activations.activation_source import describe_preprocessing
from vit_sae_plugin.analysis.counting.atlas_builder import AtlasBuilder
from vit_sae_plugin.attached_sae import AttachedSAE
from vit_sae_plugin.datasets import ImageBatch, ImageSource
from vit_sae_plugin.datasets.image_lookup import images_by_index
from vit_sae_plugin.fingerprints import model_fingerprint

if TYPE_CHECKING:
    from vit_sae_plugin.activations.image_walk import ImageWalk
    from vit_sae_plugin.hooked_vit.token_layout import TokenLayout

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
        """Batches for :meth:`take_in`, each with the number of the next one."""

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
            "model_sha256": model_fingerprint(self._attached.model),
            "data_sha256": self._images.fingerprint(),
            "sae_metadata": self._attached.source.to_metadata(),
            "model_preprocessing": describe_preprocessing(self._attached.model.preprocess),
            "class_names": self._images.class_names,
        }

    def sample(self) -> Iterator[Float[Tensor, "token d_sae"]]:
        preprocess = self._attached.model.require_preprocess()
        wanted = sampled_places(None if self._images.is_streaming else self._images.n_images)
        for _, image in images_by_index(self._images, wanted, missing={}):
            yield self._attached.latents(preprocess(image)[None])[0]

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
