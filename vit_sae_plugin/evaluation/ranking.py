"""How well scores rank the positives first: exact, ties included, for many scores at once.

Scores are ``[features, n]``, a row for each candidate; all results agree with scikit-learn's
``roc_auc_score`` and ``average_precision_score`` for each row.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def tie_bounds(
    is_start: Bool[Tensor, " n"],
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Of sorted values, of which it is known where a new value begins: the first and the last
    position that hold the same value as each position."""
    starts = is_start.nonzero().flatten()
    sizes = torch.cat([starts, starts.new_tensor([len(is_start)])]).diff()
    ends = starts + sizes
    return starts.repeat_interleave(sizes), (ends - 1).repeat_interleave(sizes)


def new_values(ordered: Tensor) -> Bool[Tensor, "..."]:
    """Where a value of the last axis differs from the one before; always at the first."""
    edge = ordered[..., 1:] != ordered[..., :-1]
    return torch.cat([torch.ones_like(ordered[..., :1], dtype=torch.bool), edge], -1)


class Ranks:
    """The ranks of each row's scores, computed once and then asked about many sets of positives.

    Args:
        scores: ``[features, n]``; a larger score means more likely positive.
    """

    def __init__(self, scores: Float[Tensor, "features n"]):
        ordered, order = scores.sort(-1)
        first, last = _row_tie_bounds(ordered)
        self.n = scores.shape[-1]
        self._twice_middle = torch.empty(scores.shape, dtype=torch.int32, device=scores.device)
        self._twice_middle.scatter_(-1, order, first + last)
        if first is last:
            self._n_at_least = self.n - self._twice_middle // 2
        else:
            self._n_at_least = torch.empty_like(self._twice_middle)
            self._n_at_least.scatter_(-1, order, self.n - first)

    def auroc(self, positives: Int[Tensor, " positives"]) -> Float[Tensor, " features"]:
        """Area under the ROC curve: the chance that a positive scores above a negative.

        Mann and Whitney's U over mid-ranks, so that a tie counts one half.
        """
        rank_sum = self._twice_middle[:, positives].sum(-1).double() / 2
        return area_from_ranks(rank_sum, len(positives), self.n)

    def average_precision(self, positives: Int[Tensor, " positives"]) -> Float[Tensor, " features"]:
        """Mean over positives of the precision at their score; tied scores count as one step."""
        n_at_least = self._n_at_least[:, positives].sort(-1).values
        _, last = _row_tie_bounds(n_at_least)
        return ((last + 1) / n_at_least.double()).mean(-1)


def _row_tie_bounds(ordered: Tensor) -> tuple[Tensor, Tensor]:
    """``tie_bounds`` of each row, int32; the same object twice if there are no ties."""
    rows, n = ordered.shape
    is_start = new_values(ordered)
    position = torch.arange(n, dtype=torch.int32, device=ordered.device)
    if is_start.all():
        position = position.expand(rows, n)
        return position, position
    offset = torch.arange(rows, device=ordered.device)[:, None] * n
    first, last = (bound.view(rows, n) - offset for bound in tie_bounds(is_start.flatten()))
    return first.int(), last.int()


def area_from_ranks(rank_sum: Tensor, n_positive: int | Tensor, n: int) -> Tensor:
    """AUROC from the sum of the positives' mid-ranks, counted from 0."""
    return (rank_sum - n_positive * (n_positive - 1) / 2) / (n_positive * (n - n_positive))


def best_iou_threshold(scores: Float[Tensor, " n"], positive: Bool[Tensor, " n"]) -> float:
    """The threshold t at which ``scores ≥ t`` has the largest intersection over union."""
    ordered, order = scores.sort(descending=True)
    _, last = tie_bounds(new_values(ordered))
    n_hits = positive[order].cumsum(0)[last]
    n_marked = last + 1
    iou = n_hits.double() / (n_marked + positive.sum() - n_hits)
    return ordered[iou.argmax()].item()


def iou(marked: Bool[Tensor, " n"], positive: Bool[Tensor, " n"]) -> float:
    """Intersection over union of two sets; at least one must not be empty."""
    return ((marked & positive).sum() / (marked | positive).sum()).item()


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
