"""Activations drawn on pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageColor

from vit_sae_plugin.analysis.heatmaps import Heatmap
from vit_sae_plugin.analysis.seen_region import Region

# Okabe and Ito's colours, which people with colour blindness tell apart
COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#d55e00", "#cc79a7", "#f0e442", "#0072b2")


def highlight(
    heatmap: Heatmap,
    *,
    size: tuple[int, int] | None = None,
    smooth: bool = False,
    dim: float = 0.4,
) -> Image.Image:
    """The picture, bright where the latent is active and dimmed elsewhere.

    Args:
        size: show what the model sees, at this width and height. None: the whole picture.
        smooth: interpolate between patches; False: each patch is one block.
        dim: brightness where the latent is silent.
    """
    pixels, strength = _canvas(heatmap, size, smooth)
    brightness = dim + (1 - dim) * np.sqrt(strength)
    return _to_image(pixels * brightness[..., None])


def tint(
    heatmaps: Heatmap | Sequence[Heatmap],
    *,
    size: tuple[int, int] | None = None,
    smooth: bool = True,
    opacity: float = 0.75,
    colours: Sequence[str] = COLOURS,
) -> Image.Image:
    """The picture in grey, with each latent's activations in a colour of its own.

    Where latents overlap, their colours mix by how strong each is there.

    Raises:
        ValueError: more latents than colours, or none.
    """
    heatmaps, rgb = _with_colours(heatmaps, colours)
    pixels, _ = _canvas(heatmaps[0], size, smooth)
    grey = pixels @ np.array([0.299, 0.587, 0.114]) * 0.85
    strengths = np.stack([_canvas(one, size, smooth)[1] for one in heatmaps])
    colour = np.einsum("lhw,lc->hwc", strengths, rgb)
    colour /= np.maximum(strengths.sum(axis=0), 1e-12)[..., None]
    share = opacity * strengths.max(axis=0)[..., None]
    return _to_image(grey[..., None] * (1 - share) + colour * share)


def outline(
    heatmaps: Heatmap | Sequence[Heatmap],
    *,
    size: tuple[int, int] | None = None,
    level: float = 0.5,
    smooth: bool = True,
    line_width: int = 2,
    colours: Sequence[str] = COLOURS,
) -> Image.Image:
    """The picture, with a line around where each latent exceeds a share of its maximum.

    Args:
        level: share of the latent's largest activation in this image.
        line_width: in pixels.

    Raises:
        ValueError: more latents than colours, or none.
    """
    heatmaps, rgb = _with_colours(heatmaps, colours)
    pixels, _ = _canvas(heatmaps[0], size, smooth)
    for one, colour in zip(heatmaps, rgb, strict=True):
        _, strength = _canvas(one, size, smooth)
        inside = strength > level
        core = inside
        for _ in range(line_width):
            core = _shrink(core)
        pixels[inside & ~core] = colour
    return _to_image(pixels)


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


def _with_colours(
    heatmaps: Heatmap | Sequence[Heatmap], colours: Sequence[str]
) -> tuple[list[Heatmap], Float[np.ndarray, "latent 3"]]:
    """The heat maps as a list, and a colour for each, 0 … 255."""
    several = [heatmaps] if isinstance(heatmaps, Heatmap) else list(heatmaps)
    if not 1 <= len(several) <= len(colours):
        raise ValueError(
            f"there are {len(several)} heat maps and {len(colours)} colours; want at least one "
            "heat map and a colour for each: draw fewer, or pass colours="
        )
    return several, np.array([ImageColor.getrgb(one)[:3] for one in colours[: len(several)]], float)


def _canvas(
    heatmap: Heatmap, size: tuple[int, int] | None, smooth: bool
) -> tuple[Float[np.ndarray, "height width 3"], Float[np.ndarray, "height width"]]:
    """The pixels to draw on, 0 … 255, and how strong the latent is there, 0 … 1."""
    if size is None:
        picture, values = heatmap.image, heatmap.on_image(smooth)
    else:
        picture, values = heatmap.region.crop(heatmap.image, size), heatmap.on_region(size, smooth)
    largest = np.nan_to_num(heatmap.patches).max()
    strength = np.nan_to_num(values) / largest if largest > 0 else np.zeros(values.shape)
    return np.asarray(picture.convert("RGB"), dtype=float).copy(), strength.clip(0, 1)


def _shrink(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask, 1)
    return mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


def _to_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
