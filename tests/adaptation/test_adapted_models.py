"""What each method makes of a model: token layout, hooks, weights, and the model as a folder."""

from __future__ import annotations

import pytest
import torch

from tests.adaptation.conftest import tiny_clip
from vit_sae_plugin.adaptation import METHODS, AdaptationConfig, adapt
from vit_sae_plugin.hooked_vit import HookedViT

SETTINGS = {
    "maple": {"n_prompts": 2, "depth": 2},
    "coop": {"n_prompts": 3},
    "vpt": {"n_prompts": 2, "depth": 3},
    "lora": {"templates": ["a photo of a {}."]},
    "linear_probe": {"templates": ["a photo of a {}."]},
}
SETTINGS["vpt"] |= {"templates": ["a photo of a {}."]}


def config(method: str, **changes) -> AdaptationConfig:
    settings = {"shots": 3, "epochs": 3, "batch_size_images": 2, "lr": 0.05, "half": "base"}
    settings |= {} if method == "lora" else {"optimizer": "sgd"}
    return AdaptationConfig(method, preset="shapes", **{**settings, **SETTINGS[method], **changes})


@pytest.fixture(params=METHODS)
def method(request) -> str:
    return request.param


@pytest.fixture
def adapted(method, clip, images, tmp_path) -> HookedViT:
    return adapt(clip, images, config(method), tmp_path / "adapted", progress=False)


def test_every_hook_is_true_and_the_model_that_was_adapted_is_as_before(
    method, adapted, clip, images
):
    table = adapted.check()
    assert table.fine.all(), table[~table.fine]
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.equal(clip(pixels), tiny_clip()(pixels))
    changed = not torch.equal(adapted(pixels), clip(pixels))
    assert changed == (method in ("maple", "vpt", "lora"))


def test_prompts_are_neither_class_token_nor_patches(method, adapted, clip):
    n = {"maple": 2, "vpt": 2}.get(method, 0)
    roles = adapted.cfg.tokens.roles
    assert roles == ("class", *["patch"] * 16, *["prompt"] * n)
    assert torch.equal(adapted.cfg.tokens.positions("patches"), torch.arange(1, 17))
    embed = adapted.run_with_cache(torch.randn(1, 3, 32, 32), names_filter="hook_embed")[1]
    layout = adapted.cfg.tokens.at_hook(embed["hook_embed"].shape)
    assert layout.roles == clip.cfg.tokens.roles


def test_a_hook_shows_what_the_next_layer_reads(adapted):
    pixels = torch.randn(2, 3, 32, 32)
    output, cache = adapted.run_with_cache(pixels, names_filter=lambda name: "resid" in name)
    for layer in range(1, adapted.cfg.n_layers):
        before, here = (f"blocks.{layer - 1}.hook_resid_post", f"blocks.{layer}.hook_resid_pre")
        assert torch.equal(cache[before], cache[here])
        stream = adapted(pixels, stop_at_layer=layer)
        assert torch.equal(stream, cache[here])
        torch.testing.assert_close(adapted(stream, start_at_layer=layer), output)
    torch.testing.assert_close(adapted(pixels, output_only=True), output)
    last = adapted(pixels, stop_at_layer=adapted.cfg.n_layers)
    torch.testing.assert_close(adapted.embed_residual(last), output)


def test_weights_seen_by_name_are_those_in_use(method, adapted, clip):
    pixels = torch.randn(1, 3, 32, 32)
    names = ["blocks.1.ln1.hook_normalized", "blocks.1.attn.hook_q"]
    cache = adapted.run_with_cache(pixels, names_filter=names)[1]
    block = adapted.blocks[1]
    normed = cache[names[0]] * block.ln1.w + block.ln1.b
    q = torch.einsum("btm,hmd->bthd", normed, block.attn.W_Q) + block.attn.b_Q
    torch.testing.assert_close(q, cache[names[1]], rtol=1e-4, atol=1e-5)
    assert torch.equal(block.attn.W_Q, clip.blocks[1].attn.W_Q) == (method != "lora")
