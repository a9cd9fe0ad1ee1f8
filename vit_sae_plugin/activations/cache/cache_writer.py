"""Write a cache, alone or beside other writers: the tower computes while files are written."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from vit_sae_plugin.activations.activation_source import EVERY_TOKEN
from vit_sae_plugin.activations.cache.activation_cache import ActivationCache
from vit_sae_plugin.activations.cache.begin_cache import end_stream, plan_cache
from vit_sae_plugin.activations.cache.cache_errors import ShardInUseError
from vit_sae_plugin.activations.cache.cache_images import images_of_part
from vit_sae_plugin.activations.cache.image_feed import ImageFeed
from vit_sae_plugin.activations.cache.room import check_room
from vit_sae_plugin.activations.cache.shard_buffer import ShardBuffer
from vit_sae_plugin.activations.cache.shard_claims import ShardClaim, ShardClaims
from vit_sae_plugin.activations.cache.shard_files import ShardEntry, shard_folder
from vit_sae_plugin.activations.cache.shard_writer import fill, save
from vit_sae_plugin.datasets import SkippedImages, open_images

if TYPE_CHECKING:
    from vit_sae_plugin.activations.cache.cache_plan import CachePlan, ShardRange
    from vit_sae_plugin.datasets import ImageSource
    from vit_sae_plugin.hooked_vit import HookedViT

_POLL_SECONDS = 0.5


def write_cache(
    folder: str | Path,
    model: HookedViT,
    images: Any,
    *,
    hook_names: Sequence[str],
    token_kind: str = "all",
    seqpos_slice: tuple[int | None, ...] = EVERY_TOKEN,
    dtype: str | None = None,
    images_per_shard: int | None = None,
    batch_size_images: int | None = None,
    autocast_model: bool | None = None,
    seed: int | None = None,
    add: bool = False,
    n_workers: int = 0,
    progress: bool = True,
) -> ActivationCache:
    """Write the activations of one or several hooks, from one forward pass an image.

    Given again, it goes on with what is there, after any kind of end. Several processes may write
    one cache at once (of map-style images): each takes shards that no other has. This returns when
    all shards are there.

    Memory: two shards (one is filled while the other is written) beside the model and its batches.

    Args:
        folder, model, images, hook_names, token_kind, seqpos_slice: as `plan_cache` takes them.
        dtype, images_per_shard, batch_size_images, autocast_model, seed, add: likewise.
        n_workers: processes that decode images.
        progress: show a progress bar.

    Raises:
        CacheMismatchError, UnfinishedCacheError, ValueError: see `plan_cache`.
        CacheWriteError: the disk has no room, or can't be written to.
        NoReadableImagesError: no image can be read.
    """
    plan = plan_cache(
        folder,
        model,
        images,
        hook_names=hook_names,
        token_kind=token_kind,
        seqpos_slice=seqpos_slice,
        dtype=dtype,
        images_per_shard=images_per_shard,
        batch_size_images=batch_size_images,
        autocast_model=autocast_model,
        seed=seed,
        add=add,
    )
    return write_shards(plan, model, images, n_workers=n_workers, progress=progress)


def write_shards(
    plan: CachePlan,
    model: HookedViT,
    images: Any,
    *,
    n_workers: int = 0,
    progress: bool = True,
) -> ActivationCache:
    """Write all shards of a plan that are missing, as `write_cache` does.

    Args:
        plan: from `plan_cache`.
        model, images: what the plan was made with.
        n_workers: processes that decode images.
        progress: show a progress bar.

    Raises:
        CacheWriteError, NoReadableImagesError: see `write_cache`.
        CacheMismatchError: these aren't the images of the plan.
    """
    source = open_images(images)
    part = _part_of(plan, source)
    check_room(plan)
    feed = ImageFeed(
        plan, images_of_part(plan, part, source), model.require_preprocess(), n_workers
    )
    writer = _Writer(plan, part, model.eval(), feed)
    with tqdm(
        total=plan.parts[part].n_images,
        desc="Caching activations",
        unit=" images",
        disable=not progress,
    ) as bar:
        plan = writer.run(bar)
    return ActivationCache(plan.folder)


def _part_of(plan: CachePlan, source: ImageSource) -> int:
    fingerprint = source.fingerprint()
    for number, part in enumerate(plan.parts):
        if part.fingerprint == fingerprint:
            return number
    images_of_part(plan, len(plan.parts) - 1, source)  # raises, with both
    return len(plan.parts) - 1


class _Writer:
    """Computes shards one after another; a thread writes each while the next is computed."""

    def __init__(self, plan: CachePlan, part: int, model: HookedViT, feed: ImageFeed) -> None:
        self.plan = plan
        self.part = part
        self.model = model
        self.feed = feed
        self.claims = ShardClaims(plan.folder)
        self._buffers = [ShardBuffer(plan), ShardBuffer(plan)]
        self._saving: Future[Any] | None = None

    def run(self, bar: tqdm) -> CachePlan:
        """Write until all shards are there."""
        with ThreadPoolExecutor(1, "shard-writer") as thread:
            try:
                if self.plan.parts[self.part].is_stream:
                    return self._write_stream(thread, bar)
                for shard, claim in self._claimed(bar):
                    self._write(thread, shard, claim, bar)
                self._wait()
            finally:
                self.feed.close()
        return self.plan

    def _claimed(self, bar: tqdm) -> Iterator[tuple[ShardRange, ShardClaim]]:
        """Shards that nobody else writes, until none is missing."""
        missing = deque(shard for shard in self.plan.shards if shard.part == self.part)
        busy: list[ShardRange] = []
        while missing or busy:
            if not missing:
                # others are writing them; should one of them die, its shard is ours
                self._wait()
                time.sleep(_POLL_SECONDS)
                missing, busy = deque(busy), []
            shard = missing.popleft()
            claim = None if self._is_finished(shard) else self.claims.take(shard.number)
            if claim is not None and not self._is_finished(shard):
                yield shard, claim
            elif claim is not None:  # another finished it between our asking and claiming
                claim.release()
                bar.update(shard.n_images)
            elif self._is_finished(shard):
                bar.update(shard.n_images)
            else:
                busy.append(shard)
                # another writer works its way on from here: we do from half-way to its end
                missing.rotate(-(len(missing) // 2))

    def _write_stream(self, thread: ThreadPoolExecutor, bar: tqdm) -> CachePlan:
        """A stream is walked by one process, up to its end."""
        first = len([shard for shard in self.plan.shards if shard.part < self.part])
        number, n_images, n_known = first, 0, self.plan.parts[self.part].n_images
        while True:
            shard = self.plan.shard(number)
            if self._is_finished(shard):
                n_here = ShardEntry.load(self.plan.folder, number).n_images
                bar.update(n_here)
            else:
                claim = self.claims.take(number)
                if claim is None:
                    raise ShardInUseError(
                        f"{self.plan.folder} is being written by "
                        f"{self.claims.holder_in_words(number)}; a stream can be walked by one "
                        "process only: wait for it to end"
                    )
                n_here = self._write(thread, shard, claim, bar)
            n_images += n_here
            number += 1
            if n_here < self.plan.images_per_shard or n_images == n_known:
                break
        self._wait()
        if n_known is None:
            return end_stream(self.plan, n_images)
        return self.plan

    def _write(
        self, thread: ThreadPoolExecutor, shard: ShardRange, claim: ShardClaim, bar: tqdm
    ) -> int:
        def visited(n_images: int) -> None:
            bar.update(n_images)
            if self._saving is not None and self._saving.done():
                self._wait()  # raises at once if the shard before could not be written

        buffer, skipped = self._buffers[0], SkippedImages()
        try:
            n_images = fill(buffer, shard, self.model, self.feed, skipped, visited)
            self._wait()
        except BaseException:
            claim.release()
            raise
        if n_images == 0:  # the stream ended with the shard before
            claim.release()
            return 0
        self._buffers.reverse()
        self._saving = thread.submit(_save_and_release, buffer, skipped, n_images, claim)
        return n_images

    def _wait(self) -> None:
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def _is_finished(self, shard: ShardRange) -> bool:
        return shard_folder(self.plan.folder, shard.number).is_dir()


def _save_and_release(
    buffer: ShardBuffer, skipped: SkippedImages, n_images: int, claim: ShardClaim
) -> None:
    with claim:
        save(buffer, skipped, n_images, claim)
