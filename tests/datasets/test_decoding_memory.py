"""No image takes more memory than was worked out from its headers, and than the limit."""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from tests.datasets.odd_images import encoded
from tests.datasets.peak_memory import KINDS, taken_and_foretold
from vit_sae_plugin.datasets import DecodingLimits, UnreadableImageError
from vit_sae_plugin.datasets.image_decoding import decode_image
from vit_sae_plugin.datasets.jpeg2000_header import Jpeg2000Header

FOR_WORK = 16 * 2**20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_takes_more_than_foretold(kind: str, tmp_path: Path) -> None:
    taken, foretold = taken_and_foretold(kind, tmp_path / "image")
    assert taken <= foretold + FOR_WORK


def jpeg2000(side: int, mode: str = "RGB", **options: object) -> bytes:
    """A codestream that says it is `side` pixels wide and high, in one tile."""
    content = bytearray(encoded(Image.new(mode, (32, 32)), "JPEG2000", no_jp2=True, **options))
    struct.pack_into(">8I", content, 8, side, side, 0, 0, side, side, 0, 0)
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [
        jpeg2000(9400),
        jpeg2000(4000, codeblock_size=(4, 4)),
        encoded(Image.new("L", (2000, 2000)), "WEBP"),
    ],
)
def test_what_would_take_too_much_is_refused_before_it_is_decoded(content: bytes) -> None:
    limits = DecodingLimits(max_bytes=2**30 if content[:2] == b"\xff\x4f" else 7 * 10**7)
    with pytest.raises(UnreadableImageError, match=r"too much memory: \d+ x \d+ \w+ RGB may take"):
        decode_image(content, limits)


def test_jpeg2000_headers() -> None:
    file = BytesIO(encoded(Image.new("RGBA", (70, 33)), "JPEG2000", tile_size=(32, 32)))
    file.seek(5)
    header = Jpeg2000Header.read(file)
    assert header == Jpeg2000Header(
        n_pixels=70 * 33,
        n_tiles=3 * 2,
        n_pixels_in_tile=32 * 32,
        n_components=4,
        bytes_per_sample=1,
        code_block_samples=64 * 64,
    )
    assert file.tell() == 5


@pytest.mark.parametrize(
    ("coding_style", "samples"),
    [
        (struct.pack(">BBHBBBBBB", 0, 0, 1, 0, 5, 0, 0, 0, 1), 4 * 4),
        # Precincts of 64 × 128 and 32 × 64 samples, each shared by sub-bands of half its sides.
        (struct.pack(">BBHBBBBBBBB", 1, 0, 1, 0, 1, 4, 4, 0, 1, 0x76, 0x65), 16 * 32),
    ],
)
def test_small_code_blocks_are_found_in_the_header_of_any_tile_part(
    coding_style: bytes, samples: int
) -> None:
    content = bytearray(encoded(Image.new("L", (32, 32)), "JPEG2000", no_jp2=True))
    assert Jpeg2000Header.read(BytesIO(content)).code_block_samples == 64 * 64
    segment = struct.pack(">HH", 0xFF52, 2 + len(coding_style)) + coding_style
    tile_part = content.index(b"\xff\x90")
    (part_length,) = struct.unpack_from(">I", content, tile_part + 6)
    struct.pack_into(">I", content, tile_part + 6, part_length + len(segment))
    content[tile_part + 12 : tile_part + 12] = segment
    assert Jpeg2000Header.read(BytesIO(content)).code_block_samples == samples


@pytest.mark.parametrize("n_kept", range(0, 130, 7))
def test_damaged_jpeg2000_headers_are_refused(n_kept: int) -> None:
    whole = encoded(Image.new("L", (32, 32)), "JPEG2000")
    with pytest.raises(ValueError, match="damaged JPEG 2000 header"):
        Jpeg2000Header.read(BytesIO(whole[:n_kept]))


def test_an_icon_may_not_hold_more_than_its_table_says() -> None:
    inside = encoded(Image.new("L", (300, 300)), "PNG")
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 8, len(inside), 22)
    icon = struct.pack("<HHH", 0, 1, 1) + entry + inside
    with pytest.raises(UnreadableImageError, match="too many pixels: 300 x 300"):
        decode_image(icon, DecodingLimits(max_pixels=256 * 256))
