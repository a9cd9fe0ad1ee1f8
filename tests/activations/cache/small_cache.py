"""A small model, images and caches of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.tiny_models import tiny_open_clip
from vit_sae_plugin.activations.cache import ActivationCache, write_cache
from vit_sae_plugin.datasets import ArrayImages
from vit_sae_plugin.hooked_vit import HookedViT

HOOKS = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
N_TOKENS = 17
IMAGES_PER_SHARD = 4
D_MODEL = 32


def to_pixels(image: Any) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1


def images_of(n_images: int, seed: int = 0, **settings: Any) -> ArrayImages:
    generator = np.random.default_rng(seed)
    pictures = generator.integers(0, 256, (n_images, 32, 32, 3), dtype=np.uint8)
    return ArrayImages(pictures, **settings)


def small_model(seed: int = 0) -> HookedViT:
    return HookedViT.from_module(tiny_open_clip(seed), preprocess=to_pixels)


def small_cache(folder: Path, model: HookedViT, images: Any = None, **changes: Any):
    """10 images in shards of 4, 4 and 2, unless changed."""
    settings = {
        "hook_names": HOOKS,
        "images_per_shard": IMAGES_PER_SHARD,
        "batch_size_images": 2,
        "progress": False,
    }
    if images is None:
        images = images_of(10)
    return write_cache(folder, model, images, **{**settings, **changes})


def all_rows(cache: ActivationCache, hook: str) -> Tensor:
    """[images, tokens, width], in order."""
    return torch.cat([batch.acts_btd for batch in cache.images_in_order(hook)])


def direct_rows(model: HookedViT, images: ArrayImages, hook: str) -> Tensor:
    pixels = torch.stack([to_pixels(record.load()) for record in images.records()])
    with torch.no_grad():
        return model.run_with_cache(pixels, names_filter=hook)[1][hook]
