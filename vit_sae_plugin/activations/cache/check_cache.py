"""Find what is damaged in a cache, and write just that anew."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from vit_sae_plugin.activations.cache.cache_plan import CachePlan, check_same
from vit_sae_plugin.activations.cache.shard_files import (
    ENTRY_FILE,
    find_shard_damage,
    finished_numbers,
    shard_folder,
)
from vit_sae_plugin.activations.cache.shard_writer import write_shard
from vit_sae_plugin.datasets import open_images
from vit_sae_plugin.fingerprints import known_model_fingerprint

if TYPE_CHECKING:
    from vit_sae_plugin.datasets import ImageSource
    from vit_sae_plugin.hooked_vit import HookedViT


def verify_cache(path: str | Path, *, progress: bool = False) -> dict[int, str]:
    """Read every byte of a cache, and compare it with the checksums taken when it was written.

    Args:
        path: the cache's folder.
        progress: show a progress bar.

    Returns:
        Number of each shard that is damaged or missing, and what is wrong with it.

    Raises:
        FileNotFoundError: there is no cache.
        DamagedCacheError: the manifest is damaged.
    """
    plan = CachePlan.load(path)
    there = set(finished_numbers(plan.folder))
    wanted = {shard.number for shard in plan.shards}
    if plan.n_images is None:  # of a stream that hasn't ended, up to the last one that is there
        wanted |= set(range(max(there, default=-1) + 1))
    damage: dict[int, str] = {}
    with tqdm(
        total=sum(_size(plan, number) for number in there & wanted),
        desc="Verifying",
        unit="B",
        unit_scale=True,
        disable=not progress,
    ) as bar:
        for number in sorted(wanted):
            if number not in there:
                damage[number] = f"shard {number} isn't there: not written yet, or deleted"
            elif found := find_shard_damage(plan, number, bar.update):
                damage[number] = found
    return damage


def repair_cache(
    path: str | Path,
    *,
    model: HookedViT | None = None,
    images: Any = None,
    n_workers: int = 0,
    progress: bool = False,
) -> dict[int, str]:
    """Write the shards anew that `verify_cache` finds damaged or missing, and no others.

    Args:
        path: the cache's folder.
        model: the model that the cache was made with. None: load it as the manifest says.
        images: the images that the cache was made of. None: open them as the manifest says.
        n_workers: processes that decode images.
        progress: show progress bars.

    Returns:
        What was wrong, by number of the shards that were written anew.

    Raises:
        CacheMismatchError: the model or the images aren't those that the cache was made of.
        ShardInUseError: another process is writing one of these shards.
        ValueError: the cache was made with objects that the manifest can't name.
    """
    damage = verify_cache(path, progress=progress)
    if not damage:
        return damage
    plan = CachePlan.load(path)
    source = plan.source(next(iter(plan.hooks)))
    model = source.load_model() if model is None else model
    check_same(
        str(path),
        {"model_sha256": (plan.model["model_sha256"], known_model_fingerprint(model))},
        "want the model that the cache was made with",
    )
    model.eval()
    sources: dict[int, ImageSource] = {}
    for number in tqdm(damage, desc="Writing anew", unit=" shards", disable=not progress):
        part = plan.shard(number).part
        if part not in sources:
            sources[part] = _source(plan, part, images)
        write_shard(plan, number, model, sources[part], n_workers=n_workers, replace=True)
    return damage


def _source(plan: CachePlan, part: int, images: Any) -> ImageSource:
    if images is not None:
        return open_images(images)
    text = plan.parts[part].text
    if text is None:
        raise ValueError(
            f"the cache {plan.folder} was made of {plan.parts[part].name}, an object that its "
            "manifest can't name; give the images (--images, images=…)"
        )
    return open_images(text, from_file=True)


def _size(plan: CachePlan, number: int) -> int:
    """Bytes of a shard's files, but for `shard.json`, which describes them."""
    files = shard_folder(plan.folder, number).iterdir()
    return sum(path.stat().st_size for path in files if path.name != ENTRY_FILE)
