"""Scores, margins and clearness, worked by hand."""

import pytest
import torch

from vit_sae_plugin.concepts import candidates as module
from vit_sae_plugin.concepts.candidates import rank_words
from vit_sae_plugin.concepts.concept_directions import ConceptDirections
from vit_sae_plugin.concepts.vocabulary import Vocabulary
from vit_sae_plugin.concepts.word_embeddings import WordEmbeddings

AXES = torch.eye(4)


def words_on_axes(*words: str) -> WordEmbeddings:
    """Each word along an axis of its own, with nothing to centre."""
    embeds = WordEmbeddings(Vocabulary(words), AXES[: len(words)], "model")
    object.__setattr__(embeds, "directions", lambda centred=True: embeds.embeds)
    return embeds


def directions(rows, **settings) -> ConceptDirections:
    return ConceptDirections("direct", torch.tensor(rows), "model", "sae", **settings)


def test_cosines_and_margins():
    found = directions([[6.0, 8, 0, 0], [0, 0, 5, 12], [0, 0, 0, 0]])
    ranked = rank_words(found, words_on_axes("cat", "dog", "sky", "sea"), 2)
    assert ranked.word[:2].tolist() == [[1, 0], [3, 2]]
    torch.testing.assert_close(ranked.score[0], torch.tensor([0.8, 0.6]))
    torch.testing.assert_close(ranked.margin[0], torch.tensor([0.2, -0.2]))
    torch.testing.assert_close(ranked.clearness[0], torch.tensor([0.4, 0.0]))  # √(0.8 · 0.2)
    assert ranked.clearness[2, 0] == 0  # of a dead latent
    assert ranked.table().loc[(1, 1), "word"] == "sea"


def test_scores_in_standard_deviations_and_standard_errors():
    covariance = torch.diag(torch.tensor([4.0, 1, 1, 1]))
    found = directions([[3.0, 1, 0, 0]], covariance=covariance, n_effective=torch.tensor([16.0]))
    ranked = rank_words(found, words_on_axes("cat", "dog", "sky", "sea"), 1)
    torch.testing.assert_close(ranked.score, torch.tensor([[1.5]]))  # 3 ÷ √4
    torch.testing.assert_close(ranked.margin, torch.tensor([[0.5]]))
    torch.testing.assert_close(ranked.clearness, torch.tensor([[(1.5 * 0.5 * 16) ** 0.5]]))


def test_a_special_word_leads_only_where_no_other_special_case_fits_as_well():
    words = words_on_axes("red", "red star", "red ring", "blue")
    both = rank_words(directions([[0.6, 0.65, 0.6, 0.1]]), words, 4)
    assert both.best_word(0) == "red"  # its only rival is blue; the star's is the ring
    star = rank_words(directions([[0.5, 0.8, 0.1, 0.1]]), words, 4)
    assert star.best_word(0) == "red star"
    norm = (0.25 + 0.64 + 0.01 + 0.01) ** 0.5
    torch.testing.assert_close(star.margin[0, 0], torch.tensor(0.7 / norm))


def test_blocks_of_latents_change_nothing(monkeypatch):
    found = directions(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)).tolist())
    words = words_on_axes("cat", "dog", "sky", "sea")
    whole = rank_words(found, words, 3)
    monkeypatch.setattr(module, "_SCORES_AT_ONCE", 8)
    assert torch.equal(rank_words(found, words, 3).word, whole.word)


def test_what_does_not_fit_is_refused():
    words = words_on_axes("cat", "dog")
    other = ConceptDirections("direct", torch.zeros(1, 4), "another", "sae")
    with pytest.raises(ValueError, match="embedded by another model"):
        rank_words(other, words)
    with pytest.raises(ValueError, match="directions are 3 wide, but texts are 4"):
        rank_words(directions([[1.0, 2, 3]]), words)
    with pytest.raises(ValueError, match="want at least 2"):
        rank_words(directions([[1.0, 2, 3, 4]]), words_on_axes("cat"))
