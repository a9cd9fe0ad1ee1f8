"""``stop_at_layer``: the residual stream in front of a block, and nothing behind it is computed."""

from __future__ import annotations

import pytest
import torch

from tests.hooked_vit.conftest import Case
from vit_sae_plugin.hooked_vit import HookNameError


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("this module must not run")


def test_every_stop_gives_the_stream_there(case: Case):
    n_layers = case.hooked.cfg.n_layers
    with torch.no_grad():
        cache = case.hooked.run_with_cache(case.pixels)[1]
        for stop in range(n_layers + 1):
            hook = f"blocks.{stop - 1}.hook_resid_post" if stop else "hook_full_embed"
            for layer in {stop, stop - n_layers if stop < n_layers else stop}:
                residual = case.hooked(case.pixels, stop_at_layer=layer)
                assert torch.equal(residual, cache[hook])


def test_nothing_later_runs(case: Case):
    blocks = case.bare.get_submodule(case.hooked.tower.blocks)
    later = [blocks[1]]
    if case.hooked.tower.ln_final is not None:
        later.append(case.bare.get_submodule(case.hooked.tower.ln_final))
    later += [m for name, m in case.bare.named_modules() if name in ("text", "text_model")]
    handles = [module.register_forward_pre_hook(refuse) for module in later]
    try:
        residual, cache = case.hooked.run_with_cache(case.pixels, stop_at_layer=1)
    finally:
        for handle in handles:
            handle.remove()
    assert torch.equal(residual, cache["blocks.0.hook_resid_post"])
    before = ("hook_embed", "hook_pos_embed", "hook_full_embed", "blocks.0.")
    reached = [name for name in case.hooked.hook_dict if name.startswith(before)]
    reached.remove("blocks.0.attn.hook_result")
    assert list(cache) == reached


def test_edits_in_front_of_the_stop_count(case: Case):
    for hook in ("blocks.0.hook_resid_post", "blocks.0.hook_resid_mid", "hook_embed"):
        edited = case.hooked.run_with_hooks(
            case.pixels, fwd_hooks=[(hook, lambda value, hook: value * 0)], stop_at_layer=1
        )
        assert not torch.equal(edited, case.hooked(case.pixels, stop_at_layer=1))


def test_stopping_in_front_of_the_first_block(case: Case):
    residual, cache = case.hooked.run_with_cache(case.pixels, stop_at_layer=0)
    before = ("hook_embed", "hook_pos_embed", "hook_full_embed")
    assert list(cache) == [name for name in case.hooked.hook_dict if name in before]
    assert torch.equal(residual, cache["hook_full_embed"])


def test_hooks_behind_the_stop_are_errors_when_named(open_clip_case: Case):
    model, pixels = open_clip_case.hooked, open_clip_case.pixels
    with pytest.raises(HookNameError, match=r"beyond stop_at_layer=1.*blocks\.0\.hook_resid_post"):
        model.run_with_cache(pixels, names_filter="blocks.1.hook_resid_post", stop_at_layer=1)
    with pytest.raises(HookNameError, match="beyond stop_at_layer=2"):
        model.run_with_hooks(pixels, fwd_hooks=[("hook_image_embed", refuse)], stop_at_layer=2)
    with pytest.raises(HookNameError, match="matches 1 hooks, of which none is reached"):
        model.run_with_cache(
            pixels, names_filter=lambda n: n == "hook_image_embed", stop_at_layer=1
        )


def test_permanent_hooks_behind_the_stop_rest(open_clip_case: Case):
    model, pixels = open_clip_case.hooked, open_clip_case.pixels
    model.add_perma_hook("blocks.2.hook_resid_post", refuse)
    try:
        model(pixels, stop_at_layer=2)
        with pytest.raises(AssertionError):
            model(pixels)
    finally:
        model.reset_hooks(including_permanent=True)


@pytest.mark.parametrize("stop", [4, -4])
def test_a_layer_that_is_not_there(open_clip_case: Case, stop: int):
    with pytest.raises(ValueError, match=f"stop_at_layer is {stop}, but the model has 3 blocks"):
        open_clip_case.hooked(open_clip_case.pixels, stop_at_layer=stop)


def test_gradients_reach_the_stopped_stream(case: Case):
    pixels = case.pixels.clone().requires_grad_()
    case.hooked(pixels, stop_at_layer=1).sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.abs().max() > 0
