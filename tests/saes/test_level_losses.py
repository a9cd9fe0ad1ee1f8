from __future__ import annotations

import pytest
import torch

from tests.c_compiler import WAYS, doing_it
from vit_sae_plugin.saes import level_losses as level_losses_module
from vit_sae_plugin.saes import nested_decoding
from vit_sae_plugin.saes.level_losses import decoded_losses, level_losses
from vit_sae_plugin.saes.nested_topk_selection import NestedSelection, select_nested_topk


@pytest.fixture(params=WAYS)
def way(request):
    """In C, and by torch operators."""
    with doing_it(request.param, nested_decoding, level_losses_module):
        yield


@pytest.mark.parametrize("scaled", [False, True])
def test_against_autograd(scaled):
    torch.manual_seed(0)
    decoded = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    target = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    scale = torch.rand(5, 1, dtype=torch.float64) if scaled else None
    losses = level_losses(decoded, target, scale)
    error = (decoded - target).square() * (1 if scale is None else scale)
    torch.testing.assert_close(losses, error.mean(dim=(1, 2)))
    weights = torch.rand(3, dtype=torch.float64)
    ours = torch.autograd.grad((losses * weights).sum(), (decoded, target))
    expected = torch.autograd.grad((error.mean(dim=(1, 2)) * weights).sum(), (decoded, target))
    torch.testing.assert_close(ours, expected)


def test_by_hand():
    decoded = torch.tensor([[[1.0, 2.0]], [[3.0, 0.0]]], requires_grad=True)
    losses = level_losses(decoded, torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0]]))
    assert losses.tolist() == [5.0, 9.0]
    losses.sum().backward()
    assert decoded.grad.tolist() == [[[2.0, 4.0]], [[6.0, 0.0]]]


def test_sixteen_bit_targets_are_subtracted_in_the_levels_precision():
    decoded = torch.full((1, 2, 2), 1.001, requires_grad=True)
    target = torch.ones(2, 2, dtype=torch.bfloat16, requires_grad=True)
    losses = level_losses(decoded, target)
    torch.testing.assert_close(losses, torch.tensor([1e-6]), rtol=1e-3, atol=0)
    losses.sum().backward()
    assert target.grad.dtype == torch.bfloat16


def plainly(acts, W_dec, selection: NestedSelection, target, scale):
    levels = range(selection.n_levels)
    decoded = torch.stack([(acts * (selection.first_level <= level)) @ W_dec for level in levels])
    error = (decoded - target).square() * (1 if scale is None else scale)
    return error.mean(dim=(1, 2)), decoded[-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("used", ["losses", "last", "both"])
def test_decoded_losses_against_autograd(way, dtype, scaled, used):
    torch.manual_seed(0)
    acts = torch.randn(23, 60, dtype=dtype, requires_grad=True)
    W_dec = torch.randn(60, 37, dtype=dtype, requires_grad=True)
    target = torch.randn(23, 37, dtype=dtype, requires_grad=True)
    scale = torch.rand(23, 1, dtype=dtype) if scaled else None
    selection = select_nested_topk(acts, [2, 8, 60])
    weights, of_last = torch.rand(3, dtype=dtype), torch.randn(23, 37, dtype=dtype)
    results = []
    for function in (decoded_losses, plainly):
        losses, last = function(acts, W_dec, selection, target, scale)
        loss = {"losses": 0, "last": 1, "both": 1}[used] * (last * of_last).sum()
        loss = loss + {"losses": 1, "last": 0, "both": 1}[used] * (losses * weights).sum()
        grads = torch.autograd.grad(loss, (acts, W_dec, target), retain_graph=True)
        again = torch.autograd.grad(loss, (acts, W_dec, target))
        torch.testing.assert_close(grads, again)
        results.append((losses, last, *grads))
    if dtype == torch.float64:
        torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)
    for ours, expected in zip(*results, strict=True):
        assert (ours - expected).norm() <= 1e-6 * expected.norm()


def test_decoded_losses_by_hand(way):
    acts = torch.tensor([[2.0, 1.0, -3.0]], requires_grad=True)
    W_dec = torch.tensor([[1.0, 0.0], [0.0, 3.0], [5.0, 5.0]], requires_grad=True)
    target, selection = torch.zeros(1, 2, requires_grad=True), select_nested_topk(acts, [1, 3])
    losses, last = decoded_losses(acts, W_dec, selection, target, torch.tensor([[2.0]]))
    assert losses.tolist() == [4.0, 13.0]
    assert last.tolist() == [[2.0, 3.0]]
    losses[1].backward()
    assert target.grad.tolist() == [[-4.0, -6.0]]
    assert W_dec.grad.tolist() == [[8.0, 12.0], [4.0, 6.0], [0.0, 0.0]]
    assert acts.grad.tolist() == [[4.0, 18.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_targets_of_another_dtype(way, dtype):
    """Sixteen bits are widened, and nothing of sixty-four is lost."""
    torch.manual_seed(0)
    acts, W_dec = torch.rand(6, 5), torch.rand(5, 4, requires_grad=True)
    target = torch.rand(6, 4, dtype=dtype, requires_grad=True)
    selection = select_nested_topk(acts, [2, 5])
    losses, last = decoded_losses(acts, W_dec, selection, target)
    expected, _ = plainly(acts, W_dec, selection, target.to(losses.dtype), None)
    assert losses.dtype == torch.promote_types(dtype, torch.float32)
    assert last.dtype == torch.float32
    torch.testing.assert_close(losses, expected)
    losses.sum().backward()
    assert target.grad.dtype == dtype
