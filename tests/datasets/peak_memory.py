"""What decoding each kind of image takes at most, measured, and what was foretold.

Each image is made and decoded in forked processes: a process's largest resident size starts at what
it was forked with.
"""

from __future__ import annotations

import os
import resource
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from vit_sae_plugin.datasets.decoding_memory import decoding_bytes
from vit_sae_plugin.datasets.image_decoding import DecodingLimits, decode_image

SIDE = 1500
TURNED = Image.Exif()
TURNED[0x0112] = 6


def flat(mode: str, format: str, **options: object) -> Callable[[BinaryIO], None]:
    def write(file: BinaryIO) -> None:
        Image.new(mode, (SIDE, SIDE), 0).save(file, format, **options)

    return write


def deep(format: str, **options: object) -> Callable[[BinaryIO], None]:
    def write(file: BinaryIO) -> None:
        Image.fromarray(np.zeros((SIDE, SIDE), np.uint16)).save(file, format, **options)

    return write


def transparent_palette(file: BinaryIO) -> None:
    picture = Image.new("P", (SIDE, SIDE), 0)
    picture.putpalette([1, 2, 3] * 256)
    picture.save(file, "PNG", transparency=bytes(10))


KINDS: dict[str, Callable[[BinaryIO], None]] = {
    "jpeg progressive turned": flat("RGB", "JPEG", progressive=True, subsampling=0, exif=TURNED),
    "jpeg cmyk progressive": flat("CMYK", "JPEG", progressive=True),
    "png palette": transparent_palette,
    "png 16 bit turned": deep("PNG", exif=TURNED),
    "png rgba turned": flat("RGBA", "PNG", exif=TURNED),
    "tiff float": flat("F", "TIFF"),
    "tiff float in one strip": flat("F", "TIFF", compression="tiff_deflate", strip_size=10**9),
    "tiff 16 bit": deep("TIFF", compression="tiff_lzw"),
    "pgm 16 bit": deep("PPM"),
    "jpeg 2000 rgba": flat("RGBA", "JPEG2000"),
    "jpeg 2000 16 bit": deep("JPEG2000"),
    "jpeg 2000 small code blocks": flat("RGB", "JPEG2000", codeblock_size=(8, 8)),
    "jpeg 2000 small tiles": flat("RGB", "JPEG2000", tile_size=(16, 16)),
    "webp lossless rgba": flat("RGBA", "WEBP", lossless=True),
    "gif": flat("P", "GIF", transparency=0),
    "avif rgba": flat("RGBA", "AVIF", subsampling="4:4:4", speed=10),
}


def in_child(work: Callable[[], object]) -> str:
    """What `work` returns, as text, from a forked process; "" if it fails."""
    receiver, sender = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking where there are threads
        child = os.fork()
    if child == 0:
        try:
            os.write(sender, str(work()).encode())
        finally:
            os._exit(0)
    os.close(sender)
    with open(receiver) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return answer


def peak_bytes(path: Path) -> int:
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    decode_image(path, DecodingLimits(max_bytes=2**40))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - resident


def taken_and_foretold(kind: str, path: Path) -> tuple[int, int]:
    """Bytes, the file's own left out; `path` is where it may lie."""

    def write() -> None:
        with open(path, "wb") as file:
            KINDS[kind](file)

    in_child(write)
    with open(path, "rb") as file, Image.open(file) as picture:
        foretold = decoding_bytes(picture, file)
    return int(in_child(lambda: peak_bytes(path))) - path.stat().st_size, foretold
