from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_sae_plugin.saes.b_dec_init import central_point
from vit_sae_plugin.saes.geometric_median import geometric_median


def test_on_a_line_it_is_the_median():
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [1000.0, 0.0]])
    torch.testing.assert_close(geometric_median(rows), torch.tensor([2.0, 0.0]), rtol=0, atol=1e-2)


def test_fermat_point_of_a_triangle():
    # The Fermat point of an isosceles triangle with base 2 lies 1 / sqrt(3) above the base.
    rows = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    expected = torch.tensor([0.0, 1 / math.sqrt(3)], dtype=torch.float64)
    torch.testing.assert_close(geometric_median(rows), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("offset", [0.0, 1e-9])
def test_a_row_at_the_start_does_not_hold_it_there(offset):
    # The mean is (0, 0), where a row lies; the other rows' unit vectors sum to more than 1.
    rows = torch.tensor(
        [[offset, 0.0], *[[-1.0, 0.0]] * 3, [-1.0, 0.5], [-1.0, -0.5], [5.0, 0.0]],
        dtype=torch.float64,
    )
    median = geometric_median(rows)
    torch.testing.assert_close(
        median, torch.tensor([-1.0, 0.0], dtype=torch.float64), rtol=0, atol=1e-3
    )


def test_a_row_that_is_the_median_is_kept():
    rows = torch.tensor([[0.0, 0.0], [3.0, 0.0], [-1.0, 2.0], [-2.0, -2.0]])
    assert rows.mean(dim=0).tolist() == [0, 0]
    unit_vectors = torch.nn.functional.normalize(rows[1:], dim=-1)
    assert unit_vectors.sum(dim=0).norm() < 1  # so that the row at the origin is the median
    torch.testing.assert_close(geometric_median(rows), torch.zeros(2))


def test_equal_rows_have_themselves_as_median():
    rows = torch.full((5, 3), 2.5)
    assert torch.equal(geometric_median(rows), rows[0])


def test_few_rows_of_large_norm_do_not_move_it_as_they_move_the_mean():
    rows = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))
    rows[:20] += 500
    assert geometric_median(rows).norm() < 0.5
    assert rows.mean(dim=0).norm() > 20


def test_half_precision_rows_are_worked_on_in_float32():
    rows = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0)) + 3
    median = geometric_median(rows.bfloat16())
    assert median.dtype == torch.bfloat16
    torch.testing.assert_close(median.float(), geometric_median(rows), rtol=0.01, atol=0.02)


def test_autocast_does_not_make_it_coarser():
    rows = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)) + 3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        median = geometric_median(rows)
    assert torch.equal(median, geometric_median(rows))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), shift=st.floats(-10, 10), scale=st.floats(0.1, 10))
def test_it_moves_and_scales_with_the_rows(seed, shift, scale):
    rows = torch.randn(30, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    moved = geometric_median(rows * scale + shift)
    torch.testing.assert_close(moved, geometric_median(rows) * scale + shift, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(0, 3), (2, 4, 3), (3,)])
def test_anything_but_rows_is_refused(shape):
    with pytest.raises(ValueError, match=r"want \[n_rows, d_in\]"):
        geometric_median(torch.zeros(shape))


def test_central_points():
    rows = torch.tensor([[0.0], [0.0], [0.0], [8.0]])
    assert central_point(rows, "mean").item() == 2.0
    assert central_point(rows, "zeros").item() == 0.0
    assert central_point(rows, "geometric_median").item() == pytest.approx(0.0, abs=1e-3)
    with pytest.raises(ValueError, match="b_dec_init_method is 'median'; want one of"):
        central_point(rows, "median")
