"""The reference images of a report: as files, with a mask for each latent they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from vit_sae_plugin.activations.activation_source import ActivationSource
from vit_sae_plugin.analysis import LatentAtlas
from vit_sae_plugin.analysis.heatmaps import encode_images
from vit_sae_plugin.analysis.image_lookup import images_by_index
from vit_sae_plugin.analysis.model_inputs import preprocess_of
from vit_sae_plugin.analysis.patch_layout import PatchLayout
from vit_sae_plugin.analysis.seen_region import Region, SeenRegions
from vit_sae_plugin.datasets import ImageSource
from vit_sae_plugin.report.patch_masks import as_shares

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.hooked_vit import HookedViT

_IMAGES_AT_ONCE = 32


@dataclass
class MarkedPicture:
    """What a page needs to draw one latent on one image."""

    shares: UInt8[np.ndarray, "row column"]
    """Patch activations as shares of the largest (:func:`as_shares`)."""
    largest: float
    """The largest activation of a patch."""


def write_reference_pictures(
    folder: Path,
    atlas: LatentAtlas,
    images: ImageSource,
    model: HookedViT,
    sae: SAE[Any],
    source: ActivationSource,
    latents: Sequence[int],
    *,
    size: int,
    extension: str,
    progress: bool,
) -> dict[tuple[int, int], MarkedPicture]:
    """Write each reference image as the model sees it, and find where latents are active in it.

    Returns:
        (latent, image index) → its mask.
    """
    wanted: dict[int, set[int]] = {}
    for table in atlas.references.values():
        for latent in latents:
            for index in table.image[latent]:
                if index >= 0:
                    wanted.setdefault(int(index), set()).add(latent)
    regions = SeenRegions(preprocess_of(model))
    marked: dict[tuple[int, int], MarkedPicture] = {}
    loaded = images_by_index(images, wanted)
    with tqdm(total=len(wanted), desc="pictures", unit="image", disable=not progress) as bar:
        while some := list(islice(loaded, _IMAGES_AT_ONCE)):
            encoded = encode_images(model, sae, [image for _, image in some], source=source)
            for (index, image), tokens in zip(some, encoded, strict=True):
                region = regions.of(image)
                save_picture(
                    image, region, model.cfg.grid, folder / f"{index:07d}.{extension}", size
                )
                layout = PatchLayout.of(source, model.cfg, len(tokens))
                mine = sorted(wanted[index])
                for latent, grid in zip(
                    mine, layout.on_grid(tokens[:, mine].T).cpu().numpy(), strict=True
                ):
                    largest = float(np.nan_to_num(grid).max(initial=0))
                    marked[latent, index] = MarkedPicture(as_shares(grid), largest)
                bar.update()
    return marked


def save_picture(
    image: Image.Image, region: Region, grid: tuple[int, int], path: Path, size: int
) -> None:
    """Save what the model sees, in its proportions, with at most ``size`` pixels a side.

    Not larger than in the picture itself.
    """
    n_rows, n_columns = grid
    side = min(size, max(region.width, region.height)) / max(n_rows, n_columns)
    pixels = max(1, round(n_columns * side)), max(1, round(n_rows * side))
    region.crop(image, pixels).save(path, quality=90, subsampling=0, optimize=True)
