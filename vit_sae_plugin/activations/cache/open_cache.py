"""Where a cache may stand in the place of images: `"cache:PATH"`, or the object itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vit_sae_plugin.activations.cache.activation_cache import ActivationCache

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
    path = images.removeprefix(_PREFIX)
    is_partial = path.endswith(_PARTIAL) and not Path(path).exists()
    return ActivationCache(path.removesuffix(_PARTIAL) if is_partial else path, partial=is_partial)


def is_cache_text(text: Any) -> bool:
    """Whether a text names a cache."""
    return isinstance(text, str) and text.startswith(_PREFIX)
