"""Pictures of what latents respond to: small ones for a list, and a latent's reference images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vit_sae_plugin.analysis import LatentAtlas
from vit_sae_plugin.analysis.pictures.heatmap import Heatmap, highlight
from vit_sae_plugin.analysis.pictures.overlays import zoom
from vit_sae_plugin.analysis.pictures.seen_region import SeenRegions
from vit_sae_plugin.analysis.pictures.showcase import reference_heatmaps
from vit_sae_plugin.attached_sae import AttachedSAE
from vit_sae_plugin.datasets import ImageSource
from vit_sae_plugin.datasets.image_lookup import images_by_index

_THUMBS, _THUMB_SIZE = 3, 56
_SHOWN, _SHOWN_SIZE = 8, 160
_LATENTS_KEPT = 4096


@dataclass(frozen=True)
class Reference:
    """One of a latent's reference images."""

    id: str
    """Of the image, in its source."""
    class_name: str
    """Its label; empty for none."""
    picture: Image.Image
    """What the model sees of it, bright where the latent is active."""


class ReferenceImages:
    """Pictures of latents, made when they are first asked for.

    Args:
        attached: the SAE on its model.
        atlas: what names each latent's reference images.
        images: the source that the atlas was made from.
    """

    def __init__(self, attached: AttachedSAE, atlas: LatentAtlas, images: ImageSource) -> None:
        self._attached, self._atlas, self._images = attached, atlas, images
        self._regions = SeenRegions(attached.model.require_preprocess())
        self._thumbs: OrderedDict[int, list[Image.Image]] = OrderedDict()
        self._references: OrderedDict[int, list[Reference]] = OrderedDict()

    def thumbs(self, latents: Sequence[int]) -> dict[int, list[Image.Image]]:
        """The most active patch of each latent's first reference images; no model runs."""
        missing = [latent for latent in latents if latent not in self._thumbs]
        rows = {latent: self._atlas.reference_images(latent)[:_THUMBS] for latent in missing}
        wanted = {int(index) for table in rows.values() for index in table["image"]}
        pictures = dict(images_by_index(self._images, wanted, missing={}))
        for latent, table in rows.items():
            self._thumbs[latent] = [
                self._thumb(pictures[int(index)], row, column)
                for index, row, column in table[["image", "row", "column"]].itertuples(index=False)
                if int(index) in pictures
            ]
        found = {latent: self._thumbs[latent] for latent in latents}
        _forget(self._thumbs)
        return found

    def references(self, latent: int) -> list[Reference]:
        """A latent's reference images, the strongest first, with where it is active."""
        if latent not in self._references:
            self._references[latent] = self._made(latent)
            _forget(self._references)
        return self._references[latent]

    def _made(self, latent: int) -> list[Reference]:
        table = self._atlas.reference_images(latent)[:_SHOWN]
        if self._attached.layout.has("patch"):
            maps = reference_heatmaps(
                self._attached.model,
                self._attached.sae,
                self._atlas,
                self._images,
                [latent],
                n_images=_SHOWN,
            )[latent]
            pictures = [highlight(one, size=one.size_of_region(_SHOWN_SIZE)) for one in maps]
        else:
            indices = [int(index) for index in table["image"]]
            whole = dict(images_by_index(self._images, indices))
            pictures = [self._whole(whole[index], _SHOWN_SIZE) for index in indices]
        names = table["class_name"].fillna("")
        return [
            Reference(str(id_), str(name), picture)
            for id_, name, picture in zip(table["id"], names, pictures, strict=True)
        ]

    def _thumb(self, picture: Image.Image, row: object, column: object) -> Image.Image:
        if not (isinstance(row, int | np.integer) and isinstance(column, int | np.integer)):
            return self._whole(picture, _THUMB_SIZE)
        peak = np.zeros(self._atlas.info.grid)
        peak[int(row), int(column)] = 1
        return zoom(Heatmap(picture, 0, peak, self._regions.of(picture)), size=_THUMB_SIZE)

    def _whole(self, picture: Image.Image, size: int) -> Image.Image:
        return self._regions.of(picture).crop(picture, (size, size))


def _forget(kept: OrderedDict[int, list]) -> None:
    while len(kept) > _LATENTS_KEPT:
        kept.popitem(last=False)
