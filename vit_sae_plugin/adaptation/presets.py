"""Settings of each method: those that were published, and those for the small built-in model."""

from __future__ import annotations

from typing import Any

_SGD = {"optimizer": "sgd"}
_AUGMENTED = {"crop_scale": (0.08, 1.0), "flip": True}
_PLAIN = {"crop_scale": (1.0, 1.0), "flip": False}
_MAPLE_LOOP = {**_SGD, "batch_size_images": 4, "epochs": 5}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # MaPLe (Khattak et al. 2023) and its repository's VPT, base-to-novel on ViT-B/16; CoOp (Zhou et
    # al. 2022). LoRA and the linear probe have no recipe of this kind: theirs are this package's.
    "published": {
        "maple": {
            **_MAPLE_LOOP,
            **_AUGMENTED,
            "n_prompts": 2,
            "depth_share": 9 / 12,
            "text_init": "a photo of a",
            "lr": 0.0035,
        },
        "coop": {
            **_SGD,
            **_AUGMENTED,
            "n_prompts": 16,
            "text_init": "",
            "lr": 0.002,
            "batch_size_images": 32,
            "epochs": 200,
        },
        "vpt": {**_MAPLE_LOOP, **_AUGMENTED, "n_prompts": 8, "depth_share": 1.0, "lr": 0.0025},
        "lora": {
            **_AUGMENTED,
            "optimizer": "adamw",
            "lora_rank": 2,
            "lora_alpha": 2.0,
            "lr": 2e-4,
            "batch_size_images": 32,
            "epochs": 20,
        },
        "linear_probe": {
            **_SGD,
            **_AUGMENTED,
            "lr": 0.002,
            "batch_size_images": 32,
            "epochs": 20,
        },
    },
    # Chosen on outlined scenes, for a tower of 4 blocks that small steps hardly move.
    "shapes": {
        "maple": {
            **_PLAIN,
            "optimizer": "adamw",
            "n_prompts": 2,
            "depth_share": 1.0,
            "text_init": "a photo of a",
            "lr": 0.005,
            "batch_size_images": 16,
            "epochs": 8,
        },
        "coop": {
            **_SGD,
            **_PLAIN,
            "n_prompts": 4,
            "text_init": "a photo of a",
            "lr": 0.02,
            "batch_size_images": 32,
            "epochs": 10,
        },
        "vpt": {
            **_PLAIN,
            "optimizer": "adamw",
            "n_prompts": 4,
            "depth_share": 1.0,
            "lr": 0.005,
            "batch_size_images": 16,
            "epochs": 10,
        },
        "lora": {
            **_PLAIN,
            "optimizer": "adamw",
            "lora_rank": 4,
            "lora_alpha": 8.0,
            "lr": 1e-3,
            "batch_size_images": 32,
            "epochs": 12,
        },
        "linear_probe": {**_SGD, **_PLAIN, "lr": 0.02, "batch_size_images": 32, "epochs": 10},
    },
}
"""Preset to method to settings. ``depth_share`` is ``depth`` as a share of the tower's blocks."""
