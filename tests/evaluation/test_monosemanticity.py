"""Monosemanticity: the linear form is the pairwise one, and its intervals come of one pass."""

import math

import numpy as np
import pytest
import torch

from vit_sae_plugin.evaluation.bootstrap import resampled_counts
from vit_sae_plugin.evaluation.monosemanticity import MonosemanticityTotals, block_of_image


def pairwise(features, embeddings, image_weights=None):
    """The definition: cosines of all pairs, weighted by the products of scaled activations."""
    a = features.double()
    a = (a - a.amin(0)) / (a.amax(0) - a.amin(0))
    if image_weights is not None:
        a = a * image_weights[:, None]
    e = embeddings.double()
    e = e / e.norm(dim=1, keepdim=True)
    n = len(a)
    upper = torch.ones(n, n, dtype=torch.bool).triu(1)
    cosine = (e @ e.T)[upper]
    scores = []
    for column in a.T:
        weight = torch.outer(column, column)[upper]
        scores.append((weight * cosine).sum() / weight.sum())
    return torch.stack(scores)


def of(features, embeddings, index=None, batch=None, **settings):
    index = torch.arange(len(features)) if index is None else index
    totals = MonosemanticityTotals(features.shape[1])
    for part in torch.arange(len(features)).split(batch or len(features)):
        totals.update(features[part], embeddings[part], index[part])
    return totals.compute(**settings)


@pytest.fixture
def random():
    torch.manual_seed(0)
    features = torch.randn(97, 6).relu()
    features[:, 3] = torch.randn(97) * 5 - 40  # never 0, and of no sign that matters
    features[:, 4] = 1e4 + torch.rand(97)  # a small part varies
    return features, torch.randn(97, 5)


def test_by_hand():
    e = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    half = 1 / math.sqrt(2)
    a = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.5, 7.0]])
    found = of(a, e)
    # the first latent weighs only the pair of orthogonal images, the second only images 0 and 2
    np.testing.assert_allclose(found.score[:2], [0, half], atol=1e-12)
    assert math.isnan(found.score[2])  # one image makes no pair
    assert found.chance == pytest.approx(2 * half / 3)


def test_one_pass_equals_the_pairs(random):
    features, embeddings = random
    found = of(features, embeddings, batch=13)
    np.testing.assert_allclose(found.score, pairwise(features, embeddings), atol=1e-9)


def test_a_feature_equally_active_everywhere_has_no_score(random):
    _, embeddings = random
    assert math.isnan(of(torch.full((97, 1), 0.3), embeddings).score[0])


def test_order_scale_and_shift_change_nothing(random):
    features, embeddings = random
    first = of(features, embeddings)
    order = torch.randperm(97)
    again = of(7 * features[order].double() + 3, 0.1 * embeddings[order], index=order, batch=10)
    for name in ("score", "low", "high"):
        np.testing.assert_allclose(getattr(again, name), getattr(first, name), atol=1e-6)
    assert again.chance == pytest.approx(first.chance)


def test_the_interval_is_of_images_weighted_by_draws(random):
    features, embeddings = random
    found = of(features, embeddings, n_resamples=3)
    block = block_of_image(torch.arange(97), 20)
    counts = torch.from_numpy(resampled_counts(20, 3))
    scores = torch.stack([pairwise(features, embeddings, row[block]) for row in counts])
    np.testing.assert_allclose(found.resampled_sum, scores.sum(1), atol=1e-8)
    np.testing.assert_allclose(found.low, np.quantile(scores, 0.025, axis=0), atol=1e-8)


def test_intervals_cover_the_truth():
    """Two kinds of images; a latent fires on the first with chance 0.8, on the others with 0.2."""
    torch.manual_seed(1)
    truth = 0.8**2 + 0.2**2  # the chance that two active images are of one kind
    covered = 0
    for _ in range(40):
        kind = torch.rand(300) < 0.5
        features = (torch.rand(300) < torch.where(kind, 0.8, 0.2)).double()[:, None]
        found = of(features, torch.eye(2)[kind.long()], n_resamples=300)
        covered += found.low[0] <= truth <= found.high[0]
    assert covered >= 33  # of 40, where 95 % would be 38


def test_blocks_are_even_and_mix_classes_in_turn():
    index = torch.arange(20_000)
    block = block_of_image(index, 20)
    assert torch.bincount(block).min() > 900
    for n_classes in (2, 10, 20, 64):
        table = torch.zeros(20, n_classes).index_put(
            (block, index % n_classes), torch.ones(20_000), accumulate=True
        )
        assert table.min() > 0


def test_what_has_no_answer_is_refused(random):
    features, embeddings = random
    with pytest.raises(ValueError, match="an embedding has length 0"):
        of(features, embeddings * 0)
    with pytest.raises(ValueError, match="an embedding holds NaN"):
        of(features, embeddings / 0)
    with pytest.raises(ValueError, match="a feature holds NaN"):
        of(features / 0, embeddings)
    with pytest.raises(ValueError, match=r"features have shape \(96, 6\); want \(97, 6\)"):
        MonosemanticityTotals(6).update(features[1:], embeddings, torch.arange(97))
    with pytest.raises(ValueError, match="there are 0 images"):
        MonosemanticityTotals(6).compute()
    with pytest.raises(ValueError, match="n_blocks is 1"):
        MonosemanticityTotals(6, n_blocks=1)
