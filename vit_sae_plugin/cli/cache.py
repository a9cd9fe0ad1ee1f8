"""``vit-sae cache``: a model's activations on disk, to train any number of SAEs from."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_sae_plugin.cli.devices import chosen_device
from vit_sae_plugin.cli.output_folders import check_output_folder
from vit_sae_plugin.cli.saved_sae import weights_flag

if TYPE_CHECKING:
    from vit_sae_plugin.activations.cache import ActivationCache, CachePlan
    from vit_sae_plugin.hooked_vit import HookedViT

_DAMAGED = 1
_FIRST_MODEL = "ViT-B-16"


def run(args: argparse.Namespace) -> int:
    """Write a cache, or do with it what the flags say."""
    from vit_sae_plugin.activations.cache import CachePlan
    from vit_sae_plugin.activations.cache.cache_plan import MANIFEST_FILE

    is_there = (Path(args.folder) / MANIFEST_FILE).is_file()
    if args.verify:
        return _verify(args)
    if args.repair:
        return _repair(args)
    if args.mixing:
        return _mixing(args)
    if args.images is None and not is_there:
        raise ValueError("there is nothing to cache: give --images")
    if args.images is None:
        if args.add:
            raise ValueError("--add takes in further images: give them with --images")
        return _describe(args)
    return _write(args, CachePlan.load(args.folder) if is_there else None)


def _write(args: argparse.Namespace, begun: CachePlan | None) -> int:
    from vit_sae_plugin.activations.cache import plan_cache, write_shards
    from vit_sae_plugin.activations.cache.room import bytes_to_write, in_words
    from vit_sae_plugin.datasets import open_images

    check_output_folder(args.folder, "another name")
    if args.engine != "ray" and (args.ray_address or args.gpus_per_task is not None):
        raise ValueError("--ray-address and --gpus-per-task go with --engine ray")
    images = open_images(args.images)
    model = _model(args, begun)
    hook_names = args.hook_name or ([_default_hook(model)] if begun is None else list(begun.hooks))
    selection: dict[str, Any] = {"token_kind": args.token_kind or "all"}
    if args.token_kind is None and begun is not None:
        selection = {
            "token_kind": begun.model["token_kind"],
            "seqpos_slice": tuple(begun.model["seqpos_slice"]),
        }
    plan = plan_cache(
        args.folder,
        model,
        images,
        images_text=args.images,
        hook_names=hook_names,
        **selection,
        dtype=args.dtype,
        images_per_shard=args.images_per_shard,
        batch_size_images=args.batch_size_images,
        autocast_model=args.autocast,
        seed=args.seed,
        add=args.add,
    )
    speaks = os.environ.get("RANK", "0") == "0"  # one of the processes that torchrun starts
    needed = bytes_to_write(plan)
    size = f"{in_words(plan.image_bytes())} an image" + (
        "" if needed is None else f", {in_words(needed)} to write"
    )
    if speaks:
        print(
            f"{plan.n_tokens} rows an image at {', '.join(plan.hooks)}, {plan.dtype}: {size}",
            file=sys.stderr,
        )
    if args.engine == "ray":
        from vit_sae_plugin.activations.cache.ray_engine import write_shards_with_ray

        cache = write_shards_with_ray(
            plan,
            args.images,
            load_model=lambda: _model(args, begun or plan),
            address=args.ray_address,
            n_workers=args.n_workers,
            gpus_per_task=0 if args.device == "cpu" else args.gpus_per_task,
        )
    else:
        cache = write_shards(plan, model, images, n_workers=args.n_workers, progress=speaks)
    if not speaks:
        return 0
    _report_skipped(cache)
    print(_in_words(cache))
    print(f"Train from it:  vit-sae train --images cache:{args.folder} --hook-name {hook_names[0]}")
    return 0


def _model(args: argparse.Namespace, begun: CachePlan | None) -> HookedViT:
    from vit_sae_plugin.hooked_vit import HookedViT

    device = chosen_device(args.device)
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    if args.model is None and args.pretrained is None and begun is not None:
        return begun.source(next(iter(begun.hooks))).load_model(device)
    return HookedViT.from_pretrained(
        args.model or _FIRST_MODEL, device=device, **weights_flag(args.pretrained)
    )


def _default_hook(model: HookedViT) -> str:
    # As in training: the last block's output serves the class token alone.
    return f"blocks.{max(model.cfg.n_layers - 2, 0)}.hook_resid_post"


def _report_skipped(cache: ActivationCache) -> None:
    table = cache.skipped.to_frame()
    if len(table) > 0:
        first = table.iloc[0]
        print(
            f"vit-sae cache: warning: {len(table)} images could not be used and have no rows, the "
            f"first {first['id']}: {first['reason']}",
            file=sys.stderr,
        )


def _in_words(cache: ActivationCache) -> str:
    from vit_sae_plugin.activations.cache.room import in_words

    source = cache.source(cache.hook_names[0])
    size = in_words(cache.n_images * cache.plan.image_bytes())
    return (
        f"{cache.path}: {cache.n_rows:,} rows of {cache.n_images:,} images "
        f"({source.token_kind} tokens of {source.describe_model()}), {cache.plan.dtype}, {size} in "
        f"{len(cache.shards)} shards; hooks: "
        + ", ".join(f"{hook} ({cache.d_in(hook)} wide)" for hook in cache.hook_names)
    )


def _describe(args: argparse.Namespace) -> int:
    from vit_sae_plugin.activations.cache import ActivationCache

    cache = ActivationCache(args.folder, partial=True)
    print(_in_words(cache))
    n_images = cache.plan.n_images
    n_missing = len(cache.plan.shards) - len(cache.shards)
    if n_images is None or n_missing > 0:
        n_missing_text = "some" if n_images is None else n_missing
        print(f"It isn't finished: {n_missing_text} shards are missing; give --images to go on")
    return 0


def _verify(args: argparse.Namespace) -> int:
    from vit_sae_plugin.activations.cache import verify_cache

    damage = verify_cache(args.folder, progress=True)
    for line in damage.values():
        print(line)
    if damage:
        print(f"{len(damage)} shards are damaged or missing; write just those anew with --repair")
        return _DAMAGED
    print(f"{args.folder}: every byte is as it was written")
    return 0


def _repair(args: argparse.Namespace) -> int:
    from vit_sae_plugin.activations.cache import CachePlan, repair_cache

    model = None
    if args.model is not None or args.device is not None:
        model = _model(args, CachePlan.load(args.folder))
    damage = repair_cache(
        args.folder, model=model, images=args.images, n_workers=args.n_workers, progress=True
    )
    for line in damage.values():
        print(f"written anew: {line}")
    print(f"{args.folder}: {'every byte is as it was written' if not damage else 'whole again'}")
    return 0


def _mixing(args: argparse.Namespace) -> int:
    from vit_sae_plugin.activations.cache import ActivationCache, CacheStore
    from vit_sae_plugin.activations.mixing import measure_mixing

    cache = ActivationCache(args.folder)
    hook = (args.hook_name or cache.hook_names)[0]
    store = CacheStore(cache, hook_name=hook, with_coordinates=True)
    batch_rows = min(store.train_batch_size_tokens, cache.n_rows // 2)
    if batch_rows < store.train_batch_size_tokens:
        store = CacheStore(
            cache, hook_name=hook, with_coordinates=True, train_batch_size_tokens=batch_rows
        )
    found = measure_mixing(store, min(200, cache.n_rows // batch_rows))
    store.close()
    print(
        f"batches of {found.batch_rows:,} rows at {hook}, {found.n_batches} of them:\n"
        f"  images a batch draws on    {found.images_per_batch:.1f} "
        f"(uniform sampling: {found.images_if_uniform:.1f})\n"
        f"  correlation of neighbours  {found.neighbor_correlation:+.4f} (random order: 0)\n"
        f"  variance of batches' means {found.batch_variance_ratio:.3f} times that of random rows"
    )
    return 0
