"""Adapters put into the model after it was wrapped are seen, by hooks and by the output."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.hooked_vit.conftest import Case, build_case
from tests.tiny_models import FAMILIES
from vit_sae_plugin.hooked_vit import HookedViT


class LowRank(nn.Module):
    """A LoRA layer in its simplest form, in the place of a linear layer."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.down = nn.Linear(base_layer.in_features, 2, bias=False)
        self.up = nn.Linear(2, base_layer.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.up(self.down(x))


def adapt(model: nn.Module, path: str) -> LowRank:
    parent, _, name = path.rpartition(".")
    adapter = LowRank(model.get_submodule(path))
    setattr(model.get_submodule(parent), name, adapter)
    return adapter


def adaptable(model: HookedViT) -> dict[str, str]:
    """Hook to the path of the layer in front of it; some attention modules (``MultiheadAttention``,
    BEiT's) use the weights of their projections without calling them."""
    block, path = model.tower.block, model._block_paths[1]
    layers = {"mlp.hook_pre": block.mlp_in, "hook_mlp_out": block.mlp_proj}
    if block.attention.packed is None and block.attention.added_biases is None:
        layers["attn.hook_q"] = block.attention.qkv or block.attention.q
        layers["attn.hook_v"] = block.attention.qkv or block.attention.v
        layers["attn.hook_result"] = block.attention.out_proj
    return {f"blocks.1.{hook}": f"{path}.{layer}" for hook, layer in layers.items()}


@pytest.mark.parametrize("family", sorted(FAMILIES))
@torch.no_grad()
def test_a_low_rank_adapter_inserted_later(family: str):
    case = build_case(family)
    before = case.hooked.run_with_cache(case.pixels, names_filter=lambda _: True)[1]
    for hook, path in adaptable(case.hooked).items():
        model = copy.deepcopy(case.hooked)
        adapt(model.bare_model, path)
        output, after = model.run_with_cache(case.pixels, names_filter=hook)
        assert not torch.allclose(after[hook], before[hook]), hook
        assert torch.equal(output, model(case.pixels))
        # The heads' results, adapter included, still make up what the attention adds.
        rebuilt = model.run_with_hooks(
            case.pixels,
            fwd_hooks=[("blocks.1.attn.hook_result", lambda value, hook: value.clone())],
        )
        torch.testing.assert_close(rebuilt, output, rtol=1e-4, atol=1e-4)


def peft_targets(family: str) -> list[str]:
    return {
        "open_clip": ["visual.transformer.resblocks.1.attn"],
        "timm": ["blocks.1.attn.qkv", "blocks.1.attn.proj"],
        "transformers_clip": ["vision_model.encoder.layers.1.self_attn.v_proj"],
    }[family]


@pytest.mark.parametrize("family", ["open_clip", "timm", "transformers_clip"])
def test_peft_lora_inserted_later(family: str):
    from peft import LoraConfig, get_peft_model

    case = build_case(family)
    model = copy.deepcopy(case.hooked)
    before = model.run_with_cache(case.pixels, names_filter=lambda _: True)[1]
    config = LoraConfig(r=2, target_modules=peft_targets(family), init_lora_weights=False)
    adapted = get_peft_model(model.bare_model, config).eval()
    with torch.no_grad():
        output, after = model.run_with_cache(case.pixels, names_filter=lambda _: True)
        assert torch.equal(output, model(case.pixels))
        for hook in ("attn.hook_v", "attn.hook_z", "attn.hook_result", "hook_attn_out"):
            name = f"blocks.1.{hook}"
            assert (after[name] - before[name]).abs().max() > 1e-3, name
        # What the heads add is what the attention adds, adapter included.
        equal = model.run_with_hooks(
            case.pixels,
            fwd_hooks=[("blocks.1.attn.hook_result", lambda value, hook: value.clone())],
        )
        torch.testing.assert_close(equal, output, rtol=1e-4, atol=1e-5)
        with adapted.disable_adapter():
            torch.testing.assert_close(model(case.pixels), case.hooked(case.pixels))
    assert model.blocks[1].attn.W_V.shape == case.hooked.blocks[1].attn.W_V.shape


def test_a_peft_model_itself_is_refused_with_advice(open_clip_case: Case):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=peft_targets("open_clip"))
    adapted = get_peft_model(copy.deepcopy(open_clip_case.bare), config)
    with pytest.raises(ValueError, match="get_base_model"):
        HookedViT.from_module(adapted)
    model = HookedViT.from_module(adapted.get_base_model())
    assert torch.isfinite(model.run_with_cache(open_clip_case.pixels)[0]).all()
