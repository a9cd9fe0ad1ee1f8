"""Patch activations as short strings that a page can draw."""

from __future__ import annotations

import base64

import numpy as np
from jaxtyping import Float, UInt8

_PREVIEW_SIDE = 8


def as_shares(patches: Float[np.ndarray, "row column"]) -> UInt8[np.ndarray, "row column"]:
    """Activations as shares of the largest one: 0 … 255; patches that aren't read are 0."""
    filled = np.nan_to_num(patches).clip(min=0)
    largest = filled.max(initial=0)
    scale = 255 / largest if largest > 0 else 0.0
    return (filled * scale).round().astype(np.uint8)


def mask_string(shares: UInt8[np.ndarray, "row column"]) -> str:
    """One byte for each patch, in base64. Empty: nothing is active."""
    return base64.b64encode(shares.tobytes()).decode("ascii") if shares.any() else ""


def preview_string(shares: UInt8[np.ndarray, "row column"]) -> str:
    """The same for a thumbnail: at most 8 x 8 cells, one hexadecimal digit each."""
    if not shares.any():
        return ""
    for axis in (0, 1):
        if shares.shape[axis] > _PREVIEW_SIDE:
            parts = np.array_split(shares, _PREVIEW_SIDE, axis=axis)
            shares = np.stack([part.max(axis=axis) for part in parts], axis=axis)
    return "".join(f"{digit:x}" for digit in (shares // 17).ravel().tolist())


def preview_grid(grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a preview of this grid."""
    return min(grid[0], _PREVIEW_SIDE), min(grid[1], _PREVIEW_SIDE)
