"""The explain pages: for each patch of an image, the latents that are active there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from vit_sae_plugin.aggregation import make_aggregation
from vit_sae_plugin.analysis import LatentAtlas
from vit_sae_plugin.attached_sae import AttachedSAE
from vit_sae_plugin.datasets import ImageSource
from vit_sae_plugin.datasets.image_lookup import images_by_index
from vit_sae_plugin.report.answers import Answers
from vit_sae_plugin.report.image_walk import EncodedPicture, encoded_pictures
from vit_sae_plugin.report.patch_masks import as_shares, mask_string
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


class ExplainedImages:
    """Explanations, written as they come: a data file for each image, and a picture where needed.

    Args:
        folder: the report's folder.
        atlas, images, attached: what the report is made from.
        extension: of picture files.
        answers: what made the model's answers to the images that are chosen; None: not shown.
    """

    def __init__(
        self,
        folder: Path,
        atlas: LatentAtlas,
        images: ImageSource,
        attached: AttachedSAE,
        extension: str,
        answers: Answers | None = None,
    ) -> None:
        self._folder, self._images, self._attached = folder, images, attached
        self._extension = extension
        self._answers = answers
        self._image_level = make_aggregation(atlas.info.aggregations[atlas.default_aggregation])
        self._chosen: dict[int, dict[str, Any]] = {}
        self._references: list[dict[str, Any]] = []
        self._indices: set[int] = set()
        self._n_chosen = 0
        self.listed_latents: set[int] = set()
        """All latents that an explanation lists."""

    def __contains__(self, index: int) -> bool:
        return index in self._indices

    def add_chosen(
        self,
        chosen: Sequence[int | Image.Image],
        missing: dict[int, str],
        *,
        progress: bool,
    ) -> None:
        """Explain images of the source, by index, and pictures.

        Args:
            missing: filled with index → reason for images that can't be had.
        """
        self._n_chosen = len(chosen)
        loaded = _pictures(self._images, chosen, missing)
        bar = tqdm(loaded, "explain", len(chosen), unit=" images", disable=not progress)
        for picture in encoded_pictures(self._attached, bar):
            item = chosen[picture.key]
            answer = None if self._answers is None else self._answers.of(picture.image)
            self._chosen[picture.key] = self._write(
                picture, picture.key, item if isinstance(item, int) else None, None, answer
            )

    def add_reference(self, picture: EncodedPicture, file: str | None) -> None:
        """Explain a reference image.

        Args:
            file: its picture, where one of full size has been saved already.
        """
        place = self._n_chosen + len(self._references)
        self._references.append(self._write(picture, place, picture.key, file))

    def entries(self, shown_latents: set[int]) -> tuple[list[dict[str, Any]], int]:
        """What the other pages need of each image, and how many of them were chosen."""
        chosen = [self._chosen[place] for place in sorted(self._chosen)]
        entries = [
            {**entry, "latents": [i for i in entry["latents"] if i in shown_latents]}
            for entry in (*chosen, *self._references)
        ]
        return entries, len(chosen)

    def _write(
        self,
        picture: EncodedPicture,
        place: int,
        index: int | None,
        file: str | None,
        answer: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        grid = self._attached.layout.grid
        if file is None:
            file = f"explained-{place:05d}.{self._extension}"
            picture.save(self._folder / "images" / file, grid, _PICTURE_SIZE)
        grids = self._attached.layout.on_grid(picture.tokens.T).cpu().numpy()
        at_image_level = self._image_level(picture.tokens[None])[0].cpu()
        data = explanation_data(grids, at_image_level)
        if answer is not None:
            data["answer"] = answer
            self.listed_latents.update(one[0] for one in answer["latents"][: answer["n_listed"]])
        name = f"{place:05d}"
        write_data(self._folder / f"data/explain/{name}.js", f"explain/{name}", data)
        self.listed_latents.update(map(int, data["masks"]))
        if index is not None:
            self._indices.add(index)
        latents = [latent for latent, _ in data["image"]]
        return {
            "file": name,
            "picture": file,
            **_names(self._images, index),
            "latents": latents,
        }


def explanation_data(
    grids: Float[np.ndarray, "d_sae row column"], at_image_level: Float[Tensor, " d_sae"]
) -> dict[str, Any]:
    """What the page of an image shows.

    Args:
        grids: each latent's activation at each patch, NaN where the SAE doesn't read the patch.
        at_image_level: each latent's value for the image as a whole.

    Returns:
        ``image``, the strongest latents of the image with their values; ``patches``, those of each
        patch, row by row; ``masks``, latent → mask and largest activation, of every latent listed.
    """
    order = torch.argsort(at_image_level, descending=True, stable=True)[:_LATENTS_OF_IMAGE]
    strongest = [(int(i), number(at_image_level[i])) for i in order if at_image_level[i] > 0]
    flat = np.nan_to_num(grids.reshape(len(grids), -1))
    active = np.flatnonzero((flat > 0).any(axis=1))
    patches = []
    for values in flat[active].T:
        top = np.argsort(-values, kind="stable")[:_LATENTS_OF_PATCH]
        patches.append([(int(active[i]), number(values[i])) for i in top if values[i] > 0])
    listed = {i for i, _ in strongest} | {i for patch in patches for i, _ in patch}
    masks = {
        str(i): [mask_string(as_shares(grids[i])), number(flat[i].max(initial=0))]
        for i in sorted(listed)
    }
    return {"image": strongest, "patches": patches, "masks": masks}


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


def _names(images: ImageSource, index: int | None) -> dict[str, Any]:
    """Id, place in the source and class, each None where there is none."""
    if index is None or images.is_streaming:
        return {"id": None, "index": index, "class": None}
    record = images.record(index)
    return {"id": record.id, "index": index, "class": record.label}
