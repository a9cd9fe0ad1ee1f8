"""ReconstructionTotals: values worked by hand, batches, numerical trouble."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_sae_plugin.evaluation.per_token_variance import PerTokenVariance
from vit_sae_plugin.evaluation.reconstruction import RECONSTRUCTION_COLUMNS, ReconstructionTotals


def totals_of(x, x_hat, latents, splits=(), **kwargs):
    totals = ReconstructionTotals(x.shape[-1], latents.shape[-1], **kwargs)
    for part in zip(*(t.tensor_split(list(splits)) for t in (x, x_hat, latents)), strict=True):
        totals.update(*part)
    return totals


def test_values_worked_by_hand():
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 0.0], [2.0, 4.0]])  # mean (2, 1)
    x_hat = torch.tensor([[0.0, 1.0], [2.0, 0.0], [4.0, 0.0], [2.0, 2.0]])
    latents = torch.tensor([[1.0, 0, 0, 2], [0, 0, 0, 3], [0, 0, 0, 1], [0, 0, -1, 1]])
    result = totals_of(x, x_hat, latents, dense_frequency=0.5).compute()

    assert result["n_tokens"] == 4
    assert result["l0"] == (2 + 1 + 1 + 2) / 4
    assert result["l1"] == (3 + 3 + 1 + 2) / 4
    assert result["mse"] == (1 + 0 + 0 + 4) / (4 * 2)
    # squared distances from the mean (2, 1): 5, 1, 5, 9
    assert result["explained_variance"] == pytest.approx(1 - 5 / 20)
    # squared norms: 0, 4, 16, 20
    assert result["explained_variance_uncentred"] == pytest.approx(1 - 5 / 40)
    # cosines: 0 (a zero vector), 1, 1, (4 + 8) / (√20 √8)
    assert result["cosine_similarity"] == pytest.approx((0 + 1 + 1 + 12 / math.sqrt(160)) / 4)
    # active on 1, 0, 1 and 4 of 4 tokens
    assert result["dead_share"] == 1 / 4
    assert result["dense_share"] == 1 / 4


def test_the_three_definitions_of_explained_variance_differ_where_the_mean_is_large():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, 5, generator=generator) + 30
    result = totals_of(x, torch.full_like(x, 30.0), torch.ones(100, 2)).compute()
    assert abs(result["explained_variance"]) < 0.02  # the mean alone explains nothing
    assert result["explained_variance_uncentred"] > 0.99  # and nearly all, if it isn't subtracted
    assert per_token(x[None], torch.full_like(x, 30.0)[None]) < 0.2


def per_token(x, x_hat, order=None, batch_size=None, **kwargs):
    """PerTokenVariance of images [image, token, d_in], visited in an order and in batches."""
    order = torch.arange(len(x)) if order is None else order
    totals, measured = ReconstructionTotals(x.shape[-1], 1), PerTokenVariance(**kwargs)
    for index in order.split(batch_size or len(order)):
        totals.update(x[index], x_hat[index], torch.ones(*x[index].shape[:2], 1))
        measured.update(index, x[index], x_hat[index])
    return measured.compute(slice(None), totals.mean)


def test_per_token_definition_by_hand_and_as_saelens_has_it_for_one_batch():
    x = torch.tensor([[[0.0, 0.0], [2.0, 0.0]], [[4.0, 0.0], [2.0, 4.0]]])  # mean (2, 1)
    x_hat = x + torch.tensor([[[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, -2.0]]])
    # squared distances from the mean: 5, 1, 5, 9
    assert per_token(x, x_hat) == pytest.approx(((1 - 1 / 5) + 1 + 1 + (1 - 4 / 9)) / 4)

    generator = torch.Generator().manual_seed(1)
    x, noise = torch.randn(2, 8, 8, 7, generator=generator).unbind()
    rows, rows_hat = x.flatten(0, 1), (x + 0.3 * noise).flatten(0, 1)
    expected = 1 - (rows - rows_hat).square().sum(-1) / (rows - rows.mean(0)).square().sum(-1)
    assert per_token(x, x + 0.3 * noise) == pytest.approx(expected.mean().item(), rel=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 30), st.integers(0, 1000), st.booleans())
def test_order_and_batches_do_not_change_the_ratio_a_token(batch_size, seed, too_many_to_keep):
    generator = torch.Generator().manual_seed(seed)
    # the images drift, so a mean of the first ones would be another
    x = torch.randn(30, 3, 4, generator=generator) + torch.linspace(0, 9, 30)[:, None, None]
    x_hat = x + torch.randn(30, 3, 4, generator=generator)
    limit = {"max_values": 7 * 3 * 5} if too_many_to_keep else {}
    order = torch.randperm(30, generator=generator)
    expected = per_token(x, x_hat, **limit)
    assert per_token(x, x_hat, order, batch_size, **limit) == pytest.approx(expected, abs=1e-6)
    if too_many_to_keep:
        assert per_token(x, x_hat, seed=1, **limit) != expected  # other images


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 59), max_size=4), st.integers(0, 1000))
def test_batches_do_not_change_the_result(splits, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(60, 4, generator=generator) * 2 + 5
    x_hat = x + torch.randn(60, 4, generator=generator)
    latents = torch.randn(60, 6, generator=generator).relu()
    whole = totals_of(x, x_hat, latents).compute()
    parts = totals_of(x, x_hat, latents, sorted(splits)).compute()
    assert parts == pytest.approx(whole, rel=1e-5)


def test_token_axes_do_not_matter():
    generator = torch.Generator().manual_seed(2)
    x, x_hat = torch.randn(2, 3, 5, 4, generator=generator).unbind()
    latents = torch.randn(3, 5, 6, generator=generator).relu()
    flat = totals_of(x.flatten(0, 1), x_hat.flatten(0, 1), latents.flatten(0, 1)).compute()
    assert totals_of(x, x_hat, latents).compute() == pytest.approx(flat)


def test_a_large_mean_loses_no_precision():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1000, 3, generator=generator, dtype=torch.float64) + 1e4
    x_hat = x + 0.1
    parts = totals_of(x, x_hat, torch.ones(1000, 1), splits=range(10, 1000, 10)).compute()
    spread = (x - x.mean(0)).square().sum().item()
    assert parts["explained_variance"] == pytest.approx(1 - 1000 * 3 * 0.01 / spread, rel=1e-6)


def test_float16_is_summed_in_higher_precision():
    x = torch.full((1, 4), 300.0, dtype=torch.float16)  # its square overflows float16
    result = totals_of(x, torch.zeros_like(x), torch.ones(1, 1)).compute()
    assert result["mse"] == 90000


def test_no_tokens_give_missing_values_and_not_zeros():
    result = ReconstructionTotals(4, 8).compute()
    assert tuple(result) == RECONSTRUCTION_COLUMNS
    assert result.pop("n_tokens") == 0
    assert all(math.isnan(value) for value in result.values())


def test_one_token_has_no_variance_to_explain():
    result = totals_of(torch.ones(1, 2), torch.zeros(1, 2), torch.ones(1, 1)).compute()
    assert math.isnan(result["explained_variance"])
    assert math.isnan(per_token(torch.ones(1, 1, 2), torch.zeros(1, 1, 2)))
    assert math.isnan(PerTokenVariance().compute(slice(None), torch.zeros(2)))
    assert result["explained_variance_uncentred"] == 0


def test_a_large_mean_loses_no_precision_in_float32_either():
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(4000, 3, generator=generator) + 1e4
    spread = (x.double() - x.double().mean(0)).square().sum().item()
    totals = ReconstructionTotals(3, 1)
    for part in x.split(1000):
        totals.update(part, part, torch.ones(1000, 1))
    assert totals.squared_deviation == pytest.approx(spread, rel=1e-6)
    torch.testing.assert_close(totals.mean, x.double().mean(0), rtol=1e-10, atol=0)


@pytest.mark.parametrize("bad", ["activations", "latents", "reconstructions"])
def test_nan_is_an_error_that_says_whose(bad):
    values = {name: torch.ones(3, 2) for name in ("activations", "reconstructions", "latents")}
    values[bad][1, 1] = math.nan
    with pytest.raises(ValueError, match=rf"{bad}.* hold NaN or infinity"):
        ReconstructionTotals(2, 2).update(*values.values())


def test_dense_frequency_is_a_share():
    with pytest.raises(ValueError, match="dense_frequency is 10; want a share"):
        ReconstructionTotals(2, 2, dense_frequency=10)
