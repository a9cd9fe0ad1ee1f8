"""Class weights from class names and prompt templates."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


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
            f"zero_shot_classifier needs a list of at least one class name and one template; got "
            f"{class_names!r} and {templates!r}."
        )
    for template in templates:
        if isinstance(template, str) and "{}" not in template:
            raise ValueError(f"Template {template!r} has no '{{}}' to put the class name in.")
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
