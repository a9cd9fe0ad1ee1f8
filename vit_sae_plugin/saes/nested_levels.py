"""The levels of a Matryoshka TopK SAE: how many latents each keeps, and what its loss weighs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from .nested_topk_selection import MAX_LEVELS

LevelWeights = Literal["uniform", "reverse"] | list[float]


def doubling_k_list(k_start: int, d_sae: int) -> list[int]:
    """``k_start``, doubled for as long as it stays below ``d_sae``, and ``d_sae``.

    >>> doubling_k_list(64, 300)
    [64, 128, 256, 300]

    Raises:
        ValueError: ``k_start`` does not lie between 1 and ``d_sae``.
    """
    if not 1 <= k_start <= d_sae:
        raise ValueError(
            f"k_start is {k_start}; want 1 to d_sae, {d_sae}: the k of the first level"
        )
    k_list = []
    while k_start < d_sae:
        k_list.append(k_start)
        k_start *= 2
    return [*k_list, d_sae]


def check_k_list(k_list: Sequence[int], d_sae: int) -> None:
    """Raise ValueError unless ``k_list`` rises strictly from at least 1 to at most ``d_sae``."""
    if not k_list:
        raise ValueError("k_list is empty; want the k of each level, such as [64, 128, 256]")
    if not all(isinstance(k, int) and not isinstance(k, bool) and k >= 1 for k in k_list):
        raise ValueError(f"k_list is {list(k_list)}; want whole numbers, each 1 or more")
    for smaller, larger in pairwise(k_list):
        if smaller >= larger:
            raise ValueError(
                f"k_list is {list(k_list)}, where {smaller} comes before {larger}; want rising "
                "numbers"
            )
    if k_list[-1] > d_sae:
        raise ValueError(
            f"k_list is {list(k_list)}; want at most {d_sae}, the SAE's latents (d_sae)"
        )
    if len(k_list) > MAX_LEVELS:
        raise ValueError(f"k_list has {len(k_list)} levels; want at most {MAX_LEVELS}")


def loss_weights(level_weights: LevelWeights, k_list: Sequence[int]) -> list[float]:
    """The weight of each level's loss.

    Args:
        level_weights: "uniform" (1 each), "reverse" (from the number of levels for the smallest k
            down to 1), or one number per level.
        k_list: the k of each level.

    Raises:
        ValueError: the name is unknown, or the numbers are too few, too many, negative, not
            finite, or all zero.
    """
    n_levels = len(k_list)
    if level_weights == "uniform":
        return [1.0] * n_levels
    if level_weights == "reverse":
        return [float(n_levels - i) for i in range(n_levels)]
    if isinstance(level_weights, str):
        raise ValueError(
            f"level_weights is {level_weights!r}; want 'uniform', 'reverse' or a list of "
            f"{n_levels} numbers"
        )
    weights = [float(weight) for weight in level_weights]
    if len(weights) != n_levels:
        raise ValueError(
            f"level_weights has {len(weights)} numbers; want {n_levels}, one for each level: "
            f"{list(k_list)}"
        )
    if not all(0 <= weight < math.inf for weight in weights) or sum(weights) == 0:
        raise ValueError(f"level_weights is {weights}; want finite numbers from 0 on, not all 0")
    return weights
