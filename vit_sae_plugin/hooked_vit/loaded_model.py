"""What loading a model by name gives, and what a wrong name was meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn


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


def near_models(name: str, names: Iterable[str], n: int = 6) -> str:
    """The existing names most like ``name``, whatever their case, as one text."""
    by_lower = {other.lower(): other for other in names}
    close = difflib.get_close_matches(name.lower(), by_lower, n=n, cutoff=0.4)
    return ", ".join(by_lower[other] for other in close) or "none is similar"
