"""Classifiers of a model's output: zero-shot by class names, or a linear probe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vit_sae_plugin.activations import ImageWalk
from vit_sae_plugin.datasets import open_images
from vit_sae_plugin.evaluation.linear_probe import fit_linear_probe
from vit_sae_plugin.evaluation.masking import Head
from vit_sae_plugin.prompt_templates import Template, named_templates

if TYPE_CHECKING:
    from vit_sae_plugin.datasets import ImageSource
    from vit_sae_plugin.hooked_vit import HookedViT


def zero_shot_head(
    model: HookedViT,
    class_names: Sequence[str],
    templates: str | Path | Sequence[Template] | None = None,
    *,
    renormalize_average: bool = True,
    images: ImageSource | None = None,
) -> Head:
    """A zero-shot classifier as a function from embeddings to cosines ``[n, n_classes]``.

    Args:
        model: with a text tower.
        class_names: label index → name.
        templates: as `named_templates` takes them.
        renormalize_average: scale each class's average over templates to length 1.
        images: whose own templates ``"own"`` are.

    Raises:
        ValueError: the model has no text tower or tokenizer.
    """
    if model.tower.text_method is None or model.tokenizer is None:
        lacking = "text tower" if model.tower.text_method is None else "tokenizer"
        raise ValueError(
            f"{model.model_name} has no {lacking}, so it can't classify by class names; pass "
            "head=fit_linear_probe(embeddings, labels)"
        )
    classifier = model.zero_shot_classifier(
        list(class_names),
        named_templates(templates, model.model_name, images),
        renormalize_average=renormalize_average,
    )

    def head(embeds: Tensor) -> Tensor:
        return torch.nn.functional.normalize(embeds, dim=-1) @ classifier.to(embeds)

    return head


@torch.no_grad()
def linear_probe_head(
    model: HookedViT,
    images: Any,
    scored: ImageSource | None = None,
    *,
    batch_size_images: int = 64,
    n_workers: int = 0,
    progress: bool = True,
) -> Head:
    """A linear probe on the model's output, for models without a text tower.

    Args:
        model: any hooked model.
        images: labelled images to fit it on, as ``open_images`` takes them.
        scored: images that are to be scored by it, whose classes it must know.
        batch_size_images, n_workers, progress: of the walk.

    Raises:
        ValueError: no labels, or not the classes of the images to be scored.
    """
    images = open_images(images)
    names = list(images.class_names or ())
    if scored is not None and names != list(scored.class_names or ()):
        raise ValueError(
            f"the probe's images, {images.name}, have {len(names)} classes and {scored.name} "
            f"{len(scored.class_names or ())}; want the same classes in the same order"
        )
    walk = ImageWalk(
        model,
        images,
        batch_size_images=batch_size_images,
        n_workers=n_workers,
        progress=progress,
        description="fitting a probe",
    )
    outputs, labels = [], []
    for batch in walk:
        labelled = batch.label >= 0
        outputs.append(model(batch.pixels).float().cpu()[labelled])
        labels.append(batch.label[labelled])
    if not any(map(len, labels)):
        raise ValueError(f"no image of {images.name} has a label; want some to fit a probe on")
    return fit_linear_probe(torch.cat(outputs), torch.cat(labels), n_classes=len(names))
