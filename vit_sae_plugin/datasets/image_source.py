"""What every image source offers, so that a loader need not know where images come from."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from vit_sae_plugin.datasets.image_decoding import (
    DEFAULT_LIMITS,
    DecodingLimits,
    UnreadableImageError,
    decode_image,
)

__all__ = [
    "ImageRecord",
    "ImageSource",
    "NoReadableImagesError",
    "UnreadableImageError",
    "check_half",
    "fingerprint_of",
    "printable_id",
    "valid_text",
]


class NoReadableImagesError(RuntimeError):
    """A source gave not a single usable image; the message says how many were tried and why."""


@dataclass(frozen=True)
class ImageRecord:
    """One image of a source, not yet read or decoded: cheap to make, to skip and to send."""

    index: int
    """Position in the source's own order."""
    id: str
    """Unique in the source and printable: a relative path, a key, or the index."""
    label: int | None
    """Index of the class; None if the image has none."""
    content: Any
    """What ``decode_image`` takes, or a function without arguments that returns it."""
    limits: DecodingLimits = DEFAULT_LIMITS
    """Sizes beyond which the image is refused."""

    def load(self) -> Image.Image:
        """Read and decode: an upright 8-bit RGB picture.

        Raises:
            UnreadableImageError: with the reason, for anything wrong with this image.
        """
        content = self.content() if callable(self.content) else self.content
        return decode_image(content, self.limits)


class ImageSource(ABC):
    """Images in a fixed order. A map-style source defines ``record``, a streaming one ``records``.

    Sources must be picklable where worker processes are started afresh rather than forked.
    """

    name: str
    """Short name for reports."""
    class_names: list[str] | None = None
    """Label index → name. Two classes may share a name: only the index tells them apart."""
    templates: Sequence[str] = ()
    """The prompts its authors classify it with, "{}" for the class name; empty: none are known."""
    n_images: int | None = None
    """Number of records, readable or not; None for a stream of unknown length."""
    is_streaming: bool = False
    """True if records can only be walked in order."""

    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 (hex) over ids, labels, sizes and seeds: same data, same hash."""

    def __repr__(self) -> str:
        n_images = "a stream" if self.n_images is None else f"{self.n_images:,} images"
        n_classes = "" if self.class_names is None else f", {len(self.class_names):,} classes"
        return f"<{type(self).__name__} {self.name!r}: {n_images}{n_classes}>"

    def labels(self) -> np.ndarray:
        """Each image's label, -1 for none: int64 ``[n_images]``. Map-style sources only."""
        if self.n_images is None:
            raise TypeError(
                f"{self.name} is a stream, whose labels are not known beforehand; want a source "
                "whose images have a number"
            )
        given = (self.record(index).label for index in range(self.n_images))
        return np.array([-1 if label is None else label for label in given], dtype=np.int64)

    def labels_frame(self) -> pd.DataFrame:
        """One row an image, in order: ``id``, ``label`` (-1 for none), ``class_name``, and what
        else the source knows of each image, such as the group it belongs to."""
        labels = self.labels()
        names = np.array([*(self.class_names or ()), ""], dtype=object)
        known = np.where((labels >= 0) & (labels < len(names) - 1), labels, -1)
        ids = [self.record(index).id for index in range(len(labels))]
        return pd.DataFrame({"id": ids, "label": labels, "class_name": names[known]})

    def class_half(self, half: str) -> list[int]:
        """The labels of one half of the classes, ``"base"`` or ``"novel"``.

        As in CoOp (Zhou et al. 2022): the first ⌈n / 2⌉ classes are base, the others novel.
        """
        check_half(half)
        n_classes = len(self.class_names or ())
        n_base = -(-n_classes // 2)
        return list(range(n_base) if half == "base" else range(n_base, n_classes))

    def record(self, index: int) -> ImageRecord:
        """The record at ``index``, ``0 <= index < n_images``. Map-style sources only."""
        raise TypeError(
            f"{self.name} is a stream, which has no record({index}); want records(start), in order"
        )

    def records(self, start: int = 0) -> Iterator[ImageRecord]:
        """All records from position ``start`` on, in the source's order."""
        if self.n_images is None:
            raise TypeError(f"{type(self).__name__} has no n_images; want that, or records()")
        for index in range(start, self.n_images):
            yield self.record(index)


def check_half(half: str) -> None:
    """Raise ValueError unless ``half`` is "base" or "novel"."""
    if half not in ("base", "novel"):
        raise ValueError(f"classes is {half!r}; want 'base', 'novel' or 'all'")


def fingerprint_of(parts: Iterable[str | bytes]) -> str:
    """SHA-256 (hex) of ``parts``; where one part ends and the next begins counts too."""
    digest = sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode("utf-8", "surrogateescape")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def printable_id(name: str) -> str:
    r"""``name`` as one line of valid Unicode; distinct names stay distinct.

    File names may hold line breaks or bytes that are no text. These become escapes (``\n``,
    ``\xff``) and a backslash becomes two; any other name is returned as it is.
    """
    return _NEEDS_ESCAPE.sub(lambda found: _escaped(found.group()), name)


def valid_text(text: str) -> str:
    """``text`` with escapes for lone surrogates, which no file, table or tokenizer takes."""
    return text.encode("utf-8", "backslashreplace").decode()


_NEEDS_ESCAPE = re.compile(r"[\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python shows a byte of a file name that is not text
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return character.encode("unicode_escape").decode()
    return f"\\u{code:04x}"
