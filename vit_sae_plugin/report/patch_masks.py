"""Patch activations as short strings that a page can draw."""

from __future__ import annotations

import base64

import numpy as np
from jaxtyping import Float

_PREVIEW_SIDE = 8


def mask_string(patches: Float[np.ndarray, "row column"]) -> str:
    """Activations as shares of the largest, one byte each, in base64. Empty: nothing is active."""
    shares = _shares(patches)
    if shares is None:
        return ""
    return base64.b64encode((shares * 255).round().astype(np.uint8).tobytes()).decode("ascii")


def preview_string(patches: Float[np.ndarray, "row column"]) -> str:
    """The same for a thumbnail: at most 8 x 8 cells, one hexadecimal digit each."""
    shares = _shares(patches)
    if shares is None:
        return ""
    for axis in (0, 1):
        n_cells = min(shares.shape[axis], _PREVIEW_SIDE)
        parts = np.array_split(shares, n_cells, axis=axis)
        shares = np.stack([part.max(axis=axis) for part in parts], axis=axis)
    return "".join(f"{int(share):x}" for share in (shares * 15).round().ravel())


def preview_grid(grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a preview of this grid."""
    return min(grid[0], _PREVIEW_SIDE), min(grid[1], _PREVIEW_SIDE)


def _shares(patches: np.ndarray) -> np.ndarray | None:
    filled = np.nan_to_num(patches).clip(min=0)
    largest = filled.max(initial=0)
    return filled / largest if largest > 0 else None
