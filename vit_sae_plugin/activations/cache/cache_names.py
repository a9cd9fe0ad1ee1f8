"""Where a cache may stand in the place of images: `"cache:PATH"`, or the object itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vit_sae_plugin.activations.cache.activation_cache import ActivationCache
from vit_sae_plugin.activations.cache.cache_plan import CachePlan

_PREFIX, _PARTIAL = "cache:", "?partial=true"


def open_cache(images: Any) -> ActivationCache | None:
    """The cache that is meant by what is given as images; None if it is none.

    Args:
        images: `"cache:PATH"`, `"cache:PATH?partial=true"` for what is finished of it, an
            `ActivationCache`, or anything else.

    Raises:
        FileNotFoundError, UnfinishedCacheError, DamagedCacheError: see `ActivationCache`.
    """
    if isinstance(images, ActivationCache):
        return images
    if not is_cache_text(images):
        return None
    path, is_partial = _path_of(images)
    return ActivationCache(path, partial=is_partial)


def plan_of(text: str) -> CachePlan:
    """What the cache holds that a text names, finished or not.

    Raises:
        FileNotFoundError, DamagedCacheError: see `CachePlan.load`.
    """
    return CachePlan.load(_path_of(text)[0])


def is_cache_text(text: Any) -> bool:
    """Whether a text names a cache."""
    return isinstance(text, str) and text.startswith(_PREFIX)


def _path_of(text: str) -> tuple[str, bool]:
    """The folder, and whether what is finished of it will do."""
    path = text.removeprefix(_PREFIX)
    is_partial = path.endswith(_PARTIAL) and not Path(path).exists()
    return path.removesuffix(_PARTIAL) if is_partial else path, is_partial
