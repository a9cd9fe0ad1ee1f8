"""From whatever a data set holds (file, bytes, picture, array) to one clean RGB picture.

An image is either converted by these rules or refused with a reason:

- transparency (alpha, palette, single colour): laid on white, as web pages show it
- 16-bit grey: 0…65535 becomes 0…255
- 32-bit integers: as 16-bit if within 0…65535, else minimum…maximum becomes 0…255
- floats: 0…1, 0…255 or 0…65535, the first that holds all values; else minimum…maximum
- EXIF orientation: applied. Colour profiles are not
- animation, several pages: the first frame
- mis-named file: read by its content, whatever its name
"""

from __future__ import annotations

import errno
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vit_sae_plugin.datasets.decoding_memory import decoding_bytes

# Formats that hold photographs (MPO counts as JPEG). EPS is left out on purpose: Pillow hands it to
# Ghostscript, and a file that is merely called .jpg must not start another program.
READABLE_FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF", "ICO",
)  # fmt: skip

_WHITE = (255, 255, 255, 255)
_PIXELS_IN_STRIP = 1 << 17


class UnreadableImageError(Exception):
    """An image that cannot be used.

    Attributes:
        reason: a short kind ("truncated or damaged"), then, after ": ", what was seen. Reports
            count by the kind.
    """

    def __init__(self, kind: str, detail: str = "") -> None:
        self.reason = f"{kind}: {detail}" if detail else kind
        super().__init__(kind, detail)

    def __str__(self) -> str:
        return self.reason


def refuse(kind: str) -> None:
    """Stands in for reading an image of which it is known already that it cannot be used."""
    raise UnreadableImageError(kind)


@dataclass(frozen=True)
class DecodingLimits:
    """What is refused before it is decoded, so that no single file takes all the memory."""

    max_pixels: int = 89_478_485
    """Most pixels (width × height) an image may have. The default is Pillow's own warning level; a
    limit above twice that raises Pillow's own as well."""
    max_bytes: int = 2**30
    """Most memory that decoding one image may take at any moment, worked out from its headers
    before anything is decoded; the file itself and up to 16 MiB for work come on top. Each worker
    decodes one image at a time. The default, a gigabyte, is enough for ``max_pixels`` of a JPEG,
    PNG or TIFF, for 53 million of a WebP and for 54 million of an RGB JPEG 2000."""
    max_aspect_ratio: float = 200.0
    """Longest side ÷ shortest side an image may have. Preprocessing scales the *short* side to
    the model's size: a strip of 10000 × 1 would become 2,240,000 × 224."""

    def __post_init__(self) -> None:
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels is {self.max_pixels}; want 1 or more")
        if self.max_bytes < 1:
            raise ValueError(f"max_bytes is {self.max_bytes}; want 1 or more")
        if not self.max_aspect_ratio >= 1:
            raise ValueError(
                f"max_aspect_ratio is {self.max_aspect_ratio}; want 1 (square) or more"
            )

    def check(self, width: int, height: int) -> None:
        """Raise ``UnreadableImageError`` for a picture of this size if it is beyond the limits."""
        seen = f"{width} x {height}"
        if width < 1 or height < 1:
            raise UnreadableImageError("no pixels", seen)
        if width * height > self.max_pixels:
            raise UnreadableImageError("too many pixels", f"{seen}, max_pixels={self.max_pixels}")
        if max(width, height) > self.max_aspect_ratio * min(width, height):
            raise UnreadableImageError(
                "too long and thin", f"{seen}, max_aspect_ratio={self.max_aspect_ratio:g}"
            )

    def check_memory(self, n_bytes: int, picture: Image.Image) -> None:
        """Raise ``UnreadableImageError`` if decoding ``picture`` may take over ``max_bytes``."""
        if n_bytes > self.max_bytes:
            seen = f"{picture.width} x {picture.height} {picture.format or ''} {picture.mode}"
            raise UnreadableImageError(
                "too much memory", f"{seen} may take {n_bytes}, max_bytes={self.max_bytes}"
            )


DEFAULT_LIMITS = DecodingLimits()


def decode_image(content: Any, limits: DecodingLimits = DEFAULT_LIMITS) -> Image.Image:
    """Turn ``content`` into an upright 8-bit RGB picture.

    Args:
        content: a path (``str`` or ``os.PathLike``), the ``bytes`` of an image file, a PIL picture,
            or a uint8 array ``[h, w]``, ``[h, w, 1]``, ``[h, w, 3]`` or ``[h, w, 4]``.
        limits: the largest sizes that are accepted.

    Raises:
        UnreadableImageError: whatever is wrong with the image; never another exception.
    """
    _prepare_pillow(limits)
    try:
        if isinstance(content, Image.Image):
            return _to_rgb(content, None, limits)
        if isinstance(content, np.ndarray):
            grey = content.ndim == 3 and content.shape[2] == 1
            return _to_rgb(Image.fromarray(content[..., 0] if grey else content), None, limits)
        if isinstance(content, bytes):
            return _decode_file(BytesIO(content), len(content), limits)
        with _open_regular_file(content) as (file, n_bytes):
            return _decode_file(file, n_bytes, limits)
    except UnreadableImageError:
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableImageError("too many pixels", str(error)) from None
    except MemoryError:
        raise UnreadableImageError("not enough memory to decode it") from None
    except Exception as error:
        # On damaged files Pillow's readers raise OSError, SyntaxError, struct.error, IndexError …
        seen = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise UnreadableImageError("truncated or damaged", seen) from None


_NO_PILLOW_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


def _prepare_pillow(limits: DecodingLimits) -> None:
    """Silence Pillow's warnings in this process, and let it open what ``limits`` allow.

    Both settings are the process's own and stay. Setting them for each image and back again would
    make every other warning of the program, shown once as a rule, appear again after each image.
    """
    if Image.MAX_IMAGE_PIXELS is not None and limits.max_pixels > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = limits.max_pixels // 2 + 1  # it refuses above twice this
    if warnings.filters[:1] != [_NO_PILLOW_WARNINGS]:
        warnings.filterwarnings("ignore", module=_NO_PILLOW_WARNINGS[3].pattern)


# Now, not at the first image: a change of the filters lets every warning be shown once more.
_prepare_pillow(DEFAULT_LIMITS)


@contextmanager
def _open_regular_file(path: str | os.PathLike[str]) -> Iterator[tuple[BinaryIO, int]]:
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise UnreadableImageError("a folder, not a file")
        if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait for ever
            raise UnreadableImageError("not a regular file")
        file = open(path, "rb")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise _why_not_opened(path, error) from None
    with file:
        yield file, status.st_size


def _why_not_opened(path: str | os.PathLike[str], error: OSError) -> UnreadableImageError:
    if error.errno == errno.ELOOP:
        return UnreadableImageError("link loop")
    if error.errno == errno.ENOENT:
        return UnreadableImageError("broken link" if os.path.islink(path) else "no such file")
    if error.errno in (errno.EACCES, errno.EPERM):
        return UnreadableImageError("no permission to read it")
    return UnreadableImageError("cannot be opened", error.strerror or type(error).__name__)


def _decode_file(file: BinaryIO, n_bytes: int, limits: DecodingLimits) -> Image.Image:
    if n_bytes == 0:
        raise UnreadableImageError("empty file")
    Image.init()
    known = [name for name in READABLE_FORMATS if name in Image.OPEN]  # HEIF needs a plugin
    try:
        picture = Image.open(file, formats=known)
    except UnidentifiedImageError:
        raise UnreadableImageError("not an image of a known format") from None
    with picture:
        if picture.format == "ICO":  # its table may promise another size than the picture has
            picture = picture.ico.getimage(picture.size)  # type: ignore[attr-defined]
        return _to_rgb(picture, file, limits)


def _to_rgb(picture: Image.Image, file: BinaryIO | None, limits: DecodingLimits) -> Image.Image:
    """``file``: what ``picture`` was opened from; None if it is another's, not to be changed."""
    limits.check(*picture.size)
    limits.check_memory(decoding_bytes(picture, file), picture)
    picture.load()
    if file is None:
        picture = picture.copy()
    _turn_upright(picture)
    if picture.mode == "F" or picture.mode.startswith("I"):
        rgb = _deep_grey_to_rgb(picture)
    elif picture.has_transparency_data:
        rgb = _strip_by_strip(picture, _on_white)
    elif picture.mode == "RGB":
        rgb = picture
    else:
        rgb = _converted(picture, "RGB")
    rgb.info.clear()  # or a later reader of its EXIF would turn it again
    return rgb


def _turn_upright(picture: Image.Image) -> None:
    """Turn ``picture`` in place as its EXIF says; damaged EXIF turns nothing."""
    with suppress(Exception):
        ImageOps.exif_transpose(picture, in_place=True)


def _converted(picture: Image.Image, mode: str) -> Image.Image:
    try:
        return picture.convert(mode)
    except ValueError:
        raise UnreadableImageError("colour mode cannot be converted", picture.mode) from None


def _strips(picture: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """``picture`` in bands of some rows, with the first row of each."""
    n_rows = max(1, _PIXELS_IN_STRIP // picture.width)
    for top in range(0, picture.height, n_rows):
        yield top, picture.crop((0, top, picture.width, min(top + n_rows, picture.height)))


def _strip_by_strip(
    picture: Image.Image, to_rgb: Callable[[Image.Image], Image.Image]
) -> Image.Image:
    """``to_rgb(picture)``, whose steps in between then take the memory of a strip only."""
    rgb = Image.new("RGB", picture.size)
    for top, strip in _strips(picture):
        rgb.paste(to_rgb(strip), (0, top))
    return rgb


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.mode == "La":  # premultiplied grey has no direct way to RGBA
        picture = picture.convert("LA")
    rgba = _converted(picture, "RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, _WHITE), rgba).convert("RGB")


def _deep_grey_to_rgb(picture: Image.Image) -> Image.Image:
    smallest, largest = _finite_extremes(picture)
    low, high = _value_range(picture.mode, smallest, largest)
    transparent = picture.info.get("transparency")

    def to_rgb(strip: Image.Image) -> Image.Image:
        values = np.asarray(strip).astype(np.float64)
        values = np.where(np.isfinite(values), values, smallest)
        grey = np.rint((values - low) * (255.0 / (high - low))).astype(np.uint8)
        if isinstance(transparent, int):
            grey[values == transparent] = 255
        return Image.fromarray(grey).convert("RGB")

    return _strip_by_strip(picture, to_rgb)


def _finite_extremes(picture: Image.Image) -> tuple[float, float]:
    smallest, largest = np.inf, -np.inf
    for _, strip in _strips(picture):
        values = np.asarray(strip)
        finite = values[np.isfinite(values)]
        if finite.size:
            smallest, largest = min(smallest, finite.min()), max(largest, finite.max())
    if smallest > largest:
        raise UnreadableImageError("no finite pixel value")
    return float(smallest), float(largest)


def _value_range(mode: str, smallest: float, largest: float) -> tuple[float, float]:
    """The range of values that becomes 0…255; see the top of this file."""
    usual = (1, 255, 65535) if mode == "F" else (65535,)
    for high in usual:
        if smallest >= 0 and largest <= high:
            return 0, high
    return (smallest, largest) if largest > smallest else (smallest, smallest + 1)
