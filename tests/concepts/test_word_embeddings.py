"""Words in the joint space: templates, what is kept on disk, and prompts that can't be read."""

import pytest
import torch
from torch.nn.functional import normalize

from tests.analysis.tiny_pipeline import make_model
from tests.tiny_models import tiny_timm
from vit_sae_plugin.concepts.vocabulary import Vocabulary
from vit_sae_plugin.concepts.word_embeddings import WordEmbeddings, embed_words
from vit_sae_plugin.hooked_vit import HookedViT


@pytest.fixture(scope="module")
def model():
    return HookedViT.from_pretrained("shapes-clip")


def test_each_word_is_the_mean_of_its_prompts(model):
    words = embed_words(model, Vocabulary(("red", "star")), ["a {}", "a photo of a {}"])
    prompts = ["a red", "a photo of a red", "a star", "a photo of a star"]
    embeds = model.encode_text(prompts, normalize=True).view(2, 2, -1).mean(1)
    torch.testing.assert_close(words.embeds, normalize(embeds, dim=-1))


def test_embeddings_are_kept_by_model_and_prompts(model, tmp_path, monkeypatch):
    vocabulary = Vocabulary(("red", "star"))
    first = embed_words(model, vocabulary, cache=tmp_path)
    (kept,) = tmp_path.iterdir()
    assert kept.suffix == ".safetensors"
    calls = []
    encode = model.encode_text
    monkeypatch.setattr(model, "encode_text", lambda text: calls.append(1) or encode(text))
    again = embed_words(model, vocabulary, cache=tmp_path)
    assert not calls
    assert torch.equal(first.embeds, again.embeds)
    embed_words(model, vocabulary, ["a {}"], cache=tmp_path)
    assert calls
    assert len(list(tmp_path.iterdir())) == 2
    kept.write_bytes(b"cut off")  # made anew
    assert torch.equal(embed_words(model, vocabulary, cache=tmp_path).embeds, first.embeds)


def test_prompts_that_the_model_cannot_read_are_refused(model):
    with pytest.raises(ValueError, match=r"'red red .* is longer than the 40 tokens"):
        embed_words(model, Vocabulary(("star", " ".join(["red"] * 60))))
    with pytest.raises(ValueError, match="'quokka' and 'wombat' are the same to the model's"):
        embed_words(model, Vocabulary(("red", "quokka", "wombat")))


def test_a_model_without_text_is_refused():
    with pytest.raises(ValueError, match="has no text tower"):
        embed_words(HookedViT.from_module(tiny_timm(num_classes=0)), Vocabulary(("red",)))
    with pytest.raises(ValueError, match="has no tokenizer"):
        embed_words(make_model(), Vocabulary(("red",)))


def test_a_general_word_means_what_its_special_cases_share():
    words = Vocabulary(("red", "red star", "red ring", "blue"))
    embeds = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, 0]])
    directions = WordEmbeddings(words, embeds, "model").directions()
    centre = torch.tensor([0.0, 0.25, 0.25])
    expected = torch.stack([torch.full((3,), 1 / 3), *embeds[1:]]) - centre
    torch.testing.assert_close(directions, normalize(expected, dim=-1))
    uncentred = WordEmbeddings(words, embeds, "model").directions(centred=False)
    torch.testing.assert_close(uncentred[1], embeds[1])
