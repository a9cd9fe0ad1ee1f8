"""How shape scenes are drawn: sprites, textures, backgrounds, and their composition.

Every pixel is the result of integer arithmetic, or of float64 additions, multiplications and
comparisons, which IEEE 754 defines to the last bit. No drawing library and no ``sin`` or ``exp``
takes part, because their results differ between versions and machines. Anti-aliasing is the share
of ``SUPERSAMPLE²`` sample points of a pixel that lie inside the shape.

A shape at one size and tilt is drawn once and kept (``sprite``): there are fewer than a
thousand of them, and with them a scene costs a few small array operations. Canvases are
``[64, 192]``, red, green and blue of a pixel side by side, so that every operation runs along
long contiguous rows; arrays that hold one value for a pixel are stored three times over.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

IMAGE_SIZE = 64
"""Side of a scene, pixels."""
SUPERSAMPLE = 4
"""Sample points along each side of a pixel."""
FULL_COVERAGE = SUPERSAMPLE**2
"""Coverage of a pixel that lies wholly inside a shape; half of it makes a mask pixel."""

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "crescent", "ring")

COLORS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "red": ((220, 40, 45), (243, 160, 148)),
    "orange": ((243, 134, 24), (243, 206, 140)),
    "yellow": ((243, 214, 48), (190, 138, 11)),
    "green": ((46, 160, 76), (156, 222, 152)),
    "cyan": ((32, 190, 208), (168, 236, 242)),
    "blue": ((42, 88, 216), (146, 178, 243)),
    "purple": ((130, 62, 190), (204, 164, 240)),
    "pink": ((243, 116, 182), (243, 202, 226)),
}
"""Name → (base RGB, accent RGB that its texture is drawn in).

Levels stay within 11 … 243, so that an object's shade (±8) and the grain never leave 0 … 255.
"""

TEXTURES = ("plain", "striped", "dotted", "checked")

SIZES = {"small": (15, 17), "medium": (21, 24), "large": (28, 32)}
"""Name → first and last radius, in half pixels."""

TILTS = (-21, -15, -9, -3, 3, 9, 15, 21)
"""Tilts of a shape, degrees clockwise."""
_TILT_VECTORS = (
    (956, -367),
    (989, -265),
    (1011, -160),
    (1023, -54),
    (1023, 54),
    (1011, 160),
    (989, 265),
    (956, 367),
)
# 1024 times cosine and sine of each tilt, written out: libm's last bit is not the same everywhere.

_STAR_NORMALS = ((0.0, 1.0), (0.951, 0.309), (0.588, -0.809), (-0.588, -0.809), (-0.951, 0.309))


def _inside(shape: str, u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which points lie in the shape; ``u`` right, ``v`` down, in units of the radius.

    The radius is nominal, so that shapes look equally large: the corners of the square reach 1.10
    of it, the tips of the star 1.12, and the corners of the triangle 1.23.
    """
    distance2 = u * u + v * v
    if shape == "circle":
        return distance2 <= 0.92 * 0.92
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) <= 0.78
    if shape == "triangle":
        return (v <= 0.72) & (np.abs(u) <= (v + 1.0) * 0.58)
    if shape == "star":
        # A five-pointed star is where at least four of the pentagram's five half-planes meet.
        halves = [a * u + b * v <= 0.345 for a, b in _STAR_NORMALS]
        return np.sum(halves, axis=0) >= 4
    if shape == "cross":
        along, across = np.maximum(np.abs(u), np.abs(v)), np.minimum(np.abs(u), np.abs(v))
        return (along <= 0.94) & (across <= 0.31)
    if shape == "heart":
        x, y = u * 1.22, 0.12 - v * 1.22
        bulge = x * x + y * y - 1.0
        return bulge * bulge * bulge <= x * x * y * y * y
    if shape == "crescent":
        bite = u - 0.42
        return (distance2 <= 0.96 * 0.96) & (bite * bite + v * v > 0.72 * 0.72)
    return (distance2 <= 0.95 * 0.95) & (distance2 >= 0.52 * 0.52)  # ring


@cache
def sprite(shape: str, half_radius: int, tilt: int) -> NDArray[np.int16]:
    """Coverage of a shape, 0 to ``FULL_COVERAGE``; its centre is in the middle.

    Returns ``[side, 3 · side]``, each pixel three times over.

    Args:
        shape: one of ``SHAPES``.
        half_radius: radius in half pixels.
        tilt: index into ``TILTS``.
    """
    reach = half_radius // 2 + 2
    steps = np.arange(-reach * SUPERSAMPLE, reach * SUPERSAMPLE, dtype=np.float64) + 0.5
    x, y = steps[None, :], steps[:, None]
    cos, sin = _TILT_VECTORS[tilt]
    unit = half_radius * SUPERSAMPLE * 512.0  # the radius in sample points, times 1024
    u = (x * cos + y * sin) / unit
    v = (y * cos - x * sin) / unit
    samples = _inside(shape, u, v).reshape(2 * reach, SUPERSAMPLE, 2 * reach, SUPERSAMPLE)
    return _per_channel(samples.sum(axis=(1, 3)))


def _per_channel(values: NDArray) -> NDArray[np.int16]:
    """One value for a pixel, ``[rows, columns]``, as a read-only array ``[rows, 3 · columns]``."""
    tripled = np.repeat(values.astype(np.int16), 3, axis=1)
    tripled.setflags(write=False)
    return tripled


OUTLINE_WIDTH = 3
"""Width of the line of an outline drawing, pixels."""


@cache
def outline_sprite(shape: str, half_radius: int, tilt: int) -> NDArray[np.int16]:
    """As ``sprite``, with all but a line along the inside of the shape's edge left empty."""
    filled = sprite(shape, half_radius, tilt)
    coverage = filled[:, ::3]
    n_rows, n_columns = coverage.shape
    padded = np.pad(coverage, OUTLINE_WIDTH)
    inner = coverage
    reach = range(-OUTLINE_WIDTH, OUTLINE_WIDTH + 1)
    for dy, dx in ((dy, dx) for dy in reach for dx in reach):
        if dx * dx + dy * dy <= OUTLINE_WIDTH * OUTLINE_WIDTH:
            top, left = OUTLINE_WIDTH + dy, OUTLINE_WIDTH + dx
            inner = np.minimum(inner, padded[top : top + n_rows, left : left + n_columns])
    return _per_channel(coverage - inner)


TEXTURE_VARIANTS = 4
"""Each texture's variants: stripes differ in direction, dots and checks in pitch."""
_TILE = 128  # more than an image and the largest shift of a texture


@cache
def texture_tile(texture: str, variant: int) -> NDArray[np.int16]:
    """How much of the accent color each pixel takes, 0 to ``FULL_COVERAGE``, ``[128, 384]``."""
    steps = np.arange(_TILE * SUPERSAMPLE)
    x, y = np.broadcast_arrays(steps[None, :], steps[:, None])
    pitch = (5 + variant % 2) * SUPERSAMPLE
    if texture == "plain":
        accent = np.zeros(x.shape, dtype=bool)
    elif texture == "striped":
        along = (x, y, x + y, x - y)[variant]
        # Diagonal stripes are narrower by the square root of two: 7/5 undoes it.
        pitch = 6 * SUPERSAMPLE if variant < 2 else 6 * SUPERSAMPLE * 7 // 5
        accent = 2 * (along % pitch) < pitch
    elif texture == "dotted":
        dx, dy = 2 * (x % pitch) + 1 - pitch, 2 * (y % pitch) + 1 - pitch
        accent = 16 * (dx * dx + dy * dy) <= 7 * pitch * pitch
    else:
        half = 3 + variant % 2
        accent = (x // (half * SUPERSAMPLE) + y // (half * SUPERSAMPLE)) % 2 == 1
    samples = accent.reshape(_TILE, SUPERSAMPLE, _TILE, SUPERSAMPLE)
    return _per_channel(samples.sum(axis=(1, 3)))


GRADE_DIRECTIONS = 8


@cache
def grade_ramp(direction: int) -> NDArray[np.int16]:
    """A linear ramp from 0 to 252 across the image, in one of eight directions, ``[64, 192]``."""
    steps = np.arange(IMAGE_SIZE)
    x, y = np.broadcast_arrays(steps[None, :], steps[:, None])
    if direction % 2 == 1:
        x = IMAGE_SIZE - 1 - x
    return _per_channel((4 * x, 4 * y, 2 * (x + y), 3 * x + y)[direction // 2])


def color_row(rgb: NDArray[np.int16], n_pixels: int) -> NDArray[np.int16]:
    """One colour, ``[3]``, for a row of pixels, ``[3 · n_pixels]``."""
    row = np.empty((n_pixels, 3), dtype=np.int16)
    row[:] = rgb
    return row.reshape(-1)


def draw_background(
    first: tuple[int, int, int], second: tuple[int, int, int], direction: int
) -> NDArray[np.int16]:
    """A background that passes from one colour to the other, ``[64, 192]``.

    The colours' levels must be less than 130 apart: the products then fit 16 bits.
    """
    start = np.array(first, dtype=np.int16)
    change = np.array(second, dtype=np.int16) - start
    if not change.any():
        return np.repeat(color_row(start, IMAGE_SIZE)[None, :], IMAGE_SIZE, axis=0)
    canvas = grade_ramp(direction) * color_row(change, IMAGE_SIZE)
    canvas >>= 8
    canvas += color_row(start, IMAGE_SIZE)
    return canvas


GRAIN_SHIFTS = 256
"""Film grain is a window of one fixed sheet of noise, shifted by less than this each way."""


@cache
def _grain_sheet() -> NDArray[np.int16]:
    side = IMAGE_SIZE + GRAIN_SHIFTS
    raw = np.random.PCG64(0).random_raw(side * side)
    return _per_channel((raw >> np.uint64(61)).reshape(side, side).astype(np.int16) - 3)


def add_grain(canvas: NDArray[np.int16], shift_x: int, shift_y: int) -> None:
    """Add −3 … 4 to each pixel of ``[64, 192]``, in place; no two patches are then alike."""
    columns = slice(3 * shift_x, 3 * (shift_x + IMAGE_SIZE))
    canvas += _grain_sheet()[shift_y : shift_y + IMAGE_SIZE, columns]


def paint(
    canvas: NDArray[np.int16],
    coverage: NDArray[np.int16],
    left: int,
    top: int,
    base: NDArray[np.int16],
    accent: NDArray[np.int16],
    accent_share: NDArray[np.int16],
    silhouette: NDArray[np.int16] | None = None,
) -> NDArray[np.bool_]:
    """Paint one object over the canvas, in place, and return its own mask ``[64, 64]``.

    Args:
        canvas: ``[64, 192]``, values 0 to 255.
        coverage: the object's sprite ``[side, 3 · side]``; it may reach past the canvas's edge.
        left, top: where the sprite's first column and row fall on the canvas, pixels.
        base, accent: RGB, ``[3]``.
        accent_share: ``[side, 3 · side]``, 0 to ``FULL_COVERAGE``.
        silhouette: what the mask is taken from, as large as ``coverage``; None: ``coverage``.
    """
    side = coverage.shape[0]
    first_row, last_row = max(top, 0), min(top + side, IMAGE_SIZE)
    first_column, last_column = max(left, 0), min(left + side, IMAGE_SIZE)
    window = (
        slice(first_row - top, last_row - top),
        slice(3 * (first_column - left), 3 * (last_column - left)),
    )
    covered = coverage[window]
    width = last_column - first_column
    color = accent_share[window] * color_row(accent - base, width)
    color >>= 4
    color += color_row(base, width)
    under = canvas[first_row:last_row, 3 * first_column : 3 * last_column]
    color -= under
    color *= covered
    color >>= 4
    under += color
    mask = np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=bool)
    inside = covered if silhouette is None else silhouette[window]
    mask[first_row:last_row, first_column:last_column] = 2 * inside[:, ::3] >= FULL_COVERAGE
    return mask
