"""The largest latents of rows and batches, against torch's own selection."""

from __future__ import annotations

import pytest
import torch

from tests.c_compiler import WAYS, doing_it
from vit_sae_plugin.saes import largest_latents
from vit_sae_plugin.saes.largest_latents import ActiveLatents, largest_of_batch, largest_of_rows

# n_rows, d_sae, k: fewer columns than groups, no whole number of groups, nearly all, no rows
SHAPES = [(1, 1, 1), (3, 7, 2), (5, 100, 3), (4, 1003, 16), (9, 50, 49), (6, 64, 64), (0, 8, 2)]


@pytest.fixture(params=WAYS)
def way(request):
    """Both ways to select."""
    with doing_it(request.param, largest_latents):
        yield


def dense(active: ActiveLatents, d_sae: int) -> torch.Tensor:
    """As a matrix, once the lists are in order."""
    assert not (active.act <= 0).any()
    for start, end in zip(active.row_start[:-1], active.row_start[1:], strict=True):
        assert (active.latent[start:end].diff() > 0).all(), "columns of a row rise"
    return active.to_sparse(d_sae).to_dense()


def largest_by_torch(hidden_pre: torch.Tensor, k: int) -> torch.Tensor:
    values, latents = hidden_pre.topk(k, dim=-1)
    return torch.zeros_like(hidden_pre).scatter(-1, latents, values.relu())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shift", [0.0, -1.5])  # here many rows have fewer than k positive
@pytest.mark.parametrize(("n_rows", "d_sae", "k"), SHAPES)
def test_as_torch_selects(way, n_rows, d_sae, k, shift, dtype):
    generator = torch.Generator().manual_seed(0)
    hidden_pre = torch.randn(n_rows, d_sae, generator=generator).to(dtype) + shift
    assert torch.equal(
        dense(largest_of_rows(hidden_pre, k), d_sae), largest_by_torch(hidden_pre, k)
    )
    whole = largest_by_torch(hidden_pre.flatten(), n_rows * k).view_as(hidden_pre)
    assert torch.equal(dense(largest_of_batch(hidden_pre, n_rows * k), d_sae), whole)


def test_by_hand(way):
    hidden_pre = torch.tensor([[3.0, -1.0, 2.0, 5.0], [0.0, 1.0, -2.0, -4.0]])
    rows = largest_of_rows(hidden_pre, 2)
    assert [column.tolist() for column in rows.tensors()] == [[0, 2, 3], [0, 3, 1], [3, 5, 1]]
    assert rows.row().tolist() == [0, 0, 1]
    batch = largest_of_batch(hidden_pre, 3)
    assert [column.tolist() for column in batch.tensors()] == [[0, 3, 3], [0, 2, 3], [3, 2, 5]]
    assert len(largest_of_batch(hidden_pre, 0).act) == 0


def test_of_equal_latents_exactly_k_are_kept(way):
    hidden_pre = torch.tensor([[1.0, 2.0, 1.0, 1.0, 1.0]]).repeat(4, 1)
    rows = largest_of_rows(hidden_pre, 3)
    assert rows.row_start.tolist() == [0, 3, 6, 9, 12]
    assert sorted(rows.act.tolist()) == [1.0] * 8 + [2.0] * 4
    batch = largest_of_batch(hidden_pre, 7)
    assert sorted(batch.act.tolist()) == [1.0] * 3 + [2.0] * 4


def test_nan_is_kept_first_and_infinity_counts(way):
    hidden_pre = torch.tensor([[1.0, -torch.nan, torch.inf, 3.0], [9.0, 8.0, -torch.inf, 7.0]])
    for kept in (largest_of_rows(hidden_pre, 2), largest_of_batch(hidden_pre, 3)):
        first = kept.latent[: int(kept.row_start[1])]
        assert first.tolist() == [1, 2]
        assert kept.act[0].isnan()


@pytest.mark.parametrize("k", [0, 6])
def test_a_k_that_cannot_be_is_refused(way, k):
    with pytest.raises(ValueError, match=f"k is {k}; want 1 to 5, the number of latents"):
        largest_of_rows(torch.ones(2, 5), k)
