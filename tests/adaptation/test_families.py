"""Each method on other kinds of CLIPs than open_clip's own, or a refusal that says why."""

from __future__ import annotations

import pytest
import torch

from tests.adaptation.conftest import preprocess, tokenize
from tests.adaptation.test_adapted_models import config
from tests.tiny_models import FAMILIES
from vit_sae_plugin.adaptation import METHODS, adapt
from vit_sae_plugin.hooked_vit import HookedViT, UnsupportedTowerError


def as_mapping(texts):
    ids = tokenize(texts)
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def wrapped(family: str) -> HookedViT:
    tokenizer = as_mapping if "transformers" in family else tokenize
    model = HookedViT.from_module(FAMILIES[family](), tokenizer=tokenizer)
    height, width = model.cfg.image_size

    def to_pixels(image):
        return torch.nn.functional.interpolate(preprocess(image)[None], (height, width))[0]

    model.preprocess = to_pixels
    return model


@pytest.mark.parametrize("family", ["open_clip_custom_text", "open_clip_timm", "transformers_clip"])
@pytest.mark.parametrize("method", METHODS)
def test_other_families(family, method, images, tmp_path):
    model = wrapped(family)
    settings = config(method, epochs=2, depth=2 if method in ("maple", "vpt") else None)
    adapted = adapt(model, images, settings, tmp_path, progress=False)
    assert adapted.check(layers=[0, 1]).fine.all()
    n_prompts = 2 if method in ("maple", "vpt") else 0
    assert adapted.cfg.n_tokens == model.cfg.n_tokens + n_prompts
    assert adapted.zero_shot_classifier(["red", "blue"], ()).shape == (model.cfg.d_embed, 2)


@pytest.mark.parametrize(
    ("family", "method", "message"),
    [
        ("open_clip_own_attention", "vpt", "isn't that of a class token"),
        ("open_clip_own_attention", "lora", "LoRA can't change a Attention"),
        ("open_clip_eva", "maple", "gives every token a place on the grid"),
        ("transformers_siglip", "vpt", "doesn't know where they enter"),
        ("timm", "coop", "no text tower"),
        ("timm", "linear_probe", "no text tower"),
    ],
)
def test_what_a_method_cannot_adapt_is_refused(family, method, message, images, tmp_path):
    model = wrapped(family)
    settings = config(method, depth=2 if method in ("maple", "vpt") else None)
    with pytest.raises((UnsupportedTowerError, ValueError), match=message):
        adapt(model, images, settings, tmp_path / "x", progress=False)
    assert not (tmp_path / "x").exists()
