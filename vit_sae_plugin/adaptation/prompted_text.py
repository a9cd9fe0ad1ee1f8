"""Learnt prompt tokens in a text tower: MaPLe's and CoOp's context in front of a class name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vit_sae_plugin.adaptation.prompts import Prompt, PromptedBlock, PromptedEmbedding
from vit_sae_plugin.hooked_vit import UnsupportedTowerError
from vit_sae_plugin.hooked_vit.text_tower import zero_shot_classifier

PLACEHOLDER = "a"
"""A word of one token in every CLIP's vocabulary; its embedding is never used."""
_TEXT_TOWERS = (
    ("token_embedding", "transformer.resblocks"),  # open_clip's CLIP
    ("text.token_embedding", "text.transformer.resblocks"),  # open_clip's CustomTextCLIP
    ("text_model.embeddings.token_embedding", "text_model.encoder.layers"),  # transformers
)
"""Where text towers keep their token embeddings and their blocks."""


@dataclass(frozen=True)
class TextParts:
    """Where a model keeps the parts of its text tower that prompts go into."""

    token_embedding: str
    blocks: str

    def width(self, module: nn.Module) -> int:
        """Width of a token embedding."""
        weight: Any = module.get_submodule(self.token_embedding).weight
        return int(weight.shape[1])

    def n_layers(self, module: nn.Module) -> int:
        """Number of the text tower's blocks."""
        return len(list(module.get_submodule(self.blocks).children()))


def text_parts(module: nn.Module) -> TextParts:
    """Where a model keeps the parts of its text tower.

    Raises:
        UnsupportedTowerError: it has none, or one of another kind.
    """
    for paths in _TEXT_TOWERS:
        try:
            for path in paths:
                module.get_submodule(path)
        except AttributeError:
            continue
        return TextParts(*paths)
    raise UnsupportedTowerError(
        f"text prompts can't be put into a {type(module).__name__}: it has no text tower as CLIP's "
        "(token embeddings, then blocks); want an open_clip or transformers CLIP"
    )


class PromptedTokenizer:
    """A tokenizer that puts each text behind words which learnt prompt tokens stand in for.

    So ``model.encode_text(texts)`` is the learnt prompt with the text where class names go.

    Args:
        tokenizer: from texts to ids, or to a mapping that holds them as ``"input_ids"``.
        template: a text with ``{}``.
    """

    def __init__(self, tokenizer: Callable, template: str) -> None:
        self.tokenizer = tokenizer
        self.template = template

    def __call__(self, texts: str | Sequence[str], *args: Any, **kwargs: Any) -> Any:
        """What the tokenizer gives for the texts in the template."""
        texts = [texts] if isinstance(texts, str) else texts
        prompts = [self.template.replace("{}", text.replace("_", " ")) for text in texts]
        return self.tokenizer(prompts, *args, **kwargs)


class LearntTextHead:
    """Classifies by learnt text prompts: a ``ClassHead`` for a model with a `PromptedTokenizer`."""

    def class_weights(
        self, encode_text: Callable[[list[str]], Tensor], class_names: Sequence[str]
    ) -> Tensor:
        """The unit-length text embedding of each class name in the learnt prompt."""
        return zero_shot_classifier(encode_text, class_names, ("{}",))


def insert_text_prompts(
    module: nn.Module, parts: TextParts, prompts: Sequence[Prompt], first: int
) -> None:
    """Put learnt tokens in the place of the first words of every text.

    Args:
        module: the model; changed in place.
        parts: where it keeps its text tower.
        prompts: those that enter with the embeddings, then those of block 1, 2, …
        first: the position of the first of them.
    """
    parent, _, name = parts.token_embedding.rpartition(".")
    table = module.get_submodule(parts.token_embedding)
    setattr(module.get_submodule(parent), name, PromptedEmbedding(table, prompts[0], first))
    blocks = module.get_submodule(parts.blocks)
    for child, following in zip(list(blocks._modules), prompts[1:], strict=False):
        blocks._modules[child] = PromptedBlock(blocks.get_submodule(child), following, first)


def prompt_template(text_init: str | None, n_prompts: int) -> str:
    """The text around a class name whose first words the learnt tokens stand in for."""
    words = (text_init or "").split()
    if len(words) < n_prompts:
        words = [PLACEHOLDER] * n_prompts
    return f"{' '.join(words)} {{}}."


def first_prompt_rows(
    module: nn.Module,
    parts: TextParts,
    tokenizer: Callable,
    text_init: str | None,
    n_prompts: int,
    generator: torch.Generator,
) -> Tensor:
    """The first values of the learnt tokens: the embeddings of the words whose place they take, or
    random ones (of standard deviation .02) where there are fewer words."""
    table: Any = module.get_submodule(parts.token_embedding)
    if len((text_init or "").split()) < n_prompts:
        return 0.02 * torch.randn(n_prompts, table.weight.shape[1], generator=generator)
    first = first_text_position(tokenizer)
    ids = ids_of(tokenizer, [prompt_template(text_init, n_prompts).replace("{}", PLACEHOLDER)])
    chosen = ids[0, first : first + n_prompts].to(table.weight.device)
    return table.weight[chosen].detach().clone()


def first_text_position(tokenizer: Callable) -> int:
    """Where a text's first token stands: 1 behind a start token, else 0."""
    return _first_difference(tokenizer, "a", "of")


def check_prompt_fits(tokenizer: Callable, template: str, n_prompts: int) -> None:
    """Check that the words in front of ``{}`` are enough tokens for the learnt ones to replace.

    Raises:
        ValueError: they are not.
    """
    before = template.partition("{}")[0]
    n_before = _first_difference(tokenizer, f"{before}a", f"{before}of") - first_text_position(
        tokenizer
    )
    if n_before < n_prompts:
        raise ValueError(
            f"the template {template!r} has {n_before} tokens in front of the class name; want at "
            f"least n_prompts={n_prompts}"
        )


def _first_difference(tokenizer: Callable, one: str, other: str) -> int:
    ids = ids_of(tokenizer, [one, other])
    differs = (ids[0] != ids[1]).nonzero()
    if len(differs) == 0:
        raise ValueError(
            f"the tokenizer gives {one!r} and {other!r} the same tokens: its texts are too short "
            "for so many prompt tokens, or it isn't this model's tokenizer"
        )
    return int(differs[0])


def ids_of(tokenizer: Callable, texts: list[str]) -> Tensor:
    """Token ids ``[text, token]``, whatever a tokenizer returns."""
    tokens = tokenizer(texts)
    return tokens if isinstance(tokens, Tensor) else tokens["input_ids"]
