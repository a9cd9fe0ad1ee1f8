"""The errors of this room: each says what was seen, what was wanted and what to do."""

from __future__ import annotations


class UnsupportedTowerError(ValueError):
    """The model, or a part of it, is built in a way that these hooks cannot describe."""


class HookNameError(ValueError):
    """A hook name that does not exist, or that lies beyond ``stop_at_layer``."""


class ModelNameError(ValueError):
    """A name that ``HookedViT.from_pretrained`` cannot resolve."""


class WeightsError(OSError):
    """A model's weights cannot be read, or cannot be fetched from where they are kept."""


class UnsafeSettingError(ValueError):
    """A file asks for a way of loading its model that could run code."""
