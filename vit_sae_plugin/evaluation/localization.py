"""Do latents find the right thing? Scored against masks, beside simple baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_sae_plugin.attached_sae import AttachedSAE
from vit_sae_plugin.datasets import open_images
from vit_sae_plugin.evaluation.concept_masks import (
    Concept,
    ConceptMasks,
    ConceptPatches,
    PatchCoverage,
    masks_of,
)
from vit_sae_plugin.evaluation.evaluation_report import EvaluationReport
from vit_sae_plugin.evaluation.features import (
    Criterion,
    Features,
    LinearFeatures,
    SparseFeatures,
    principal_directions,
    random_directions,
    random_latents,
)
from vit_sae_plugin.evaluation.localization_tables import with_intervals
from vit_sae_plugin.evaluation.ranking import Ranks, best_iou_threshold, iou, pointing_game
from vit_sae_plugin.evaluation.reconstruction import check_finite

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.activations import ActivationSource
    from vit_sae_plugin.activations.image_walk import ImageWalk
    from vit_sae_plugin.hooked_vit import HookedViT

Baseline = Literal[
    "pre_activations",
    "few_latents",
    "neurons",
    "pca",
    "few_random",
    "random",
    "random_latents",
]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
N_DRAWS = 10
"""Random choices of few candidates; scores are means over them."""
_LINEAR = ("none", "expected_average_only_in")
"""Normalisations under which ``W_enc`` alone ranks tokens as latents do before their activation."""


@torch.no_grad()
def localize(
    model: HookedViT,
    sae: SAE[Any],
    images: Any,
    *,
    concept_masks: ConceptMasks | None = None,
    n_images: int | None = None,
    batch_size_images: int = 64,
    select_by: Criterion | Sequence[Criterion] = CRITERIA,
    min_coverage: float = 0.5,
    min_positive_patches: int = 10,
    baselines: Sequence[Baseline] = BASELINES,
    source: ActivationSource | None = None,
    n_workers: int = 0,
    seed: int = 0,
    progress: bool = False,
) -> EvaluationReport:
    """For each concept find the best latent on one half of the images; score it on the other.

    Images go through the model once, whatever is asked for. The report's tables:

    - ``localization``: a row for each ``selected_by``, method, kind and concept.
    - ``summary``: means over concepts with their 95 % bootstrap intervals (columns ``…_low`` and
      ``…_high``): for each kind, for ``all`` concepts, in which a kind weighs as many as it has,
      and for the ``mean of kinds``, in which each weighs the same. Intervals are over concepts, as
      if those were drawn from many: they say nothing about another model, SAE or kind of image.
    - ``differences``: the same of latents less each other method, paired concept by concept.

    Scores of a row are of the chosen feature alone, over the patches of the second half:

    - ``auroc``, ``average_precision``: how well it ranks the concept's patches first. A sparse
      latent is silent on most patches, all of which tie: that costs it AUROC where it misses some
      of the concept's patches, however few false ones it marks. Compare it with what is as sparse.
    - ``iou``: of "feature ≥ threshold" with the concept's patches, at the threshold that was best
      on the first half.
    - ``pointing_game``: share of images with the concept in which its strongest patch shows it.

    The others go through the same code. A best of many is better than a best of few, so compare
    like with like in number, and in sparsity:

    - ``neurons``, the hook's own coordinates, and ``pca`` directions, each with both signs:
      2 · d_in candidates;
    - ``few_latents``, ``few_random``: as many latents (of those that fire) or random directions as
      ``neurons`` has candidates, drawn at random; means over 10 draws, for which ``feature`` is −1;
    - ``random``: as many random directions as there are latents. They rank every patch, as do
      ``pre_activations``, the latents before ReLU or top-k: compare these two;
    - ``random_latents``: the random directions, each cut off so that it fires as often as the
      latent of the same number. They are as sparse as ``latents``: compare those two.

    Args:
        model: the model whose patches the SAE reads.
        sae: any SAELens SAE that reads patches.
        images: a source with masks, or what ``open_images`` makes one of.
        concept_masks: image index → concept → mask. Default: those of shape scenes.
        n_images: how many to use, halves together; None: all.
        batch_size_images: images in a forward pass.
        select_by: what the best feature is best at, on the first half: one criterion or several.
        min_coverage: a patch shows a concept if its mask covers at least this share of it.
        min_positive_patches: concepts with fewer patches in either half are left out (and listed).
        baselines: what to score beside the latents: any of the above.
        source: hook and tokens, for an SAE whose metadata don't name them.
        n_workers: processes that decode images.
        seed: of the split into halves, of the random directions and draws, and of the bootstrap.
        progress: show a progress bar.

    Raises:
        ValueError: the SAE reads no patches, the source has no masks, too few images, activations
            or latents that aren't finite, or a setting out of range.
    """
    images = open_images(images)
    attached = AttachedSAE(model, sae, source)
    concept_masks = masks_of(images, concept_masks)
    criteria = _known(
        "select_by", [select_by] if isinstance(select_by, str) else select_by, CRITERIA
    )
    if not criteria:
        raise ValueError(f"select_by is empty; want some of {CRITERIA}")
    baselines = _known("baselines", baselines, BASELINES)
    walk = attached.walk(
        images,
        batch_size_images=batch_size_images,
        n_images=n_images,
        shuffle=True,
        seed=seed,
        n_workers=n_workers,
        progress=progress,
    )
    halves = collect_halves(attached, walk, concept_masks, min_coverage)
    positives = [half.concepts.positives() for half in halves]
    concepts = [
        concept
        for concept in positives[0]
        if concept in positives[1]
        and min(len(half[concept]) for half in positives) >= min_positive_patches
    ]
    if not concepts:
        raise ValueError(
            f"no concept has {min_positive_patches} patches in both halves of "
            f"{walk.n_seen} images; use more images"
        )
    notes = []
    if left_out := sorted({*positives[0], *positives[1]} - set(concepts)):
        names = ", ".join(name for _, name in left_out)
        notes.append(f"left out, for fewer than {min_positive_patches} patches in a half: {names}")
    methods = _methods(halves, baselines, sae, seed, notes)
    shown = [(positives[0][concept], positives[1][concept]) for concept in concepts]
    n_patches = halves[1].concepts.n_patches
    scored = {name: method.score(shown, criteria, n_patches) for name, method in methods.items()}
    rows = {
        (criterion, name, *concept): scores
        for criterion in criteria
        for name, by_criterion in scored.items()
        for concept, scores in zip(concepts, by_criterion[criterion], strict=True)
    }
    fires = halves[0].latents.active_rows()
    silent = [concept[1] for concept in concepts if not fires[positives[0][concept]].any()]
    if silent:
        names = ", ".join(silent)
        notes.append(f"no latent fires on any patch of these, which score by chance: {names}")
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index = pd.MultiIndex.from_tuples(
        rows, names=["selected_by", "method", "kind", "concept"]
    )
    table = table.astype({"feature": int, "sign": int, "n_positive_patches": int})
    settings = {
        "images": images.name,
        "n_images": walk.n_seen,
        "hook_name": attached.source.hook_name,
        "min_coverage": min_coverage,
        "n_concepts": len(concepts),
        "n_live_latents": int((halves[0].latents.n_active() > 0).sum()),
        "n_candidates": {name: method.n_candidates for name, method in methods.items()},
    }
    summary, differences = with_intervals(table, seed)
    tables = {"summary": summary, "differences": differences, "localization": table}
    return EvaluationReport(tables, settings, notes)


def _known(what: str, chosen: Sequence[Any], known: Sequence[Any]) -> list[Any]:
    """The known ones among those chosen, in the order known, or an error."""
    if unknown := set(chosen) - set(known):
        raise ValueError(f"{what} is {sorted(unknown)}; want some of {tuple(known)}")
    return [name for name in known if name in chosen]


@dataclass
class Half:
    """One half of the images: its latents, activations and concepts, patch by patch."""

    latents: SparseFeatures
    concepts: ConceptPatches
    acts: list[Tensor] = field(default_factory=list)


def collect_halves(
    attached: AttachedSAE, walk: ImageWalk, concept_masks: ConceptMasks, min_coverage: float
) -> tuple[Half, Half]:
    """Latents, activations and concepts of the first, third, … and of the other images.

    Raises:
        ValueError: the SAE reads no patches, or not all; fewer than two images; activations or
            latents that aren't finite.
    """
    tokens = _all_patches(attached)
    preprocess, grid = attached.model.require_preprocess(), attached.layout.grid
    coverage = PatchCoverage(preprocess, grid)
    halves = tuple(
        Half(SparseFeatures(attached.d_sae), ConceptPatches(len(tokens))) for _ in range(2)
    )
    for batch in walk:
        patches = attached.activations(batch.pixels)[:, tokens]
        first = walk.n_seen - len(batch.ids)
        for part, latents in attached.encode_parts(patches):
            check_finite(acts=patches[part], latents=latents)
            for at, of_image in zip(range(part.start, part.stop), latents, strict=True):
                half = halves[(first + at) % 2]
                half.latents.append(of_image)
                half.acts.append(patches[at].float().cpu())
                masks = concept_masks(int(batch.index[at]))
                half.concepts.append(_shown(masks, coverage, min_coverage))
    if walk.n_seen < 2:
        raise ValueError(f"localization got {walk.n_seen} images; want 2 or more, for two halves")
    return halves[0], halves[1]


def _all_patches(attached: AttachedSAE) -> Tensor:
    """Where the patches stand among the tokens that the SAE reads, row by row."""
    layout = attached.require_patches()
    tokens = layout.positions("patches")
    n_patches = layout.grid[0] * layout.grid[1]
    if len(tokens) != n_patches:
        raise ValueError(
            f"the SAE reads {len(tokens)} patches of an image; want all {n_patches}: "
            "a token selection without seqpos_slice"
        )
    return tokens


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


@dataclass
class _Method:
    """Candidates on both halves; with ``draws``, the best of some of them, draw by draw."""

    first: Features
    second: Features
    draws: Sequence[Tensor] | None = None

    @property
    def n_candidates(self) -> int:
        return self.first.n_features if self.draws is None else len(self.draws[0])

    def score(
        self, shown: Sequence[tuple[Tensor, Tensor]], criteria: Sequence[Criterion], n_patches: int
    ) -> dict[Criterion, list[dict[str, float]]]:
        """For each criterion and concept the scores of what it chooses.

        Args:
            shown: each concept's patches in both halves.
            criteria: what to choose by.
            n_patches: patches of an image.
        """
        by_criterion = self.first.scores([first for first, _ in shown], criteria)

        @cache
        def score(feature: int, concept: int) -> dict[str, float]:
            chosen = torch.tensor([feature])
            fitted, tested = (half.columns(chosen)[0] for half in (self.first, self.second))
            number, sign = self.first.describe(feature)
            scores = score_feature(fitted, tested, *shown[concept], n_patches)
            return {"feature": number, "sign": sign} | scores

        found = {}
        for criterion, scores in by_criterion.items():
            if self.draws is None:
                best = best_candidates(scores).tolist()
                found[criterion] = [score(feature, at) for at, feature in enumerate(best)]
                continue
            drawn = [draw[best_candidates(scores[draw])].tolist() for draw in self.draws]
            found[criterion] = [
                _mean([score(best[at], at) for best in drawn]) for at in range(len(shown))
            ]
        return found


def _mean(draws: Sequence[dict[str, float]]) -> dict[str, float]:
    means = {name: sum(draw[name] for draw in draws) / len(draws) for name in draws[0]}
    return means | {"feature": -1, "sign": 1}


def _methods(
    halves: tuple[Half, Half],
    baselines: Sequence[Baseline],
    sae: SAE[Any],
    seed: int,
    notes: list[str],
) -> dict[str, _Method]:
    """The latents and what they are compared with.

    Directions are fitted on the first half, and both halves are centred with its mean.
    """
    first, second = (torch.cat(half.acts) for half in halves)
    mean = first.mean(0)
    first, second = first - mean, second - mean
    d_in, d_sae = first.shape[-1], sae.cfg.d_sae
    n_few = 2 * d_in  # as many as neurons are with both signs

    def along(directions: Tensor, both_signs: bool = False) -> _Method:
        return _Method(
            LinearFeatures(first, directions, both_signs),
            LinearFeatures(second, directions, both_signs),
        )

    latents = _Method(halves[0].latents, halves[1].latents)
    methods = {"latents": latents}
    for baseline in baselines:
        if baseline == "pre_activations":
            if (rule := sae.cfg.normalize_activations) not in _LINEAR:
                notes.append(
                    f"no pre_activations: under {rule!r} normalization W_enc isn't all of them"
                )
                continue
            # but for a constant, which ranks don't notice, a latent before its activation function
            methods[baseline] = along(sae.W_enc.detach().float().cpu().T.contiguous())
        elif baseline == "few_latents":
            live = halves[0].latents.n_active().nonzero().flatten()
            if len(live) <= n_few:
                notes.append(f"no few_latents: only {len(live)} fire; neurons are {n_few}")
                continue
            draws = _draws(live, n_few, seed)
            methods[baseline] = _Method(latents.first, latents.second, draws)
        elif baseline == "neurons":
            methods[baseline] = along(torch.eye(d_in), both_signs=True)
        elif baseline == "pca":
            methods[baseline] = along(principal_directions(first), both_signs=True)
        elif baseline == "few_random":
            several = along(random_directions(N_DRAWS * n_few, d_in, seed))
            several.draws = torch.arange(N_DRAWS * n_few).split(n_few)
            methods[baseline] = several
        elif baseline == "random":
            methods[baseline] = along(random_directions(d_sae, d_in, seed))
        else:
            n_active = halves[0].latents.n_active()
            methods[baseline] = _Method(*random_latents(first, second, n_active, seed))
    return methods


def _draws(candidates: Tensor, n: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        candidates[torch.randperm(len(candidates), generator=generator)[:n]].sort().values
        for _ in range(N_DRAWS)
    ]


def best_candidates(scores: Float[Tensor, "features concepts"]) -> Int[Tensor, " concepts"]:
    """For each concept the feature that ranks it best; ties go to the lower index."""
    # argmax gives any of several equal ones
    return (scores == scores.amax(0)).int().argmax(0)


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
