"""How well batches mix images: known orders have known measures, and both stores mix."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.activations.cache.small_cache import HOOKS, images_of, small_cache, small_model
from vit_sae_plugin.activations import ViTActivationsStore
from vit_sae_plugin.activations.cache import CacheStore
from vit_sae_plugin.activations.mixing import measure_mixing
from vit_sae_plugin.datasets import ArrayImages


class Given:
    """Batches of given rows, one feature, of which `per_image` in a row are an image's."""

    def __init__(self, values: list[float], batch_rows: int, per_image: int = 1) -> None:
        self.rows = torch.tensor(values).view(-1, batch_rows, 1)
        images = torch.arange(len(values)) // per_image
        self.places = torch.stack([images] * 3, dim=1).view(-1, batch_rows, 3)
        self.number = -1
        self.coordinates: torch.Tensor | None = None

    def __next__(self) -> torch.Tensor:
        self.number += 1
        self.coordinates = self.places[self.number]
        return self.rows[self.number]


def test_measures_by_hand() -> None:
    # mean 0, variance 1; neighbours +1·+1, +1·−1, −1·−1 in each batch; the batches' means are 0
    found = measure_mixing(Given([1, 1, -1, -1] * 2, 4, per_image=2), 2)
    assert (found.n_batches, found.batch_rows, found.images_per_batch) == (2, 4, 2)
    assert found.neighbor_correlation == pytest.approx(1 / 3)
    assert found.batch_variance_ratio == pytest.approx(0)
    assert found.images_if_uniform == pytest.approx(4 * (1 - 0.75**4))
    # batches that hold one value each: means +1 and −1 have variance 2, for rows of variance 1
    found = measure_mixing(Given([6, 6, 6, 6, 4, 4, 4, 4], 4), 2)
    assert found.neighbor_correlation == pytest.approx(1)
    assert found.batch_variance_ratio == pytest.approx(8)


def test_random_rows_have_the_measures_of_random_rows() -> None:
    values = np.random.default_rng(0).normal(5, 2, 40_000).tolist()
    found = measure_mixing(Given(values, 200), 200)
    assert abs(found.neighbor_correlation) < 3 / np.sqrt(40_000)
    assert found.batch_variance_ratio == pytest.approx(1, abs=3 * np.sqrt(2 / 199))


def test_a_store_without_coordinates_is_refused(tmp_path) -> None:
    store = CacheStore(small_cache(tmp_path, small_model()), hook_name=HOOKS[0])
    with pytest.raises(ValueError, match="want with_coordinates=True"):
        measure_mixing(store, 2)
    with pytest.raises(ValueError, match="n_batches is 1; want 2 or more"):
        measure_mixing(store, 1)


def test_both_stores_mix_where_neighbouring_images_are_alike(tmp_path) -> None:
    # as in a folder of classes: the second half of the images is bright
    pictures = images_of(64)._images // 4
    pictures[32:] += 190
    images, model = ArrayImages(pictures), small_model()
    settings = {"hook_name": HOOKS[1], "train_batch_size_tokens": 64, "n_batches_in_buffer": 17}
    settings |= {"with_coordinates": True, "seed": 1}
    stores = {
        "cache": CacheStore(small_cache(tmp_path, model, images), **settings),
        "stream": ViTActivationsStore(model, images, **settings),
        "stream in order": ViTActivationsStore(
            model, images, **{**settings, "n_batches_in_buffer": 1}, shuffle_images=False
        ),
    }
    found = {name: measure_mixing(store, 17 * 3) for name, store in stores.items()}
    for name in ("cache", "stream"):
        assert found[name].images_per_batch > 0.9 * found[name].images_if_uniform
        assert abs(found[name].neighbor_correlation) < 0.06
        assert found[name].batch_variance_ratio < 2
    assert found["stream in order"].images_per_batch < 10
    assert found["stream in order"].batch_variance_ratio > 10
