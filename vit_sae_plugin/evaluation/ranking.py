"""How well scores rank the positives first: exact, ties included, for many scores at once.

Scores are ``[features, n]``, a row for each candidate; all results agree with scikit-learn's
``roc_auc_score`` and ``average_precision_score`` for each row.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def tie_bounds(
    ordered: Float[Tensor, "features n"],
) -> tuple[Int[Tensor, "features n"], Int[Tensor, "features n"]]:
    """Of sorted rows: the first and the last position that hold the same value as each position."""
    n = ordered.shape[-1]
    position = torch.arange(n, device=ordered.device).expand(ordered.shape)
    edge = ordered[:, 1:] != ordered[:, :-1]
    always = torch.ones_like(ordered[:, :1], dtype=torch.bool)
    starts = position.masked_fill(~torch.cat([always, edge], -1), 0)
    ends = position.masked_fill(~torch.cat([edge, always], -1), n - 1)
    return starts.cummax(-1).values, ends.flip(-1).cummin(-1).values.flip(-1)


class Ranks:
    """The ranks of each row's scores, computed once and then asked about many sets of positives.

    Args:
        scores: ``[features, n]``; a larger score means more likely positive.
    """

    def __init__(self, scores: Float[Tensor, "features n"]):
        ordered, order = scores.sort(-1)
        first, last = tie_bounds(ordered)
        self.n = scores.shape[-1]
        self._middle = torch.empty(scores.shape, dtype=torch.float64, device=scores.device)
        self._middle.scatter_(-1, order, (first + last).double() / 2)
        self._n_at_least = torch.empty(scores.shape, dtype=torch.int32, device=scores.device)
        self._n_at_least.scatter_(-1, order, (self.n - first).int())

    def auroc(self, positives: Int[Tensor, " positives"]) -> Float[Tensor, " features"]:
        """Area under the ROC curve: the chance that a positive scores above a negative.

        Mann and Whitney's U over mid-ranks, so that a tie counts one half.
        """
        n_positive = len(positives)
        n_negative = self.n - n_positive
        rank_sum = self._middle[:, positives].sum(-1)
        return (rank_sum - n_positive * (n_positive - 1) / 2) / (n_positive * n_negative)

    def average_precision(self, positives: Int[Tensor, " positives"]) -> Float[Tensor, " features"]:
        """Mean over positives of the precision at their score; tied scores count as one step."""
        n_at_least = self._n_at_least[:, positives].sort(-1).values
        _, last = tie_bounds(n_at_least)
        return ((last + 1) / n_at_least.double()).mean(-1)


def best_iou_threshold(scores: Float[Tensor, " n"], positive: Bool[Tensor, " n"]) -> float:
    """The threshold t at which ``scores ≥ t`` has the largest intersection over union."""
    ordered, order = scores.sort(descending=True)
    _, last = tie_bounds(ordered[None])
    n_hits = positive[order].cumsum(0)[last[0]]
    n_said = last[0] + 1
    iou = n_hits.double() / (n_said + positive.sum() - n_hits)
    return ordered[iou.argmax()].item()


def iou(said: Bool[Tensor, " n"], positive: Bool[Tensor, " n"]) -> float:
    """Intersection over union of two sets; at least one must not be empty."""
    return ((said & positive).sum() / (said | positive).sum()).item()


def pointing_game(
    scores: Float[Tensor, "images patches"], positive: Bool[Tensor, "images patches"]
) -> float:
    """Share of images whose highest-scoring patch is positive, among images that have a positive.

    (Zhang et al. 2016, arXiv 1608.00507.) If several patches tie for the highest score, the image
    counts by the share of them that is positive: a feature silent on an image scores by chance.
    """
    shown = positive.any(-1)
    highest = scores == scores.amax(-1, keepdim=True)
    hits = (highest & positive).sum(-1) / highest.sum(-1)
    return hits[shown].double().mean().item()
