"""Why a model has no tower that could be hooked, in terms of what it is."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

_KINDS = (
    (
        r"naflex|siglip2",
        "cuts each image into a grid of its own (NaFlex), so there is no one grid of patches; want "
        "a model of fixed image size, such as 'timm:vit_base_patch16_siglip_224.v2_webli'",
    ),
    (
        r"swin|mvit|pvt|pyramid|hiera|twins|maxvit|maxxvit|davit|focal|nest|levit|tinyvit|coat"
        r"|efficientformer|fastvit|edgenext|efficientvit|mobilevit|poolingvision|gcvit|volo|transformersam|^sam",
        "is hierarchical: its tokens merge from stage to stage (or attend in windows), so there is "
        "no one residual stream on one grid",
    ),
    (
        r"resnet|convnext|efficientnet|regnet|densenet|vgg|mobilenet|nfnet|mobileone|byob",
        "is a convolutional network: it has no tokens",
    ),
    (r"mixer", "mixes tokens without attention"),
    (r"crossvit", "keeps two residual streams"),
    (r"xcit", "attends among channels, not among tokens"),
    (r"cait", "adds its class token only behind the blocks of the patches"),
)
"""Patterns of class names to what such models are."""


def what_it_is(model: Any) -> str | None:
    """What the model's vision tower is, if it is a known kind that cannot be hooked."""
    if isinstance(model, str):
        return f"{model!r} is a name: use HookedViT.from_pretrained({model!r})"
    if not isinstance(model, nn.Module):
        return f"it is a {type(model).__name__}; want a torch.nn.Module"
    visual = getattr(model, "visual", None)
    visual = getattr(visual, "_orig_mod", visual)
    inside = (getattr(visual, "trunk", None), visual, getattr(model, "vision_model", None), model)
    for tower in inside:
        name = type(tower).__name__
        for pattern, kind in _KINDS:
            if tower is not None and re.search(pattern, name.lower()):
                whose = "its vision tower" if tower is not model else "it"
                return f"{whose} is a {name}, which {kind}"
    return None
