"""Training images cut and mirrored at random, the same way whoever decodes them and whenever."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
from PIL import Image

from vit_sae_plugin.datasets.image_source import ImageRecord, ImageSource, fingerprint_of

_ASPECT_RATIOS = (3 / 4, 4 / 3)
_ATTEMPTS = 10


class AugmentedImages(ImageSource):
    """A source's images, each cut to a random part, scaled and perhaps mirrored.

    What becomes of an image follows from ``(seed, epoch, its place in the source)`` alone.

    Args:
        source: the images.
        image_size: height and width of what is given, in pixels.
        crop_scale: smallest and largest share of the area that is kept; (1, 1): all of it.
        flip: mirror every other image.
        seed: of the random numbers.
        epoch: another one gives other parts.
    """

    def __init__(
        self,
        source: ImageSource,
        image_size: tuple[int, int],
        *,
        crop_scale: tuple[float, float],
        flip: bool,
        seed: int,
        epoch: int,
    ) -> None:
        self.source = source
        self.name = source.name
        self.n_images = source.n_images
        self.class_names = source.class_names
        self.templates = source.templates
        self.image_size = image_size
        self.crop_scale = crop_scale
        self.flip = flip
        self.seed = seed
        self.epoch = epoch

    def labels(self) -> np.ndarray:
        return self.source.labels()

    def labels_frame(self) -> pd.DataFrame:
        """The source's."""
        return self.source.labels_frame()

    def class_half(self, half: str) -> list[int]:
        """The source's."""
        return self.source.class_half(half)

    def fingerprint(self) -> str:
        """Over the source's and all settings."""
        settings = (self.image_size, self.crop_scale, self.flip, self.seed, self.epoch)
        return fingerprint_of(["augmented", self.source.fingerprint(), repr(settings)])

    def record(self, index: int) -> ImageRecord:
        record = self.source.record(index)
        return replace(record, content=partial(self._augmented, record))

    def _augmented(self, record: ImageRecord) -> Image.Image:
        draws = random.Random(f"{self.seed}-{self.epoch}-{record.index}")
        image = record.load()
        if self.crop_scale != (1.0, 1.0):
            box = random_box(image.size, self.crop_scale, draws)
            height, width = self.image_size
            image = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
        if self.flip and draws.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image


def random_box(
    size: tuple[int, int], scale: tuple[float, float], draws: random.Random
) -> tuple[int, int, int, int]:
    """A random part of an image, as Inception's and torchvision's random resized crop draws it.

    Args:
        size: width and height of the image.
        scale: smallest and largest share of its area.
        draws: random numbers.

    Returns:
        Left, upper, right and lower edge.
    """
    width, height = size
    for _ in range(_ATTEMPTS):
        area = width * height * draws.uniform(*scale)
        ratio = math.exp(draws.uniform(*map(math.log, _ASPECT_RATIOS)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, upper = draws.randint(0, width - w), draws.randint(0, height - h)
            return left, upper, left + w, upper + h
    # as nearly the whole image as the ratios allow, from its middle
    w = min(width, round(height * _ASPECT_RATIOS[1]))
    h = min(height, round(width / _ASPECT_RATIOS[0]))
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h
