"""One-to-one matching of the rows of two matrices, so that the sum of their cosines is largest.

The assignment problem (Kuhn 1955), solved exactly by SciPy up to a size, and in blocks above it,
with a bound on what the blocks lose.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

MOST_EXACT = 8192
_ROUNDS, _VALUES_AT_ONCE = 4, 2**25


@dataclass(frozen=True)
class RowMatching:
    """Each row's partner in the other matrix, and how alike the two are."""

    partner: Int[np.ndarray, " rows"]
    """Row of the other matrix; −1 without one, where the other matrix has fewer rows."""
    score: Float[np.ndarray, " rows"]
    """Similarity of the two; NaN without a partner."""
    most_lost: float = 0.0
    """By how much the best matching's mean score can be above this one's, at most."""


def match_rows(
    first: Float[np.ndarray, "n d"],
    second: Float[np.ndarray, "m d"],
    most_exact: int = MOST_EXACT,
) -> RowMatching:
    """Match rows by cosine; a row of length zero has cosine 0 with all.

    Where a matrix has more than ``most_exact`` rows, both are halved along the direction in which
    they vary most, and so on, down to blocks that are solved exactly. Then everything is halved
    anew in other directions with partners kept together, which can only add to the sum. No matching
    has a larger sum than when each row has the partner it likes best: that bounds what is lost.
    """
    one, other = _unit(first), _unit(second)
    if len(one) > len(other):
        return _turned(match_rows(other, one, most_exact), len(one))
    if len(other) <= most_exact:
        return match_by(one @ other.T)
    partner = _matched_in_blocks(one, other, most_exact)
    score = (one * other[partner]).sum(1)
    of_one, of_other = _best_scores(one, other)
    bound = min(of_one.sum(), np.sort(of_other)[-len(one) :].sum())
    return RowMatching(partner, score, float(max(0.0, bound - score.sum()) / len(one)))


def match_by(similarity: Float[np.ndarray, "n m"]) -> RowMatching:
    """The matching of rows and columns whose similarities have the largest sum."""
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    partner, score = np.full(len(similarity), -1), np.full(len(similarity), np.nan)
    partner[rows], score[rows] = columns, similarity[rows, columns]
    return RowMatching(partner, score)


def _turned(found: RowMatching, n: int) -> RowMatching:
    """The matching of the other side's rows."""
    partner, score = np.full(n, -1), np.full(n, np.nan)
    partner[found.partner] = np.arange(len(found.partner))
    score[found.partner] = found.score
    return RowMatching(partner, score, found.most_lost)


def _matched_in_blocks(
    one: Float[np.ndarray, "n d"], other: Float[np.ndarray, "m d"], most: int
) -> Int[np.ndarray, " n"]:
    generator = np.random.default_rng(0)
    partner = _one_round(one, other, None, most, generator)
    for _ in range(_ROUNDS - 1):
        partner = _one_round(one, other, partner, most, generator)
    return partner


def _one_round(
    one: Float[np.ndarray, "n d"],
    other: Float[np.ndarray, "m d"],
    partner: Int[np.ndarray, " n"] | None,
    most: int,
    generator: np.random.Generator,
) -> Int[np.ndarray, " n"]:
    """Match within blocks, in which rows are together with the partners they have so far."""
    places = one if partner is None else one + other[partner]
    free = np.arange(len(other))
    if partner is not None:
        free = np.setdiff1d(free, partner)
    found = np.empty(len(one), dtype=int)
    everything = np.arange(len(one))
    for rows, extra in _blocks(everything, free, places, other, partner, most, generator):
        columns = extra if partner is None else np.concatenate([partner[rows], extra])
        found[rows] = columns[match_by(one[rows] @ other[columns].T).partner]
    return found


def _blocks(
    rows: np.ndarray,
    free: np.ndarray,
    places: np.ndarray,
    other: np.ndarray,
    partner: np.ndarray | None,
    most: int,
    generator: np.random.Generator,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows, and columns that are nobody's partner, in blocks of at most ``most`` columns."""
    if len(free) + (0 if partner is None else len(rows)) <= most:
        yield rows, free
        return
    if partner is None:
        pooled = np.concatenate([places[rows], other[free]])
        pooled = pooled - pooled.mean(0)
        direction = np.linalg.eigh(pooled.T @ pooled)[1][:, -1]
    else:
        direction = generator.standard_normal((other.shape[1],), dtype=np.float32)
    rows = rows[np.argsort(places[rows] @ direction, kind="stable")]
    free = free[np.argsort(other[free] @ direction, kind="stable")]
    middle, of_free = len(rows) // 2, len(free) // 2
    for half in (slice(None, middle), slice(middle, None)):
        some = free[:of_free] if half.stop else free[of_free:]
        yield from _blocks(rows[half], some, places, other, partner, most, generator)


def _best_scores(
    one: Float[np.ndarray, "n d"], other: Float[np.ndarray, "m d"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]]:
    """Each row's highest cosine with any row of the other matrix, on both sides."""
    of_one, of_other = np.empty(len(one)), np.full(len(other), -np.inf)
    at_once = max(1, _VALUES_AT_ONCE // len(other))
    for start in range(0, len(one), at_once):
        cosine = one[start : start + at_once] @ other.T
        of_one[start : start + at_once] = cosine.max(1)
        np.maximum(of_other, cosine.max(0), out=of_other)
    return of_one, of_other


def _unit(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    rows = np.asarray(rows, dtype=np.float32)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
