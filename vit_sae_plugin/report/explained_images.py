"""The explain pages: for each patch of an image, the latents that are active there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vit_sae_plugin.activations.activation_source import ActivationSource
from vit_sae_plugin.analysis import Explanation, LatentAtlas, explain
from vit_sae_plugin.analysis.image_lookup import images_by_index
from vit_sae_plugin.datasets import ImageSource
from vit_sae_plugin.report.patch_masks import as_shares, mask_string
from vit_sae_plugin.report.reference_pictures import save_picture
from vit_sae_plugin.report.site_data import number, write_data

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.hooked_vit import HookedViT

_LATENTS_OF_IMAGE, _LATENTS_OF_PATCH, _PICTURE_SIZE = 20, 12, 512


def write_explained_images(
    folder: Path,
    atlas: LatentAtlas,
    images: ImageSource,
    model: HookedViT,
    sae: SAE[Any],
    source: ActivationSource,
    chosen: Sequence[int | Image.Image],
    shown_latents: set[int],
    extension: str,
) -> list[dict[str, Any]]:
    """Write one data file and one picture for each image; nothing for SAEs without patches.

    Returns:
        What the other pages need of each: its title and its strongest latents.
    """
    n_rows, n_columns = atlas.info.grid
    if source.token_kind == "cls" or atlas.info.n_tokens == 1:
        return []
    loaded = dict(images_by_index(images, (i for i in chosen if isinstance(i, int))))
    entries = []
    for position, item in enumerate(chosen):
        picture = loaded[item] if isinstance(item, int) else item.convert("RGB")
        title, id_ = _names(images, item) if isinstance(item, int) else ("Picture", "")
        one = explain(model, sae, atlas, picture, n_latents=_LATENTS_OF_IMAGE, source=source)
        name = f"{position:04d}"
        save_picture(
            picture,
            one.region,
            atlas.info.grid,
            folder / f"images/explained-{name}.{extension}",
            _PICTURE_SIZE,
        )
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
        entries.append(
            {
                "title": title,
                "id": id_,
                "latents": [i for i, _ in strongest if i in shown_latents],
            }
        )
    return entries


def _names(images: ImageSource, index: int) -> tuple[str, str]:
    """A heading, the class's name where there is one, and the id."""
    if images.is_streaming:
        return f"Image {index:,}", ""
    record = images.record(index)
    if record.label is None or not images.class_names:
        return f"Image {index:,}", record.id
    return images.class_names[record.label], record.id


def _strongest_at_patch(explanation: Explanation, patch: int) -> list[tuple[int, Any]]:
    token = (explanation.layout.patch_of_token == patch).nonzero().flatten()
    if len(token) == 0:
        return []
    here = np.flatnonzero(explanation.token == int(token[0]))
    order = here[np.argsort(-explanation.activation[here], kind="stable")[:_LATENTS_OF_PATCH]]
    return [(int(explanation.latent[i]), number(explanation.activation[i])) for i in order]
