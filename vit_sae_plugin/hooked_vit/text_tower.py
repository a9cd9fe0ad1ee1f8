"""The text side of a two-tower model: text embeddings, zero-shot classes, the scale of logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from vit_sae_plugin.hooked_vit.model_output import field_of
from vit_sae_plugin.hooked_vit.tower_description import TowerDescription


class ClassHead(Protocol):
    """What an adapted model classifies with, in place of text prompts from outside."""

    def class_weights(
        self, encode_text: Callable[[list[str]], Tensor], class_names: Sequence[str]
    ) -> Float[Tensor, "d_embed n_classes"]:
        """One column a class, to be multiplied with image embeddings of unit length.

        Raises:
            ValueError: it knows no class of such a name.
        """
        ...


class TextTower:
    """The methods of ``HookedViT`` for models with a text tower."""

    bare_model: nn.Module
    cfg: Any
    model_name: str
    tokenizer: Callable | None
    tower: TowerDescription

    def encode_text(
        self, text: Sequence[str] | Int[Tensor, "batch token"] | Any, normalize: bool = False
    ) -> Float[Tensor, "batch d_embed"]:
        """Text embeddings, comparable with ``encode_image``'s.

        Args:
            text: texts (tokenized with ``model.tokenizer``), or what the tokenizer returns.
            normalize: divide each embedding by its length.

        Raises:
            ValueError: the model has no text tower, or texts were given and it has no tokenizer.
        """
        if self.tower.text_method is None:
            raise ValueError(
                f"{self.model_name!r} ({self.tower.family}) has no text tower; want a model with "
                "one, such as an open_clip CLIP, for encode_text and zero-shot classification"
            )
        if isinstance(text, str):
            text = [text]
        if isinstance(text, Sequence):
            if self.tokenizer is None:
                raise ValueError(
                    "this model has no tokenizer; want token ids, or tokenizer= of from_module"
                )
            text = self.tokenizer(list(text))
        method = getattr(self.bare_model, self.tower.text_method)
        device = self.cfg.device
        if isinstance(text, Tensor):
            output = method(text.to(device), **self.tower.method_arguments)
        else:
            tokens = {key: value.to(device) for key, value in text.items()}
            output = method(**tokens, **self.tower.method_arguments)
        embeds = field_of(output, self.tower.text_output)
        return functional.normalize(embeds, dim=-1) if normalize else embeds

    def zero_shot_classifier(
        self,
        class_names: Sequence[str],
        templates: Sequence[str | Callable[[str], str]],
        *,
        renormalize_average: bool = True,
    ) -> Float[Tensor, "d_embed n_classes"]:
        """Class weights for zero-shot classification; see ``zero_shot_classifier``.

        A model that was adapted to a task brings what it classifies with: prompts that it learnt,
        the templates that it was trained beside, or a classifier (``bare_model.class_head``).
        Then ``templates`` and ``renormalize_average`` are not used.
        """
        own: ClassHead | None = getattr(self.bare_model, "class_head", None)
        if own is not None:
            return own.class_weights(self.encode_text, class_names)
        return zero_shot_classifier(
            self.encode_text, class_names, templates, renormalize_average=renormalize_average
        )

    @property
    def logit_scale(self) -> Float[Tensor, ""] | None:
        """The factor on cosine similarities, e.g. 100: the **exponential** of the parameter of the
        same name. None for a model without one."""
        log_scale = getattr(self.bare_model, "logit_scale", None)
        return None if log_scale is None else log_scale.exp().reshape(())

    @property
    def logit_bias(self) -> Float[Tensor, ""] | None:
        """What SigLIP adds to its logits; None for a model without one."""
        bias = getattr(self.bare_model, "logit_bias", None)
        return None if bias is None else bias.reshape(())


@torch.no_grad()
def zero_shot_classifier(
    encode_text: Callable[[list[str]], Tensor],
    class_names: Sequence[str],
    templates: Sequence[str | Callable[[str], str]],
    batch_size_texts: int = 256,
    renormalize_average: bool = True,
) -> Float[Tensor, "d_embed n_classes"]:
    """One unit-length text direction for each class, averaged over prompt templates.

    Each template's embedding is normalised, they are averaged, and the average is normalised
    again (Radford et al., *Learning Transferable Visual Models*, arXiv 2103.00020, section 3.1.4).
    Classes are told apart by position, so two of them may have the same name.

    Args:
        encode_text: from texts to embeddings ``[batch, d_embed]``.
        class_names: one name for each class.
        templates: texts with ``{}`` where the name goes, or functions from name to text.
        batch_size_texts: prompts encoded at a time.
        renormalize_average: scale each class's average to length 1. False leaves it shorter the
            more its templates differ, as some published code does.

    Returns:
        ``[d_embed, n_classes]``; image embeddings times it are cosine similarities, once the
        image embeddings have unit length.

    Raises:
        ValueError: no class, no template, or a template without ``{}``.
    """
    if (
        not class_names
        or not templates
        or isinstance(class_names, str)
        or isinstance(templates, str)
    ):
        raise ValueError(
            f"class_names is {class_names!r} and templates {templates!r}; want a list of at least "
            "one class name, and of one template"
        )
    for template in templates:
        if isinstance(template, str) and "{}" not in template:
            raise ValueError(f"template is {template!r}; want a '{{}}' in it, for the class name")
    prompts = [_fill(template, name) for name in class_names for template in templates]
    embeds = torch.cat(
        [
            functional.normalize(encode_text(prompts[start : start + batch_size_texts]), dim=-1)
            for start in range(0, len(prompts), batch_size_texts)
        ]
    )
    average = embeds.view(len(class_names), len(templates), -1).mean(dim=1)
    return (functional.normalize(average, dim=-1) if renormalize_average else average).T


def _fill(template: str | Callable[[str], str], name: str) -> str:
    return template(name) if callable(template) else template.replace("{}", name)
