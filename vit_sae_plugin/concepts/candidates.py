"""Which words fit a latent's direction, how well, and by how much better than their rivals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from vit_sae_plugin.concepts.concept_directions import ConceptDirections
from vit_sae_plugin.concepts.vocabulary import Vocabulary
from vit_sae_plugin.concepts.word_embeddings import WordEmbeddings

_SCORES_AT_ONCE = 2**24


@dataclass(frozen=True)
class Candidates:
    """The best words of each latent, the clearest first."""

    vocabulary: Vocabulary
    """The words."""
    word: Int[Tensor, "d_sae n"]
    """Place of each candidate in the vocabulary."""
    score: Float[Tensor, "d_sae n"]
    """How well it fits. By images: how far the activating images lie in the word's direction, in
    standard deviations of all images. Otherwise: the cosine."""
    margin: Float[Tensor, "d_sae n"]
    """By how much its score is above that of the best rival: the best word that is neither more
    general nor more special."""
    clearness: Float[Tensor, "d_sae n"]
    """``√(score · margin · n)``, 0 where one is negative. By images n is how many the direction
    rests on: about the number of standard errors that the match stands out by. Otherwise 1."""

    def __len__(self) -> int:
        return len(self.word)

    @property
    def n(self) -> int:
        """Candidates of each latent."""
        return self.word.shape[1]

    def best_word(self, latent: int) -> str:
        """The clearest word of a latent."""
        return self.vocabulary.words[int(self.word[latent, 0])]

    def table(self) -> pd.DataFrame:
        """A row for each latent and rank: ``word``, ``score``, ``margin``, ``clearness``."""
        index = pd.MultiIndex.from_product(
            [range(len(self)), range(1, self.n + 1)], names=["latent", "rank"]
        )
        words = np.array(self.vocabulary.words, dtype=object)
        columns = {"word": words[self.word.flatten().numpy()]}
        for name in ("score", "margin", "clearness"):
            columns[name] = getattr(self, name).flatten().numpy()
        return pd.DataFrame(columns, index=index)


@torch.no_grad()
def rank_words(
    found: ConceptDirections, words: WordEmbeddings, n_candidates: int = 5, *, n_looked_at: int = 24
) -> Candidates:
    """Compare every latent's direction with every word, a block of latents at a time.

    The word that beats its rivals most clearly comes first, not the one of the highest score. A
    general word and its special cases are no rivals: of ``red`` and ``red circle`` the general one
    leads where ``red square`` and others fit as well as ``red circle``, the special one where no
    other red thing does.

    Args:
        found: the latents' directions.
        words: the vocabulary in the same model's space.
        n_candidates: words kept for each latent.
        n_looked_at: words of the highest scores among which candidates and rivals are sought; where
            all of them are related, the lowest stands in for the rival.

    Raises:
        ValueError: the words are of another model; the widths differ; fewer than two words.
    """
    if words.model_sha256 != found.model_sha256:
        raise ValueError(
            "the words were embedded by another model than the one that the latents' directions "
            "come from; embed them with the SAE's model"
        )
    if found.directions.shape[1] != words.embeds.shape[1]:
        raise ValueError(
            f"the directions are {found.directions.shape[1]} wide, but texts are "
            f"{words.embeds.shape[1]}: this hook is not the space that images and texts share"
        )
    n_words = len(words.vocabulary)
    if n_words < 2:
        raise ValueError("the vocabulary has 1 word; want at least 2, for one to beat another")
    n_looked_at = min(n_looked_at, n_words)
    n_candidates = min(n_candidates, n_looked_at)
    targets = words.directions(centred=not found.is_point).to(found.directions)
    if found.covariance is not None:
        spread = (targets @ found.covariance.to(targets) * targets).sum(1).clamp(min=0).sqrt()
        targets = targets / spread.clamp(min=1e-6 * float(spread.max()) or 1)[:, None]
    related = _Related(words.vocabulary)
    parts = [
        _ranked(scores, related, n_candidates, n_looked_at) for scores in _scores(found, targets)
    ]
    word, score, margin = (torch.cat(part) for part in zip(*parts, strict=True))
    n = None if found.covariance is None else found.n_effective
    if n is None:  # cosines have no standard error
        n = torch.ones(len(word))
    clearness = (score.clamp(min=0) * margin.clamp(min=0) * n.to(score)[:, None]).sqrt()
    return Candidates(words.vocabulary, word, score, margin, clearness)


def _scores(
    found: ConceptDirections, targets: Float[Tensor, "n_words d_embed"]
) -> Iterator[Float[Tensor, "block n_words"]]:
    for directions in found.directions.split(max(1, _SCORES_AT_ONCE // len(targets))):
        if found.covariance is None:
            directions = functional.normalize(directions, dim=-1)
        yield directions @ targets.T


def _ranked(
    scores: Float[Tensor, "block n_words"], related: _Related, n_candidates: int, n_looked_at: int
) -> tuple[Tensor, Tensor, Tensor]:
    score, word = scores.topk(n_looked_at, dim=1)
    rivals = ~related(word)  # [block, candidate, other]
    others = score[:, None].expand(-1, n_looked_at, -1)
    best_rival = others.masked_fill(~rivals, -torch.inf).amax(-1)
    margin = score - torch.maximum(best_rival, score[:, -1:])
    # the last one looked at has no rival below it that is known
    order = margin.argsort(dim=1, descending=True, stable=True)[:, :n_candidates]
    return word.gather(1, order), score.gather(1, order), margin.gather(1, order)


class _Related:
    """Which pairs of words are the same, or one more general than the other."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._n = len(vocabulary)
        codes = {
            max(a, b) * self._n + min(a, b)
            for a, generals in enumerate(vocabulary.generalizations)
            for b in generals
        }
        self._codes = torch.tensor(sorted(codes), dtype=torch.long)

    def __call__(self, word: Int[Tensor, "block n"]) -> Bool[Tensor, "block n n"]:
        one, other = word[:, :, None], word[:, None, :]
        same = one == other
        if not len(self._codes):
            return same
        codes = torch.maximum(one, other) * self._n + torch.minimum(one, other)
        at = torch.searchsorted(self._codes, codes).clamp(max=len(self._codes) - 1)
        return same | (self._codes[at] == codes)
