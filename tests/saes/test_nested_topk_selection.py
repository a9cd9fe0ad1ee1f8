from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.c_compiler import WAYS, doing_it
from vit_sae_plugin.saes import nested_topk_selection
from vit_sae_plugin.saes.nested_topk_selection import UNUSED, select_nested_topk


@pytest.fixture(params=WAYS)
def way(request):
    """Both ways to select."""
    with doing_it(request.param, nested_topk_selection):
        yield


def latents(n_rows: int, d_sae: int, step: float, seed: int) -> torch.Tensor:
    """Latents of very different density from row to row, the last all dead; with many ties."""
    generator = torch.Generator().manual_seed(seed)
    shift = torch.linspace(1.5, -2.5, n_rows).unsqueeze(-1)
    acts = (torch.randn(n_rows, d_sae, generator=generator) + shift).relu()
    acts[-1] = 0
    return (acts / step).round() * step if step else acts


def check_selection(acts: torch.Tensor, k_list: list[int]) -> None:
    selection = select_nested_topk(acts, k_list)
    first_level = selection.first_level
    assert (first_level[acts == 0] == UNUSED).all()
    assert selection.n_fired().tolist() == (first_level != UNUSED).sum(dim=0).tolist()
    assert first_level[first_level != UNUSED].lt(selection.n_levels).all()
    by_size = acts.sort(dim=-1, descending=True).values
    for k, level in zip(k_list, selection.level_of_k, strict=True):
        kept = acts * (first_level <= level)
        # The k largest values, each as often as it is among them: exact under ties too.
        expected = by_size.clone()
        expected[:, k:] = 0
        assert torch.equal(kept.sort(dim=-1, descending=True).values, expected), k


def test_by_hand(way):
    acts = torch.tensor([[0.0, 3.0, 1.0, 2.0], [5.0, 0.0, 0.0, 0.0]])
    selection = select_nested_topk(acts, [1, 2, 3, 4])
    expected = [[UNUSED, 0, 2, 1], [0, UNUSED, UNUSED, UNUSED]]
    assert selection.first_level.tolist() == expected
    # Three latents are active at most, so k = 3 and k = 4 keep the same.
    assert selection.n_levels == 3
    assert selection.level_of_k == (0, 1, 2, 2)


@pytest.mark.parametrize("step", [0.0, 0.5, 10.0])
@pytest.mark.parametrize("k_list", [[1], [3, 7, 20, 50], [50], [2, 4, 8, 16, 32, 50]])
def test_every_level_keeps_exactly_its_largest(way, k_list, step):
    check_selection(latents(17, 50, step, seed=0), k_list)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 12),
    st.integers(1, 40),
    st.sampled_from([0.0, 0.3, 2.0]),
    st.data(),
)
def test_every_level_keeps_exactly_its_largest_whatever_the_shape(n_rows, d_sae, step, data):
    k_list = sorted(data.draw(st.sets(st.integers(1, d_sae), min_size=1, max_size=6)))
    acts = latents(n_rows, d_sae, step, seed=1) if n_rows else torch.zeros(0, d_sae)
    check_selection(acts, k_list)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types(way, dtype):
    check_selection(latents(9, 30, 0.0, seed=2).to(dtype), [2, 5, 30])


def test_tiny_and_huge_values_are_told_apart(way):
    acts = torch.tensor([[1e-45, 3e38, 1e-38, 0.0, 1.0, torch.inf]])
    selection = select_nested_topk(acts, [1, 2, 3, 4, 6])
    assert selection.first_level.tolist() == [[4, 1, 3, UNUSED, 2, 0]]


def test_a_nan_is_kept_so_that_the_loss_shows_it(way):
    acts = torch.tensor([[1.0, torch.nan, 2.0]])
    assert select_nested_topk(acts, [1, 3]).first_level.tolist() == [[1, 0, 1]]


def test_the_largest_k_can_leave_active_latents_out(way):
    selection = select_nested_topk(torch.tensor([[1.0, 4.0, 2.0, 3.0]]), [1, 2])
    assert selection.first_level.tolist() == [[UNUSED, 0, UNUSED, 1]]
    assert selection.n_levels == 2
