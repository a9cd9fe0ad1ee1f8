"""The text tower: embeddings, zero-shot class weights, the scale of the logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tests.hooked_vit.conftest import Case, build_case
from tests.tiny_models import tiny_open_clip
from vit_sae_plugin.hooked_vit import HookedViT
from vit_sae_plugin.hooked_vit.text_tower import zero_shot_classifier


def tokenize(texts: list[str]) -> Tensor:
    """Letters as token ids; the highest id ends the text, as in CLIP."""
    rows = [[ord(letter) % 90 for letter in text][:14] for text in texts]
    return torch.tensor([[*row, 99, *[0] * (15 - len(row))] for row in rows])


def with_tokenizer() -> HookedViT:
    return HookedViT.from_module(tiny_open_clip(), tokenizer=tokenize)


def test_encode_text_takes_texts_and_token_ids():
    model: Any = with_tokenizer()
    texts = ["a red circle", "a blue square"]
    wanted = model.bare_model.encode_text(tokenize(texts))
    assert torch.equal(model.encode_text(texts), wanted)
    assert torch.equal(model.encode_text(tokenize(texts)), wanted)
    assert torch.equal(model.encode_text(texts[0]), model.encode_text(texts[:1]))
    torch.testing.assert_close(model.encode_text(texts, normalize=True), normalize(wanted, dim=-1))


@pytest.mark.parametrize("family", ["transformers_clip", "transformers_siglip"])
def test_encode_text_takes_what_a_transformers_tokenizer_returns(family: str):
    case = build_case(family)
    bare: Any = case.bare
    tokens = {"input_ids": tokenize(["one", "two"]), "attention_mask": torch.ones(2, 16).long()}
    wanted = bare.get_text_features(**tokens).pooler_output
    assert torch.equal(case.hooked.encode_text(tokens), wanted)


def test_zero_shot_weights_by_hand():
    table = {
        "a cat.": [3.0, 0.0],
        "the cat": [0.0, 5.0],
        "a dog.": [0.0, -2.0],
        "the dog": [0.0, -1.0],
    }
    weights = zero_shot_classifier(
        lambda texts: torch.tensor([table[text] for text in texts]),
        ["cat", "dog", "cat"],
        ["a {}.", lambda name: f"the {name}"],
        batch_size_texts=4,
    )
    # Cat: (1, 0) and (0, 1) average to the diagonal, whatever their lengths were.
    diagonal = 0.5**0.5
    torch.testing.assert_close(
        weights, torch.tensor([[diagonal, 0.0, diagonal], [diagonal, -1.0, diagonal]])
    )


def test_zero_shot_classifier_of_a_model():
    model = with_tokenizer()
    weights = model.zero_shot_classifier(["circle", "square"], ["a {}", "the {}", "one {}"])
    assert weights.shape == (24, 2)
    torch.testing.assert_close(weights.norm(dim=0), torch.ones(2))
    assert not weights.requires_grad


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        ([], ["a {}"], "at least one class name"),
        (["cat"], [], "one template"),
        ("cat", ["a {}"], "list"),
        (["cat"], "a {}", "list"),
        (["cat"], ["a photo"], "template is 'a photo'; want a '{}'"),
    ],
)
def test_zero_shot_errors(names, templates, message: str):
    with pytest.raises(ValueError, match=message):
        with_tokenizer().zero_shot_classifier(names, templates)


def test_models_without_text_say_so(open_clip_case: Case):
    with pytest.raises(ValueError, match="no text tower"):
        build_case("timm").hooked.encode_text(["a"])
    with pytest.raises(ValueError, match="has no tokenizer; want"):
        open_clip_case.hooked.encode_text(["a"])


def test_encode_image_is_the_embedding(case: Case):
    if case.hooked.tower.classifier is not None:
        with pytest.raises(ValueError, match=r"class logits.*hook_image_embed"):
            case.hooked.encode_image(case.pixels)
        return
    embeds = case.hooked.encode_image(case.pixels)
    assert torch.equal(embeds, case.hooked(case.pixels))
    lengths = case.hooked.encode_image(case.pixels, normalize=True).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones(2))


def test_logit_scale_is_the_factor_itself(open_clip_case: Case):
    bare: Any = open_clip_case.bare
    scale = open_clip_case.hooked.logit_scale
    assert scale is not None
    assert scale.shape == ()
    assert scale.item() == pytest.approx(1 / 0.07)
    factor = bare(open_clip_case.pixels, tokenize(["one"]))[2]
    assert torch.equal(factor, scale)
    assert open_clip_case.hooked.logit_bias is None
    siglip = build_case("transformers_siglip").hooked
    assert siglip.logit_scale is not None
    assert siglip.logit_bias is not None
    assert build_case("timm").hooked.logit_scale is None
