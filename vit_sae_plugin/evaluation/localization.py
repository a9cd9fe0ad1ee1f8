"""Do latents find the right thing? Scored against masks, beside simple baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from vit_sae_plugin.activations.activation_source import ActivationSource
from vit_sae_plugin.evaluation.concept_masks import (
    Concept,
    ConceptMasks,
    ConceptPatches,
    PatchCoverage,
    scene_concept_masks,
)
from vit_sae_plugin.evaluation.evaluation_report import EvaluationReport
from vit_sae_plugin.evaluation.features import (
    Features,
    LinearFeatures,
    SparseFeatures,
    principal_directions,
    random_directions,
    random_latents,
)
from vit_sae_plugin.evaluation.image_activations import ImageActivations
from vit_sae_plugin.evaluation.model_space import ModelSpaceSAE
from vit_sae_plugin.evaluation.ranking import Ranks, best_iou_threshold, iou, pointing_game

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.datasets import ImageSource
    from vit_sae_plugin.hooked_vit import HookedViT

Baseline = Literal["pre_activations", "neurons", "pca", "random", "random_latents"]
Criterion = Literal["average_precision", "auroc"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
_LINEAR = ("none", "expected_average_only_in")
"""Normalisations under which ``W_enc`` alone ranks tokens as latents do before their activation."""
SCORES = ["auroc", "average_precision", "iou", "pointing_game"]


@torch.no_grad()
def localize(
    model: HookedViT,
    sae: SAE[Any],
    images: ImageSource,
    *,
    concept_masks: ConceptMasks | None = None,
    n_images: int | None = None,
    batch_size_images: int = 64,
    select_by: Criterion = "average_precision",
    min_coverage: float = 0.5,
    min_positive_patches: int = 10,
    baselines: Sequence[Baseline] = BASELINES,
    source: ActivationSource | None = None,
    n_workers: int = 0,
    seed: int = 0,
    progress: bool = False,
) -> EvaluationReport:
    """For each concept find the best latent on one half of the images; score it on the other.

    The report's tables: ``localization``, a row for each method, kind and concept; ``summary``, the
    means over concepts. Scores of a row are of the chosen feature alone, over the patches of the
    second half:

    - ``auroc``, ``average_precision``: how well it ranks the concept's patches first. A sparse
      latent is silent on most patches, all of which tie: that costs it AUROC where it misses some
      of the concept's patches, however few false ones it marks. Compare it with what is as sparse.
    - ``iou``: of "feature ≥ threshold" with the concept's patches, at the threshold that was best
      on the first half.
    - ``pointing_game``: share of images with the concept in which its strongest patch shows it.

    The others go through the same code:

    - ``neurons``, the hook's own coordinates, and ``pca`` directions, each with both signs;
    - ``random``: as many random directions as there are latents. They rank every patch, as do
      ``pre_activations``, the latents before ReLU or top-k: compare these two;
    - ``random_latents``: the random directions, each cut off so that it fires as often as the
      latent of the same number. They are as sparse as ``latents``: compare those two.

    Args:
        model: the model whose patches the SAE reads.
        sae: any SAELens SAE that reads patches.
        images: a source with masks.
        concept_masks: image index → concept → mask. Default: those of shape scenes.
        n_images: how many to use, halves together; None: all.
        batch_size_images: images in a forward pass.
        select_by: what the best feature is best at, on the first half.
        min_coverage: a patch shows a concept if its mask covers at least this share of it.
        min_positive_patches: concepts with fewer patches in either half are left out (and listed).
        baselines: what to score beside the latents: any of the above.
        source: hook and tokens, for an SAE whose metadata don't name them.
        n_workers: processes that decode images.
        seed: of the split into halves and of the random directions.
        progress: show a progress bar.

    Raises:
        ValueError: the SAE reads no patches, the source has no masks, or too few images.
    """
    source = source or ActivationSource.from_metadata(sae.cfg.metadata)
    source.check_model(model)
    if concept_masks is None:
        scene = getattr(images, "scene", None)
        if scene is None:
            raise ValueError(
                f"{images.name} has no masks of its own; pass concept_masks: image index → "
                "{(kind, name): mask}"
            )
        concept_masks = lambda index: scene_concept_masks(scene(index))  # noqa: E731
    if select_by not in get_args(Criterion):
        raise ValueError(f"select_by is {select_by!r}; want one of {get_args(Criterion)}")
    if unknown := set(baselines) - set(BASELINES):
        raise ValueError(f"baselines {sorted(unknown)} are unknown; want some of {BASELINES}")
    walk = ImageActivations(
        model,
        source,
        images,
        batch_size_images=batch_size_images,
        n_images=n_images,
        shuffle=True,
        seed=seed,
        n_workers=n_workers,
        progress=progress,
    )
    coder = ModelSpaceSAE(sae, d_head=model.cfg.d_head)
    halves = _collect(walk, coder, concept_masks, min_coverage)
    methods: dict[str, tuple[Features, Features]] = {
        "latents": (halves[0].latents, halves[1].latents)
    }
    notes = []
    if "pre_activations" in baselines and sae.cfg.normalize_activations not in _LINEAR:
        baselines = [name for name in baselines if name != "pre_activations"]
        rule = sae.cfg.normalize_activations
        notes.append(f"no pre_activations: under {rule!r} normalization W_enc isn't all of them")
    methods |= _baseline_features(halves, baselines, sae, seed)
    positives = [half.concepts.positives() for half in halves]
    concepts = [
        concept
        for concept in positives[0]
        if concept in positives[1]
        and min(len(half[concept]) for half in positives) >= min_positive_patches
    ]
    left_out = sorted({*positives[0], *positives[1]} - set(concepts))
    if not concepts:
        raise ValueError(
            f"no concept has {min_positive_patches} patches in both halves of "
            f"{walk.n_seen} images; use more images"
        )
    rows = []
    for method, (first, second) in methods.items():
        chosen = best_features(first, [positives[0][c] for c in concepts], select_by)
        scores = zip(first.columns(chosen), second.columns(chosen), strict=True)
        for concept, feature, (fitted, tested) in zip(concepts, chosen, scores, strict=True):
            number, sign = first.describe(int(feature))
            rows.append(
                {"method": method, "kind": concept[0], "concept": concept[1]}
                | {"feature": number, "sign": sign}
                | score_feature(
                    fitted,
                    tested,
                    positives[0][concept],
                    positives[1][concept],
                    halves[1].concepts.n_patches,
                )
            )
    table = pd.DataFrame(rows).set_index(["method", "kind", "concept"])
    settings = {
        "images": images.name,
        "n_images": walk.n_seen,
        "hook_name": source.hook_name,
        "select_by": select_by,
        "min_coverage": min_coverage,
        "n_concepts": len(concepts),
        "n_features": {name: pair[0].n_features for name, pair in methods.items()},
    }
    if left_out:
        names = ", ".join(name for _, name in left_out)
        notes.append(f"left out, for fewer than {min_positive_patches} patches in a half: {names}")
    return EvaluationReport({"summary": summarize(table), "localization": table}, settings, notes)


@dataclass
class _Half:
    """One half of the images: its latents, activations and concepts, patch by patch."""

    latents: SparseFeatures
    concepts: ConceptPatches
    acts: list[Tensor] = field(default_factory=list)


def _collect(
    walk: ImageActivations, coder: ModelSpaceSAE, concept_masks: ConceptMasks, min_coverage: float
) -> tuple[_Half, _Half]:
    cfg = walk.model.cfg
    n_patches = cfg.grid[0] * cfg.grid[1]
    coverage = PatchCoverage(walk.loader.preprocess, cfg.grid)
    halves = tuple(_Half(SparseFeatures(coder.d_sae), ConceptPatches(n_patches)) for _ in range(2))
    for batch, acts_btd in walk:
        patches = _patches(walk.source, cfg, acts_btd)
        latents = coder.encode(patches)
        for at, index in enumerate(batch.index.tolist()):
            half = halves[(walk.n_seen - len(batch.ids) + at) % 2]
            half.latents.append(latents[at])
            half.acts.append(patches[at].float().cpu())
            half.concepts.append(_shown(concept_masks(index), coverage, min_coverage))
    if walk.n_seen < 2:
        raise ValueError("localization needs at least 2 images, one for each half")
    return halves[0], halves[1]


def _shown(
    masks: Mapping[Concept, Any], coverage: PatchCoverage, min_coverage: float
) -> dict[Concept, Tensor]:
    """Which patches show which concept. Concepts of one object have one mask, looked at once."""
    seen: dict[bytes, Tensor] = {}
    shown = {}
    for concept, mask in masks.items():
        mask = np.ascontiguousarray(mask, dtype=bool)
        if (content := mask.tobytes()) not in seen:
            seen[content] = coverage(mask) >= min_coverage
        shown[concept] = seen[content]
    return shown


def _patches(source: ActivationSource, cfg: Any, acts_btd: Tensor) -> Tensor:
    n_patches = cfg.grid[0] * cfg.grid[1]
    if source.token_kind == "patches" and acts_btd.shape[1] == n_patches:
        return acts_btd
    if source.token_kind == "all" and acts_btd.shape[1] == cfg.n_tokens:
        return acts_btd[:, cfg.n_prefix_tokens : cfg.n_prefix_tokens + n_patches]
    raise ValueError(
        f"localization needs all {n_patches} patches of an image, but the SAE reads "
        f"{source.token_kind!r} tokens of {source.hook_name}, {acts_btd.shape[1]} an image"
    )


def _baseline_features(
    halves: tuple[_Half, _Half], baselines: Sequence[Baseline], sae: SAE[Any], seed: int
) -> dict[str, tuple[Features, Features]]:
    """Directions are fitted on the first half, and both halves are centred with its mean."""
    first, second = (torch.cat(half.acts) for half in halves)
    mean = first.mean(0)
    first, second = first - mean, second - mean
    d_in, d_sae = first.shape[-1], sae.cfg.d_sae
    found: dict[str, tuple[Features, Features]] = {}
    for baseline in baselines:
        if baseline == "random_latents":
            found[baseline] = random_latents(first, second, halves[0].latents.n_active(), seed)
            continue
        if baseline == "pre_activations":
            # but for a constant, which ranks don't notice, a latent before its activation function
            directions = sae.W_enc.detach().float().cpu().T.contiguous()
        elif baseline == "neurons":
            directions = torch.eye(d_in)
        elif baseline == "pca":
            directions = principal_directions(first)
        else:
            directions = random_directions(d_sae, d_in, seed)
        both_signs = baseline in ("neurons", "pca")
        found[baseline] = (
            LinearFeatures(first, directions, both_signs),
            LinearFeatures(second, directions, both_signs),
        )
    return found


def best_features(features: Features, positives: Sequence[Tensor], select_by: Criterion) -> Tensor:
    """For each set of positives the feature that ranks it best; ties go to the lower index."""
    return features.scores(positives, select_by).argmax(0)


def score_feature(
    fitted: Tensor,
    tested: Tensor,
    fitted_positives: Tensor,
    tested_positives: Tensor,
    n_patches: int,
) -> dict[str, float]:
    """Scores of one feature on the second half, with the threshold of the first."""
    threshold = best_iou_threshold(fitted, _as_mask(fitted_positives, len(fitted)))
    ranks = Ranks(tested[None])
    positive = _as_mask(tested_positives, len(tested))
    return {
        "auroc": ranks.auroc(tested_positives).item(),
        "average_precision": ranks.average_precision(tested_positives).item(),
        "iou": iou(tested >= threshold, positive),
        "pointing_game": pointing_game(tested.view(-1, n_patches), positive.view(-1, n_patches)),
        "threshold": threshold,
        "n_positive_patches": len(tested_positives),
        "share_of_patches": len(tested_positives) / len(tested),
    }


def _as_mask(indices: Tensor, n: int) -> Tensor:
    mask = torch.zeros(n, dtype=torch.bool)
    mask[indices] = True
    return mask


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """Means over concepts: a row for each method and kind, and one for all kinds together."""
    by_kind = table.groupby(level=["method", "kind"], sort=False)
    overall = table.groupby(level="method", sort=False)
    parts = []
    for grouped in (by_kind, overall):
        part = grouped[SCORES].mean()
        part.insert(0, "n_concepts", grouped.size())
        parts.append(part)
    parts[1].index = pd.MultiIndex.from_product([parts[1].index, ["all"]], names=["method", "kind"])
    return pd.concat(parts).sort_index(level="kind", sort_remaining=False)
