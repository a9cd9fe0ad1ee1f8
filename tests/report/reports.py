"""Reports on tiny models for the tests, and how to read their files."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.analysis.tiny_pipeline import NoisePictures
from vit_sae_plugin.analysis import LatentAtlas
from vit_sae_plugin.datasets import ImageSource
from vit_sae_plugin.hooked_vit import HookedViT

HOSTILE = '<img src=x onerror="window.broken=1">&amp;\'</script><script>window.broken=1</script>'


class HostilePictures(NoisePictures):
    """Class and file names that would break a page which doesn't escape them."""

    def __init__(self, n_images: int):
        super().__init__(n_images)
        self.class_names = ["red", HOSTILE, "blue"]

    def record(self, index):
        record = super().record(index)
        return replace(record, id=f"{HOSTILE}{index}.png", label=index % 3)


class UnlabelledPictures(NoisePictures):
    """Pictures as in a plain folder of photographs; the first and the last are broken."""

    def __init__(self, n_images: int, size=(64, 40)):
        super().__init__(n_images, size=size)
        self.class_names = None

    def record(self, index):
        broken = index in (0, self.n_images - 1)
        content = b"no picture" if broken else self.picture(index)
        return replace(super().record(index), label=None, content=content)


@dataclass
class Report:
    """A report and what it was made from."""

    model: HookedViT
    sae: Any
    atlas: LatentAtlas
    images: ImageSource
    folder: Path

    def data(self, name: str) -> Any:
        """What a data file hands to the page."""
        text = (self.folder / f"data/{name}.js").read_text(encoding="ascii")
        match = re.fullmatch(r'report\.receive\("[\w/]+",(.*)\);\n', text)
        assert match is not None
        return json.loads(match.group(1))

    def details(self, latent: int) -> Any:
        """What a latent's own page shows."""
        place = self.data("atlas")["latents"]["id"].index(latent)
        return self.data(f"latents/{place // 32:05d}")["latents"][str(latent)]


def shares_of(mask: str, grid: tuple[int, int]) -> np.ndarray:
    """A mask as shares of its largest value, 0 … 1."""
    return np.frombuffer(base64.b64decode(mask), np.uint8).reshape(grid) / 255
