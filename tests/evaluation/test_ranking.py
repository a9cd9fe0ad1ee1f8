"""Ranking scores: by hand, with ties, and against scikit-learn."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from vit_sae_plugin.evaluation.features import SparseFeatures
from vit_sae_plugin.evaluation.ranking import (
    Ranks,
    best_iou_threshold,
    iou,
    new_values,
    pointing_game,
    tie_bounds,
)


def test_tie_bounds():
    first, last = tie_bounds(new_values(torch.tensor([1.0, 2, 2, 2, 5, 5])))
    assert first.tolist() == [0, 1, 1, 1, 4, 4]
    assert last.tolist() == [0, 3, 3, 3, 5, 5]


def test_auroc_and_average_precision_by_hand():
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6], [0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    positives = torch.tensor([0, 2])
    ranks = Ranks(scores)
    # pairs (0, 1), (0, 3), (2, 1), (2, 3): all but (2, 1) right; then two ties, two wrong; all ties
    assert ranks.auroc(positives).tolist() == [0.75, 0.25, 0.5]
    # precision 1/1 and 2/3; then both positives in one step of 4; and the same
    assert ranks.average_precision(positives).tolist() == pytest.approx([5 / 6, 0.5, 0.5])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([2, 5, 1000]))
def test_equal_to_scikit_learn(seed, n_values):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(-n_values, n_values, (3, 40), generator=generator).float()
    labels = torch.rand(40, generator=generator) < 0.3
    labels[0], labels[1] = True, False
    ranks = Ranks(scores)
    positives = labels.nonzero().flatten()
    auroc = [roc_auc_score(labels, row) for row in scores]
    precision = [average_precision_score(labels, row) for row in scores]
    assert ranks.auroc(positives).tolist() == pytest.approx(auroc)
    assert ranks.average_precision(positives).tolist() == pytest.approx(precision)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([2, 5, 1000]), st.booleans())
def test_sparse_ranks_equal_dense_ones(seed, n_values, signed):
    generator = torch.Generator().manual_seed(seed)
    low = -n_values if signed else 1
    latents = torch.randint(low, n_values, (40, 6), generator=generator).float()
    latents *= torch.rand(40, 6, generator=generator) < torch.tensor([0, 0.1, 0.3, 0.5, 0.9, 1.0])
    positives = [torch.randperm(40, generator=generator)[:size] for size in (1, 7, 30)]
    features = SparseFeatures(6)
    for part in latents.split(13):
        features.append(part)
    ranks = Ranks(latents.T)
    for name, scores in features.scores(positives, ["auroc", "average_precision"]).items():
        dense = torch.stack([getattr(ranks, name)(rows) for rows in positives], dim=-1)
        torch.testing.assert_close(scores, dense)


def test_best_iou_threshold_by_hand():
    scores = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])
    positive = torch.tensor([True, False, True, True, False])
    # ≥5: 1/3, ≥4: 1/4, ≥3: 2/4, ≥2: 3/4, ≥1: 3/5
    assert best_iou_threshold(scores, positive) == 2
    assert iou(scores >= 2, positive) == 0.75
    # tied scores can only be taken together
    tied = torch.tensor([5.0, 2.0, 2.0, 2.0, 1.0])
    assert best_iou_threshold(tied, positive) == 2
    assert iou(tied >= 2, positive) == 0.75


def test_pointing_game_by_hand():
    positive = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1]]).bool()
    scores = torch.tensor([[3.0, 1, 2], [1, 1, 1], [9, 0, 0], [1, 2, 0]])
    # hit; silent: 2 of 3 tied patches are right; the concept isn't shown; miss
    assert pointing_game(scores, positive) == pytest.approx((1 + 2 / 3 + 0) / 3)
