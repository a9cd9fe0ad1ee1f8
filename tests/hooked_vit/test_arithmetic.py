"""Cached values fit together, with the weights under their TransformerLens names."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from tests.hooked_vit.conftest import Case
from tests.hooked_vit.hand_made import by_hand

close = torch.testing.assert_close


def own_hidden_states(case: Case) -> list[Tensor]:
    """The stream after each block, as the family itself reports it."""
    # A copy: transformers leaves capturing hooks behind, which cannot be pickled.
    bare: Any = copy.deepcopy(case.bare)
    if case.family == "torchvision":
        # It reports none; a Sequential of its first blocks does.
        layers, states = bare.encoder.layers, []
        layers.register_forward_pre_hook(lambda _, args: states.append(args[0]))
        bare(case.pixels)
        return [layers[: n + 1](states[0]) for n in range(len(layers))]
    if hasattr(bare, "visual") or case.family == "open_clip_visual":
        bare = getattr(bare, "visual", bare)
        trunk = getattr(bare, "trunk", None)
        if trunk is None:
            kwargs = {"output_fmt": "NLC", "output_extra_tokens": True}
            found = bare.forward_intermediates(case.pixels, **kwargs)
            pairs = zip(
                found["image_intermediates_prefix"], found["image_intermediates"], strict=True
            )
            return [torch.cat(pair, dim=1) for pair in pairs]
        bare = trunk
    if hasattr(bare, "forward_intermediates"):
        found = bare.forward_intermediates(
            case.pixels, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
        )
        # Without prefix tokens timm returns the patches alone.
        return [f if isinstance(f, Tensor) else torch.cat([f[1], f[0]], dim=1) for f in found]
    if case.family == "transformers_mae":
        in_order = torch.arange(16).expand(len(case.pixels), -1)
        return list(bare(case.pixels, noise=in_order, output_hidden_states=True).hidden_states[1:])
    bare = getattr(bare, "vision_model", bare)
    return list(bare(case.pixels, output_hidden_states=True).hidden_states[1:])


def test_resid_post_equals_the_familys_own_hidden_states(case: Case):
    with torch.no_grad():
        cache = case.hooked.run_with_cache(case.pixels)[1]
        hidden = own_hidden_states(case)
    assert len(hidden) == case.hooked.cfg.n_layers
    for layer, states in enumerate(hidden):
        assert torch.equal(cache[f"blocks.{layer}.hook_resid_post"], states)


@torch.no_grad()
def test_residual_arithmetic(case: Case):
    cache = case.hooked.run_with_cache(case.pixels, names_filter=lambda _: True)[1]
    for layer, hand in enumerate(by_hand(case.bare).blocks):
        at: Any = {k.removeprefix(f"blocks.{layer}."): v for k, v in cache.items()}
        pattern = at["attn.hook_pattern"]
        close(pattern.sum(-1), torch.ones_like(pattern[..., 0]))
        close(pattern, at["attn.hook_attn_scores"].softmax(-1))
        z = torch.einsum("bhqk,bkhd->bqhd", pattern, at["attn.hook_v"])
        close(at["attn.hook_z"], z, rtol=1e-4, atol=1e-5)
        weights: Any = case.hooked.blocks[layer]
        attn_out = (at["attn.hook_result"].sum(2) + weights.attn.b_O) * hand.scale1
        close(at["hook_attn_out"], attn_out, rtol=1e-4, atol=1e-4)
        assert torch.equal(at["hook_resid_mid"], at["hook_resid_pre"] + at["hook_attn_out"])
        assert torch.equal(at["hook_resid_post"], at["hook_resid_mid"] + at["hook_mlp_out"])
        assert torch.equal(at["hook_attn_in"], at["hook_resid_pre"])
        assert torch.equal(at["hook_mlp_in"], at["hook_resid_mid"])
        if layer:
            previous = cache[f"blocks.{layer - 1}.hook_resid_post"]
            assert torch.equal(at["hook_resid_pre"], previous)


@torch.no_grad()
def test_weights_are_views_that_give_the_cached_values(case: Case):
    cache = case.hooked.run_with_cache(case.pixels, names_filter=lambda _: True)[1]
    for layer, hand in enumerate(by_hand(case.bare).blocks):
        at: Any = {k.removeprefix(f"blocks.{layer}."): v for k, v in cache.items()}
        node: Any = case.hooked.blocks[layer]
        normed = at["ln1.hook_normalized"] * node.ln1.w + node.ln1.b
        for letter in "qkv":
            weight = getattr(node.attn, f"W_{letter.upper()}")
            value = torch.einsum("btm,hmd->bthd", normed, weight)
            value = value + getattr(node.attn, f"b_{letter.upper()}")
            close(at[f"attn.hook_{letter}"], value, rtol=1e-4, atol=1e-4)
        inner = hand.inner_norm(at["attn.hook_z"].flatten(2)).view_as(at["attn.hook_z"])
        result = torch.einsum("bthd,hdm->bthm", inner, node.attn.W_O)
        close(at["attn.hook_result"], result, rtol=1e-4, atol=1e-4)
        normed = at["ln2.hook_normalized"] * node.ln2.w + node.ln2.b
        close(at["mlp.hook_pre"], normed @ node.mlp.W_in + node.mlp.b_in, rtol=1e-4, atol=1e-4)
        mlp_out = (at["mlp.hook_post"] @ node.mlp.W_out + node.mlp.b_out) * hand.scale2
        close(at["hook_mlp_out"], mlp_out, rtol=1e-4, atol=1e-4)
        storages = {p.untyped_storage().data_ptr() for p in case.bare.parameters()}
        for part, name in (*((node.attn, f"W_{c}") for c in "QKVO"), (node.mlp, "W_in")):
            assert getattr(part, name).untyped_storage().data_ptr() in storages


def test_stacked_weights(case: Case):
    cfg = case.hooked.cfg
    heads = (cfg.n_layers, cfg.n_heads)
    for name in ("W_Q", "W_K", "W_V"):
        assert getattr(case.hooked, name).shape == (*heads, cfg.d_model, cfg.d_head)
    for name in ("b_Q", "b_K", "b_V"):
        assert getattr(case.hooked, name).shape == (*heads, cfg.d_head)
    assert case.hooked.W_O.shape == (*heads, cfg.d_head, cfg.d_model)
    assert case.hooked.b_O.shape == case.hooked.b_out.shape == (cfg.n_layers, cfg.d_model)
    assert case.hooked.W_in.shape == (cfg.n_layers, cfg.d_model, cfg.d_mlp)
    assert case.hooked.W_out.shape == (cfg.n_layers, cfg.d_mlp, cfg.d_model)
    assert case.hooked.b_in.shape == (cfg.n_layers, cfg.d_mlp)
    assert torch.equal(case.hooked.W_Q[1], case.hooked.blocks[1].attn.W_Q)


def test_config_says_what_the_tower_is(case: Case):
    cfg = case.hooked.cfg
    rows, columns = cfg.grid
    assert cfg.n_tokens == cfg.n_prefix_tokens + rows * columns
    assert cfg.image_size == (rows * cfg.patch_size[0], columns * cfg.patch_size[1])
    cache = case.hooked.run_with_cache(case.pixels, names_filter="hook_full_embed")[1]
    assert cache["hook_full_embed"].shape[1:] == (cfg.n_tokens, cfg.d_model)


@torch.no_grad()
def test_activation_cache_tools_work(case: Case):
    cache = case.hooked.run_with_cache(case.pixels)[1]
    n_layers = case.hooked.cfg.n_layers
    assert torch.equal(cache["pattern", 1], cache["blocks.1.attn.hook_pattern"])
    assert torch.equal(cache["resid_post", -1], cache[f"blocks.{n_layers - 1}.hook_resid_post"])
    parts, labels = cache.decompose_resid(incl_embeds=False, return_labels=True)
    assert labels == [f"{i}_{part}_out" for i in range(n_layers) for part in ("attn", "mlp")]
    total = parts.sum(0) + cache["hook_full_embed"]
    close(total, cache["resid_post", -1], rtol=1e-4, atol=1e-4)
    heads, labels = cache.stack_head_results(return_labels=True)
    assert labels[:2] == ["L0H0", "L0H1"]
    assert heads.shape[0] == n_layers * case.hooked.cfg.n_heads
    streams = cache.accumulated_resid(incl_mid=True)
    assert torch.equal(streams[-1], cache["resid_post", -1])
