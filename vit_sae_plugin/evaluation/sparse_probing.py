"""Sparse probing: how well the few features that tell a concept best tell it on other images.

As Gurnee et al. (2023, arXiv 2305.01610): for each concept, features are ranked by their F
statistic on one half of the images, a logistic regression of the first k is fitted there, and it is
scored on the other half.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vit_sae_plugin.evaluation.binary_probes import fit_binary_probes
from vit_sae_plugin.evaluation.concept_masks import Concept
from vit_sae_plugin.evaluation.features import SparseFeatures
from vit_sae_plugin.evaluation.ranking import Ranks, best_iou_threshold

KS = (1, 5, 10, 20, 50, 100)
_MAX_VALUES = 2**23


def first_half(n_images: int) -> Bool[Tensor, " images"]:
    """The images that features are ranked and probes are fitted on: every other one."""
    return torch.arange(n_images) % 2 == 0


def f_statistics(
    features: SparseFeatures,
    present: Bool[Tensor, "images concepts"],
    chosen: Bool[Tensor, " images"],
) -> Float[Tensor, "features concepts"]:
    """The F statistic of each feature's means on images with and without each concept.

    That of an analysis of variance of two groups, as scikit-learn's ``f_classif``. 0 of a feature
    that is constant on the chosen images; infinite where only the concept makes it vary.
    """
    groups = present[chosen].double()
    n, n_with = len(groups), groups.sum(0)
    found = []
    for block in torch.arange(features.n_features).split(max(1, _MAX_VALUES // features.n)):
        x = features.columns(block)[:, chosen].double()
        x = x - x.mean(1, keepdim=True)
        of_concept = x @ groups  # the others' sum is its opposite
        between = of_concept.square() * (1 / n_with + 1 / (n - n_with))
        total = x.square().sum(1, keepdim=True)
        within = (total - between).clamp(min=0)
        within[within <= 1e-12 * total] = 0
        found.append(torch.where(total > 0, between / within * (n - 2), 0).nan_to_num(nan=0.0))
    return torch.cat(found)


def best_features(f: Float[Tensor, "features concepts"], k: int) -> Int[Tensor, "concepts k"]:
    """For each concept the k features of highest F; of equal ones the lower index first."""
    order = torch.argsort(-f, dim=0, stable=True)
    return order[:k].T.contiguous()


def probe_concepts(
    features: SparseFeatures,
    concepts: Sequence[Concept],
    present: Bool[Tensor, "images concepts"],
    ks: Sequence[int] = KS,
) -> tuple[pd.DataFrame, Int[Tensor, "concepts k"]]:
    """Score probes of each concept on the k best features, for several k.

    Args:
        features: of whole images.
        concepts, present: the concepts, and which image shows which.
        ks: numbers of features; those above the number there are count as that number.

    Returns:
        A row for each ``kind``, ``concept`` and ``k``, with ``auroc`` and ``f1`` on the second
        half, F1 at the threshold that was best on the first; and the best features of each concept.
    """
    train = first_half(features.n)
    best = best_features(f_statistics(features, present, train), min(max(ks), features.n_features))
    rows = {}
    at_once = max(1, _MAX_VALUES // (features.n * best.shape[1]))
    for part in torch.arange(len(concepts)).split(at_once):
        x = torch.stack([features.columns(best[at]).T for at in part])
        y = present[:, part].T
        for k in sorted(set(ks)):
            weights, biases = fit_binary_probes(x[:, train, :k], y[:, train])
            logits = torch.einsum("cnk,ck->cn", x[..., :k].double(), weights) + biases[:, None]
            for at, scores, truth in zip(part.tolist(), logits, y, strict=True):
                rows[(*concepts[at], k)] = _held_out(scores, truth, train)
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index = pd.MultiIndex.from_tuples(rows, names=["kind", "concept", "k"])
    return table.sort_index(), best


def area_over_k(by_k: pd.Series) -> pd.Series:
    """For each concept the mean of a score over log k, from the smallest to the largest k."""
    wide = by_k.unstack("k")
    ks = np.log(wide.columns.to_numpy(dtype=float))
    if len(ks) == 1:
        return wide.iloc[:, 0]
    area = np.trapezoid(wide.to_numpy(), ks, axis=1) / (ks[-1] - ks[0])
    return pd.Series(area, index=wide.index)


def _held_out(scores: Tensor, truth: Tensor, train: Tensor) -> dict[str, float]:
    threshold = best_iou_threshold(scores[train], truth[train])  # F1 grows with IoU
    tested, true = scores[~train], truth[~train]
    marked = tested >= threshold
    hits = int((marked & true).sum())
    f1 = 2 * hits / max(1, int(marked.sum()) + int(true.sum()))
    auroc = Ranks(tested[None]).auroc(true.nonzero().flatten()).item()
    return {"auroc": auroc, "f1": f1}
