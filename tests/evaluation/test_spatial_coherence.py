"""Moran's I by hand, its chance level, and which maps count."""

import math

import numpy as np
import pytest
import torch

from vit_sae_plugin.evaluation.spatial_coherence import SpatialCoherenceTotals, morans_i


def slow_morans_i(x):
    """The definition, neighbour by neighbour."""
    rows, columns = x.shape
    z = x - x.mean()
    total, n_pairs = 0.0, 0
    for r in range(rows):
        for c in range(columns):
            for dr in (-1, 0, 1):
                for dc in (-1, 0, 1):
                    inside = 0 <= r + dr < rows and 0 <= c + dc < columns
                    if (dr or dc) and inside:
                        total += float(z[r, c] * z[r + dr, c + dc])
                        n_pairs += 1
    return x.numel() / n_pairs * total / float(z.square().sum())


def test_by_hand_and_by_the_definition():
    # two columns: 2 pairs within each column, none alike across; N/W = 4/12
    halves = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert morans_i(halves[None, ..., None]).item() == pytest.approx(4 / 12 * (4 - 8) / 4)
    torch.manual_seed(0)
    maps = torch.rand(3, 4, 6, 2, dtype=torch.float64)
    found = morans_i(maps)
    for image in range(3):
        for feature in range(2):
            expected = slow_morans_i(maps[image, ..., feature])
            assert found[image, feature].item() == pytest.approx(expected)


def test_patches_in_random_order_average_at_chance_and_a_blob_lies_above():
    torch.manual_seed(0)
    blob = torch.zeros(8, 8)
    blob[2:5, 2:5] = 1
    maps = torch.stack([blob.flatten()[torch.randperm(64)] for _ in range(4000)])
    shuffled = morans_i(maps.view(-1, 8, 8, 1)).mean().item()
    assert shuffled == pytest.approx(-1 / 63, abs=0.003)
    assert morans_i(blob[None, ..., None]).item() > 0.5


def test_scale_shift_and_turning_change_nothing():
    torch.manual_seed(0)
    maps = torch.rand(2, 5, 5, 1, dtype=torch.float64)
    for other in (3 * maps, maps.flip(1), maps.transpose(1, 2), maps + 4):
        torch.testing.assert_close(morans_i(other), morans_i(maps))
    assert math.isnan(morans_i(torch.ones(1, 5, 5, 1)).item())
    assert math.isnan(morans_i(torch.ones(1, 1, 1, 1)).item())


def test_maps_too_empty_or_too_full_do_not_count():
    maps = torch.zeros(4, 4, 4, 1)
    for image, n_active in enumerate((4, 5, 14, 15)):  # of 16; 90 % are 14.4
        maps[image].view(-1)[:n_active] = torch.arange(1, n_active + 1).float()
    totals = SpatialCoherenceTotals(1, (4, 4), min_maps=2)
    totals.update(maps, torch.arange(4))
    found = totals.compute(n_resamples=200)
    assert found.n_maps.tolist() == [2]
    expected = morans_i(maps[1:3]).mean().item()
    assert found.score[0] == pytest.approx(expected, abs=1e-6)
    assert found.chance == pytest.approx(-1 / 15)
    fewer = SpatialCoherenceTotals(1, (4, 4), min_maps=3)
    fewer.update(maps, torch.arange(4))
    assert math.isnan(fewer.compute(n_resamples=2).score[0])


def test_batches_and_order_change_nothing():
    torch.manual_seed(0)
    maps, index = torch.rand(30, 4, 4, 3).sub(0.4).relu(), torch.arange(30)
    whole, parts = (SpatialCoherenceTotals(3, (4, 4), min_maps=5) for _ in range(2))
    whole.update(maps, index)
    for part in torch.randperm(30).split(7):
        parts.update(maps[part], index[part])
    one, other = whole.compute(50), parts.compute(50)
    np.testing.assert_allclose(one.score, other.score)
    np.testing.assert_allclose(one.resampled, other.resampled)
