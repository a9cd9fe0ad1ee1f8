"""Begin a cache, or go on with one that was begun."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vit_sae_plugin.activations.activation_source import (
    EVERY_TOKEN,
    ActivationSource,
    hook_values,
)
from vit_sae_plugin.activations.cache.cache_errors import (
    CacheMismatchError,
    CacheWriteError,
    UnfinishedCacheError,
    reason_in_words,
)
from vit_sae_plugin.activations.cache.cache_images import (
    cached_ids,
    check_classes,
    describe_images,
    images_of_part,
    new_images,
)
from vit_sae_plugin.activations.cache.cache_plan import (
    MANIFEST_FILE,
    CachedImages,
    CachePlan,
    check_file_name,
)
from vit_sae_plugin.activations.cache.room import check_room
from vit_sae_plugin.activations.cache.row_formats import row_format
from vit_sae_plugin.activations.cache.shard_claims import CLAIMS_FOLDER
from vit_sae_plugin.activations.cache.shard_files import finished_numbers
from vit_sae_plugin.datasets import open_images
from vit_sae_plugin.file_lock import FileLock
from vit_sae_plugin.fingerprints import known_model_fingerprint
from vit_sae_plugin.hooked_vit.token_layout import TOKEN_ROLES

if TYPE_CHECKING:
    from vit_sae_plugin.datasets import ImageSource
    from vit_sae_plugin.hooked_vit import HookedViT

_SHARD_BYTES = 128 << 20
_FEWEST_SHARDS = 16
_LONGEST_WAIT_SECONDS = 60.0


def plan_cache(
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
    images_text: str | None = None,
) -> CachePlan:
    """The plan of a cache, whose manifest is there when this returns.

    A cache that was begun is gone on with: what is None is taken from it, all else must be the
    same. Of several processes that begin one cache at once, one does.

    Args:
        folder: where the cache is or shall be.
        model: the model.
        images: as `open_images` takes them.
        hook_names: one or several hooks with the same tokens.
        token_kind, seqpos_slice: which tokens, as in `ViTActivationsStore`.
        dtype: `"float32"` (the default), `"bfloat16"`, `"float16"` or `"int8"`.
        images_per_shard: default: some 128 MiB a shard, and 16 shards or more.
        batch_size_images: images the model sees at once. Default: 32.
        autocast_model: run the model under bfloat16 autocast. Default: no.
        seed: of the order of rows within shards. Default: 0.
        add: also take in those of these images that the cache lacks.
        images_text: what names them, where `images` is an object that was made of a text.

    Raises:
        CacheMismatchError: the cache there is of another model, other hooks, tokens or images.
        UnfinishedCacheError: images are to be added to a cache that isn't finished.
        CacheWriteError: the folder can't be written to.
        ValueError: a hook, token kind or number that can't be.
    """
    source = open_images(images)
    text = images if images_text is None else images_text
    wanted = _first_plan(
        Path(folder), model, hook_names, token_kind, seqpos_slice, dtype or "float32"
    )
    wanted = replace(
        wanted,
        autocast_model=bool(autocast_model),
        seed=seed or 0,
        batch_size_images=batch_size_images or 32,
        parts=[describe_images(source, text)],
    )
    _check_sizes(batch_size_images, images_per_shard, seed)
    try:
        with _manifest_lock(wanted.folder):
            if not (wanted.folder / MANIFEST_FILE).exists():
                plan = _with_shard_size(wanted, images_per_shard)
                check_room(plan)  # a manifest would stand in the way of smaller settings
                plan.save()
                return plan
        return _go_on(
            wanted,
            source,
            add,
            {
                "dtype": dtype,
                "images_per_shard": images_per_shard,
                "batch_size_images": batch_size_images,
                "autocast_model": autocast_model,
                "seed": seed,
            },
        )
    except CacheWriteError:
        raise
    except OSError as error:
        raise CacheWriteError(
            f"the cache can't be written to {str(folder)!r} ({reason_in_words(error)}); choose "
            "another folder"
        ) from error


def end_stream(plan: CachePlan, n_images: int) -> CachePlan:
    """Write into the manifest how many images the stream had that is the last source."""
    with _manifest_lock(plan.folder):
        ended = plan.with_last_part_ended(n_images)
        ended.save()
    return ended


def _first_plan(
    folder: Path,
    model: HookedViT,
    hook_names: Sequence[str],
    token_kind: str,
    seqpos_slice: tuple[int | None, ...],
    dtype: str,
) -> CachePlan:
    if isinstance(hook_names, str):
        hook_names = [hook_names]
    if not hook_names or len(set(hook_names)) < len(hook_names):
        raise ValueError(f"hook_names is {list(hook_names)}; want one or more, each once")
    row_format(dtype)
    model.eval()
    model.require_preprocess()
    sources = [
        ActivationSource.from_model(model, hook, token_kind, seqpos_slice) for hook in hook_names
    ]
    tokens = _tokens_of(sources, model)
    described = replace(sources[0], model_sha256=known_model_fingerprint(model)).to_metadata()
    del described["hook_name"]
    for hook in hook_names:
        check_file_name(hook)
    return CachePlan(
        folder=folder,
        model=json.loads(json.dumps(described)),  # as it will be read
        hooks={hook: model.hook_width(hook) for hook in hook_names},
        tokens=tokens,
        dtype=dtype,
        images_per_shard=0,
        batch_size_images=0,
    )


@torch.no_grad()
def _tokens_of(sources: list[ActivationSource], model: HookedViT) -> list[list[int]]:
    """Row, column and kind of the selected tokens, which all hooks must share."""
    pixels = torch.zeros(1, 3, *model.cfg.image_size)
    values = hook_values(sources, model, pixels)
    tokens = []
    for source, value in zip(sources, values, strict=True):
        layout = source.layout(model.cfg, value)
        kinds = torch.tensor([TOKEN_ROLES.index(role) for role in layout.roles])
        tokens.append(torch.cat([layout.row_and_column, kinds.unsqueeze(1)], dim=1).tolist())
    for source, its in zip(sources, tokens, strict=True):
        if its != tokens[0]:
            raise ValueError(
                f"{sources[0].hook_name} has {len(tokens[0])} tokens and {source.hook_name} "
                f"{len(its)}; want hooks with the same tokens, or a cache for each"
            )
    return tokens[0]


def _check_sizes(batch_size: int | None, images_per_shard: int | None, seed: int | None) -> None:
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size_images is {batch_size}; want 1 or more")
    if seed is not None and seed < 0:
        raise ValueError(f"seed is {seed}; want 0 or more")
    if images_per_shard is not None and images_per_shard < 1:
        raise ValueError(f"images_per_shard is {images_per_shard}; want 1 or more")


def _with_shard_size(plan: CachePlan, images_per_shard: int | None) -> CachePlan:
    """The plan with whole batches in every shard, so that each shard can be computed by itself."""
    batch = plan.batch_size_images
    if images_per_shard is None:
        n_images = plan.n_images
        size = _SHARD_BYTES // plan.image_bytes()
        if n_images is not None:
            size = min(size, n_images // _FEWEST_SHARDS)
        return replace(plan, images_per_shard=max(1, size // batch) * batch)
    if images_per_shard % batch != 0:
        raise ValueError(
            f"images_per_shard is {images_per_shard}; want a multiple of batch_size_images, {batch}"
        )
    return replace(plan, images_per_shard=images_per_shard)


def _go_on(
    wanted: CachePlan, source: ImageSource, add: bool, settings: dict[str, Any]
) -> CachePlan:
    """The plan of a cache that was begun, with these images if they are to be added."""
    plan = CachePlan.load(wanted.folder)
    unsaid = {name: getattr(plan, name) for name, value in settings.items() if value is None} | {
        "images_per_shard": settings["images_per_shard"] or plan.images_per_shard
    }
    plan.check_same_settings(replace(wanted, **unsaid))
    if any(part.fingerprint == wanted.parts[0].fingerprint for part in plan.parts):
        return plan
    if not add:
        images_of_part(plan, len(plan.parts) - 1, source)  # raises, with both
    _check_finished(plan)
    # all ids there and here are compared, which may take longer than others wait for the lock
    grown = plan.with_part(_added_part(plan, wanted.parts[0], source))
    with _manifest_lock(plan.folder):
        if CachePlan.load(plan.folder) == plan:
            grown.save()
            return grown
    return _go_on(wanted, source, add, settings)  # others were added meanwhile


def _check_finished(plan: CachePlan) -> None:
    n_finished = len(finished_numbers(plan.folder))
    if plan.n_images is None or n_finished < len(plan.shards):
        n_shards = "?" if plan.n_images is None else len(plan.shards)
        raise UnfinishedCacheError(
            f"{plan.folder} has {n_finished} of its {n_shards} shards; finish it with the images "
            "it was begun with before adding others"
        )


def _added_part(plan: CachePlan, part: CachedImages, source: ImageSource) -> CachedImages:
    """The next part: of a source that has grown only what is new, of another one all of it."""
    check_classes(plan, source)
    if source.is_streaming:
        return part
    n_parts = len(plan.parts)
    new = new_images(plan, n_parts, source)
    n_known = part.n_images - len(new) if part.n_images is not None else 0
    if n_known == 0:
        return part
    grown = part.text is not None and any(part.text == before.text for before in plan.parts)
    if not grown:
        known = cached_ids(plan, set(range(n_parts)))
        id = next(r.id for r in source.records() if r.id in known)
        raise CacheMismatchError(
            f"{n_known} of the {part.n_images} images of {part.name} have ids that the cache "
            f"{plan.folder} has already from {plan.parts[0].name}, such as {id!r}; want the source "
            "that it was made of, grown, or one with ids of its own (a folder above both)"
        )
    if len(new) == 0:
        raise CacheMismatchError(
            f"the cache {plan.folder} holds all {part.n_images} images of {part.name} already; "
            "leave out --add (add=True), or give other images"
        )
    return replace(part, n_images=len(new), only_new=True)


@contextmanager
def _manifest_lock(folder: Path) -> Iterator[None]:
    """One process at a time changes a cache's manifest."""
    claims = folder / CLAIMS_FOLDER
    claims.mkdir(parents=True, exist_ok=True)
    lock = FileLock(claims / "manifest.lock")
    give_up_at = time.monotonic() + _LONGEST_WAIT_SECONDS
    while not lock.acquire():
        if time.monotonic() > give_up_at:
            raise CacheWriteError(
                f"{folder} is in use by {lock.holder_in_words()}, which has been writing its "
                f"manifest for {_LONGEST_WAIT_SECONDS:.0f} s; if it is gone, delete {lock.path}"
            )
        time.sleep(0.05)
    try:
        yield
    finally:
        lock.release()
