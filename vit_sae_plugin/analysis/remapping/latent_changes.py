"""What becomes of a class's latents: which stay, rise or fall, and how far the top ones overlap."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import rankdata

CHANGES = ("stays high", "rises", "falls")
LOW, HIGH = 0.2, 0.5
KS = (1, 2, 5, 10, 20, 50, 100, 500, 1000)
"""How many of a class's first latents are compared."""


def classify_changes(
    plain: Float[np.ndarray, "*shape"],
    adapted: Float[np.ndarray, "*shape"],
    low: float = LOW,
    high: float = HIGH,
) -> np.ndarray:
    """``"stays high"``, ``"rises"``, ``"falls"`` or ``""`` for each latent of each class.

    A latent is *high* in a class if its frequency there (the share of the class's images in which
    any token is above τ) is ``high`` or more, and *low* if it is below ``low``. It rises from low
    to high, falls from high to low, and stays if it is high in both; what lies between the bounds
    in either model is none of these.

    Args:
        plain, adapted: frequencies in the two models.
        low, high: the bounds. Two of them, so that a latent at a bound isn't taken to change.

    Raises:
        ValueError: the bounds aren't in order, or outside 0 to 1.
    """
    check_bounds(low, high)
    result = np.full(np.shape(plain), "", dtype="<U10")
    result[(plain >= high) & (adapted >= high)] = "stays high"
    result[(plain < low) & (adapted >= high)] = "rises"
    result[(plain >= high) & (adapted < low)] = "falls"
    return result


def check_bounds(low: float, high: float) -> None:
    """Raise a ValueError unless ``0 < low <= high <= 1``."""
    if not 0 < low <= high <= 1:
        raise ValueError(f"low is {low} and high {high}; want 0 < low <= high <= 1")


def top_latents(level: Float[np.ndarray, " d_sae"], k: int) -> np.ndarray:
    """The k latents highest in a class, without silent ones. Ties go to the lower index."""
    order = np.argsort(-level, kind="stable")[:k]
    return order[level[order] > 0]


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Shared latents ÷ latents in either set; NaN for two empty sets."""
    union = np.union1d(one, other)
    return len(np.intersect1d(one, other)) / len(union) if len(union) else np.nan


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's, with mean ranks for ties; NaN for fewer than three, or where all are tied."""
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return np.nan
    return float(np.corrcoef(rankdata([one, other], axis=1))[0, 1])


def overlap_of_top(
    plain: Float[np.ndarray, "n_classes d_sae"],
    adapted: Float[np.ndarray, "n_classes d_sae"],
    ks: Sequence[int] = KS,
) -> pd.DataFrame:
    """How far each class's top k latents are the same: index ``label`` and ``k``.

    - ``jaccard``: of the two top-k sets.
    - ``rank_correlation``: Spearman's of the levels, over the plain model's top k (over those of
      either model it would be lower by construction, the more so the smaller k is).

    Args:
        plain, adapted: class-level latents in the two models.
        ks: numbers of latents; one that exceeds the number of live latents means all of them.
    """
    rows = {}
    for label, (before, after) in enumerate(zip(plain, adapted, strict=True)):
        for k in ks:
            tops = top_latents(before, k), top_latents(after, k)
            rows[label, k] = {
                "jaccard": jaccard(*tops),
                "rank_correlation": rank_correlation(before[tops[0]], after[tops[0]]),
            }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index = pd.MultiIndex.from_tuples(rows, names=["label", "k"])
    return table
