"""Backward hooks: gradients at every hook, compared with a forward pass made by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.hooked_vit.conftest import Case
from tests.hooked_vit.hand_made import by_hand


def gradients_by_hand(case: Case) -> dict[str, Tensor]:
    values: dict[str, Tensor] = {}

    def keep(name: str, value: Tensor) -> Tensor:
        values[name] = value
        return value

    loss = by_hand(case.bare)(case.pixels, keep).square().sum()
    return dict(zip(values, torch.autograd.grad(loss, list(values.values())), strict=True))


def test_gradients_at_every_hook(case: Case):
    gradients: dict[str, Tensor] = {}

    def keep(gradient: Tensor, hook: object) -> None:
        gradients[hook.name] = gradient.clone()

    with case.hooked.hooks(bwd_hooks=[(lambda _: True, keep)]):
        case.hooked(case.pixels).square().sum().backward()
    case.bare.zero_grad(set_to_none=True)
    wanted = gradients_by_hand(case)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        scale = wanted[name].abs().max().clamp(min=1e-6)
        torch.testing.assert_close(gradient / scale, wanted[name] / scale, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("hook", ["blocks.1.hook_resid_pre", "blocks.1.attn.hook_pattern"])
def test_a_backward_hook_can_replace_the_gradient(case: Case, hook: str):
    pixels = case.pixels.clone().requires_grad_()
    before = torch.autograd.grad(case.hooked(pixels).square().sum(), pixels)[0]
    with case.hooked.hooks(bwd_hooks=[(hook, lambda gradient, hook: gradient * 0)]):
        changed = torch.autograd.grad(case.hooked(pixels).square().sum(), pixels)[0]
    after = torch.autograd.grad(case.hooked(pixels).square().sum(), pixels)[0]
    assert not torch.allclose(changed, before)
    if hook.endswith("resid_pre"):
        assert changed.abs().max() == 0
    torch.testing.assert_close(after, before)


def test_gradients_flow_through_edits_into_weights(open_clip_case: Case):
    model = open_clip_case.hooked
    direction = torch.zeros(32, requires_grad=True)
    output = model.run_with_hooks(
        open_clip_case.pixels,
        fwd_hooks=[("blocks.1.hook_resid_mid", lambda value, hook: value + direction)],
    )
    output.sum().backward()
    assert direction.grad is not None
    assert direction.grad.abs().max() > 0
    open_clip_case.bare.zero_grad(set_to_none=True)


def test_caching_gradients_of_a_single_number(open_clip_case: Case):
    model = open_clip_case.hooked
    hook = "blocks.2.hook_resid_post"
    gradients: list[Tensor] = []
    with model.hooks(bwd_hooks=[(hook, lambda gradient, hook: gradients.append(gradient))]):
        model(open_clip_case.pixels).sum().backward()
    open_clip_case.bare.zero_grad(set_to_none=True)
    assert gradients[0].shape == (2, 17, 32)
    # Only the class token reaches the embedding of this family.
    assert gradients[0][:, 1:].abs().max() == 0
    assert gradients[0][:, 0].abs().max() > 0
