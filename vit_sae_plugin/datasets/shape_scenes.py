"""Shape scenes: a built-in, endless, labelled image data set with a mask for every object.

A scene is a function of ``(seed, split, index)`` alone and the same on every machine: its random
numbers are the raw output of PCG64 seeded through ``SeedSequence`` (both fixed for ever by NumPy,
unlike the ``Generator`` methods built on them), and it is drawn by
:mod:`vit_sae_plugin.datasets.shape_drawing`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vit_sae_plugin.datasets.image_source import ImageRecord, ImageSource, fingerprint_of
from vit_sae_plugin.datasets.shape_captions import write_caption
from vit_sae_plugin.datasets.shape_drawing import (
    COLORS,
    GRADE_DIRECTIONS,
    GRAIN_SHIFTS,
    IMAGE_SIZE,
    SHAPES,
    SIZES,
    TEXTURE_VARIANTS,
    TEXTURES,
    TILTS,
    add_grain,
    draw_background,
    paint,
    sprite,
    texture_tile,
)

GENERATOR_VERSION = 1
"""Part of every fingerprint; raised when the same seed and index would give another scene."""
SPLITS = ("train", "test")
MAX_OBJECTS = 3
SCENE_CLASS_NAMES = [f"{color} {shape}" for color in COLORS for shape in SHAPES]
"""Label → class name; the label is ``color index · 8 + shape index``."""

_N_DRAWS = 96  # more than any scene and its caption use
_MAX_OVERLAP = 2  # pixels by which circles of two objects' radii may overlap
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
    """``[64, 64]``: pixels at least half covered by it and not hidden by another object."""

    @property
    def label(self) -> int:
        """Index of its colour and shape in ``SCENE_CLASS_NAMES``."""
        return _COLOR_NAMES.index(self.color) * len(SHAPES) + SHAPES.index(self.shape)


@dataclass(frozen=True, eq=False)
class Scene:
    """An image and everything that is known of it."""

    image: Image.Image
    """RGB, 64 × 64."""
    caption: str
    """Names every object; size, texture, place and background only in some scenes."""
    objects: list[SceneObject]
    """The largest first."""
    background: str
    """``"light"`` or ``"dark"``."""
    label: int
    """Class of the largest object: an index into ``ShapeScenes.class_names``."""

    def patch_coverage(self, patch_size: int = 8) -> NDArray[np.float64]:
        """Which share of each patch's pixels each object covers, ``[object, row, column]``."""
        side = IMAGE_SIZE // patch_size
        masks = np.stack([thing.mask for thing in self.objects])
        return masks.reshape(-1, side, patch_size, side, patch_size).mean(axis=(2, 4))


class _Draws:
    """Random integers from raw PCG64 output."""

    def __init__(self, seed: int, split: str, index: int) -> None:
        key = np.random.SeedSequence(seed, spawn_key=(SPLITS.index(split), index))
        raw = np.random.PCG64(key).random_raw(_N_DRAWS)
        self._values = iter((raw >> np.uint64(32)).tolist())

    def below(self, n: int) -> int:
        """The next integer in ``0 … n − 1``."""
        return (next(self._values) * n) >> 32


class ShapeScenes(ImageSource):
    """Images of one to three shapes on plain or graded backgrounds.

    Args:
        n_images: how many scenes the source has.
        n_objects: how many objects a scene has, as a number or an inclusive range, 1 to 3.
        seed: another seed gives other scenes.
        split: ``"train"`` or ``"test"``; the two draw from separate random streams, so that no
            scene is in both.

    Raises:
        ValueError: an argument is out of its range.
    """

    is_streaming = False

    def __init__(
        self,
        n_images: int,
        n_objects: int | tuple[int, int] = (1, MAX_OBJECTS),
        seed: int = 0,
        split: Literal["train", "test"] = "train",
    ) -> None:
        fewest, most = (n_objects, n_objects) if isinstance(n_objects, int) else n_objects
        if not 1 <= fewest <= most <= MAX_OBJECTS:
            raise ValueError(
                f"n_objects={n_objects!r}: give a number from 1 to {MAX_OBJECTS}, "
                f"or a range of them such as (1, {MAX_OBJECTS})."
            )
        if split not in SPLITS:
            raise ValueError(
                f"split={split!r}: the splits of shape scenes are {', '.join(SPLITS)}."
            )
        if n_images < 1:
            raise ValueError(f"n_images={n_images}: a source holds at least one scene.")
        if seed < 0:
            raise ValueError(f"seed={seed}: give an integer that is not negative.")
        self.n_images: int = n_images
        self.n_objects = (fewest, most)
        self.seed = seed
        self.split = split
        self.name = f"shapes:{split}"
        self.class_names = list(SCENE_CLASS_NAMES)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that the scenes depend on."""
        settings = (self.split, self.seed, self.n_images, *self.n_objects)
        return fingerprint_of(["shapes", str(GENERATOR_VERSION), *map(str, settings)])

    def record(self, index: int) -> ImageRecord:
        """One scene as the record that loaders use; its image is drawn when it is loaded."""
        self._check(index)
        label = _class_of_largest(_Draws(self.seed, self.split, index), self.n_objects)[1]
        content = partial(_scene_image, self.seed, self.split, self.n_objects, index)
        return ImageRecord(index, f"{self.split}-{self.seed}-{index:06d}", label, content)

    def scene(self, index: int) -> Scene:
        """Draw one scene.

        Raises:
            IndexError: ``index`` is not in ``0 … n_images − 1``.
        """
        self._check(index)
        return _draw_scene(self.seed, self.split, self.n_objects, index)

    def _check(self, index: int) -> None:
        if not 0 <= index < self.n_images:
            raise IndexError(f"scene {index} of {self.name}, which has {self.n_images} images.")


def _scene_image(seed: int, split: str, n_objects: tuple[int, int], index: int) -> Image.Image:
    return _draw_scene(seed, split, n_objects, index).image


def _draw_scene(seed: int, split: str, n_objects: tuple[int, int], index: int) -> Scene:
    draws = _Draws(seed, split, index)
    n, label = _class_of_largest(draws, n_objects)
    canvas, background = _draw_background(draws)
    specs = _place(n, label, draws)
    masks = [_paint_object(canvas, spec, draws) for spec in specs]
    add_grain(canvas, draws.below(GRAIN_SHIFTS), draws.below(GRAIN_SHIFTS))
    for number, mask in enumerate(masks):
        for later in masks[number + 1 :]:
            mask &= ~later
    objects = [
        SceneObject(spec.shape, spec.color, spec.size, spec.texture, spec.centre, mask)
        for spec, mask in zip(specs, masks, strict=True)
    ]
    caption = write_caption(objects, background, draws.below)
    image = Image.fromarray(canvas.astype(np.uint8).reshape(IMAGE_SIZE, IMAGE_SIZE, 3))
    return Scene(image, caption, objects, background, label)


@dataclass
class _Spec:
    """An object before it is painted."""

    shape: str
    color: str
    size: str
    texture: str
    half_radius: int
    centre: tuple[int, int]


def _class_of_largest(draws: _Draws, n_objects: tuple[int, int]) -> tuple[int, int]:
    """The first two draws: how many objects there are, and the label."""
    fewest, most = n_objects
    return fewest + draws.below(most - fewest + 1), draws.below(len(SCENE_CLASS_NAMES))


def _draw_background(draws: _Draws) -> tuple[NDArray[np.int16], str]:
    """A plain or graded background of low saturation, and whether it is light or dark."""
    is_light = draws.below(2) == 0
    ends = []
    for _ in range(2):
        level = (198 if is_light else 28) + draws.below(40)
        ends.append((level + draws.below(13), level + draws.below(13), level + draws.below(13)))
    if draws.below(2) == 0:
        ends[1] = ends[0]
    canvas = draw_background(ends[0], ends[1], draws.below(GRADE_DIRECTIONS))
    return canvas, "light" if is_light else "dark"


def _place(n_objects: int, label: int, draws: _Draws) -> list[_Spec]:
    """Choose objects of different classes, and places where they barely overlap.

    The first is strictly the largest, and of the class ``label``.
    """
    labels = [label]
    for number in range(1, n_objects):
        other = draws.below(len(SCENE_CLASS_NAMES) - number)
        for taken in sorted(labels):
            other += other >= taken
        labels.append(other)
    names = [tuple(SIZES)[draws.below(len(SIZES))] for _ in labels]
    sizes = [
        (first + draws.below(last - first + 1), name)
        for name, (first, last) in ((name, SIZES[name]) for name in names)
    ]
    sizes.sort(reverse=True)
    specs: list[_Spec] = []
    for label, (half_radius, size) in zip(labels, sizes, strict=True):
        if specs:
            half_radius = min(half_radius, specs[0].half_radius - 1)
        free = _free_places(half_radius, specs)
        if len(free) == 0:
            # Two large objects can leave no room for a third; a small one always fits a corner.
            size, half_radius = "small", SIZES["small"][0]
            free = _free_places(half_radius, specs)
        row, column = divmod(int(free[draws.below(len(free))]), IMAGE_SIZE + 1)
        specs.append(
            _Spec(
                shape=SHAPES[label % len(SHAPES)],
                color=_COLOR_NAMES[label // len(SHAPES)],
                size=size,
                texture=TEXTURES[draws.below(len(TEXTURES))],
                half_radius=half_radius,
                centre=(column, row),
            )
        )
    return specs


def _free_places(half_radius: int, others: list[_Spec]) -> NDArray[np.intp]:
    """Where an object's centre may lie: flat indices into the 65 × 65 corners of the pixels."""
    margin = (half_radius + 1) // 2
    free = np.zeros((IMAGE_SIZE + 1, IMAGE_SIZE + 1), dtype=bool)
    free[margin : IMAGE_SIZE + 1 - margin, margin : IMAGE_SIZE + 1 - margin] = True
    for other in others:
        apart = half_radius + other.half_radius - 2 * _MAX_OVERLAP
        column, row = other.centre
        distance2 = (
            _SQUARES[IMAGE_SIZE - row : 2 * IMAGE_SIZE + 1 - row, None]
            + (_SQUARES[None, IMAGE_SIZE - column : 2 * IMAGE_SIZE + 1 - column])
        )
        free &= 4 * distance2 >= apart * apart
    return np.flatnonzero(free)


_SQUARES = np.arange(-IMAGE_SIZE, IMAGE_SIZE + 1) ** 2
_PALETTE = {name: np.array(pair, dtype=np.int16) for name, pair in COLORS.items()}


def _paint_object(canvas: NDArray[np.int16], spec: _Spec, draws: _Draws) -> NDArray[np.bool_]:
    """Paint one object, in place, with a random tilt, shade and texture; return its mask."""
    coverage = sprite(spec.shape, spec.half_radius, draws.below(len(TILTS)))
    side = coverage.shape[0]
    tile = texture_tile(spec.texture, draws.below(TEXTURE_VARIANTS))
    shift_x, shift_y = draws.below(16), draws.below(16)
    shade = np.array([draws.below(17) - 8 for _ in range(3)], dtype=np.int16)
    base, accent = _PALETTE[spec.color] + shade
    return paint(
        canvas,
        coverage,
        left=spec.centre[0] - side // 2,
        top=spec.centre[1] - side // 2,
        base=base,
        accent=accent,
        accent_share=tile[shift_y : shift_y + side, 3 * shift_x : 3 * (shift_x + side)],
    )
