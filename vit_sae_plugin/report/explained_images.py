"""The explain pages: for each patch of an image, the latents that are active there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from vit_sae_plugin.analysis import Explanation, LatentAtlas
from vit_sae_plugin.analysis.pictures.explanation import explain_attached
from vit_sae_plugin.attached_sae import AttachedSAE
from vit_sae_plugin.datasets import ImageSource
from vit_sae_plugin.datasets.image_lookup import images_by_index
from vit_sae_plugin.report.patch_masks import as_shares, mask_string
from vit_sae_plugin.report.reference_pictures import save_picture
from vit_sae_plugin.report.site_data import number, write_data

_LATENTS_OF_IMAGE, _LATENTS_OF_PATCH, _PICTURE_SIZE = 20, 12, 512


def images_to_explain(atlas: LatentAtlas, images: ImageSource, n: int) -> list[int]:
    """Images spread over the source; of a stream the first ones, so that it isn't walked far.

    Images that the analysis could not read don't take part.
    """
    skipped = set(atlas.skipped_images["index"]) if len(atlas.skipped_images) else set()
    n_images = atlas.info.n_images + atlas.info.n_skipped_images
    readable = [index for index in range(n_images) if index not in skipped]
    if images.is_streaming:
        return readable[:n]
    places = np.linspace(0, len(readable) - 1, min(n, len(readable))).round()
    return [readable[int(place)] for place in places]


def write_explained_images(
    folder: Path,
    atlas: LatentAtlas,
    images: ImageSource,
    attached: AttachedSAE,
    chosen: Sequence[int | Image.Image],
    shown_latents: set[int],
    extension: str,
    *,
    missing: dict[int, str],
    progress: bool,
) -> list[dict[str, Any]]:
    """Write one data file and one picture for each image.

    Args:
        missing: filled with index → reason for images that can't be had.

    Returns:
        What the other pages need of each: its file, its names and its strongest latents.
    """
    n_rows, n_columns = atlas.info.grid
    entries = {}
    pictures = _pictures(images, chosen, missing)
    for position, picture in tqdm(
        pictures, "explain", len(chosen), unit=" images", disable=not progress
    ):
        one = explain_attached(attached, atlas, picture, n_latents=_LATENTS_OF_IMAGE)
        name = f"{position:04d}"
        file = folder / f"images/explained-{name}.{extension}"
        save_picture(picture, one.region, atlas.info.grid, file, _PICTURE_SIZE)
        strongest = [(latent.latent, number(latent.value)) for latent in one.latents]
        patches = [
            _strongest_at_patch(one, row * n_columns + column)
            for row in range(n_rows)
            for column in range(n_columns)
        ]
        listed = {latent for latent, _ in strongest} | {i for patch in patches for i, _ in patch}
        masks = {}
        for latent in sorted(listed):
            heatmap = one.heatmap(latent)
            largest = float(np.nan_to_num(heatmap.patches).max())
            masks[str(latent)] = [mask_string(as_shares(heatmap.patches)), number(largest)]
        data = {"image": strongest, "patches": patches, "masks": masks}
        write_data(folder / f"data/explain/{name}.js", f"explain/{name}", data)
        entries[position] = {
            "file": name,
            **_names(images, chosen[position]),
            "latents": [i for i, _ in strongest if i in shown_latents],
        }
    return [entries[position] for position in sorted(entries)]


def _pictures(
    images: ImageSource, chosen: Sequence[int | Image.Image], missing: dict[int, str]
) -> Iterator[tuple[int, Image.Image]]:
    """Each chosen image with its position among them, one at a time."""
    positions: dict[int, list[int]] = {}
    for position, item in enumerate(chosen):
        if isinstance(item, int):
            positions.setdefault(item, []).append(position)
        else:
            yield position, item
    for index, picture in images_by_index(images, positions, missing):
        for position in positions[index]:
            yield position, picture


def _names(images: ImageSource, item: int | Image.Image) -> dict[str, Any]:
    """Id, place in the source and class, each None where there is none."""
    if not isinstance(item, int):
        return {"id": None, "index": None, "class": None}
    if images.is_streaming:
        return {"id": None, "index": item, "class": None}
    record = images.record(item)
    return {"id": record.id, "index": item, "class": record.label}


def _strongest_at_patch(explanation: Explanation, patch: int) -> list[tuple[int, Any]]:
    token = (explanation.layout.patch_of_token == patch).nonzero().flatten()
    if len(token) == 0:
        return []
    here = np.flatnonzero(explanation.token == int(token[0]))
    order = here[np.argsort(-explanation.activation[here], kind="stable")[:_LATENTS_OF_PATCH]]
    return [(int(explanation.latent[i]), number(explanation.activation[i])) for i in order]
