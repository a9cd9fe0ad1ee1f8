"""What all visitors of the page share: models, SAE, pictures, and what is known of latents."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import PIL.Image
import PIL.ImageOps

from vit_sae_plugin.analysis import LatentAtlas, analyze
from vit_sae_plugin.analysis.atlas.atlas_folder import holds_atlas, read_info
from vit_sae_plugin.analysis.atlas.same_sae import check_same_sae, warn_of_another_model
from vit_sae_plugin.analysis.pictures.overlays import COLORS
from vit_sae_plugin.attached_sae import AttachedSAE
from vit_sae_plugin.attached_sae.attached_pair import AttachedPair
from vit_sae_plugin.datasets import ImageRecord, ImageSource, SelectedImages, open_images
from vit_sae_plugin.datasets.image_decoding import UnreadableImageError
from vit_sae_plugin.evaluation.classifier_heads import linear_probe_head
from vit_sae_plugin.explorer.page_state import Limits, classes_as_text
from vit_sae_plugin.explorer.predictions import Classifier, Classifiers, can_read_text
from vit_sae_plugin.explorer.reference_images import Reference, ReferenceImages
from vit_sae_plugin.fingerprints import known_sae_fingerprint, short
from vit_sae_plugin.report.site_data import leading_labels

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.hooked_vit import HookedViT

_FIRST_CLASSES = "person, animal, plant, food, vehicle, building, landscape"
_MOST_OFFERED = 10_000


class Explorer:
    """An SAE on its model, beside an adapted one if there is one, and pictures to look at.

    Nothing in it belongs to one visitor. A model's hooks are attached while it runs, so whoever
    runs one holds ``lock``.

    Args:
        sides: name → the SAE on that model: ``"plain"`` first, then perhaps ``"adapted"``.
        images: pictures to pick from.
        atlas: statistics and reference images of the latents.
        atlas_images: what the atlas was made from.
        names: latent → name.
        probe: a classifier, for a model without a text tower.
    """

    def __init__(
        self,
        sides: Mapping[str, AttachedSAE],
        images: ImageSource,
        atlas: LatentAtlas,
        atlas_images: ImageSource,
        *,
        names: Mapping[int, str] | None = None,
        probe: Classifier | None = None,
    ) -> None:
        self.sides = dict(sides)
        self.images, self.atlas = images, atlas
        self.lock = threading.RLock()
        self.attached = next(iter(self.sides.values()))
        self._names = dict(names or {})
        self._small: dict[tuple[int, int], PIL.Image.Image | None] = {}
        self._references = ReferenceImages(self.attached, atlas, atlas_images)
        self.classifiers = {
            side: Classifiers(attached.model, images, probe)
            for side, attached in self.sides.items()
        }

    @property
    def n_images(self) -> int:
        """Pictures to pick from."""
        return min(self.images.n_images or 0, _MOST_OFFERED)

    @property
    def has_patches(self) -> bool:
        """Whether the SAE reads patches: else there is nothing to click on."""
        return self.attached.layout.has("patch")

    @property
    def limits(self) -> Limits:
        """What a link may choose among."""
        grid = self.attached.layout.grid if self.has_patches else None
        return Limits(self.n_images, self.attached.d_sae, grid, len(COLORS))

    @property
    def first_classes(self) -> str:
        """The class list that a page begins with."""
        names = list(dict.fromkeys(self.images.class_names or ()))
        return classes_as_text(names) if 2 <= len(names) <= 1000 else _FIRST_CLASSES

    @property
    def templates(self) -> tuple[str, ...]:
        """Prompt templates to choose from, the first of which a page begins with."""
        return next(iter(self.classifiers.values())).templates

    @property
    def title(self) -> str:
        """The SAE in a few words."""
        architecture = self.attached.sae.cfg.architecture()
        place = f"{self.attached.source.hook_name} of {self.attached.model.model_name}"
        return f"{self.attached.d_sae:,} latents · {architecture} · {place}"

    def name_of(self, latent: int) -> str:
        """A latent's name; empty where it has none."""
        return self._names.get(latent, "")

    def leading_class(self, latent: int) -> tuple[str, float] | None:
        """The class that leads among a latent's reference images, with its share of their
        activation; None where none has a label."""
        leading = leading_labels(self.atlas, [latent], 1)[0]
        return (self.atlas.class_name(leading[0][0]), leading[0][1]) if leading else None

    def usual_strength(self, latent: int) -> float:
        """A latent's mean activation where it is active among the images of the atlas; of one that
        never is, the median latent's."""
        means = self.atlas.latents["mean_activation"]
        if pd.notna(means[latent]):
            return float(means[latent])
        return float(means.median()) if means.notna().any() else 1.0

    def latent_called(self, words: str) -> int | None:
        """The latent with these words (in lower case) in its name, or else in the name of its
        leading class: of several the one that fires on most images."""
        by_name = [latent for latent, name in self._names.items() if words in name.lower()]
        if not by_name:
            leading = self.atlas.latents["top_class_name"].astype("string").str.lower()
            by_name = list(leading.index[leading.str.contains(words, regex=False, na=False)])
        if not by_name:
            return None
        return int(self.atlas.latents.loc[by_name, "frequency"].fillna(0).idxmax())

    def small_pictures(
        self, indices: Sequence[int], size: int
    ) -> dict[int, PIL.Image.Image | None]:
        """Pictures on offer as small squares, in order; None for one that can't be read."""
        found: dict[int, PIL.Image.Image | None] = {}
        for index in indices:
            if (index, size) not in self._small:
                try:
                    picture = self.images.record(index).load()
                except UnreadableImageError:
                    self._small[index, size] = None
                else:
                    self._small[index, size] = PIL.ImageOps.fit(picture, (size, size))
            found[index] = self._small[index, size]
        return found

    def thumbs(self, latents: Sequence[int]) -> dict[int, list[PIL.Image.Image]]:
        """Small pictures of what latents respond to; see ``ReferenceImages.thumbs``."""
        return self._references.thumbs(latents)

    def references(self, latent: int) -> list[Reference]:
        """A latent's reference images; see ``ReferenceImages.references``."""
        with self.lock:
            return self._references.references(latent)


class KeptImages(ImageSource):
    """The first images of a stream, kept as they came, so that each can be had by its number."""

    def __init__(self, stream: ImageSource, n: int) -> None:
        self._records = [
            replace(record, index=index) for index, record in enumerate(islice(stream.records(), n))
        ]
        self._stream = stream
        self.n_images: int = len(self._records)
        self.name, self.class_names = stream.name, stream.class_names
        self.templates = stream.templates

    def record(self, index: int) -> ImageRecord:
        return self._records[index]

    def fingerprint(self) -> str:
        """The stream's and the number kept."""
        return f"{self._stream.fingerprint()}-{self.n_images}"


def open_explorer(
    model: HookedViT,
    sae: SAE[Any],
    images: Any,
    *,
    adapted: HookedViT | None = None,
    atlas: str | Path | None = None,
    places: Sequence[str | Path] = (),
    names: Mapping[int, str] | None = None,
    n_reference_images: int = 256,
    batch_size_images: int = 64,
    n_workers: int = 0,
    progress: bool = True,
) -> Explorer:
    """Everything that the page needs before the first visitor comes.

    Reference images come from an atlas of the same images: the one given, or the first that fits
    in ``places``. Without one, some of the images are analysed now.

    Args:
        model: the model that the SAE reads.
        sae: any SAELens SAE.
        images: pictures to pick from, as ``open_images`` takes them. Of a stream the first
            ``n_reference_images`` are kept.
        adapted: the model after adaptation, to be shown beside it.
        atlas: folder of an atlas of this SAE and these images.
        places: folders that may hold one.
        names: latent → name; they go before those of the atlas.
        n_reference_images: images analysed where there is no atlas, spread over the source.
        batch_size_images, n_workers, progress: of that analysis.

    Raises:
        ValueError: the models, the SAE, the images or the atlas don't fit each other; the number
            of images is below 1.
    """
    if n_reference_images < 1:
        raise ValueError(f"n_reference_images is {n_reference_images}; want 1 or more")
    source = open_images(images)
    if source.is_streaming or source.n_images is None:
        source = KeptImages(source, n_reference_images)
    if not source.n_images:
        raise ValueError(f"{source.name} holds no image; want one or more to look at")
    if adapted is None:
        sides = {"plain": AttachedSAE(model, sae)}
    else:
        pair = AttachedPair(model, adapted, sae)
        sides = {"plain": pair.plain, "adapted": pair.adapted}
    found = _known_atlas(atlas, places, sae, model, source)
    atlas_images: ImageSource = source
    if found is None:
        atlas_images = _spread(source, n_reference_images)
        found = analyze(
            model,
            sae,
            atlas_images,
            batch_size_images=batch_size_images,
            n_workers=n_workers,
            progress=progress,
        )
    probe = None
    if not can_read_text(model) and len(source.class_names or ()) > 1:
        some = _spread(source, n_reference_images)
        head = linear_probe_head(model, some, n_workers=n_workers, progress=progress)
        probe = Classifier(head, source.class_names or (), 1.0)
    known = {latent: entry.name for latent, entry in found.names.items() if entry.name}
    return Explorer(
        sides, source, found, atlas_images, names={**known, **(names or {})}, probe=probe
    )


def _spread(source: ImageSource, n: int) -> SelectedImages:
    """At most ``n`` images of a source, evenly spread: sources often come class by class."""
    n_images = source.n_images or 0
    places = np.linspace(0, n_images - 1, min(n, n_images)).round().astype(np.int64)
    return SelectedImages(source, np.unique(places))


def _known_atlas(
    given: str | Path | None,
    places: Sequence[str | Path],
    sae: SAE[Any],
    model: HookedViT,
    images: ImageSource,
) -> LatentAtlas | None:
    """The atlas that was asked for, or the first in ``places`` of this SAE and these images."""
    sha256 = images.fingerprint()
    if given is not None:
        atlas = LatentAtlas.load(given)
        check_same_sae(atlas, sae)
        if atlas.info.data_sha256 != sha256:
            raise ValueError(
                f"the atlas in {given} is of {atlas.info.data_name} "
                f"[{short(atlas.info.data_sha256)}], but the images are {images.name} "
                f"[{short(sha256)}]; give the images that it was made from, or no atlas"
            )
        warn_of_another_model(atlas, model)
        return atlas
    for folder in map(Path, places):
        with suppress(ValueError):  # one that is damaged, or of another version, is as good as none
            info = read_info(folder) if holds_atlas(folder) else None
            if info and (info.sae_sha256, info.data_sha256) == (known_sae_fingerprint(sae), sha256):
                return LatentAtlas.load(folder)
    return None
