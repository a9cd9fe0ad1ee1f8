"""What other projects call a model, as ``HookedViT.from_pretrained`` calls it."""

from __future__ import annotations

import re
from typing import Any

_PATCH_AND_SIZE = re.compile(r"patch(?P<patch>\d+)(?:-(?P<size>\d{3}))?$")
_N_BLOCKS = {"base": 12, "large": 24}


def hugging_face_model(name: str | None) -> dict[str, Any]:
    """Metadata of a model that transformers loads, such as ``openai/clip-vit-base-patch16``.

    The token grid is told where the name says it for certain: OpenAI's CLIPs.
    """
    if not name:
        return {}
    found: dict[str, Any] = {"model_name": f"hf:{name}"}
    grid = _PATCH_AND_SIZE.search(name)
    if name.startswith("openai/clip-vit-") and grid:
        patch, size = int(grid["patch"]), int(grid["size"] or 224)
        found |= token_grid(size, patch, n_prefix_tokens=1)
    return found


def open_clip_model(name: str, pretrained: str | None = None) -> dict[str, Any]:
    """Metadata of a model that open_clip loads."""
    kwargs = {} if pretrained is None else {"pretrained": pretrained}
    return {"model_name": name, "model_from_pretrained_kwargs": kwargs}


def token_grid(image_size: int, patch_size: int, n_prefix_tokens: int) -> dict[str, Any]:
    """Metadata about the tokens of a square image."""
    side = image_size // patch_size
    return {
        "n_prefix_tokens": n_prefix_tokens,
        "grid": [side, side],
        "n_tokens": side * side + n_prefix_tokens,
        "image_size": image_size,
        "patch_size": patch_size,
    }


def n_blocks(model_name: str | None) -> int | None:
    """The number of an OpenAI CLIP's blocks, which negative layers count from."""
    found = re.match(r"(?:hf:)?openai/clip-vit-(base|large)-", model_name or "")
    return _N_BLOCKS[found[1]] if found else None


def after_block(layer: int) -> str:
    """The hook that holds the residual stream after a block."""
    return f"blocks.{layer}.hook_resid_post"
