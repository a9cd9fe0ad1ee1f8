"""Which part of a picture a model sees, after its preprocessing has resized and cropped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Region:
    """A rectangle in the pixels of a picture; edges may be fractions, or lie outside of it."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.bottom - self.top

    def crop(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        """This part of the picture, resized to ``(width, height)`` pixels."""
        corners = (self.left, self.top, self.right, self.bottom)
        inside = (
            max(self.left, 0),
            max(self.top, 0),
            min(self.right, image.width),
            min(self.bottom, image.height),
        )
        if inside == corners:
            return image.resize(size, Image.Resampling.BICUBIC, box=corners)
        # preprocessing that pads: the border is black
        data = (self.width / size[0], 0, self.left, 0, self.height / size[1], self.top)
        return image.transform(size, Image.Transform.AFFINE, data, Image.Resampling.BICUBIC)


class SeenRegions:
    """``seen_region`` for many pictures: each size is asked once."""

    def __init__(self, preprocess: Callable[[Image.Image], Tensor]) -> None:
        self.preprocess = preprocess
        self._of_size: dict[tuple[int, int], Region] = {}

    def of(self, image: Image.Image) -> Region:
        """The part of this picture that reaches the model."""
        if image.size not in self._of_size:
            self._of_size[image.size] = seen_region(self.preprocess, image.size)
        return self._of_size[image.size]


def seen_region(preprocess: Callable[[Image.Image], Tensor], image_size: tuple[int, int]) -> Region:
    """Find the part of a picture of this size that reaches the model.

    Preprocessing is asked rather than read: pictures whose colours say where each pixel lies go
    through it. Right for any mixture of resizing and cropping, with or without keeping the
    proportions.

    Args:
        preprocess: from a picture to pixels ``[3, height, width]``.
        image_size: width and height of the picture.
    """
    width, height = image_size
    black = preprocess(Image.new("RGB", image_size)).double().numpy()
    white = preprocess(Image.new("RGB", image_size, "white")).double().numpy()
    column = np.linspace(0, 255, width).round().astype(np.uint8)
    row = np.linspace(0, 255, height).round().astype(np.uint8)
    ramps = np.zeros((height, width, 3), np.uint8)
    ramps[..., 0] = column[None, :]
    ramps[..., 1] = row[:, None]
    seen = preprocess(Image.fromarray(ramps)).double().numpy()
    # 0 at the centre of the first pixel, 1 at the centre of the last
    place = (seen - black) / np.where(white == black, 1, white - black)
    left, right = _extent(place[0].mean(axis=0), width)
    top, bottom = _extent(place[1].mean(axis=1), height)
    return Region(left, top, right, bottom)


def _extent(place: np.ndarray, n_pixels: int) -> tuple[float, float]:
    """Where the first output pixel begins and the last one ends, in pixels of the picture."""
    n_seen = len(place)
    # the outermost quarters may be padding
    middle = slice(n_seen // 4, max(n_seen - n_seen // 4, n_seen // 4 + 2))
    centre = np.arange(n_seen)[middle] + 0.5
    step, offset = np.polyfit(centre, place[middle] * (n_pixels - 1) + 0.5, 1)
    if step * n_seen < 1e-6:  # a picture one pixel wide tells nothing, and leaves no choice
        return 0.0, float(n_pixels)
    start, stop = offset, offset + step * n_seen
    return _snap(start, n_pixels), _snap(stop, n_pixels)


def _snap(edge: float, n_pixels: int) -> float:
    """The picture's own edge, where the estimate is as good as on it."""
    slack = 0.01 * n_pixels
    for exact in (0.0, float(n_pixels)):
        if abs(edge - exact) < slack:
            return exact
    return float(edge)
