"""Shape scenes: a built-in, endless, labelled image data set with a mask for every object.

A scene is a function of ``(seed, split, index)`` alone and the same on every machine: its random
numbers are the raw output of PCG64 seeded through ``SeedSequence`` (both fixed for ever by NumPy,
unlike the ``Generator`` methods built on them), and it is drawn by
``vit_sae_plugin.datasets.shape_drawing``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from vit_sae_plugin.datasets.image_source import (
    ImageRecord,
    ImageSource,
    check_half,
    fingerprint_of,
)
from vit_sae_plugin.datasets.scene_object import SceneObject
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
    outline_sprite,
    paint,
    sprite,
    texture_tile,
)

GENERATOR_VERSION = 1
"""Part of every fingerprint; raised when the same seed and index would give another scene."""
SPLITS = ("train", "test")
MAX_OBJECTS = 3
Style = Literal["filled", "outline"]
SCENE_CLASS_NAMES = [f"{color} {shape}" for color in COLORS for shape in SHAPES]
"""Label → class name; the label is ``color index · 8 + shape index``."""

_N_DRAWS = 96  # more than any scene and its caption use
_MAX_OVERLAP = 2  # pixels by which circles of two objects' radii may overlap
_COLOR_NAMES = tuple(COLORS)


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


@dataclass(frozen=True)
class _Recipe:
    """All that a scene depends on besides its index."""

    seed: int
    split: str
    n_objects: tuple[int, int]
    style: Style = "filled"
    bias: float | None = None


class _Draws:
    """Random integers from raw PCG64 output."""

    def __init__(self, recipe: _Recipe, index: int) -> None:
        key = np.random.SeedSequence(recipe.seed, spawn_key=(SPLITS.index(recipe.split), index))
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
        style: ``"filled"``, or ``"outline"``: the same scenes, each object a line along its edge,
            without texture. Another domain for the same classes: ``shapes-clip`` names 97.5 % of
            single filled objects, and 40.1 % of outlines (zero-shot, 64 classes, 2,000 test scenes
            of seed 11).
        bias: plants a spurious correlation. Classes are then the eight shapes, each with a colour
            of its own (the one at the same place in ``COLORS``), which the largest object of a
            training scene has with this probability, and otherwise one of the other seven. In
            scenes of the test split colour and shape are independent.

    The half of the classes called *base* and the half called *novel* share all shapes and all
    colours: a class is base where the sum of its colour's and its shape's index is even.

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
        style: Style = "filled",
        bias: float | None = None,
    ) -> None:
        fewest, most = (n_objects, n_objects) if isinstance(n_objects, int) else n_objects
        if not 1 <= fewest <= most <= MAX_OBJECTS:
            raise ValueError(
                f"n_objects is {n_objects!r}; want a number from 1 to {MAX_OBJECTS}, "
                f"or a range of them such as (1, {MAX_OBJECTS})"
            )
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}; want one of {', '.join(SPLITS)}")
        if n_images < 1:
            raise ValueError(f"n_images is {n_images}; want 1 or more")
        if seed < 0:
            raise ValueError(f"seed is {seed}; want 0 or more")
        if style not in get_args(Style):
            raise ValueError(f"style is {style!r}; want one of {', '.join(get_args(Style))}")
        if bias is not None and not 0 <= bias <= 1:
            raise ValueError(f"bias is {bias}; want a probability, from 0 to 1")
        self.n_images: int = n_images
        self.n_objects = (fewest, most)
        self.seed = seed
        self.split = split
        self.style = style
        self.bias = bias
        self.name = "shapes:" + "-".join([split, *([style] if style != "filled" else [])])
        self.class_names = list(SCENE_CLASS_NAMES if bias is None else SHAPES)
        self._recipe = _Recipe(seed, split, self.n_objects, style, bias)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that the scenes depend on."""
        settings: list[Any] = [self.split, self.seed, self.n_images, *self.n_objects]
        if (self.style, self.bias) != ("filled", None):
            settings += [self.style, self.bias]
        return fingerprint_of(["shapes", str(GENERATOR_VERSION), *map(str, settings)])

    def labels_frame(self) -> pd.DataFrame:
        """With the columns ``color`` and ``shape`` of the largest object; with a bias also
        ``group``, the index of both in ``SCENE_CLASS_NAMES``, and whether the two are ``aligned``
        as in most training scenes."""
        frame = super().labels_frame()
        pairs = [_class_of_largest(_Draws(self._recipe, i), self._recipe)[1] for i in frame.index]
        color, shape = np.divmod(np.array(pairs), len(SHAPES))
        frame["color"] = np.array(_COLOR_NAMES)[color]
        frame["shape"] = np.array(SHAPES)[shape]
        if self.bias is not None:
            frame["group"] = pairs
            frame["aligned"] = color == shape
        return frame

    def class_half(self, half: str) -> list[int]:
        """Every other cell of the table of colours and shapes; of shapes alone as elsewhere."""
        if self.bias is not None:
            return super().class_half(half)
        check_half(half)
        rest = 0 if half == "base" else 1
        n = len(SHAPES)
        return [label for label in range(n * len(COLORS)) if (label // n + label % n) % 2 == rest]

    def record(self, index: int) -> ImageRecord:
        """One scene as the record that loaders use; its image is drawn when it is loaded."""
        self._check(index)
        label = _class_of_largest(_Draws(self._recipe, index), self._recipe)[1]
        if self.bias is not None:
            label %= len(SHAPES)
        content = partial(_scene_image, self._recipe, index)
        return ImageRecord(index, f"{self.split}-{self.seed}-{index:06d}", label, content)

    def scene(self, index: int) -> Scene:
        """Draw one scene.

        Raises:
            IndexError: ``index`` is not in ``0 … n_images − 1``.
        """
        self._check(index)
        return _draw_scene(self._recipe, index)

    def _check(self, index: int) -> None:
        if not 0 <= index < self.n_images:
            raise IndexError(
                f"index is {index}; want 0 to {self.n_images - 1}, those of {self.name}"
            )


def _scene_image(recipe: _Recipe, index: int) -> Image.Image:
    return _draw_scene(recipe, index).image


def _draw_scene(recipe: _Recipe, index: int) -> Scene:
    draws = _Draws(recipe, index)
    n, label = _class_of_largest(draws, recipe)
    canvas, background = _draw_background(draws)
    specs = _place(n, label, draws)
    masks = [_paint_object(canvas, spec, recipe.style, draws) for spec in specs]
    add_grain(canvas, draws.below(GRAIN_SHIFTS), draws.below(GRAIN_SHIFTS))
    for number, mask in enumerate(masks):
        for later in masks[number + 1 :]:
            mask &= ~later
    if recipe.style == "outline":  # whose lines are plain
        specs = [replace(spec, texture=TEXTURES[0]) for spec in specs]
    objects = [
        SceneObject(spec.shape, spec.color, spec.size, spec.texture, spec.centre, mask)
        for spec, mask in zip(specs, masks, strict=True)
    ]
    caption = write_caption(objects, background, draws.below)
    image = Image.fromarray(canvas.astype(np.uint8).reshape(IMAGE_SIZE, IMAGE_SIZE, 3))
    if recipe.bias is not None:
        label %= len(SHAPES)
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


_BIAS_STEPS = 1 << 20


def _class_of_largest(draws: _Draws, recipe: _Recipe) -> tuple[int, int]:
    """The first draws: how many objects there are, and colour and shape of the largest."""
    fewest, most = recipe.n_objects
    n_objects = fewest + draws.below(most - fewest + 1)
    color_and_shape = draws.below(len(SCENE_CLASS_NAMES))
    if recipe.bias is None or recipe.split != "train":
        return n_objects, color_and_shape
    shape = color_and_shape % len(SHAPES)
    is_aligned = draws.below(_BIAS_STEPS) < recipe.bias * _BIAS_STEPS
    other = (shape + 1 + draws.below(len(COLORS) - 1)) % len(COLORS)
    return n_objects, (shape if is_aligned else other) * len(SHAPES) + shape


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


def _paint_object(
    canvas: NDArray[np.int16], spec: _Spec, style: Style, draws: _Draws
) -> NDArray[np.bool_]:
    """Paint one object, in place, with a random tilt, shade and texture; return its mask."""
    look = spec.shape, spec.half_radius, draws.below(len(TILTS))
    silhouette = sprite(*look)
    coverage = outline_sprite(*look) if style == "outline" else silhouette
    side = coverage.shape[0]
    tile = texture_tile(spec.texture, draws.below(TEXTURE_VARIANTS))
    shift_x, shift_y = draws.below(16), draws.below(16)
    shade = np.array([draws.below(17) - 8 for _ in range(3)], dtype=np.int16)
    base, accent = _PALETTE[spec.color] + shade
    if style == "outline":
        accent = base
    return paint(
        canvas,
        coverage,
        left=spec.centre[0] - side // 2,
        top=spec.centre[1] - side // 2,
        base=base,
        accent=accent,
        accent_share=tile[shift_y : shift_y + side, 3 * shift_x : 3 * (shift_x + side)],
        silhouette=silhouette,
    )
