"""One-to-one matching: exact, in blocks, and the bound on what blocks lose."""

import numpy as np
import pytest

from vit_sae_plugin.concepts.row_matching import match_by, match_rows


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def test_by_hand():
    # greedy would take 0.9 and then 0.1; the best sum takes 0.8 and 0.7
    found = match_by(np.array([[0.9, 0.8], [0.7, 0.1]]))
    assert found.partner.tolist() == [1, 0]
    assert found.score.tolist() == [0.8, 0.7]


def test_permuted_and_scaled_rows_find_themselves(generator):
    rows = generator.standard_normal((50, 8))
    order = generator.permutation(50)
    found = match_rows(rows, 3 * rows[order])
    assert found.partner.tolist() == np.argsort(order).tolist()
    np.testing.assert_allclose(found.score, 1, atol=1e-6)
    assert found.most_lost == 0


@pytest.mark.parametrize("most_exact", [100, 16])
def test_narrower_and_wider(generator, most_exact):
    rows = generator.standard_normal((60, 8))
    wider = match_rows(rows[:40], rows, most_exact)
    assert len(set(wider.partner)) == 40
    narrower = match_rows(rows, rows[:40], most_exact)
    has = narrower.partner >= 0
    assert has.sum() == 40
    assert np.isnan(narrower.score[~has]).all()
    assert len(set(narrower.partner[has])) == 40
    # whichever comes first, the pairs are the same
    pairs = {(b, a) for a, b in enumerate(wider.partner)}
    assert pairs == {(a, b) for a, b in enumerate(narrower.partner) if b >= 0}


def test_blocks_lose_no_more_than_they_say(generator):
    first = generator.standard_normal((300, 12))
    second = first[generator.permutation(300)] + 0.5 * generator.standard_normal((300, 12))
    exact, blocked = match_rows(first, second), match_rows(first, second, most_exact=64)
    assert sorted(blocked.partner) == list(range(300))
    cosine = (first / np.linalg.norm(first, axis=1, keepdims=True)) @ (
        second / np.linalg.norm(second, axis=1, keepdims=True)
    ).T
    np.testing.assert_allclose(blocked.score, cosine[np.arange(300), blocked.partner], atol=1e-5)
    lost = exact.score.mean() - blocked.score.mean()
    assert -1e-6 <= lost <= blocked.most_lost + 1e-6
    assert blocked.most_lost > 0
    # better than chance by far, for clusters stay together
    assert blocked.score.mean() > 0.6 * exact.score.mean()


def test_a_row_of_zeros_is_like_nothing():
    found = match_rows(np.array([[0.0, 0.0], [1.0, 0.0]]), np.eye(2))
    assert found.partner.tolist() == [1, 0]
    assert found.score.tolist() == [0, 1]
