"""Images that are already in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from vit_sae_plugin.datasets.image_decoding import DEFAULT_LIMITS, DecodingLimits
from vit_sae_plugin.datasets.image_source import (
    ImageRecord,
    ImageSource,
    NoReadableImagesError,
    fingerprint_of,
    valid_text,
)


class ArrayImages(ImageSource):
    """Arrays or PIL pictures in memory. They are used where they lie, not copied.

    Args:
        images: one of

            - uint8 array or tensor ``[n, height, width, channels]`` with 1, 3 or 4 channels
            - uint8 ``[n, height, width]``, grey, unless the last axis is 1, 3 or 4 long: then, and
              for ``[height, width]``, it is a single image
            - a sequence of such single images, of PIL pictures, or of both; sizes may differ
        labels: class index of each image; None or a negative number where there is none.
        class_names: names of the classes, by index; may repeat.
        name: for reports.
        limits: sizes beyond which an image is refused.

    Raises:
        TypeError: not uint8. Floats are refused because their range is anyone's guess.
        ValueError: an odd shape, or labels that do not fit.
        NoReadableImagesError: there are no images at all.
    """

    def __init__(
        self,
        images: Any,
        *,
        labels: Sequence[int | None] | np.ndarray | torch.Tensor | None = None,
        class_names: Sequence[str] | None = None,
        name: str = "arrays",
        limits: DecodingLimits = DEFAULT_LIMITS,
    ) -> None:
        self.name = valid_text(name)
        self.limits = limits
        self._images = _as_sequence(images)
        self.n_images = len(self._images)
        if self.n_images == 0:
            raise NoReadableImagesError(f"{name} holds 0 images; want 1 or more")
        self._labels = _checked_labels(labels, self.n_images, class_names)
        self.class_names = None if class_names is None else [valid_text(n) for n in class_names]

    def record(self, index: int) -> ImageRecord:
        if not 0 <= index < len(self._images):
            raise IndexError(
                f"index is {index}; want 0 to {len(self._images) - 1}, those of {self.name}"
            )
        label = self._labels[index]
        return ImageRecord(
            index=index,
            id=str(index),
            label=int(label) if label >= 0 else None,
            content=self._images[index],
            limits=self.limits,
        )

    def labels(self) -> np.ndarray:
        return self._labels.copy()

    def fingerprint(self) -> str:
        """Over every pixel and label."""

        def parts() -> Any:
            yield "arrays"
            yield self._labels.tobytes()
            for image in self._images:
                if isinstance(image, Image.Image):
                    yield f"{image.mode} {image.size}"
                    yield image.tobytes()
                else:
                    yield str(image.shape)
                    yield np.ascontiguousarray(image).tobytes()

        return fingerprint_of(parts())


def _as_sequence(images: Any) -> Any:
    if isinstance(images, (np.ndarray, torch.Tensor)):
        images = _uint8(images, "The array")
        if images.ndim == 4:
            _check_shape(images.shape[1:], "The array", images.shape)
            return images
        if images.ndim == 3 and images.shape[-1] not in (1, 3, 4):
            return images
        _check_shape(images.shape, "The array", images.shape)
        return images[None]
    if isinstance(images, Image.Image):
        return [images]
    return [_single(image, position) for position, image in enumerate(images)]


def _single(image: Any, position: int) -> Any:
    if isinstance(image, Image.Image):
        return image
    where = f"Image {position}"
    if not isinstance(image, (np.ndarray, torch.Tensor)):
        raise TypeError(
            f"{where} is a {type(image).__name__}; want uint8 arrays or PIL pictures (for files, "
            "name their folder)"
        )
    image = _uint8(image, where)
    _check_shape(image.shape, where, image.shape)
    return image


def _uint8(array: np.ndarray | torch.Tensor, what: str) -> np.ndarray:
    if array.dtype not in (np.uint8, torch.uint8):
        raise TypeError(
            f"{what} holds {array.dtype}; want uint8 from 0 to 255, since the range of other types "
            "is not known (for floats from 0 to 1: (array * 255).round().astype('uint8'))"
        )
    return array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else array


def _check_shape(shape: Sequence[int], what: str, seen: Sequence[int]) -> None:
    if len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4)):
        return
    first = len(shape) == 3 and shape[0] in (1, 3, 4)
    hint = "; its channels seem to come first: move them with .transpose or .permute" * first
    raise ValueError(
        f"{what} has shape {list(seen)}; want [height, width] or [height, width, 1, 3 or 4 "
        f"channels] for an image, with the number of images in front for many{hint}"
    )


def _checked_labels(labels: Any, n_images: int, class_names: Sequence[str] | None) -> np.ndarray:
    if labels is None:
        return np.full(n_images, -1, dtype=np.int64)
    if len(labels) != n_images:
        raise ValueError(f"labels has {len(labels)} entries; want {n_images}, one an image")
    numbers = np.array([-1 if label is None else int(label) for label in labels], dtype=np.int64)
    if class_names is not None and numbers.max() >= len(class_names):
        raise ValueError(
            f"a label is {numbers.max()}; want 0 to {len(class_names) - 1}, an index into "
            "class_names"
        )
    return numbers
