"""Every hook of every family: shape, value and edit agree with a forward pass made by hand."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from tests.hooked_vit.conftest import Case, build_case
from tests.hooked_vit.hand_made import by_hand
from tests.tiny_models import FAMILIES

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
# The first block, and the second (the last one, in most families).
HOOKS = [*BEFORE, *(f"blocks.{i}.{hook}" for i in (0, 1) for hook in BLOCK_HOOKS), *AFTER]


@cache
def cached(family: str) -> tuple[Tensor, dict[str, Tensor]]:
    case = build_case(family)
    with torch.no_grad():
        output, cache = case.hooked.run_with_cache(case.pixels)
    return output, dict(cache)


@cache
def read_by_hand(family: str) -> tuple[Tensor, dict[str, Tensor]]:
    case, values = build_case(family), {}

    def read(name: str, value: Tensor) -> Tensor:
        values[name] = value.clone()
        return value

    with torch.no_grad():
        return by_hand(case.bare)(case.pixels, read), values


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
    pooled_first = ("open_clip_pooled_norm", "timm_registers", "transformers_clip")
    if name.startswith("ln_final") and case.family.startswith(pooled_first):
        return batch, width
    return batch, token, width


def test_the_hooks_are_the_documented_ones_in_firing_order(case: Case):
    n_layers = case.hooked.cfg.n_layers
    expected = [f"blocks.{i}.{hook}" for i in range(n_layers) for hook in BLOCK_HOOKS]
    assert list(case.hooked.hook_dict) == [*BEFORE, *expected, *AFTER]
    fired = []
    case.hooked.run_with_hooks(
        case.pixels, fwd_hooks=[(lambda _: True, lambda _, hook: fired.append(hook.name))]
    )
    assert fired == list(case.hooked.hook_dict)


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_reading(family: str, hook: str):
    case = build_case(family)
    value = cached(family)[1][hook]
    assert value.shape == documented_shape(case, hook)
    torch.testing.assert_close(value, read_by_hand(family)[1][hook], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_editing(family: str, hook: str):
    case = build_case(family)
    before = cached(family)[0]
    factor = torch.linspace(0.5, 1.5, cached(family)[1][hook].numel())
    factor = factor.view(cached(family)[1][hook].shape)

    def edit_by_hand(name: str, value: Tensor) -> Tensor:
        return value * factor if name == hook else value

    def in_place(value: Tensor, hook: object) -> None:
        value.mul_(factor)

    with torch.no_grad():
        wanted = by_hand(case.bare)(case.pixels, edit_by_hand)
        returned = case.hooked.run_with_hooks(
            case.pixels, fwd_hooks=[(hook, lambda value, hook: value * factor)]
        )
        edited = case.hooked.run_with_hooks(case.pixels, fwd_hooks=[(hook, in_place)])
        after = case.hooked(case.pixels)
    torch.testing.assert_close(returned, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(edited, returned, rtol=1e-6, atol=1e-6)
    assert (wanted - before).abs().max() > 1e-4, "the edit must show in the output"
    assert torch.equal(after, before)
