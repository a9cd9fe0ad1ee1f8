"""One latent's activations on one image, and how they show themselves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch.nn import functional

from vit_sae_plugin.analysis.html_pieces import data_uri
from vit_sae_plugin.analysis.pictures.seen_region import Region


@dataclass(repr=False)
class Heatmap:
    """One latent's activations on the patch grid of one image."""

    image: Image.Image
    """The whole picture."""
    latent: int
    """Index of the latent."""
    patches: Float[np.ndarray, "row column"]
    """Activation of each patch; NaN for patches the SAE doesn't read."""
    region: Region
    """The part of the picture that the grid covers."""

    @property
    def peak(self) -> tuple[int, int] | None:
        """Row and column of the most active patch; None if none is above 0."""
        filled = np.nan_to_num(self.patches)
        row, column = np.unravel_index(int(filled.argmax()), filled.shape)
        return (int(row), int(column)) if filled[row, column] > 0 else None

    def size_of_region(self, longer_side: int) -> tuple[int, int]:
        """Width and height at which to show what the model sees, in the model's proportions."""
        n_rows, n_columns = self.patches.shape
        scale = longer_side / max(n_rows, n_columns)
        return max(1, round(n_columns * scale)), max(1, round(n_rows * scale))

    def on_image(self, smooth: bool = True) -> Float[np.ndarray, "height width"]:
        """The activations scaled to the whole picture; NaN where the model doesn't see it.

        Args:
            smooth: interpolate between the centres of patches; False: each patch is one block.
        """
        width, height = self.image.size
        column = (np.arange(width) + 0.5 - self.region.left) / self.region.width
        row = (np.arange(height) + 0.5 - self.region.top) / self.region.height
        values = self._sample(row, column, smooth)
        values[(row < 0) | (row > 1)] = np.nan
        values[:, (column < 0) | (column > 1)] = np.nan
        return values

    def on_region(
        self, size: tuple[int, int], smooth: bool = True
    ) -> Float[np.ndarray, "height width"]:
        """The activations scaled to ``(width, height)`` pixels of what the model sees."""
        width, height = size
        row, column = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
        return self._sample(row, column, smooth)

    def _sample(self, row: np.ndarray, column: np.ndarray, smooth: bool) -> np.ndarray:
        """Activations at points given as shares of the region's height and width."""
        grid = torch.from_numpy(np.nan_to_num(self.patches)).double()[None, None]
        y, x = torch.meshgrid(torch.from_numpy(row), torch.from_numpy(column), indexing="ij")
        points = torch.stack([x, y], dim=-1)[None] * 2 - 1
        sampled = functional.grid_sample(
            grid,
            points.double(),
            mode="bilinear" if smooth else "nearest",
            padding_mode="border",
            align_corners=False,
        )
        return sampled[0, 0].float().numpy()

    def __repr__(self) -> str:
        n_rows, n_columns = self.patches.shape
        peak = self.peak
        where = "silent" if peak is None else f"largest {self.patches[peak]:.3g} at {peak}"
        return f"Heatmap(latent {self.latent}, {n_rows} x {n_columns} patches, {where})"

    def _repr_html_(self) -> str:
        """The picture, bright where the latent is active."""
        largest = 0.0 if self.peak is None else self.patches[self.peak]
        return (
            f"<div>Latent {self.latent}, largest activation {largest:.3g}</div>"
            f'<img src="{data_uri(highlight(self))}" style="max-width:360px">'
        )


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
    pixels, strength = canvas(heatmap, size, smooth)
    brightness = dim + (1 - dim) * np.sqrt(strength)
    return to_image(pixels * brightness[..., None])


def canvas(
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


def to_image(pixels: Float[np.ndarray, "height width 3"]) -> Image.Image:
    """Pixels 0 … 255 as a picture."""
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
