"""``compare_models``: what adaptation changes in a model, in the latents of one SAE."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vit_sae_plugin.analysis.remapping.class_levels import count_class_levels
from vit_sae_plugin.analysis.remapping.comparison import ModelComparison
from vit_sae_plugin.analysis.remapping.latent_changes import HIGH, KS, LOW, check_bounds
from vit_sae_plugin.attached_sae.attached_pair import AttachedPair
from vit_sae_plugin.datasets import ImageSource, open_images
from vit_sae_plugin.datasets.subsets import SelectedImages
from vit_sae_plugin.evaluation.classifier_heads import zero_shot_head
from vit_sae_plugin.evaluation.masking import Head
from vit_sae_plugin.evaluation.remapping import LatentSets, RemappingResult, RemappingStudy
from vit_sae_plugin.fingerprints import model_fingerprint, sae_fingerprint
from vit_sae_plugin.prompt_templates import Template

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.activations import ActivationSource
    from vit_sae_plugin.hooked_vit import HookedViT


def compare_models(
    plain: HookedViT,
    adapted: HookedViT,
    sae: SAE[Any],
    images: Any,
    *,
    ranking: Any = None,
    n_images: int | None = None,
    class_names: Sequence[str] | None = None,
    templates: str | Path | Sequence[Template] | None = None,
    heads: tuple[Head, Head] | None = None,
    ks: Sequence[int] = KS,
    low: float = LOW,
    high: float = HIGH,
    threshold: float | None = None,
    n_draws: int = 3,
    source: ActivationSource | None = None,
    batch_size_images: int = 16,
    n_workers: int = 0,
    seed: int = 0,
    progress: bool = False,
) -> ModelComparison:
    """What adaptation changes: which latents rise or fall, and how much of the gain hangs on them.

    One SAE, trained on the plain model, reads both on the same images. Tokens are matched by what
    they are; prompts that one model has are left alone. Two passes: over ``ranking``, to see which
    latents of each class stay high, rise or fall; and over ``images``, to run them with latents
    exchanged between the models.

    Args:
        plain: the model that the SAE was trained on.
        adapted: the model after adaptation, of the same family and sizes.
        sae: any SAELens SAE.
        images: labelled images to score, as ``open_images`` takes them.
        ranking: other labelled images of the same classes to find latents on. None: ``images`` are
            divided, every other image of each class to find latents on and the rest to score.
        n_images: how many to score, a sample fixed by ``seed``. None: all.
        class_names: label index → name. Default: the source's.
        templates: prompts of the zero-shot heads, as ``evaluate_sae`` takes them. An adapted model
            that learnt its own uses those.
        heads: classifiers of the plain and of the adapted model's output, for models without text.
        ks: how many of a class's first latents are compared.
        low, high: bounds of ``classify_changes``, as shares of a class's images.
        threshold: τ, above which a latent is active in a token. Default: on the SAE's scale, see
            ``count_class_levels``.
        n_draws: sets of random latents for each change, as controls.
        source: hook and tokens, for an SAE whose metadata don't name them.
        batch_size_images: images that go through the lower blocks together.
        n_workers: processes that decode images.
        seed: of the sample and of random latents.
        progress: show progress bars.

    Raises:
        ValueError: the models, the SAE or the classes don't fit each other; a class has no image;
            latents would be found and scored on the same images.
    """
    check_bounds(low, high)
    images = open_images(images)
    pair = AttachedPair(plain, adapted, sae, source)
    ranking, images = _split(images) if ranking is None else (open_images(ranking), images)
    names = _class_names(images, ranking, class_names)
    if heads is None:
        heads = (
            zero_shot_head(plain, names, templates),
            zero_shot_head(adapted, names, templates),
        )
    levels = count_class_levels(
        pair,
        ranking,
        len(names),
        threshold=threshold,
        batch_size_images=batch_size_images,
        n_workers=n_workers,
        progress=progress,
    )
    _check_every_class(levels.n_images.sum(0), names, ranking)
    frequency = levels.frequency()
    sets = LatentSets(
        risen=(frequency[0] < low) & (frequency[1] >= high),
        used=frequency[0] >= low,
        frequency=frequency[1],
    )
    study = RemappingStudy(pair, sets, heads, n_draws=n_draws, seed=seed)
    settings = {
        "images": images.name,
        "images_sha256": images.fingerprint(),
        "ranking": ranking.name,
        "ranking_sha256": ranking.fingerprint(),
        "plain": plain.model_name,
        "plain_sha256": model_fingerprint(plain),
        "adapted": adapted.model_name,
        "adapted_sha256": model_fingerprint(adapted),
        "sae_sha256": sae_fingerprint(sae),
        "hook_name": pair.plain.source.hook_name,
        "threshold": levels.threshold,
        "low": low,
        "high": high,
        "n_draws": n_draws,
        "seed": seed,
    }
    effects = _score(pair, study, images, n_images, batch_size_images, n_workers, seed, progress)
    comparison = ModelComparison(
        pair, images, levels, effects, names, low, high, tuple(ks), settings
    )
    for note in comparison.notes:
        warnings.warn(note, stacklevel=2)
    return comparison


def _score(
    pair: AttachedPair,
    study: RemappingStudy,
    images: ImageSource,
    n_images: int | None,
    batch_size_images: int,
    n_workers: int,
    seed: int,
    progress: bool,
) -> RemappingResult:
    walk = pair.plain.walk(
        images,
        batch_size_images=batch_size_images,
        n_images=n_images,
        shuffle=True,
        seed=seed,
        n_workers=n_workers,
        progress=progress,
        description="exchanging latents",
    )
    correct, label, index, changes = [], [], [], []
    for batch in walk:
        labelled = batch.label >= 0
        if not labelled.any():
            continue
        right, moved = study.run(batch.pixels[labelled], batch.label[labelled])
        correct.append(right)
        changes.append(moved)
        label.append(batch.label[labelled])
        index.append(batch.index[labelled])
    if not label:
        raise ValueError(f"{images.name} has no labelled image that can be read; want some")
    return RemappingResult(
        study.conditions,
        np.concatenate(correct),
        torch.cat(label).numpy(),
        torch.cat(index).numpy(),
        changes,
    )


def _split(images: ImageSource) -> tuple[ImageSource, ImageSource]:
    """Every other image of each class, and the others."""
    if images.n_images is None or images.is_streaming:
        raise ValueError(
            f"{images.name} is a stream, which can't be divided; pass ranking=, other images to "
            "find latents on"
        )
    labels = images.labels()
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    place = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    halves = [np.sort(order[(place % 2 == half) & (ordered >= 0)]) for half in (0, 1)]
    named = zip(halves, ("ranking", "scored"), strict=True)
    first, second = (
        SelectedImages(images, some, name=f"{images.name}-{end}") for some, end in named
    )
    return first, second


def _class_names(
    images: ImageSource, ranking: ImageSource, class_names: Sequence[str] | None
) -> list[str]:
    """The names, if both sources have these classes with images, and are not the same images."""
    for source in (images, ranking):
        if not source.class_names:
            raise ValueError(
                f"{source.name} has no labels; want labelled images, whose classes are compared"
            )
    n_classes = len(images.class_names or ())
    names = list(class_names if class_names is not None else images.class_names or ())
    if len(names) != n_classes:
        raise ValueError(
            f"class_names has {len(names)} names; want {n_classes}, one for each label of "
            f"{images.name}"
        )
    if len(ranking.class_names or ()) != n_classes:
        raise ValueError(
            f"{ranking.name} has {len(ranking.class_names or ())} classes, but {images.name} has "
            f"{n_classes}; want the same classes in the same order"
        )
    if images.fingerprint() == ranking.fingerprint():
        raise ValueError(
            f"latents would be found and scored on the same images, {images.name}, which flatters "
            "them; want two splits, or leave ranking= out to divide the images"
        )
    for source in (images, ranking):
        if source.n_images is not None and not source.is_streaming:
            _check_every_class(_n_images(source, n_classes), names, source)
    return names


def _n_images(source: ImageSource, n_classes: int) -> np.ndarray:
    labels = source.labels()
    if len(labels) and labels.max() >= n_classes:
        raise ValueError(
            f"{source.name} has labels up to {labels.max()}; want them below {n_classes}, the "
            "number of class names"
        )
    return np.bincount(labels[labels >= 0], minlength=n_classes)


def _check_every_class(n_images: np.ndarray, names: Sequence[str], source: ImageSource) -> None:
    if missing := [names[int(at)] for at in np.flatnonzero(n_images == 0)]:
        raise ValueError(
            f"{len(missing)} classes have no image in {source.name}, among them {missing[0]!r}; "
            "want images of every class"
        )
