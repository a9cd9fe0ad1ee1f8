"""Text embeddings of a vocabulary, kept on disk for the next time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

from vit_sae_plugin.atomic_files import write_file_atomically
from vit_sae_plugin.concepts.vocabulary import Vocabulary
from vit_sae_plugin.fingerprints import known_model_fingerprint, short
from vit_sae_plugin.prompt_templates import Template, named_templates

if TYPE_CHECKING:
    from vit_sae_plugin.hooked_vit import HookedViT

WORD_TEMPLATES = ("{}", "a photo of {}", "a photo of a {}")
"""Prompts for words of any kind, of which some are no things: OpenAI's 80 speak of objects, and
make a vocabulary of 20,000 words 1.6 million prompts."""
_PROMPTS_AT_ONCE = 256


@dataclass(frozen=True)
class WordEmbeddings:
    """A vocabulary in a model's joint embedding space."""

    vocabulary: Vocabulary
    """The words."""
    embeds: Float[Tensor, "n_words d_embed"]
    """One embedding a word, of length 1: the mean over templates, normalised before and after."""
    model_sha256: str
    """Hash of the model."""

    @property
    def words(self) -> tuple[str, ...]:
        return self.vocabulary.words

    def directions(self, centred: bool = True) -> Float[Tensor, "n_words d_embed"]:
        """What images change along where a word holds, of length 1.

        Texts and images lie in different parts of a CLIP's space, so the words' mean is taken away:
        what all texts share says nothing about a word. And a general word means what its special
        cases share: the direction of ``red`` is the mean over ``red`` and all phrases with it,
        which captions use more than the bare word.

        Args:
            centred: take the mean away. A vocabulary of one word has none to take away.
        """
        total, n = self.embeds.clone(), torch.ones(len(self.embeds), 1)
        pairs = [
            (general, special)
            for special, generals in enumerate(self.vocabulary.generalizations)
            for general in generals
        ]
        if pairs:
            general, special = torch.tensor(pairs).T
            total.index_add_(0, general, self.embeds[special])
            n.index_add_(0, general, torch.ones(len(pairs), 1))
        directions = total / n
        if centred and len(directions) > 1:
            directions = directions - self.embeds.mean(0)
        return functional.normalize(directions, dim=-1)


@torch.no_grad()
def embed_words(
    model: HookedViT,
    vocabulary: Vocabulary,
    templates: str | Path | Sequence[Template] | None = None,
    *,
    cache: str | Path | None = None,
    progress: bool = False,
) -> WordEmbeddings:
    """Embed each word by the model's text tower, in prompt templates.

    Args:
        model: a model with a text tower and a tokenizer.
        vocabulary: the words.
        templates: as `named_templates` takes them; None: ``WORD_TEMPLATES``, or for
            ``shapes-clip`` those in the words that it knows.
        cache: a folder that keeps embeddings, by hashes of the model and of all prompts. None:
            they are not kept.
        progress: show a progress bar.

    Raises:
        ValueError: the model has no text tower or tokenizer; a prompt is longer than the model
            reads; or two words are the same to its tokenizer.
    """
    _require_text(model)
    if templates is None:
        templates = "shapes" if model.model_name == "shapes-clip" else WORD_TEMPLATES
    chosen = named_templates(templates)
    prompts = [[_fill(template, word) for template in chosen] for word in vocabulary.words]
    model_sha256 = known_model_fingerprint(model)
    path = None if cache is None else _cache_path(Path(cache), model_sha256, prompts)
    found = None if path is None else _read(path, len(vocabulary))
    if found is None:
        found = _embed(model, vocabulary, prompts, progress)
        if path is not None:
            kept = {"embeds": found}
            about = {"model_sha256": model_sha256, "vocabulary": vocabulary.name}
            write_file_atomically(path, lambda aside: save_file(kept, aside, metadata=about))
    return WordEmbeddings(vocabulary, found, model_sha256)


def _require_text(model: HookedViT) -> None:
    for there, what in ((model.tower.text_method, "text tower"), (model.tokenizer, "tokenizer")):
        if there is None:
            raise ValueError(
                f"{model.model_name} has no {what}, so words can't be embedded; naming and search "
                "by words need a CLIP with both, such as ViT-B-16"
            )


def _fill(template: Template, word: str) -> str:
    return template(word) if callable(template) else template.replace("{}", word)


def _cache_path(folder: Path, model_sha256: str, prompts: list[list[str]]) -> Path:
    digest = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()
    return folder / f"words-{short(model_sha256)}-{digest[:16]}.safetensors"


def _read(path: Path, n_words: int) -> Tensor | None:
    """What was kept; None where there is nothing, or where it is damaged and is made anew."""
    try:
        with safe_open(path, "pt") as file:
            embeds = file.get_tensor("embeds")
    except (SafetensorError, OSError):
        return None
    return embeds if len(embeds) == n_words and bool(embeds.isfinite().all()) else None


def _embed(
    model: HookedViT, vocabulary: Vocabulary, prompts: list[list[str]], progress: bool
) -> Tensor:
    tokenizer: Any = model.tokenizer
    check = _PromptCheck(tokenizer, vocabulary.name)
    found: list[Tensor] = []
    step = max(1, _PROMPTS_AT_ONCE // len(prompts[0]))
    with tqdm(total=len(prompts), desc="words", unit=" words", disable=not progress) as bar:
        for start in range(0, len(prompts), step):
            words = vocabulary.words[start : start + step]
            texts = [text for of_word in prompts[start : start + step] for text in of_word]
            tokens = tokenizer(texts)
            check(words, texts, tokens)
            embeds = functional.normalize(model.encode_text(tokens).float(), dim=-1)
            mean = embeds.view(len(words), -1, embeds.shape[-1]).mean(1)
            found.append(functional.normalize(mean, dim=-1).cpu())
            bar.update(len(words))
    return torch.cat(found)


class _PromptCheck:
    """Whether a tokenizer takes in all of each prompt, and tells the words apart.

    Tokenizers cut long texts off and read words that they don't know as one and the same, without
    a word about either.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        self._tokenizer, self._name = tokenizer, name
        self._padding = int(_ids(tokenizer([""]))[0, -1])
        self._word_of: dict[bytes, str] = {}

    def __call__(self, words: Sequence[str], texts: Sequence[str], tokens: Any) -> None:
        ids = _ids(tokens)
        n_templates = len(texts) // len(words)
        # the last id but one, for padding may be the id that ends a text
        for at in (ids[:, -2] != self._padding).nonzero().flatten().tolist():
            longer = _ids(self._tokenizer([texts[at], f"{texts[at]} a a"]))
            if torch.equal(longer[0], longer[1]):
                raise ValueError(
                    f"{self._name}: {words[at // n_templates]!r} in the prompt {texts[at]!r} is "
                    f"longer than the {ids.shape[1]} tokens that the model reads; want a shorter "
                    "word or template"
                )
        for word, row in zip(words, ids[::n_templates], strict=True):
            same = self._word_of.setdefault(_without_padding(row, self._padding), word)
            if same != word:
                raise ValueError(
                    f"{self._name}: {same!r} and {word!r} are the same to the model's tokenizer, "
                    "which doesn't tell them apart or knows neither; want words that it knows"
                )


def _ids(tokens: Any) -> Tensor:
    return tokens if isinstance(tokens, Tensor) else tokens["input_ids"]


def _without_padding(row: Tensor, padding: int) -> bytes:
    kept = (row != padding).nonzero().flatten()
    return row[: int(kept[-1]) + 1 if len(kept) else 0].numpy().tobytes()
