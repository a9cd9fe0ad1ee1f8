"""One object of a shape scene, and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vit_sae_plugin.datasets.shape_drawing import COLORS, SHAPES

_COLOR_NAMES = tuple(COLORS)


@dataclass(frozen=True, eq=False)
class SceneObject:
    """One object of a scene."""

    shape: str
    """One of ``SHAPES``."""
    color: str
    """One of ``COLORS``."""
    size: str
    """``"small"``, ``"medium"`` or ``"large"``."""
    texture: str
    """One of ``TEXTURES``."""
    centre: tuple[int, int]
    """Column and row of its middle, pixels."""
    mask: NDArray[np.bool_]
    """``[64, 64]``: pixels at least half inside its edge and not inside one drawn later."""

    @property
    def label(self) -> int:
        """Index of its colour and shape in ``SCENE_CLASS_NAMES``."""
        return _COLOR_NAMES.index(self.color) * len(SHAPES) + SHAPES.index(self.shape)
