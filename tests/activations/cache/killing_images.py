"""Images that note each reading, and kill the process that reads a certain one, once or always."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np

from tests.activations.cache.small_cache import IMAGES_PER_SHARD
from vit_sae_plugin.activations.cache.shard_files import shard_folder
from vit_sae_plugin.datasets import ArrayImages, ImageRecord


class KillingImages(ArrayImages):
    """The same pictures as ``images_of`` gives.

    Args:
        n_images: how many.
        notes: a folder, where each reading is noted; None: nowhere.
        deadly: reading this image kills the process.
        always: every time, not once.
        cache: of these images; readings for a shard that is finished there are noted too.
    """

    def __init__(
        self,
        n_images: int,
        notes: Path | None,
        deadly: int | None = None,
        always: bool = False,
        cache: Path | None = None,
    ) -> None:
        generator = np.random.default_rng(0)
        super().__init__(generator.integers(0, 256, (n_images, 32, 32, 3), dtype=np.uint8))
        self.notes, self.deadly, self.always, self.cache = notes, deadly, always, cache

    def record(self, index: int) -> ImageRecord:
        record = super().record(index)
        content, notes = record.content, self.notes

        def read() -> Any:
            if notes is not None:
                with (notes / "read").open("a") as file:
                    file.write(f"{index}\n")
                if self._is_finished(index):
                    (notes / "read_though_finished").touch()
                if index == self.deadly and (self.always or not (notes / "killed").exists()):
                    (notes / "killed").touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            return content

        return ImageRecord(record.index, record.id, record.label, read, record.limits)

    def _is_finished(self, index: int) -> bool:
        shard = index // IMAGES_PER_SHARD
        return self.cache is not None and shard_folder(self.cache, shard).is_dir()


def times_read(notes: Path) -> dict[int, int]:
    """How often each image was read."""
    lines = (notes / "read").read_text().split() if (notes / "read").exists() else []
    return {int(index): lines.count(index) for index in set(lines)}
