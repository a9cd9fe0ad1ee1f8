"""How much memory an image will take, from its header alone.

Formats differ by a factor of twenty: Pillow keeps 1, 2 or 4 bytes a pixel, but the library that
decodes may keep all of a progressive JPEG's coefficients, four whole canvases of a WebP, or half a
kilobyte for each block of 4 × 4 pixels of a JPEG 2000. ``tests/datasets/test_decoding_memory.py``
measures each kind against the figures here.
"""

from __future__ import annotations

from typing import BinaryIO

from PIL import Image

from vit_sae_plugin.datasets.jpeg2000_header import Jpeg2000Header

_RGB = 4  # Pillow pads RGB to four bytes
_STORED = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}
_TIFF_TILE_WIDTH, _TIFF_TILE_LENGTH = 322, 323


def decoding_bytes(picture: Image.Image, file: BinaryIO | None = None) -> int:
    """The most that decoding ``picture`` to upright RGB takes at once, its file's bytes aside.

    Args:
        picture: opened, not loaded: its size, mode and format are known.
        file: what it was opened from; None for a picture that is in memory already.
    """
    n_pixels = picture.width * picture.height
    stored = _STORED.get(picture.mode, 4) * n_pixels
    # After decoding either a turned copy or the RGB picture is made of it.
    return stored + max(_decoder_bytes(picture, n_pixels, file), stored, _RGB * n_pixels)


def _decoder_bytes(picture: Image.Image, n_pixels: int, file: BinaryIO | None) -> int:
    """What the format's library holds while it fills Pillow's picture."""
    n_bands = len(picture.getbands())
    if file is None:
        return 0
    match picture.format:
        case "JPEG" | "MPO":  # progressive: 16-bit coefficients of all components
            return 2 * n_bands * n_pixels
        case "TIFF":  # one strip or tile, raw; it can be as large as the image, or larger
            tags = picture.tag_v2  # type: ignore[attr-defined]
            tile = tags.get(_TIFF_TILE_WIDTH, 0) * tags.get(_TIFF_TILE_LENGTH, 0)
            return 8 * max(n_pixels, tile)
        case "JPEG2000":
            return Jpeg2000Header.read(file).decoder_bytes()
        case "WEBP":  # two canvases of an animation, the decoder's own, and the copy given out
            return 16 * n_pixels
        case "AVIF" | "HEIF":  # 16-bit planes twice, RGBA and a copy; measured with 8 bits only
            return 8 * n_bands * n_pixels
        case "PPM":  # decoded into two copies of the raw pixels
            return 8 * n_pixels
    return 0
