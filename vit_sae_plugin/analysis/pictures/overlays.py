"""Activations drawn on pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageColor

from vit_sae_plugin.analysis.pictures.heatmap import Heatmap, canvas, to_image
from vit_sae_plugin.analysis.pictures.seen_region import Region

# Okabe and Ito's colours, which people with colour blindness tell apart
COLORS = ("#e69f00", "#56b4e9", "#009e73", "#d55e00", "#cc79a7", "#f0e442", "#0072b2")


def tint(
    heatmaps: Heatmap | Sequence[Heatmap],
    *,
    size: tuple[int, int] | None = None,
    smooth: bool = True,
    opacity: float = 0.75,
    colors: Sequence[str] = COLORS,
) -> Image.Image:
    """The picture in grey, with each latent's activations in a colour of its own.

    Where latents overlap, their colours mix by how strong each is there.

    Raises:
        ValueError: more latents than colours, or none.
    """
    heatmaps, rgb = _with_colors(heatmaps, colors)
    pixels, _ = canvas(heatmaps[0], size, smooth)
    grey = pixels @ np.array([0.299, 0.587, 0.114]) * 0.85
    strengths = np.stack([canvas(one, size, smooth)[1] for one in heatmaps])
    colour = np.einsum("lhw,lc->hwc", strengths, rgb)
    colour /= np.maximum(strengths.sum(axis=0), 1e-12)[..., None]
    share = opacity * strengths.max(axis=0)[..., None]
    return to_image(grey[..., None] * (1 - share) + colour * share)


def outline(
    heatmaps: Heatmap | Sequence[Heatmap],
    *,
    size: tuple[int, int] | None = None,
    level: float = 0.5,
    smooth: bool = True,
    line_width: int = 2,
    colors: Sequence[str] = COLORS,
) -> Image.Image:
    """The picture, with a line around where each latent exceeds a share of its maximum.

    Args:
        level: share of the latent's largest activation in this image.
        line_width: in pixels.

    Raises:
        ValueError: more latents than colours, or none.
    """
    heatmaps, rgb = _with_colors(heatmaps, colors)
    pixels, _ = canvas(heatmaps[0], size, smooth)
    for one, colour in zip(heatmaps, rgb, strict=True):
        _, strength = canvas(one, size, smooth)
        inside = strength > level
        core = inside
        for _ in range(line_width):
            core = _shrink(core)
        pixels[inside & ~core] = colour
    return to_image(pixels)


def zoom(heatmap: Heatmap, *, n_patches: float = 3, size: int = 192) -> Image.Image:
    """A square of the picture around the most active patch.

    Args:
        n_patches: side of the square, in patches.
        size: side of the result, in pixels.
    """
    n_rows, n_columns = heatmap.patches.shape
    row, column = heatmap.peak or (n_rows // 2, n_columns // 2)
    region = heatmap.region
    patch_width, patch_height = region.width / n_columns, region.height / n_rows
    x = region.left + (column + 0.5) * patch_width
    y = region.top + (row + 0.5) * patch_height
    half = n_patches * max(patch_width, patch_height) / 2
    # stay in the picture where it is large enough
    x = min(max(x, half), max(heatmap.image.width - half, half))
    y = min(max(y, half), max(heatmap.image.height - half, half))
    return Region(x - half, y - half, x + half, y + half).crop(heatmap.image, (size, size))


def _with_colors(
    heatmaps: Heatmap | Sequence[Heatmap], colors: Sequence[str]
) -> tuple[list[Heatmap], Float[np.ndarray, "latent 3"]]:
    """The heat maps as a list, and a colour for each, 0 … 255."""
    several = [heatmaps] if isinstance(heatmaps, Heatmap) else list(heatmaps)
    if not 1 <= len(several) <= len(colors):
        raise ValueError(
            f"there are {len(several)} heat maps and {len(colors)} colours; want at least one "
            "heat map and a colour for each: draw fewer, or pass colors="
        )
    return several, np.array([ImageColor.getrgb(one)[:3] for one in colors[: len(several)]], float)


def _shrink(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask, 1)
    return mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
