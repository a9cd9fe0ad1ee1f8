"""The reference images of a report: as files, with a mask for each latent they belong to."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from tqdm import tqdm

from vit_sae_plugin.attached_sae import AttachedSAE
from vit_sae_plugin.datasets import ImageSource
from vit_sae_plugin.datasets.image_lookup import images_by_index
from vit_sae_plugin.report.explained_images import ExplainedImages
from vit_sae_plugin.report.image_walk import encoded_pictures
from vit_sae_plugin.report.reference_masks import ReferenceMasks


def write_reference_pictures(
    folder: Path,
    masks: ReferenceMasks,
    images: ImageSource,
    attached: AttachedSAE,
    explained: ExplainedImages,
    *,
    n_explained: int,
    size: int,
    extension: str,
    missing: dict[int, str],
    progress: bool,
) -> None:
    """Write each reference image as the model sees it, and find where latents are active in it.

    Args:
        masks: says which images and latents, and takes the masks.
        explained: takes the explanations of those ``n_explained`` images that most latents have
            among their reference images.
        missing: filled with index → reason for images that can't be had.
    """
    wanted = masks.images
    not_yet = (index for index in masks.images_by_use() if index not in explained)
    to_explain = set(islice(not_yet, n_explained))
    loaded = images_by_index(images, wanted, missing)
    layout = attached.layout
    with tqdm(total=len(wanted), desc="pictures", unit=" images", disable=not progress) as bar:
        for picture in encoded_pictures(attached, loaded):
            name = f"{picture.key:07d}.{extension}"
            picture.save(folder / "images" / name, layout.grid, size)
            latents = masks.latents_of(picture.key)
            grids = layout.on_grid(picture.tokens[:, latents].T).cpu().numpy()
            masks.put(picture.key, grids)
            if picture.key in to_explain:
                explained.add_reference(picture, name if picture.side <= size else None)
            bar.update()
