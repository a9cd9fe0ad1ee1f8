"""The reference images of a report: as files, with a mask for each latent they belong to."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from vit_sae_plugin.analysis.pictures.heatmaps import encode_images
from vit_sae_plugin.analysis.pictures.seen_region import Region, SeenRegions
from vit_sae_plugin.attached_sae import AttachedSAE
from vit_sae_plugin.datasets import ImageSource
from vit_sae_plugin.datasets.image_lookup import images_by_index
from vit_sae_plugin.report.reference_masks import ReferenceMasks

_IMAGES_AT_ONCE = 32


def write_reference_pictures(
    folder: Path,
    masks: ReferenceMasks,
    images: ImageSource,
    attached: AttachedSAE,
    *,
    size: int,
    extension: str,
    missing: dict[int, str],
    progress: bool,
) -> None:
    """Write each reference image as the model sees it, and find where latents are active in it.

    Args:
        masks: says which images and latents, and takes the masks.
        missing: filled with index → reason for images that can't be had.
    """
    wanted = masks.images
    regions = SeenRegions(attached.model.require_preprocess())
    loaded = images_by_index(images, wanted, missing)
    with tqdm(total=len(wanted), desc="pictures", unit=" images", disable=not progress) as bar:
        while some := list(islice(loaded, _IMAGES_AT_ONCE)):
            encoded = encode_images(attached, [image for _, image in some])
            for (index, image), tokens in zip(some, encoded, strict=True):
                region = regions.of(image)
                path = folder / f"{index:07d}.{extension}"
                save_picture(image, region, attached.layout.grid, path, size)
                latents = masks.latents_of(index)
                masks.put(index, attached.layout.on_grid(tokens[:, latents].T).cpu().numpy())
                bar.update()


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
