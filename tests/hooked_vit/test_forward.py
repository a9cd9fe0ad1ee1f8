"""What a hooked model returns: bit for bit what the bare model returns, for every family."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.hooked_vit.conftest import Case, build_case
from tests.tiny_models import tiny_open_clip, tiny_transformers_vit
from vit_sae_plugin.hooked_vit import HookedViT


def bare_output(case: Case) -> Tensor:
    """The family's own way to the image embedding, or to logits."""
    bare: Any = case.bare
    if case.family == "open_clip_coca":
        return bare.encode_image(case.pixels, normalize=False)
    if case.family == "transformers_mae":
        in_order = torch.arange(16).expand(len(case.pixels), -1)
        return bare(case.pixels, noise=in_order).last_hidden_state[:, 0]
    if hasattr(bare, "encode_image"):
        return bare.encode_image(case.pixels)
    if hasattr(bare, "get_image_features"):
        return bare.get_image_features(case.pixels).pooler_output
    output = bare(case.pixels)
    if isinstance(output, Tensor):
        return output
    for field in ("logits", "image_embeds", "pooler_output"):
        if getattr(output, field, None) is not None:
            return getattr(output, field)
    raise AssertionError(f"no output in {type(output)}")


@pytest.mark.parametrize("grad", [False, True])
def test_without_hooks_bit_identical(case: Case, grad: bool):
    with torch.set_grad_enabled(grad):
        assert torch.equal(case.hooked(case.pixels), bare_output(case))


def test_reading_every_hook_changes_nothing(case: Case):
    with torch.no_grad():
        wanted = bare_output(case)
        output, cache = case.hooked.run_with_cache(case.pixels)
        every = case.hooked.run_with_cache(case.pixels, names_filter=lambda _: True)[1]
    assert torch.equal(output, wanted)
    assert list(every) == list(case.hooked.hook_dict)
    assert list(cache) == [name for name in every if not name.endswith("hook_result")]


def test_a_hook_that_returns_an_equal_tensor_changes_nothing_much(case: Case):
    with torch.no_grad():
        wanted = bare_output(case)
        output = case.hooked.run_with_hooks(
            case.pixels, fwd_hooks=[(lambda _: True, lambda value, hook: value.clone())]
        )
    torch.testing.assert_close(output, wanted, rtol=1e-4, atol=1e-4)


def test_inference_mode_sees_edits_in_place(case: Case):
    def shift(value: Tensor, hook: object) -> None:
        value.add_(0.5)

    for hook in ("blocks.0.attn.hook_pattern", "blocks.1.hook_resid_mid", "hook_embed"):
        with torch.no_grad():
            wanted = case.hooked.run_with_hooks(case.pixels, fwd_hooks=[(hook, shift)])
        with torch.inference_mode():
            output = case.hooked.run_with_hooks(case.pixels, fwd_hooks=[(hook, shift)])
        torch.testing.assert_close(output, wanted)


def test_state_dict_and_parameters_have_the_bare_names(case: Case):
    assert list(case.hooked.state_dict()) == list(case.bare.state_dict())
    names = dict(case.hooked.named_parameters())
    assert names.keys() == dict(case.bare.named_parameters()).keys()
    assert all(a is b for a, b in zip(names.values(), case.bare.parameters(), strict=True))


def test_load_state_dict_takes_the_bare_models():
    source, target = tiny_open_clip(seed=3), HookedViT.from_module(tiny_open_clip(seed=4))
    target.load_state_dict(source.state_dict())
    pixels = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(target(pixels), source.encode_image(pixels))


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_independent(case: Case, copy_of):
    twin = copy_of(case.hooked)
    hook = "blocks.0.hook_resid_post"
    seen: list[str] = []
    case.hooked.add_hook(hook, lambda value, hook: seen.append("original"))
    twin.add_hook(hook, lambda value, hook: seen.append("twin") or value * 0)
    try:
        with torch.no_grad():
            output = twin(case.pixels)
            assert seen == ["twin"]
            assert not torch.equal(output, bare_output(case))
            twin.reset_hooks()
            for parameter in case.bare.parameters():
                twin_parameter = next(twin.parameters())
                assert parameter.data_ptr() != twin_parameter.data_ptr()
            torch.testing.assert_close(twin(case.pixels), bare_output(case))
            twin.blocks[0].mlp.W_in.zero_()
            assert case.hooked.blocks[0].mlp.W_in.abs().max() > 0
    finally:
        case.hooked.reset_hooks()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit(case: Case, dtype: torch.dtype):
    half = copy.deepcopy(case.hooked).to(dtype)
    assert half.cfg.dtype is dtype
    with torch.no_grad():
        output, cache = half.run_with_cache(case.pixels)
        assert torch.equal(output, half(case.pixels))
    assert output.dtype is dtype
    for name, value in cache.items():
        kept_in_32_bit = "hook_scale" in name or "hook_normalized" in name
        assert value.dtype is (torch.float32 if kept_in_32_bit else dtype), name
    exact = case.hooked.run_with_cache(case.pixels, names_filter="blocks.0.hook_resid_post")[1]
    for value in exact.values():
        error = (cache["blocks.0.hook_resid_post"].float() - value).norm() / value.norm()
        assert error < 0.03


def test_eval_train_and_device_follow(open_clip_case: Case):
    model = copy.deepcopy(open_clip_case.hooked)
    assert not model.training
    model.train()
    assert model.bare_model.training
    model.eval()
    assert not model.bare_model.training
    assert model.to("cpu").cfg.device == torch.device("cpu")


def test_pixels_of_another_kind_are_refused(open_clip_case: Case):
    with pytest.raises(ValueError, match=r"\(3, 32, 32\).*unsqueeze"):
        open_clip_case.hooked(open_clip_case.pixels[0])
    with pytest.raises(ValueError, match="pixels is a list; want a tensor"):
        open_clip_case.hooked([open_clip_case.pixels])


def test_a_vit_without_pooler_gives_its_class_token():
    bare = tiny_transformers_vit(add_pooling_layer=False)
    pixels = torch.randn(2, 3, 32, 32)
    output = HookedViT.from_module(bare)(pixels)
    assert torch.equal(output, bare(pixels).last_hidden_state[:, 0])


def test_extra_arguments_reach_the_bare_model():
    case = build_case("transformers_clip")
    pixels = torch.randn(2, 3, 48, 48)
    with pytest.raises(ValueError, match="doesn't match"):
        case.hooked(pixels)
    bare: Any = case.bare
    with torch.no_grad():
        output, cache = case.hooked.run_with_cache(pixels, interpolate_pos_encoding=True)
        wanted = bare.get_image_features(pixels, interpolate_pos_encoding=True).pooler_output
    assert torch.equal(output, wanted)
    total = cache["hook_embed"] + cache["hook_pos_embed"]
    normed = bare.vision_model.pre_layrnorm(total)
    torch.testing.assert_close(normed, cache["hook_full_embed"])
