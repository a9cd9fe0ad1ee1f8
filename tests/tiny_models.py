"""Small random models for tests: real classes of the families we wrap, a few thousand weights."""

from __future__ import annotations

import torch


def tiny_open_clip(seed: int = 0, image_size: int = 32, patch_size: int = 8, layers: int = 3):
    """An ``open_clip.CLIP`` with width 32, 4 heads, 16 patches of 8x8 and an embedding of 24."""
    import open_clip

    generator_state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = open_clip.CLIP(
        embed_dim=24,
        vision_cfg={
            "image_size": image_size,
            "patch_size": patch_size,
            "width": 32,
            "head_width": 8,
            "layers": layers,
        },
        text_cfg={
            "context_length": 16,
            "vocab_size": 100,
            "width": 32,
            "heads": 4,
            "layers": 2,
        },
    ).eval()
    torch.set_rng_state(generator_state)
    return model
