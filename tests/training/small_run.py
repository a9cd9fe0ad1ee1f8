"""A run that takes a second: a tiny random CLIP, drawn scenes, and an SAE of any architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens.registry import get_sae_training_class

from tests.tiny_models import tiny_open_clip
from vit_sae_plugin.datasets import ArrayImages, ShapeScenes
from vit_sae_plugin.hooked_vit import HookedViT
from vit_sae_plugin.training import ViTSAERunnerConfig

D_IN = 32
D_SAE = 96

SAE_SETTINGS: dict[str, dict[str, Any]] = {
    "standard": {"l1_coefficient": 0.1},
    "gated": {"l1_coefficient": 0.1},
    "topk": {"k": 6},
    "batchtopk": {"k": 6},
    "jumprelu": {"l0_coefficient": 0.1},
    "matryoshka_batchtopk": {"k": 6, "matryoshka_widths": [24, 48, D_SAE]},
    "patchsae": {"l1_coefficient": 1e-3},
    "standard_ghost": {"l1_coefficient": 0.1},
    "topk_ghost": {"k": 6},
}


def to_pixels(image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1


def small_model() -> HookedViT:
    return HookedViT.from_module(tiny_open_clip(layers=2), preprocess=to_pixels)


def small_images(n_images: int = 40) -> ArrayImages:
    scenes = ShapeScenes(n_images)
    pictures = [scenes.scene(index).image.resize((32, 32)) for index in range(n_images)]
    return ArrayImages(np.stack([np.array(picture) for picture in pictures]))


def sae_config(architecture: str = "patchsae", **changes: Any):
    settings = {"d_in": D_IN, "d_sae": D_SAE, **SAE_SETTINGS[architecture], **changes}
    return get_sae_training_class(architecture)[1](**settings)


def small_config(
    folder: Path | None, architecture: str = "patchsae", **changes: Any
) -> ViTSAERunnerConfig:
    settings = {
        "sae": sae_config(architecture),
        "hook_name": "blocks.0.hook_resid_post",
        "token_kind": "patches",
        "training_tokens": 120 * 128,
        "train_batch_size_tokens": 128,
        "store_batch_size_images": 7,  # 112 rows: buffers end within image batches
        "n_batches_in_buffer": 6,
        "lr": 2e-3,
        "lr_warm_up_steps": 10,
        "dead_feature_window": 15,
        "feature_sampling_window": 35,
        "n_batches_for_norm_estimate": 4,
        "log_every_n_steps": 5,
        "output_path": None if folder is None else str(folder),
        "checkpoint_every_minutes": 60.0,
        "verbose": False,
        "seed": 3,
    }
    return ViTSAERunnerConfig(**{**settings, **changes})
