"""How often a model names the class: of all images, and of base and novel classes apart."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from tqdm.auto import tqdm

from vit_sae_plugin.datasets import ImageLoader, ImageSource
from vit_sae_plugin.datasets.subsets import of_classes
from vit_sae_plugin.hooked_vit import HookedViT
from vit_sae_plugin.prompt_templates import named_templates


@torch.no_grad()
def class_accuracy(
    model: HookedViT,
    images: ImageSource,
    templates: str | Sequence[str] | None = None,
    *,
    batch_size_images: int = 100,
    n_workers: int = 0,
    progress: bool = False,
) -> float:
    """The share of labelled images whose class has the largest cosine, among all their classes.

    Args:
        model: a CLIP, adapted or not.
        images: a source with class names.
        templates: of a model that isn't adapted (an adapted one has its own): as for
            ``named_templates``; None: those that the images' authors use, or else those in the
            words that the model was trained on.
        batch_size_images: images that go through the model together.
        n_workers: processes that decode images.
        progress: show a bar.

    Raises:
        ValueError: the images have no class names or no labels, or the model knows others.
    """
    if not images.class_names:
        raise ValueError(f"{images.name} has no class names; want a source that has")
    chosen = templates if templates is not None else (list(images.templates) or None)
    weights = model.zero_shot_classifier(
        images.class_names, named_templates(chosen, model.model_name)
    )
    loader = ImageLoader(
        images,
        model.require_preprocess(),
        batch_size_images=batch_size_images,
        n_workers=n_workers,
    )
    n_images = n_correct = 0
    for batch in tqdm(loader, desc="accuracy", total=loader.n_batches, disable=not progress):
        embeds = model.encode_image(batch.pixels.to(model.cfg.device), normalize=True)
        answers = (embeds @ weights.to(embeds)).argmax(dim=1).cpu()
        labelled = batch.label >= 0
        n_images += int(labelled.sum())
        n_correct += int((answers == batch.label)[labelled].sum())
    if n_images == 0:
        raise ValueError(f"no image of {images.name} has a label; want labelled images")
    return n_correct / n_images


def accuracy_of_halves(
    model: HookedViT,
    images: ImageSource,
    templates: str | Sequence[str] | None = None,
    *,
    n_workers: int = 0,
    progress: bool = False,
) -> pd.Series:
    """Base-to-novel accuracy: each half among its own classes, and the harmonic mean of both.

    As in CoCoOp (Zhou et al. 2022) and MaPLe. A linear probe knows no novel classes: its ``novel``
    and ``harmonic_mean`` are NaN.

    Args:
        model, images, templates, n_workers, progress: as for ``class_accuracy``.

    Returns:
        ``base``, ``novel`` and ``harmonic_mean``.
    """
    found: dict[str, float] = {}
    for half in ("base", "novel"):
        half_images = of_classes(images, half)
        known = getattr(getattr(model.bare_model, "class_head", None), "class_names", None)
        if known is not None and not set(half_images.class_names or ()) <= set(known):
            found[half] = float("nan")
            continue
        found[half] = class_accuracy(
            model, half_images, templates, n_workers=n_workers, progress=progress
        )
    base, novel = found["base"], found["novel"]
    mean = 2 * base * novel / (base + novel) if base + novel else 0.0
    return pd.Series({**found, "harmonic_mean": mean}, dtype=float)
