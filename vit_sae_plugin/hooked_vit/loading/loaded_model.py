"""What loading a model by name gives, and what is said about its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from vit_sae_plugin.hooked_vit.tower_description import TowerDescription
from vit_sae_plugin.model_loaders import loader_of


@dataclass
class LoadedModel:
    """A model with what belongs to it."""

    module: nn.Module
    """The model."""

    preprocess: Callable | None
    """From a PIL image to pixels ``[3, height, width]``."""

    tokenizer: Callable | None
    """From a list of texts to token ids."""

    image_size: tuple[int, int] | None = None
    """Height and width of preprocessed images (None: as the model says)."""

    tower: TowerDescription | None = None
    """Where it keeps its parts (None: as its class says)."""

    recorded: dict[str, Any] = field(default_factory=dict)
    """Arguments that say which of the models of its name it is; recorded with what it is used
    for."""

    pretrained: str | bool = True
    """Which weights it has: open_clip's tag or a file, True (those that its name stands for), or
    False (random ones)."""


def is_plain_open_clip(model_name: str) -> bool:
    """Whether a name is one of open_clip's own, for which weights are chosen by a tag."""
    others = ("hf:", "timm:", "local-dir:", "hf-hub:", "shapes-clip")
    return not model_name.startswith(others) and loader_of(model_name) is None


def describe_weights(model_name: str, from_pretrained_kwargs: Mapping[str, Any]) -> str:
    """A model's weights in words, from what an SAE's metadata record: for start lines and titles.

    Args:
        model_name: what ``HookedViT.from_pretrained`` took.
        from_pretrained_kwargs: what else it took.

    Returns:
        Such as ``"openai weights"``, ``"pretrained weights"`` or ``"random weights"``.
    """
    loader = loader_of(model_name)
    if loader is not None:
        return f"{loader.kind} weights"
    pretrained = from_pretrained_kwargs.get("pretrained")
    if pretrained is None:
        # Before weights were always recorded, an open_clip name alone meant random ones.
        pretrained = not is_plain_open_clip(model_name)
    if pretrained is False:
        return "random weights"
    return "pretrained weights" if pretrained is True else f"{pretrained} weights"


def in_one_line(error: BaseException, limit: int = 300) -> str:
    """What an error says, on one line of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
