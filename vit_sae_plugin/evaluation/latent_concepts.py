"""The other way round than ``localize``: for each latent, the concept that it finds best."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from vit_sae_plugin.attached_sae import AttachedSAE
from vit_sae_plugin.datasets import open_images
from vit_sae_plugin.evaluation.concept_masks import ConceptMasks, masks_of
from vit_sae_plugin.evaluation.features import Criterion
from vit_sae_plugin.evaluation.localization import collect_halves

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.activations import ActivationSource
    from vit_sae_plugin.hooked_vit import HookedViT


@torch.no_grad()
def latent_concepts(
    model: HookedViT,
    sae: SAE[Any],
    images: Any,
    *,
    concept_masks: ConceptMasks | None = None,
    n_images: int | None = None,
    batch_size_images: int = 64,
    min_coverage: float = 0.5,
    min_positive_patches: int = 10,
    source: ActivationSource | None = None,
    n_workers: int = 0,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """For each latent the concept whose patches it ranks first, and how surely it is that one.

    A concept's score is its average precision less chance, ``(AP − p) / (1 − p)`` with p the share
    of patches that show it, as the mean over two halves of the images. Without that, the commonest
    concept would win for every latent that is about none.

    Args:
        model, sae, images, concept_masks, n_images, batch_size_images, min_coverage,
        min_positive_patches, source, n_workers, seed, progress: as `localize` takes them.

    Returns:
        A row for each latent (``latent``): ``kind`` and ``concept``, missing for one that fires on
        no patch; ``above_chance``: that score; ``average_precision``, its mean over the halves;
        ``n_active_patches``; ``is_same_in_halves``: whether each half alone gives that concept.

    Raises:
        ValueError: as `localize`.
    """
    images = open_images(images)
    attached = AttachedSAE(model, sae, source)
    walk = attached.walk(
        images,
        batch_size_images=batch_size_images,
        n_images=n_images,
        shuffle=True,
        seed=seed,
        n_workers=n_workers,
        progress=progress,
    )
    halves = collect_halves(attached, walk, masks_of(images, concept_masks), min_coverage)
    positives = [half.concepts.positives() for half in halves]
    concepts = [
        concept
        for concept in positives[0]
        if min(len(half.get(concept, ())) for half in positives) >= min_positive_patches
    ]
    if not concepts:
        raise ValueError(
            f"no concept has {min_positive_patches} patches in both halves of {walk.n_seen} "
            "images; use more images"
        )
    precise, above = [], []
    for half, shown in zip(halves, positives, strict=True):
        scores = half.latents.scores([shown[concept] for concept in concepts], _CRITERIA)
        chance = torch.tensor([len(shown[concept]) for concept in concepts]) / half.latents.n
        precise.append(scores["average_precision"])
        above.append((precise[-1] - chance) / (1 - chance))
    mean = (above[0] + above[1]) / 2
    best = mean.argmax(1)
    n_active = halves[0].latents.n_active() + halves[1].latents.n_active()
    fires = (n_active > 0).numpy()

    def of_best(values: torch.Tensor) -> np.ndarray:
        return np.where(fires, values.gather(1, best[:, None])[:, 0].numpy(), np.nan)

    same = above[0].argmax(1).eq(best) & above[1].argmax(1).eq(best)
    chosen = [concepts[at] if fires[i] else (None, None) for i, at in enumerate(best.tolist())]
    return pd.DataFrame(
        {
            "kind": [kind for kind, _ in chosen],
            "concept": [name for _, name in chosen],
            "above_chance": of_best(mean),
            "average_precision": of_best((precise[0] + precise[1]) / 2),
            "n_active_patches": n_active.numpy(),
            "is_same_in_halves": same.numpy() & fires,
        },
        index=pd.RangeIndex(attached.d_sae, name="latent"),
    )


_CRITERIA: tuple[Criterion, ...] = ("average_precision",)
