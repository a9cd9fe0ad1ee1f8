"""A shard in memory: its rows where images are missing, and the images that can't be read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.activations.cache.small_cache import images_of, to_pixels
from vit_sae_plugin.activations.cache import CachePlan, shard_buffer
from vit_sae_plugin.activations.cache.cache_plan import ShardRange
from vit_sae_plugin.activations.cache.image_feed import ImageFeed
from vit_sae_plugin.activations.cache.shard_buffer import ShardBuffer
from vit_sae_plugin.activations.cache.shard_files import shard_folder
from vit_sae_plugin.datasets import ArrayImages, SkippedImages
from vit_sae_plugin.datasets.image_loader import ImageBatch

N_TOKENS = 3


def _plan(folder: Path, dtype: str = "float32") -> CachePlan:
    return CachePlan(
        folder=folder,
        model={},
        hooks={"one": 5, "other": 2},
        tokens=[[0, column, 3] for column in range(N_TOKENS)],
        dtype=dtype,
        images_per_shard=8,
        batch_size_images=2,
    )


def _saved(folder: Path, dtype: str, n_images: int) -> tuple[dict, Path]:
    """A shard of 8 images of which the first ones came; written twice."""
    buffer = ShardBuffer(_plan(folder, dtype))
    buffer.start(ShardRange(0, 0, 0, 8, 0))
    rows = torch.randn(8, N_TOKENS, 5, generator=torch.Generator().manual_seed(0))
    index = torch.arange(n_images)
    ids = [str(number) for number in index.tolist()]
    batch = ImageBatch(torch.empty(n_images, 3, 1, 1), index, index % 2, ids, 0)
    buffer.add(batch, [rows[:n_images], rows[:n_images, :, 1:3]])
    files = buffer.save(SkippedImages(), 8).files
    assert buffer.save(SkippedImages(), 8).files == files
    return files, shard_folder(folder, 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("piece_bytes", [1, 30, 1 << 24])
def test_a_shard_with_gaps_is_the_whole_one_without_their_rows(
    tmp_path, monkeypatch, dtype, piece_bytes
) -> None:
    monkeypatch.setattr(shard_buffer, "_BYTES_AT_A_TIME", piece_bytes)
    _, whole = _saved(tmp_path / "whole", dtype, 8)
    files, gaps = _saved(tmp_path / "gaps", dtype, 5)
    coordinates = np.fromfile(whole / "coordinates.bin", np.int32).reshape(8 * N_TOKENS, 5)
    kept = coordinates[:, 0] < 5
    assert not kept[: 5 * N_TOKENS].all()  # gaps between rows that are there
    for name in files:
        if name.endswith(".bin"):
            rows = np.fromfile(whole / name, np.uint8).reshape(8 * N_TOKENS, -1)
            found = np.fromfile(gaps / name, np.uint8).reshape(5 * N_TOKENS, -1)
            np.testing.assert_array_equal(found, rows[kept], err_msg=name)


def test_a_shard_with_gaps_is_written_from_the_buffers_own_memory(tmp_path, monkeypatch) -> None:
    real, places, written = shard_buffer._write, set(), []
    empty = torch.empty

    def noted(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        places.add(tensor.untyped_storage().data_ptr())
        return tensor

    def write(path, values):
        written.append(values.untyped_storage().data_ptr())
        return real(path, values)

    monkeypatch.setattr(shard_buffer, "_write", write)
    monkeypatch.setattr(shard_buffer.torch, "empty", noted)
    _saved(tmp_path, "int8", 5)
    assert len(written) == 2 * 5  # coordinates, rows and scales of two hooks, twice
    assert set(written) <= places


class SomeBroken(ArrayImages):
    broken = frozenset({1, 4, 5, 6, 7, 8, 13})

    def record(self, index):
        record = super().record(index)
        return replace(record, content=b"no picture") if index in self.broken else record


def test_each_image_that_cannot_be_read_is_handed_on_once(tmp_path, monkeypatch) -> None:
    images = SomeBroken(images_of(14)._images)
    feed = ImageFeed(_plan(tmp_path), images, to_pixels)
    to_list, listed = SkippedImages.to_list, []

    def noted(skipped):
        found = to_list(skipped)
        listed.extend(found)
        return found

    monkeypatch.setattr(SkippedImages, "to_list", noted)
    monkeypatch.setattr(SkippedImages, "to_frame", lambda _: pytest.fail("all are walked again"))

    def met(start: int, n_images: int) -> tuple[list[int], list[int]]:
        skipped = SkippedImages()
        shard = ShardRange(0, 0, start, n_images, 100 + start)
        read = [i for batch in feed.batches(shard, skipped) for i in batch.index.tolist()]
        return read, [index for index, _, _ in to_list(skipped)]

    assert met(0, 4) == ([0, 2, 3], [101])
    assert met(4, 4) == ([], [104, 105, 106, 107])  # the loader is in the next shard by then
    assert met(8, 4) == ([9, 10, 11], [108])
    assert met(12, 2) == ([12], [113])
    assert len(listed) == len(SomeBroken.broken)
    assert met(4, 4) == ([], [104, 105, 106, 107])  # another loader
