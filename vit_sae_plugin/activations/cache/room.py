"""Whether a cache fits on its disk, asked before anything is computed."""

from __future__ import annotations

import shutil

from vit_sae_plugin.activations.cache.cache_errors import CacheWriteError
from vit_sae_plugin.activations.cache.cache_plan import CachePlan
from vit_sae_plugin.activations.cache.shard_files import finished_numbers


def bytes_to_write(plan: CachePlan) -> int | None:
    """Bytes that the shards not yet there will take; None for a stream of unknown length."""
    if plan.n_images is None:
        return None
    finished = set(finished_numbers(plan.folder))
    missing = sum(shard.n_images for shard in plan.shards if shard.number not in finished)
    return missing * plan.image_bytes()


def check_room(plan: CachePlan) -> None:
    """Raise a `CacheWriteError` if the disk has no room for the shards that are missing."""
    needed = bytes_to_write(plan)
    free = shutil.disk_usage(plan.folder).free
    if needed is not None and needed > free:
        raise CacheWriteError(
            f"the cache {plan.folder} needs {in_words(needed)} more, but its disk has "
            f"{in_words(free)} free; want another folder, a 16-bit dtype, fewer hooks, tokens or "
            "images"
        )


def in_words(n_bytes: float) -> str:
    """A number of bytes, such as `"1.5 GB"` (1.5e9)."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "bytes" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"
