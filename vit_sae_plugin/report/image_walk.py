"""The pictures of a report, each loaded and encoded once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from vit_sae_plugin.analysis.pictures.heatmaps import encode_images
from vit_sae_plugin.analysis.pictures.seen_region import Region, SeenRegions
from vit_sae_plugin.attached_sae import AttachedSAE

_IMAGES_AT_ONCE = 32


@dataclass
class EncodedPicture:
    """A picture, what the model sees of it, and the latents of its tokens."""

    key: int
    """What the caller knows it by: an index in the source, or a place in a list."""
    image: Image.Image
    region: Region
    """The part of it that reaches the model."""
    tokens: Float[Tensor, "token d_sae"]

    @property
    def side(self) -> float:
        """The longer side of what the model sees, in pixels of the picture."""
        return max(self.region.width, self.region.height)

    def save(self, path: Path, grid: tuple[int, int], size: int) -> None:
        """Save what the model sees, in its proportions, with at most ``size`` pixels a side.

        Not larger than in the picture itself.
        """
        n_rows, n_columns = grid
        side = min(size, self.side) / max(n_rows, n_columns)
        pixels = max(1, round(n_columns * side)), max(1, round(n_rows * side))
        picture = self.region.crop(self.image, pixels)
        if path.suffix == ".png":
            picture.save(path)  # optimized it would be 8 % smaller, at ten times the work
        else:
            picture.save(path, quality=90, subsampling=0, optimize=True)


def encoded_pictures(
    attached: AttachedSAE, pictures: Iterable[tuple[int, Image.Image]]
) -> Iterator[EncodedPicture]:
    """Send pictures through model and SAE, in batches, and hand them on one at a time."""
    regions = SeenRegions(attached.model.require_preprocess())
    pictures = iter(pictures)
    while some := list(islice(pictures, _IMAGES_AT_ONCE)):
        encoded = encode_images(attached, [image for _, image in some])
        for (key, image), tokens in zip(some, encoded, strict=True):
            yield EncodedPicture(key, image, regions.of(image), tokens)
