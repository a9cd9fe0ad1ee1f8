"""The unit of work of a cache: one shard, from images to files."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from vit_sae_plugin.activations.activation_source import hook_values
from vit_sae_plugin.activations.cache.cache_errors import (
    CacheWriteError,
    ShardInUseError,
    is_full_disk,
    reason_in_words,
)
from vit_sae_plugin.activations.cache.cache_images import images_of_part
from vit_sae_plugin.activations.cache.image_feed import ImageFeed
from vit_sae_plugin.activations.cache.shard_buffer import ShardBuffer
from vit_sae_plugin.activations.cache.shard_claims import ShardClaim, ShardClaims
from vit_sae_plugin.activations.cache.shard_files import (
    SHARDS_FOLDER,
    ShardEntry,
    finished_numbers,
    shard_folder,
)
from vit_sae_plugin.datasets import SkippedImages, open_images

if TYPE_CHECKING:
    from typing import Any

    from vit_sae_plugin.activations.cache.cache_plan import CachePlan, ShardRange
    from vit_sae_plugin.hooked_vit import HookedViT


def write_shard(
    plan: CachePlan,
    number: int,
    model: HookedViT,
    images: Any,
    *,
    n_workers: int = 0,
    replace: bool = False,
) -> ShardEntry:
    """Compute and write one shard; one that is finished already is left as it is.

    The shard appears whole or not at all. Any number of processes may write shards of one cache.

    Args:
        plan: the cache's, from `plan_cache`.
        number: of the shard.
        model: that the plan was made with.
        images: the shard's source of images, as `open_images` takes it.
        n_workers: processes that decode images.
        replace: write it although it is there.

    Raises:
        ShardInUseError: another process is writing it.
        CacheMismatchError: these aren't the images that the cache is of.
        CacheWriteError: the disk is full, or can't be written to.
        ValueError: there is no such shard, or an activation isn't finite.
    """
    shard = plan.shard(number)
    source = images_of_part(plan, shard.part, open_images(images))
    claims = ShardClaims(plan.folder)
    claim = claims.take(number)
    if claim is None:
        raise ShardInUseError(
            f"shard {number} of {plan.folder} is being written by "
            f"{claims.holder_in_words(number)}; wait for it to end"
        )
    with claim:
        if not replace and shard_folder(plan.folder, number).is_dir():
            return ShardEntry.load(plan.folder, number)
        feed = ImageFeed(plan, source, model.require_preprocess(), n_workers)
        buffer, skipped = ShardBuffer(plan), SkippedImages()
        try:
            n_images = fill(buffer, shard, model, feed, skipped)
        finally:
            feed.close()
        return save(buffer, skipped, n_images, claim)


@torch.no_grad()
def fill(
    buffer: ShardBuffer,
    shard: ShardRange,
    model: HookedViT,
    feed: ImageFeed,
    skipped: SkippedImages,
    visited: Callable[[int], object] = lambda n_images: None,
) -> int:
    """Fill a buffer with a shard's rows, of all hooks in one forward pass.

    Args:
        buffer: to fill.
        shard: which.
        model: in evaluation mode.
        feed: gives the images.
        skipped: unreadable images are added to it.
        visited: called with the number of images of each batch.

    Returns:
        Images visited: fewer than the shard has places for where a stream ended.

    Raises:
        ValueError: an activation isn't finite, or the format would take too much of the variance.
    """
    plan = buffer.plan
    sources = [plan.source(hook) for hook in plan.hooks]
    buffer.start(shard)
    n_used = 0
    for batch in feed.batches(shard, skipped):
        with torch.autocast(
            model.cfg.device.type, dtype=torch.bfloat16, enabled=plan.autocast_model
        ):
            values = hook_values(sources, model, batch.pixels)
        try:
            buffer.add(
                batch, [s.select(model.cfg, v) for s, v in zip(sources, values, strict=True)]
            )
        except ValueError as error:
            raise ValueError(f"images {batch.ids[0]!r} to {batch.ids[-1]!r}: {error}") from None
        n_used += len(batch.ids)
        visited(len(batch.ids))
    buffer.check_rounding()
    visited(len(skipped))
    return n_used + len(skipped)


def save(
    buffer: ShardBuffer, skipped: SkippedImages, n_images: int, claim: ShardClaim
) -> ShardEntry:
    """Write a filled buffer, in place of what writers that are gone left of its shard.

    Raises:
        CacheWriteError: the disk is full, or can't be written to.
    """
    try:
        claim.delete_unfinished(buffer.plan.folder / SHARDS_FOLDER)
        return buffer.save(skipped, n_images)
    except OSError as error:
        plan, shard = buffer.plan, buffer.shard
        n_finished = len(finished_numbers(plan.folder))
        number = "?" if shard is None else shard.number
        hint = "free some space" if is_full_disk(error) else "see that it can be written to"
        raise CacheWriteError(
            f"shard {number} can't be written to {plan.folder / SHARDS_FOLDER} "
            f"({reason_in_words(error)}): the {n_finished} shards that are finished stay; {hint}, "
            "and give the same command again to go on"
        ) from error
