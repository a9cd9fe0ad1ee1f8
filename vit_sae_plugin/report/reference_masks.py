"""The masks of reference images, kept in a file while a report is written."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from vit_sae_plugin.analysis.atlas.latent_tables import ReferenceTable
from vit_sae_plugin.report.patch_masks import as_shares

_IMAGE_BITS = 32


@dataclass
class MarkedPicture:
    """What a page needs to draw one latent on one image."""

    shares: UInt8[np.ndarray, "row column"]
    """Patch activations as shares of the largest (``as_shares``)."""
    largest: float
    """The largest activation of a patch."""


class ReferenceMasks:
    """One mask for each latent and reference image.

    Masks are made image by image and read latent by latent. In memory are 28 bytes for each, the
    masks themselves are in a temporary file: 49,152 latents with 30 images each would take a
    gigabyte as Python objects.

    Args:
        references: tables of reference images.
        latents: the latents to keep masks of.
        grid: rows and columns of patches.
        folder: where the temporary file lies; it vanishes with this object.
    """

    def __init__(
        self,
        references: Sequence[ReferenceTable],
        latents: Sequence[int],
        grid: tuple[int, int],
        folder: Path,
    ) -> None:
        kept = np.asarray(latents, dtype=np.int64)
        image = np.concatenate([table.image[kept] for table in references], axis=1)
        keys = (kept[:, None] << _IMAGE_BITS) | image.astype(np.int64)
        self._keys = np.unique(keys[image >= 0])
        """Latent and image of each mask, in this order."""
        image_of_key = self._keys & (2**_IMAGE_BITS - 1)
        self._by_image = np.argsort(image_of_key, kind="stable")
        self._sorted_image = image_of_key[self._by_image]
        self._largest = np.full(len(self._keys), np.nan, np.float32)
        with tempfile.TemporaryFile(dir=folder) as file:  # the map keeps it open
            self._shares = np.memmap(
                file, np.uint8, mode="w+", shape=(max(len(self._keys), 1), *grid)
            )

    @property
    def images(self) -> list[int]:
        """Indices of all reference images."""
        return [int(index) for index in np.unique(self._sorted_image)]

    def images_by_use(self) -> list[int]:
        """All reference images, those of most latents first, among equals in the source's order."""
        image, n_latents = np.unique(self._sorted_image, return_counts=True)
        return [int(index) for index in image[np.argsort(-n_latents, kind="stable")]]

    def latents_of(self, image: int) -> list[int]:
        """The latents that need a mask on this image, in ascending order."""
        return [int(key) >> _IMAGE_BITS for key in self._keys[self._places_of(image)]]

    def put(self, image: int, activations: Float[np.ndarray, "latent row column"]) -> None:
        """Store the masks of an image, those of ``ReferenceMasks.latents_of`` in this order."""
        for place, patches in zip(self._places_of(image), activations, strict=True):
            self._shares[place] = as_shares(patches)
            self._largest[place] = np.nan_to_num(patches).max(initial=0)

    def get(self, latent: int, image: int) -> MarkedPicture | None:
        """The mask of a latent on one of its reference images; None if none was stored."""
        place = int(np.searchsorted(self._keys, (latent << _IMAGE_BITS) | image))
        largest = float(self._largest[place])
        return None if np.isnan(largest) else MarkedPicture(self._shares[place], largest)

    def _places_of(self, image: int) -> np.ndarray:
        start, stop = np.searchsorted(self._sorted_image, [image, image + 1])
        return self._by_image[start:stop]
