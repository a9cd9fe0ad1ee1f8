"""Which images a cache is of, and which of a source it lacks."""

from __future__ import annotations

from typing import Any

import numpy as np

from vit_sae_plugin.activations.cache.cache_errors import CacheMismatchError
from vit_sae_plugin.activations.cache.cache_plan import MAX_IMAGES, CachedImages, CachePlan
from vit_sae_plugin.activations.cache.shard_files import read_images
from vit_sae_plugin.datasets import ImageSource
from vit_sae_plugin.datasets.subsets import SelectedImages
from vit_sae_plugin.fingerprints import short


def describe_images(images: ImageSource, text: Any = None, only_new: bool = False) -> CachedImages:
    """A source, as a manifest names it.

    Args:
        images: the source.
        text: how it was named.
        only_new: images that the cache holds already were left out.

    Raises:
        ValueError: it has more images than coordinates can number.
    """
    n_images = None if images.is_streaming else images.n_images
    if n_images is not None and n_images > MAX_IMAGES:
        raise ValueError(f"{images.name} has {n_images} images; want at most {MAX_IMAGES}")
    return CachedImages(
        name=images.name,
        fingerprint=images.fingerprint(),
        n_images=n_images,
        text=None if isinstance(text, ImageSource) or text is None else str(text),
        is_stream=images.is_streaming,
        only_new=only_new,
        class_names=None if images.class_names is None else list(images.class_names),
    )


def images_of_part(plan: CachePlan, part: int, images: ImageSource) -> ImageSource:
    """A source as one part of a cache counts it.

    Raises:
        CacheMismatchError: it isn't what the cache was made of.
    """
    described = plan.parts[part]
    found = images.fingerprint()
    if found == described.fingerprint:
        if not described.only_new:
            return images
        return SelectedImages(images, new_images(plan, part, images))
    relatives = [p for p in plan.parts if p.text is not None and p.text == described.text]
    if any(found == relative.fingerprint for relative in relatives):
        # it has grown since: what was there is what no other part has
        ids = cached_ids(plan, {i for i in range(len(plan.parts)) if i != part})
        indices = _lacking(images, ids)
        if len(indices) == described.n_images:
            return SelectedImages(images, indices)
    raise CacheMismatchError(
        f"the cache {plan.folder} is of {described.name} [{short(described.fingerprint)}], but "
        f"these images are {images.name} [{short(found)}] ({described.n_images} images there, "
        f"{images.n_images} now); want the same images, or --add (add=True) to add those that the "
        "cache lacks"
    )


def new_images(plan: CachePlan, part: int, images: ImageSource) -> np.ndarray:
    """Numbers of the images whose ids the sources before a part don't have."""
    return _lacking(images, cached_ids(plan, set(range(part))))


def cached_ids(plan: CachePlan, parts: set[int]) -> set[str]:
    """The ids of all images of some sources, readable or not."""
    ids: set[str] = set()
    for shard in plan.shards:
        if shard.part in parts:
            ids.update(read_images(plan.folder, shard.number)["id"])
    return ids


def check_classes(plan: CachePlan, images: ImageSource) -> None:
    """Raise a `CacheMismatchError` if a label means another class in a cache than in a source: a
    new folder moves all behind it by one."""
    there, now = plan.class_names or [], list(images.class_names or [])
    for label, (name, other) in enumerate(zip(there, now, strict=False)):
        if name != other:
            raise CacheMismatchError(
                f"label {label} is {name!r} in the cache {plan.folder}, but {other!r} in "
                f"{images.name}; want the same classes, with new ones behind them, or another cache"
            )


def _lacking(images: ImageSource, ids: set[str]) -> np.ndarray:
    found = (images.record(index).id for index in range(images.n_images or 0))
    return np.array([i for i, id in enumerate(found) if id not in ids], dtype=np.int64)
