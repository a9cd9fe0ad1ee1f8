"""Arrays, tensors and pictures in memory: which shapes mean what, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from vit_sae_plugin.datasets import ArrayImages, NoReadableImagesError

RANDOM = np.random.default_rng(0)


def uint8(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize(
    ("shape", "n_images"),
    [((5, 6, 7, 3), 5), ((5, 6, 7, 1), 5), ((5, 6, 7), 5), ((6, 7, 3), 1), ((6, 7), 1)],
)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_shapes(shape: tuple[int, ...], n_images: int, as_tensor: bool) -> None:
    array = uint8(*shape)
    source = ArrayImages(torch.from_numpy(array) if as_tensor else array)
    assert source.n_images == n_images
    flat = array.reshape(n_images, 6, 7, -1)
    for record, wanted in zip(source.records(), flat, strict=True):
        assert np.array_equal(np.asarray(record.load()), np.broadcast_to(wanted, (6, 7, 3)))


def test_a_list_may_mix_kinds_and_sizes() -> None:
    images = [uint8(4, 5, 3), Image.new("L", (9, 2), 7), torch.zeros(3, 3, dtype=torch.uint8)]
    sizes = [record.load().size for record in ArrayImages(images).records()]
    assert sizes == [(5, 4), (9, 2), (3, 3)]


def test_the_users_array_is_not_copied() -> None:
    array = uint8(4, 5, 6, 3)
    assert np.shares_memory(ArrayImages(array).record(2).content, array)


def test_missing_labels() -> None:
    source = ArrayImages(uint8(3, 4, 4, 3), labels=[1, None, -1])
    assert [record.label for record in source.records()] == [1, None, None]


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (np.zeros((2, 4, 4, 3)), TypeError, r"float64; want uint8 .*round\(\).astype"),
        ([np.zeros((4, 4), np.uint8), np.zeros((4, 4))], TypeError, "Image 1 holds float64"),
        (["a.jpg"], TypeError, "Image 0 is a str"),
        (torch.zeros(2, 3, 8, 9, dtype=torch.uint8), ValueError, "channels seem to come first"),
        (uint8(2, 8, 9, 2), ValueError, r"shape \[2, 8, 9, 2\]"),
        ([uint8(7)], ValueError, r"Image 0 has shape \[7\]"),
        ([], NoReadableImagesError, "0 images; want 1 or more"),
        (uint8(0, 4, 4, 3), NoReadableImagesError, "0 images; want"),
    ],
)
def test_what_is_refused(images: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ArrayImages(images)


def test_labels_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="labels has 2 entries; want 3"):
        ArrayImages(uint8(3, 4, 4, 3), labels=[0, 1])
    with pytest.raises(ValueError, match="a label is 2; want 0 to 1"):
        ArrayImages(uint8(3, 4, 4, 3), labels=[0, 1, 2], class_names=["a", "b"])
