"""Every hook of every family: shape, value and edit agree with a forward pass made by hand."""

from __future__ import annotations

import copy
from functools import cache

import torch
from torch import Tensor

from tests.hooked_vit.conftest import Case, build_case
from tests.hooked_vit.hand_made import by_hand
from vit_sae_plugin.hooked_vit import HookedViT

BLOCK_HOOKS = [
    "hook_resid_pre",
    "hook_attn_in",
    "ln1.hook_scale",
    "ln1.hook_normalized",
    "attn.hook_q",
    "attn.hook_k",
    "attn.hook_v",
    "attn.hook_attn_scores",
    "attn.hook_pattern",
    "attn.hook_z",
    "attn.hook_result",
    "hook_attn_out",
    "hook_resid_mid",
    "hook_mlp_in",
    "ln2.hook_scale",
    "ln2.hook_normalized",
    "mlp.hook_pre",
    "mlp.hook_post",
    "hook_mlp_out",
    "hook_resid_post",
]
BEFORE = ["hook_embed", "hook_pos_embed", "hook_full_embed"]
AFTER = ["ln_final.hook_scale", "ln_final.hook_normalized", "hook_image_embed"]
MISSING = {
    "open_clip_coca": AFTER[:2],
    "timm_dinov3": ["hook_pos_embed"],
    "timm_relpos": ["hook_pos_embed"],
    "transformers_dinov3": ["hook_pos_embed"],
    "transformers_dinov3_gated": ["hook_pos_embed"],
    "transformers_beit": ["hook_pos_embed"],
}
"""Hooks that a family does not have, for it has nothing to show there."""
# The first block, and the second (the last one, in most families).
HOOKS = [*BEFORE, *(f"blocks.{i}.{hook}" for i in (0, 1) for hook in BLOCK_HOOKS), *AFTER]


@cache
def cached(family: str) -> tuple[Tensor, dict[str, Tensor]]:
    case = build_case(family)
    with torch.no_grad():
        output, cache = case.hooked.run_with_cache(case.pixels, names_filter=lambda _: True)
    return output, dict(cache)


@cache
def read_by_hand(family: str) -> tuple[Tensor, dict[str, Tensor]]:
    case, values = build_case(family), {}

    def read(name: str, value: Tensor) -> Tensor:
        values[name] = value.clone()
        return value

    with torch.no_grad():
        return by_hand(case.bare)(case.pixels, read), values


def hooks_of(case: Case) -> list[str]:
    return [hook for hook in HOOKS if hook not in MISSING.get(case.family, [])]


def documented_shape(case: Case, name: str) -> tuple[int, ...]:
    cfg, short = case.hooked.cfg, name.rsplit(".", 1)[-1]
    batch, token = len(case.pixels), cfg.n_tokens
    if short in ("hook_q", "hook_k", "hook_v", "hook_z"):
        return batch, token, cfg.n_heads, cfg.d_head
    if short in ("hook_attn_scores", "hook_pattern"):
        return batch, cfg.n_heads, token, token
    if short == "hook_result":
        return batch, token, cfg.n_heads, cfg.d_model
    if short in ("hook_pre", "hook_post"):
        return batch, token, cfg.d_mlp
    if short == "hook_image_embed":
        return batch, cfg.d_embed
    width = 1 if short == "hook_scale" else cfg.d_model
    pooled_first = (
        "open_clip_eva",
        "open_clip_pooled_norm",
        "timm_beit",
        "timm_eva02",
        "timm_registers",
        "transformers_beit_classifier",
        "transformers_clip",
    )
    if name.startswith("ln_final") and case.family.startswith(pooled_first):
        return batch, width
    return batch, token, width


def test_the_hooks_are_the_documented_ones_in_firing_order(case: Case):
    n_layers = case.hooked.cfg.n_layers
    expected = [f"blocks.{i}.{hook}" for i in range(n_layers) for hook in BLOCK_HOOKS]
    expected = [*BEFORE, *expected, *AFTER]
    missing = MISSING.get(case.family, [])
    assert list(case.hooked.hook_dict) == [name for name in expected if name not in missing]
    fired = []
    case.hooked.run_with_hooks(
        case.pixels, fwd_hooks=[(lambda _: True, lambda _, hook: fired.append(hook.name))]
    )
    assert fired == list(case.hooked.hook_dict)


def _in_place(value: Tensor, factor: Tensor) -> None:
    value.mul_(factor)


def test_reading(case: Case):
    values, wanted = cached(case.family)[1], read_by_hand(case.family)[1]
    for hook in hooks_of(case):
        assert values[hook].shape == documented_shape(case, hook), hook
        torch.testing.assert_close(values[hook], wanted[hook], rtol=1e-4, atol=1e-4, msg=hook)


@torch.no_grad()
def test_editing(case: Case):
    before, values = cached(case.family)
    hooks, n = hooks_of(case), len(case.pixels)
    factors = {
        hook: torch.linspace(0.5, 1.5, values[hook].numel()).view(values[hook].shape)
        for hook in hooks
    }

    def edit_own_part(name: str, value: Tensor) -> Tensor:
        if name in factors:
            value, start = value.clone(), n * hooks.index(name)
            value[start : start + n] *= factors[name]
        return value

    # By hand in one pass: each edit has a part of the batch of its own.
    by_hands = by_hand(case.bare)(case.pixels.repeat(len(hooks), 1, 1, 1), edit_own_part)
    for hook, wanted in zip(hooks, by_hands.split(n), strict=True):
        # Each kind of hook is edited in both ways: in one block by what it returns, in the other
        # in place.
        edit = _in_place if hook.startswith("blocks.1.") else torch.mul
        edited = case.hooked.run_with_hooks(
            case.pixels,
            fwd_hooks=[(hook, lambda value, hook, edit=edit: edit(value, factors[hook.name]))],
        )
        torch.testing.assert_close(edited, wanted, rtol=1e-4, atol=1e-4, msg=hook)
        assert (wanted - before).abs().max() > 1e-4, f"an edit of {hook} must show in the output"
    assert torch.equal(case.hooked(case.pixels), before)


@torch.no_grad()
def test_a_model_in_double_precision_is_computed_in_double_precision(case: Case):
    """In 32 bit anywhere on the way, errors would be 1e-8 and more. transformers computes
    DINOv3's sines and cosines in 32 bit."""
    limit = 1e-5 if case.family.startswith("transformers_dinov3") else 1e-12
    bare = copy.deepcopy(case.bare).double()
    model, pixels = HookedViT.from_module(bare), case.pixels.double()
    output, cache = model.run_with_cache(pixels, names_filter=lambda _: True)
    wanted: dict[str, Tensor] = {}

    def read(name: str, value: Tensor) -> Tensor:
        wanted[name] = value.clone()
        return value

    torch.testing.assert_close(by_hand(bare)(pixels, read), output, rtol=0, atol=limit)
    for hook in hooks_of(case):
        assert cache[hook].dtype is torch.float64, hook
        torch.testing.assert_close(cache[hook], wanted[hook], rtol=0, atol=limit, msg=hook)


def test_results_of_heads_are_kept_only_on_request():
    case = build_case("open_clip")
    hook = "blocks.1.attn.hook_result"
    assert hook not in case.hooked.run_with_cache(case.pixels)[1]
    assert list(case.hooked.run_with_cache(case.pixels, names_filter=hook)[1]) == [hook]
    assert hook in case.hooked.run_with_cache(case.pixels, names_filter=lambda _: True)[1]
    model = HookedViT.from_module(case.bare)
    model.cfg.use_attn_result = True
    assert list(model.run_with_cache(case.pixels)[1]) == list(model.hook_dict)
