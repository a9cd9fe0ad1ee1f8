"""Every kind of awkward image file, with what must become of it."""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@dataclass(frozen=True)
class Expected:
    """Either a picture whose corner pixels are known, or a kind of refusal."""

    size: tuple[int, int] | None = None
    top_left: tuple[int, int, int] | None = None
    top_right: tuple[int, int, int] | None = None
    tolerance: int = 0
    refusal: str | None = None


def encoded(picture: Image.Image, format: str, **options: Any) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def two_colours(left: Any, right: Any, mode: str = "RGB", size: int = 32) -> Image.Image:
    """A square whose left half is `left` and whose right half is `right`."""
    picture = Image.new(mode, (size, size), left)
    picture.paste(right, (size // 2, 0, size, size))
    return picture


def png(width: int, height: int, depth: int = 8, colour_type: int = 2, rows: bytes = b"") -> bytes:
    """A PNG written by hand, so that its header can promise what its data do not hold."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    data = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def palette_picture() -> Image.Image:
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([*RED, *GREEN, *BLUE])
    picture.putpixel((3, 0), 2)
    return picture


def with_orientation(orientation: int) -> bytes:
    """Stored as red | blue with 6 × 4 pixels, to be turned when shown."""
    picture = Image.new("RGB", (6, 4), RED)
    picture.paste(BLUE, (3, 0, 6, 4))
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture, "PNG", exif=exif)


def deep_grey(values: list[float], dtype: type, format: str) -> bytes:
    return encoded(Image.fromarray(np.array([values], dtype=dtype)), format)


def animation(format: str) -> bytes:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    return encoded(frames[0], format, save_all=True, append_images=frames[1:])


def odd_files() -> dict[str, tuple[bytes, Expected]]:
    """File name → content and expectation."""
    photo = encoded(two_colours(RED, BLUE), "JPEG", quality=95)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    whole = encoded(noise, "JPEG")
    whole_png = encoded(noise, "PNG")
    red_blue = Expected((32, 32), RED, BLUE, tolerance=3)
    not_image = Expected(refusal="not an image of a known format")
    too_large = Expected(refusal="too many pixels")
    return {
        "photo.jpg": (photo, red_blue),
        "PHOTO.JPEG": (photo, red_blue),
        "png called.jpg": (
            encoded(two_colours(RED, BLUE), "PNG"),
            Expected((32, 32), RED, BLUE),
        ),
        "jpeg called.png": (photo, red_blue),
        "half a file.jpg": (
            whole[: len(whole) // 2],
            Expected(refusal="truncated or damaged"),
        ),
        "half a file.png": (
            whole_png[: len(whole_png) // 2],
            Expected(refusal="truncated or damaged"),
        ),
        "only a header.jpg": (photo[:20], not_image),
        "empty.jpg": (b"", Expected(refusal="empty file")),
        "text.jpg": (b"this is not an image\n" * 9, not_image),
        "web page.png": (b"<!doctype html><title>404</title>", not_image),
        "postscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", not_image),
        "grey.png": (
            encoded(two_colours(0, 99, "L"), "PNG"),
            Expected((32, 32), (0,) * 3, (99,) * 3),
        ),
        "black and white.png": (
            encoded(two_colours(0, 1, "1"), "PNG"),
            Expected((32, 32), (0,) * 3, (255,) * 3),
        ),
        "cmyk.jpg": (
            encoded(two_colours((0, 255, 255, 0), (255, 255, 0, 0), "CMYK"), "JPEG", quality=95),
            red_blue,
        ),
        "16 bit.png": (
            deep_grey([32768, 0, 65535], np.uint16, "PNG"),
            Expected((3, 1), (128,) * 3, (255,) * 3),
        ),
        "16 bit.tif": (
            deep_grey([257, 0, 65535], np.uint16, "TIFF"),
            Expected((3, 1), (1,) * 3, (255,) * 3),
        ),
        "16 bit colour.png": (
            png(1, 1, depth=16, rows=b"\0" + struct.pack(">HHH", 65535, 32768, 0)),
            Expected((1, 1), (255, 128, 0)),
        ),
        "32 bit, 16 used.tif": (
            deep_grey([257, 65535], np.int32, "TIFF"),
            Expected((2, 1), (1,) * 3, (255,) * 3),
        ),
        "32 bit, all used.tif": (
            deep_grey([-1000, 0, 1000], np.int32, "TIFF"),
            Expected((3, 1), (0,) * 3, (255,) * 3),
        ),
        "floats to 1.tif": (
            deep_grey([0.2, 1.0], np.float32, "TIFF"),
            Expected((2, 1), (51,) * 3, (255,) * 3),
        ),
        "floats to 255.tif": (
            deep_grey([51, 102], np.float32, "TIFF"),
            Expected((2, 1), (51,) * 3, (102,) * 3),
        ),
        "floats with nan.tif": (
            deep_grey([float("nan"), 1.0, 0.0], np.float32, "TIFF"),
            Expected((3, 1), (0,) * 3, (0,) * 3),
        ),
        "only nan.tif": (
            deep_grey([float("nan")], np.float32, "TIFF"),
            Expected(refusal="no finite pixel value"),
        ),
        "one value.tif": (
            deep_grey([-7.0, -7.0], np.float32, "TIFF"),
            Expected((2, 1), (0,) * 3),
        ),
        "palette.png": (encoded(palette_picture(), "PNG"), Expected((4, 4), GREEN, BLUE)),
        "palette with hole.png": (
            encoded(palette_picture(), "PNG", transparency=1),
            Expected((4, 4), (255,) * 3, BLUE),
        ),
        "palette with glass.png": (
            encoded(palette_picture(), "PNG", transparency=b"\xff\x80\xff"),
            Expected((4, 4), (127, 255, 127), BLUE, tolerance=1),
        ),
        "palette with hole.gif": (
            encoded(palette_picture(), "GIF", transparency=1),
            Expected((4, 4), (255,) * 3, BLUE),
        ),
        "alpha.png": (
            encoded(two_colours((255, 0, 0, 0), (0, 0, 255, 128), "RGBA"), "PNG"),
            Expected((32, 32), (255,) * 3, (127, 127, 255), tolerance=1),
        ),
        "grey with alpha.png": (
            encoded(two_colours((0, 0), (0, 255), "LA"), "PNG"),
            Expected((32, 32), (255,) * 3, (0,) * 3),
        ),
        "one clear colour.png": (
            encoded(two_colours(RED, BLUE), "PNG", transparency=RED),
            Expected((32, 32), (255,) * 3, BLUE),
        ),
        "clear 16 bit.png": (
            encoded(
                Image.fromarray(np.array([[300, 65535, 0]], np.uint16)), "PNG", transparency=300
            ),
            Expected((3, 1), (255,) * 3, (0,) * 3),
        ),
        "animated.gif": (animation("GIF"), Expected((4, 4), RED)),
        "animated.png": (animation("PNG"), Expected((4, 4), RED)),
        "animated.webp": (animation("WEBP"), Expected((4, 4), RED, tolerance=6)),
        "pages.tiff": (animation("TIFF"), Expected((4, 4), RED)),
        "turned 3.png": (with_orientation(3), Expected((6, 4), BLUE, RED)),
        "turned 6.png": (with_orientation(6), Expected((4, 6), RED, RED)),
        "turned 8.png": (with_orientation(8), Expected((4, 6), BLUE, BLUE)),
        "turned 99.png": (with_orientation(99), Expected((6, 4), RED, BLUE)),
        "broken exif.jpg": (
            encoded(two_colours(RED, BLUE), "JPEG", quality=95, exif=b"Exif\0\0nonsense"),
            red_blue,
        ),
        "one pixel.png": (encoded(Image.new("RGB", (1, 1), GREEN), "PNG"), Expected((1, 1), GREEN)),
        "panorama.png": (
            encoded(Image.new("L", (2000, 10)), "PNG"),
            Expected((2000, 10), (0,) * 3),
        ),
        "strip.png": (
            encoded(Image.new("L", (10000, 1)), "PNG"),
            Expected(refusal="too long and thin"),
        ),
        "no width.png": (png(0, 5), not_image),
        "bomb.png": (png(60_000, 60_000), too_large),
        "bomb just above.png": (png(10_000, 10_000), too_large),
        "bomb.gif": (
            # The screen is 1 × 1, the frame in it 65,535 × 65,535.
            b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;",
            too_large,
        ),
        "text bomb.png": (
            png(1, 1)[:33]
            + _chunk(b"zTXt", b"comment\0\0" + zlib.compress(b"a" * 10_000_000))
            + png(1, 1)[33:],
            Expected(refusal="truncated or damaged"),
        ),
    }


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


ODD_NAMES = (
    "  spaces  .jpg",
    "Ünïcödé 図 🐈.jpg",
    "line\nbreak.jpg",
    'quote"comma,.jpg',
    "back\\slash.jpg",
    os.fsdecode(b"not \xff utf-8.jpg"),
    "-rf.jpg",
    "=1+1.jpg",
    "%s {0} $HOME.jpg",
    "NA.jpg",
    "l" * 251 + ".jpg",
)


def write_odd_folder(root: Path) -> dict[str, Expected]:
    """Fill `root` with all of the above, and with what is no file; returns id → expectation."""
    expected = {}
    for name, (content, what) in odd_files().items():
        (root / name).write_bytes(content)
        expected[name] = what
    (root / "folder.jpg").mkdir()
    (root / "folder.jpg" / "inside.jpg").write_bytes(odd_files()["photo.jpg"][0])
    (root / "loop").symlink_to(root)
    (root / "broken link.jpg").symlink_to(root / "gone.jpg")
    (root / "own tail.jpg").symlink_to(root / "own tail.jpg")
    (root / "link.jpg").symlink_to(root / "photo.jpg")
    os.mkfifo(root / "pipe.jpg")
    return expected | {
        "folder.jpg": Expected(refusal="a folder, not a file"),
        "loop": Expected(refusal="link loop"),
        "broken link.jpg": Expected(refusal="broken link"),
        "own tail.jpg": Expected(refusal="link loop"),
        "link.jpg": Expected((32, 32), RED, BLUE, tolerance=3),
        "pipe.jpg": Expected(refusal="not a regular file"),
    }
