"""The fast nested decoding against its slow twin, which autograd differentiates."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.c_compiler import WAYS, doing_it
from vit_sae_plugin.saes import nested_decoding
from vit_sae_plugin.saes.nested_decoding import nested_decode
from vit_sae_plugin.saes.nested_topk_selection import select_nested_topk

# n_rows, d_sae, d_in, k_list. Tables of the compiled code hold some 1000 latents or rows, strips
# up to 128 columns, tiles 512 rows, and sixteen rows or latents are listed together: some shapes
# have several of each, some not even one.
SHAPES = {
    "one of each": (1, 1, 1, [1]),
    "small": (5, 12, 7, [1, 3, 12]),
    "several strips": (9, 40, 400, [2, 8, 40]),
    "several tables": (40, 3000, 5, [4, 16, 1024, 3000]),
    "several blocks": (3, 9001, 5, [4, 16, 9001]),
    "several tiles": (1100, 30, 3, [1, 2, 3, 30]),
    "many levels": (30, 300, 20, list(range(1, 251))),
    "last k below the active": (20, 60, 10, [2, 10]),
    "more than sixteen": (17, 33, 3, [1, 4, 33]),
    "sixteen": (16, 16, 16, [3, 16]),
    "less than sixteen": (15, 79, 3, [2, 9, 15, 70]),
    "no rows": (0, 12, 7, [1, 12]),
}


@pytest.fixture(params=WAYS)
def way(request):
    """Both ways to multiply."""
    with doing_it(request.param, nested_decoding):
        yield


def make_case(shape: str, dtype: torch.dtype = torch.float32):
    n_rows, d_sae, d_in, k_list = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    acts = torch.randn(n_rows, d_sae, generator=generator, dtype=torch.float64).relu()
    if n_rows > 2:
        acts[1] = 0  # a row in which nothing fires
        acts[2] = acts[2].abs() + 1  # and one in which all does
    W_dec = torch.randn(d_sae, d_in, generator=generator, dtype=torch.float64)
    acts, W_dec = acts.to(dtype).requires_grad_(), W_dec.to(dtype).requires_grad_()
    return acts, W_dec, select_nested_topk(acts, k_list)


def nested_decode_plainly(acts, W_dec, selection) -> torch.Tensor:
    """One full decoding a level, for autograd to differentiate."""
    levels = range(selection.n_levels)
    return torch.stack([(acts * (selection.first_level <= level)) @ W_dec for level in levels])


def results(decode, case) -> tuple[torch.Tensor, ...]:
    """The reconstructions, and the gradients of a sum with random weights."""
    acts, W_dec, selection = case
    decoded = decode(acts, W_dec, selection)
    weights = torch.randn(decoded.shape, generator=torch.Generator().manual_seed(1))
    return decoded, *torch.autograd.grad((decoded * weights).sum(), (acts, W_dec))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_its_twin(way, shape, dtype):
    case = make_case(shape, dtype)
    selection = case[2]
    decoded, grad_acts, grad_W_dec = results(nested_decode, case)
    expected, expected_grad_acts, expected_grad_W_dec = results(nested_decode_plainly, case)
    tolerance = {"rtol": 1e-4, "atol": 1e-3} if dtype == torch.float32 else {}
    torch.testing.assert_close(decoded, expected, **tolerance)
    torch.testing.assert_close(grad_acts, expected_grad_acts, **tolerance)
    torch.testing.assert_close(grad_W_dec, expected_grad_W_dec, **tolerance)
    assert (grad_acts[selection.first_level == 255] == 0).all()


def test_by_hand(way):
    acts = torch.tensor([[2.0, 0.0, 1.0]], requires_grad=True)
    W_dec = torch.tensor([[1.0, 0.0], [5.0, 5.0], [0.0, 3.0]], requires_grad=True)
    decoded = nested_decode(acts, W_dec, select_nested_topk(acts, [1, 3]))
    assert decoded.tolist() == [[[2.0, 0.0]], [[2.0, 3.0]]]
    (decoded * torch.tensor([[[1.0, 10.0]], [[100.0, 1000.0]]])).sum().backward()
    # Latent 0 is in both levels, latent 2 in the second only, latent 1 in none.
    assert acts.grad.tolist() == [[101.0, 0.0, 3000.0]]
    assert W_dec.grad.tolist() == [[202.0, 2020.0], [0.0, 0.0], [100.0, 1000.0]]


def test_what_is_not_selected_may_be_anything(way):
    """Negative pre-activations, as a training step passes them, count for nothing."""
    hidden_pre = torch.randn(20, 40, generator=torch.Generator().manual_seed(2)).requires_grad_()
    selection = select_nested_topk(hidden_pre.relu(), [2, 8, 40])
    W_dec = make_case("several strips")[1]
    ours = results(nested_decode, (hidden_pre, W_dec, selection))
    expected = results(nested_decode, (hidden_pre.relu(), W_dec, selection))
    torch.testing.assert_close(ours[0], expected[0])
    torch.testing.assert_close(ours[1], torch.where(hidden_pre > 0, expected[1], 0))
    torch.testing.assert_close(ours[2], expected[2])


def test_gradients_by_finite_differences(way):
    acts, W_dec, selection = make_case("small", torch.float64)
    # Latents at zero stay out: a selection is a constant of the gradient.
    active = (acts > 0).detach()

    def decode(acts: torch.Tensor, W_dec: torch.Tensor) -> torch.Tensor:
        return nested_decode(acts * active, W_dec, selection)

    assert torch.autograd.gradcheck(decode, (acts, W_dec))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_weights(way, dtype):
    case = make_case("several strips", dtype)
    for ours, expected in zip(
        results(nested_decode, case), results(nested_decode_plainly, case), strict=True
    ):
        error = (ours.float() - expected.float()).norm() / expected.float().norm()
        assert error < 0.02
    assert nested_decode(*case).dtype == torch.float32


def test_under_autocast(way):
    case = make_case("several strips")
    exact = results(nested_decode, case)
    with torch.autocast("cpu", torch.bfloat16):
        ours = results(nested_decode, case)
    for value, expected in zip(ours, exact, strict=True):
        assert value.dtype == torch.float32
        assert (value - expected).norm() / expected.norm() < 0.02


def test_a_nan_shows(way):
    acts = torch.tensor([[1.0, torch.nan, 2.0]])
    decoded = nested_decode(acts, torch.ones(3, 2), select_nested_topk(acts, [1, 3]))
    assert decoded.isnan().all()


def test_the_number_of_threads_changes_nothing():
    case = make_case("several tables")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = results(nested_decode, case)
        torch.set_num_threads(3)
        together = results(nested_decode, case)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_a_step_inside_a_compiled_function():
    case = make_case("small")
    compiled = torch.compile(lambda *case: nested_decode(*case) * 2, backend="eager")
    torch.testing.assert_close(compiled(*case), nested_decode(*case) * 2)
    assert copy.deepcopy(case[2]).n_levels == case[2].n_levels
