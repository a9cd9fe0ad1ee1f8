from __future__ import annotations

import pytest
import torch

from vit_sae_plugin.saes.level_losses import level_losses


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
