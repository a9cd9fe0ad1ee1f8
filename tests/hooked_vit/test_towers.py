"""Descriptions: what is recognised, what is refused, and with what words."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.hooked_vit.conftest import Case
from tests.tiny_models import tiny_open_clip, tiny_open_clip_custom_text, tiny_timm
from vit_sae_plugin.hooked_vit import (
    AttentionDescription,
    HookedViT,
    HookNameError,
    UnsupportedTowerError,
)

PIXELS = torch.randn(1, 3, 32, 32)


def test_an_unknown_model_is_refused_with_advice():
    with pytest.raises(UnsupportedTowerError, match=r"Linear is of no known family.*custom_vit"):
        HookedViT.from_module(nn.Linear(2, 2))


def test_a_resnet_tower_is_refused():
    import open_clip

    text = {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}
    vision = {"layers": (1, 1, 1, 1), "width": 8, "image_size": 32}
    with pytest.raises(UnsupportedTowerError, match="no known family"):
        HookedViT.from_module(open_clip.CLIP(embed_dim=8, vision_cfg=vision, text_cfg=text))


@pytest.mark.parametrize("block", ["ParallelScalingBlock", "ParallelThingsBlock", "ResPostBlock"])
def test_blocks_without_a_stream_between_attention_and_mlp_are_refused(block: str):
    from timm.models import vision_transformer

    bare = tiny_timm(block_fn=getattr(vision_transformer, block))
    with pytest.raises(UnsupportedTowerError, match=block):
        HookedViT.from_module(bare)


@pytest.mark.parametrize(
    ("bare", "reason"),
    [
        (lambda: tiny_timm(attn_layer="diff"), "DiffAttention"),
        (
            lambda: tiny_open_clip_custom_text(block_type="custom", scale_heads=True),
            "scaled cosines or scaled heads",
        ),
    ],
)
def test_attention_of_another_kind_has_all_hooks_but_its_inside(bare, reason: str):
    model = HookedViT.from_module(bare())
    output, cache = model.run_with_cache(PIXELS)
    assert torch.equal(output, model(PIXELS))
    assert not [name for name in cache if ".attn." in name]
    torch.testing.assert_close(
        cache["blocks.1.hook_resid_mid"],
        cache["blocks.1.hook_resid_pre"] + cache["blocks.1.hook_attn_out"],
    )
    with pytest.raises(HookNameError, match=f"This model has none: its attention .*{reason}"):
        model.run_with_cache(PIXELS, names_filter="blocks.1.attn.hook_pattern")


def test_gated_timm_attention_has_no_inside():
    from timm.layers import Attention

    class GatedAttention(Attention):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, gated=True, **kwargs)

    model = HookedViT.from_module(tiny_timm(attn_layer=GatedAttention))
    with pytest.raises(HookNameError, match="a gate on the heads' outputs"):
        model.run_with_cache(PIXELS, names_filter="blocks.0.attn.hook_z")


def test_packed_gated_mlp_has_post_but_no_pre():
    from timm.layers import SwiGLUPacked

    model = HookedViT.from_module(tiny_timm(mlp_layer=SwiGLUPacked, mlp_ratio=2))
    cache = model.run_with_cache(PIXELS)[1]
    assert cache["blocks.0.mlp.hook_post"].shape[-1] == model.cfg.d_mlp
    with pytest.raises(HookNameError, match="no single layer in front of an activation"):
        model.hook_width("blocks.0.mlp.hook_pre")


def test_a_model_without_positions_has_no_hook_for_them():
    model = HookedViT.from_module(tiny_timm(pos_embed="none"))
    cache = model.run_with_cache(PIXELS)[1]
    assert torch.equal(cache["hook_embed"], cache["hook_full_embed"])
    with pytest.raises(HookNameError, match="no position embedding"):
        model.run_with_cache(PIXELS, names_filter="hook_pos_embed")


def test_a_path_that_leads_nowhere_is_named(open_clip_case: Case):
    tower = open_clip_case.hooked.tower
    wrong = replace(tower, block=replace(tower.block, ln2="norm2"))
    with pytest.raises(UnsupportedTowerError, match=r"ln2 is at '.*\.0\.norm2', but CLIP has no"):
        HookedViT.from_module(tiny_open_clip(), tower=wrong)
    with pytest.raises(UnsupportedTowerError, match="must lead to a ModuleList"):
        HookedViT.from_module(tiny_open_clip(), tower=replace(tower, blocks="visual.conv1"))


@pytest.mark.parametrize(
    "paths", [{}, {"q": "q", "k": "k"}, {"qkv": "qkv", "packed": "attn"}, {"qkv": "qkv", "q": "q"}]
)
def test_an_attention_described_by_halves_is_refused(paths: dict[str, str]):
    with pytest.raises(UnsupportedTowerError, match="exactly one of qkv, packed"):
        AttentionDescription(out_proj="attn.proj", **paths)


def test_images_of_another_size(open_clip_case: Case):
    bare = tiny_timm(dynamic_img_size=True)
    model = HookedViT.from_module(bare, image_size=(48, 32))
    assert model.cfg.grid == (6, 4)
    assert model.cfg.n_tokens == 25
    cache = model.run_with_cache(torch.randn(1, 3, 48, 32))[1]
    assert cache["blocks.0.hook_resid_pre"].shape == (1, 25, 32)
    torch.testing.assert_close(
        cache["hook_embed"] + cache["hook_pos_embed"], cache["hook_full_embed"]
    )


def test_as_many_patches_in_another_arrangement_have_other_positions():
    model = HookedViT.from_module(tiny_timm(dynamic_img_size=True))
    cache = model.run_with_cache(torch.randn(1, 3, 64, 16))[1]
    torch.testing.assert_close(
        cache["hook_embed"] + cache["hook_pos_embed"], cache["hook_full_embed"]
    )
