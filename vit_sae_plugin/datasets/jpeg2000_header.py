"""What of a JPEG 2000 file decides how much memory decoding it takes (ISO/IEC 15444-1, annex A).

A kilobyte can promise a million code blocks or sixty thousand tiles, and the decoder keeps a record
of each: size and mode alone are no bound.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

_SOC, _SIZ, _COD, _COC, _SOT, _SOD, _EOC = 0xFF4F, 0xFF51, 0xFF52, 0xFF53, 0xFF90, 0xFF93, 0xFFD9
_OTHER_SEGMENTS = frozenset(
    # CAP TLM PLM PLT CPF QCD QCC RGN POC PPM PPT CRG COM MCT MCC MCO CBD
    0xFF00 + number
    for number in bytes.fromhex("50 55 57 58 59 5C 5D 5E 5F 60 61 63 64 74 75 77 78")
)
_LARGEST_BLOCK = 1 << 12

# Upper bounds for OpenJPEG 2.5; about 410, 4,600 and 2,200 were measured.
_CODE_BLOCK_BYTES = 1024
_TILE_BYTES = 8192
_TILE_COMPONENT_BYTES = 4096


@dataclass(frozen=True)
class Jpeg2000Header:
    """The codestream's sizes."""

    n_pixels: int
    n_tiles: int
    n_pixels_in_tile: int
    n_components: int
    bytes_per_sample: int
    code_block_samples: int
    """Size of the smallest code block of any tile part, or of the smallest precinct if smaller."""

    def decoder_bytes(self) -> int:
        """The most that OpenJPEG holds while it decodes the image tile by tile."""
        samples = min(self.n_pixels, self.n_pixels_in_tile) * self.n_components
        code_blocks = -(-samples // self.code_block_samples)
        tile = _TILE_BYTES + _TILE_COMPONENT_BYTES * self.n_components
        values = samples * (4 + self.bytes_per_sample)
        return values + code_blocks * _CODE_BLOCK_BYTES + self.n_tiles * tile

    @classmethod
    def read(cls, file: BinaryIO) -> Jpeg2000Header:
        """Read the main header and those of all tile parts; ``file`` stays at its place.

        Raises:
            ValueError: the headers are damaged, or hold what the standard doesn't know.
        """
        place = file.tell()
        try:
            file.seek(_codestream_start(file))
            return cls._of_segments(_segments(file))
        except (struct.error, IndexError, ZeroDivisionError) as error:
            raise ValueError(f"damaged JPEG 2000 header: {error}") from None
        finally:
            file.seek(place)

    @classmethod
    def _of_segments(cls, segments: Iterator[tuple[int, bytes]]) -> Jpeg2000Header:
        marker, siz = next(segments, (0, b""))
        if marker != _SIZ:
            raise ValueError("damaged JPEG 2000 header: no image size")
        right, bottom, left, top, width, height, tiles_left, tiles_top, n_components = (
            struct.unpack_from(">8IH", siz, 2)
        )
        bits = max((siz[36 + 3 * number] & 0x7F) + 1 for number in range(n_components))
        smallest = _LARGEST_BLOCK
        for marker, segment in segments:
            if marker == _COD:
                smallest = min(smallest, _smallest_block(segment[0], segment[5:]))
            elif marker == _COC:
                style = 1 if n_components < 257 else 2
                smallest = min(smallest, _smallest_block(segment[style], segment[style + 1 :]))
        return cls(
            n_pixels=(right - left) * (bottom - top),
            n_tiles=-(-(right - tiles_left) // width) * -(-(bottom - tiles_top) // height),
            n_pixels_in_tile=width * height,
            n_components=n_components,
            bytes_per_sample=-(-bits // 8),
            code_block_samples=smallest,
        )


def _codestream_start(file: BinaryIO) -> int:
    """Offset of the codestream: 0, or the content of the first ``jp2c`` box."""
    start = 0
    while True:
        file.seek(start)
        head = file.read(8)
        if start == 0 and head[:2] == _SOC.to_bytes(2):
            return 0
        length, kind = struct.unpack(">I4s", head)
        n_header_bytes = 8
        if length == 1:
            (length,) = struct.unpack(">Q", file.read(8))
            n_header_bytes = 16
        if kind == b"jp2c":
            return start + n_header_bytes
        if length < n_header_bytes:
            raise ValueError("damaged JPEG 2000 header: no codestream")
        start += length


def _segments(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Marker and content of each segment in the main header and in those of the tile parts."""
    file.seek(2, 1)  # SOC
    part_end = 0
    while len(head := file.read(2)) == 2:
        marker = int.from_bytes(head)
        if marker == _EOC or (marker == _SOD and part_end == 0):
            return
        if marker == _SOD:
            if part_end < file.tell():
                raise ValueError("damaged JPEG 2000 header: length of a tile part")
            file.seek(part_end)
            continue
        if marker not in _OTHER_SEGMENTS and marker not in (_SIZ, _COD, _COC, _SOT):
            raise ValueError(f"damaged JPEG 2000 header: unknown marker {marker:#x}")
        start = file.tell() - 2
        (length,) = struct.unpack(">H", file.read(2))
        segment = file.read(length - 2)
        if marker == _SOT:
            (part_length,) = struct.unpack_from(">I", segment, 2)
            part_end = start + part_length if part_length else 0  # 0: to the end of the file
        yield marker, segment


def _smallest_block(style: int, settings: bytes) -> int:
    """Samples of the smallest code block; a smaller precinct cuts it."""
    n_levels, width, height = settings[0], (settings[1] & 15) + 2, (settings[2] & 15) + 2
    if style & 1:
        for precinct in settings[5 : 6 + n_levels]:
            width = min(width, max((precinct & 15) - 1, 0))
            height = min(height, max((precinct >> 4) - 1, 0))
    return 1 << (width + height)
