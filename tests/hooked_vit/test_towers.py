"""Descriptions: what is recognised, what is refused, and with what words."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.hooked_vit.conftest import Case
from tests.tiny_models import (
    tiny_open_clip,
    tiny_open_clip_custom_text,
    tiny_timm,
    tiny_timm_beit,
    tiny_timm_eva02,
    tiny_timm_relpos,
    tiny_transformers_beit,
    tiny_transformers_deit,
    tiny_transformers_dinov3,
    tiny_transformers_mae,
    tiny_transformers_vit_classifier,
)
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


def resnet_clip() -> nn.Module:
    import open_clip

    text = {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}
    vision = {"layers": (1, 1, 1, 1), "width": 8, "image_size": 32}
    return open_clip.CLIP(embed_dim=8, vision_cfg=vision, text_cfg=text)


def swin() -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(img_size=32, patch_size=4, embed_dim=8, depths=(1, 1), num_heads=(1, 1))


def naflex() -> nn.Module:
    from transformers import Siglip2VisionConfig, Siglip2VisionModel

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    return Siglip2VisionModel(Siglip2VisionConfig(**sizes, num_attention_heads=1, num_patches=4))


def masking_encoder() -> nn.Module:
    bare = tiny_transformers_mae()
    bare.config.mask_ratio = 0.75
    return bare


@pytest.mark.parametrize(
    ("bare", "what"),
    [
        (resnet_clip, "its vision tower is a ModifiedResNet, which is a convolutional network"),
        (swin, "it is a SwinTransformer, .*its tokens merge from stage to stage"),
        (naflex, "it is a Siglip2VisionModel, .*a grid of its own .NaFlex.*want a model of fixed"),
        (masking_encoder, "leaves out 75% of the patches, at random; want model.config.mask_ratio"),
        (lambda: "ViT-B-16", r"'ViT-B-16' is a name: use HookedViT.from_pretrained\('ViT-B-16'\)"),
        (lambda: 3, "it is a int; want a torch.nn.Module"),
    ],
)
def test_what_is_no_plain_vision_transformer_is_refused_by_what_it_is(bare, what: str):
    with pytest.raises(UnsupportedTowerError, match=what):
        HookedViT.from_module(bare())


def test_an_encoder_of_a_masked_autoencoder_sees_patches_in_order():
    """By itself it shuffles them anew at every call."""
    model = HookedViT.from_module(tiny_transformers_mae())
    pixels = torch.randn(2, 3, 32, 32)
    first, second = (model(pixels, stop_at_layer=1) for _ in range(2))
    assert torch.equal(first, second)
    other = pixels.clone()
    other[:, :, 8:16, 24:] += 1  # the patch in row 1, column 3
    hook = "blocks.0.hook_resid_pre"
    caches = [model.run_with_cache(p, names_filter=hook)[1][hook] for p in (pixels, other)]
    changed = (caches[0] != caches[1]).any(dim=-1).nonzero()[:, 1].unique()
    assert changed.tolist() == [1 + 7]


def test_a_masked_autoencoder_by_name_masks_nothing(tmp_path):
    bare = tiny_transformers_mae()
    bare.config.mask_ratio = 0.75
    bare.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="no image processor"):
        model = HookedViT.from_pretrained(f"hf:{tmp_path}")
    assert model(torch.randn(1, 3, 32, 32), stop_at_layer=1).shape == (1, 17, 32)


def test_attention_that_is_not_fused_has_the_same_inside():
    """Rotary positions and biases: where softmax is called, as where the fused kernel is."""
    makers = (tiny_transformers_dinov3, tiny_transformers_beit, tiny_timm_eva02, tiny_timm_beit)
    for make in (*makers, tiny_timm_relpos):
        fused, plain = HookedViT.from_module(make()), HookedViT.from_module(make())
        if hasattr(plain.bare_model, "set_attn_implementation"):
            plain.bare_model.set_attn_implementation("eager")
        else:
            for block in plain.bare_model.blocks:
                block.attn.fused_attn = False
        hook = "blocks.1.attn.hook_pattern"
        edit = [(hook, lambda pattern, hook: pattern.roll(1, -1))]
        with torch.no_grad():
            caches = [model.run_with_cache(PIXELS)[1] for model in (fused, plain)]
            for name in caches[0]:
                torch.testing.assert_close(caches[1][name], caches[0][name], rtol=1e-4, atol=1e-4)
            edited = [model.run_with_hooks(PIXELS, fwd_hooks=edit) for model in (fused, plain)]
        torch.testing.assert_close(*edited, rtol=1e-4, atol=1e-4)


def test_a_hook_may_call_softmax_itself():
    # Its projections are called, so hook_q fires while the attention module's calls are seen.
    model = HookedViT.from_module(tiny_transformers_dinov3())
    hooks = ["blocks.0.attn.hook_pattern", "blocks.0.attn.hook_q"]

    def use_softmax(value, hook):
        torch.stack([value, value]).flatten(0, 1).softmax(-1)

    with torch.no_grad():
        output = model.run_with_hooks(PIXELS, fwd_hooks=[(hook, use_softmax) for hook in hooks])
    torch.testing.assert_close(output, model(PIXELS))


@pytest.mark.parametrize("make", [tiny_transformers_vit_classifier, tiny_transformers_deit])
def test_transformer_lens_own_bridge_of_a_vision_transformer(make, tmp_path):
    from transformer_lens.model_bridge import TransformerBridge

    plain, inside = HookedViT.from_module(make()), make()
    inside.save_pretrained(tmp_path)
    bridge = TransformerBridge.boot_transformers(str(tmp_path), hf_model=inside)
    model = HookedViT.from_module(bridge)
    assert model.bare_model is bridge.original_model
    with torch.no_grad():
        output, cache = model.run_with_cache(PIXELS, names_filter=lambda _: True)
        wanted, values = plain.run_with_cache(PIXELS, names_filter=lambda _: True)
    torch.testing.assert_close(output, wanted)
    assert list(cache) == list(values)
    for name in values:
        torch.testing.assert_close(cache[name], values[name], msg=name)
    torch.testing.assert_close(model.W_Q, plain.W_Q)
    assert model.check(PIXELS)["fine"].all()


def test_shared_keys_have_no_inside():
    from timm.models.eva import Eva

    bare = Eva(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_kv_heads=2,
        attn_type="rope", qkv_fused=False, use_rot_pos_emb=True,
    ).eval()  # fmt: skip
    model = HookedViT.from_module(bare)
    assert torch.equal(model.run_with_cache(PIXELS)[0], model(PIXELS))
    with pytest.raises(HookNameError, match="its query heads share keys and values"):
        model.run_with_cache(PIXELS, names_filter="blocks.0.attn.hook_q")


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
    with pytest.raises(HookNameError, match=rf"hook_pattern' \(its attention .*{reason}"):
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
    with pytest.raises(
        UnsupportedTowerError, match=r"ln2 is '.*\.0\.norm2'; want a module of CLIP"
    ):
        HookedViT.from_module(tiny_open_clip(), tower=wrong)
    with pytest.raises(UnsupportedTowerError, match="leads to a Conv2d; want a ModuleList"):
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
