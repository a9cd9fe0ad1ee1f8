"""Percentile bootstrap intervals of means over images, concepts or whatever else was sampled."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

N_RESAMPLES = 2000
_MAX_COUNTS = 2**24


class Interval(NamedTuple):
    """A mean and the bounds of its interval; arrays if there are several columns."""

    mean: Float[np.ndarray, "*columns"]
    low: Float[np.ndarray, "*columns"]
    high: Float[np.ndarray, "*columns"]


def bootstrap_mean(
    values: Float[ArrayLike, "units *columns"],
    *,
    strata: Sequence[object] | None = None,
    confidence: float = 0.95,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean over units of every column, with its percentile interval (Efron 1979).

    All columns are resampled alike. So a paired difference of two methods scored on the same units
    is ``bootstrap_mean(first - second)``, and the interval of many such differences costs one call.

    Args:
        values: a row for each unit (image, concept): what is drawn anew, with replacement.
        strata: the stratum of each unit. Units are drawn within their stratum, and the mean is that
            of the strata's means, each weighing the same. Default: one stratum.
        confidence: share of resampled means inside the interval.
        n_resamples: resampled means.
        seed: of the draws.

    Returns:
        Mean, low and high, each of the shape of one row. A single unit gives an interval of no
        width: it says nothing about other units.

    Raises:
        ValueError: no unit, NaN or infinity, or a setting out of range.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim == 0 or len(values) == 0:
        raise ValueError(f"values have shape {values.shape}; want at least one unit")
    if not np.isfinite(values).all():
        raise ValueError("values hold NaN or infinity; want finite numbers: leave those units out")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; want a share between 0 and 1")
    if n_resamples < 1:
        raise ValueError(f"n_resamples is {n_resamples}; want at least 1")
    columns = values.reshape(len(values), -1)
    generator = np.random.default_rng(seed)
    means, resampled = [], []
    for units in _strata(strata, len(values)):
        means.append(columns[units].mean(0))
        resampled.append(resampled_means(columns[units], n_resamples, generator))
    mean = np.mean(means, axis=0)
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.mean(resampled, axis=0), [tail, 1 - tail], axis=0)
    return Interval(*(bound.reshape(values.shape[1:]) for bound in (mean, low, high)))


def bootstrap_ratio(
    numerator: Float[ArrayLike, "units *columns"],
    denominator: Float[ArrayLike, "units *columns"],
    *,
    confidence: float = 0.95,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Mean of one ÷ mean of the other over units, with its percentile interval.

    Both are resampled together. NaN, bounds and all, where the denominator's own interval reaches
    0: then the units don't tell whether there is anything to divide by.

    Args:
        numerator, denominator: a row for each unit; they broadcast.
        confidence, n_resamples, seed: as for `bootstrap_mean`.

    Raises:
        ValueError: as `bootstrap_mean`.
    """
    above, below = np.broadcast_arrays(
        np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    )
    if not (np.isfinite(above).all() and np.isfinite(below).all()) or len(above) == 0:
        raise ValueError("values hold NaN or infinity, or no unit; want finite numbers")
    columns = np.stack([above.reshape(len(above), -1), below.reshape(len(below), -1)], axis=2)
    flat = columns.reshape(len(above), -1)
    generator = np.random.default_rng(seed)
    resampled = resampled_means(flat, n_resamples, generator).reshape(n_resamples, -1, 2)
    mean = columns.mean(0)
    tail = (1 - confidence) / 2
    least, most = np.quantile(resampled[..., 1], [tail, 1 - tail], axis=0)
    decided = (least > 0) | (most < 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = resampled[..., 0] / resampled[..., 1]
        ratio = mean[:, 0] / mean[:, 1]
    bounds = np.full((3, len(ratio)), np.nan)
    bounds[0, decided] = ratio[decided]
    bounds[1:, decided] = np.nanquantile(ratios[:, decided], [tail, 1 - tail], axis=0)
    return Interval(*(bound.reshape(above.shape[1:]) for bound in bounds))


def resampled_counts(
    n: int, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> Float[np.ndarray, "n_resamples n"]:
    """How often each of n units is drawn, for statistics that are no plain means.

    The same call gives the same draws, so that statistics of the same units are resampled alike
    and their differences are paired.
    """
    generator = np.random.default_rng(seed)
    return generator.multinomial(n, np.full(n, 1 / n), size=n_resamples).astype(np.float64)


def percentiles(
    resampled: Float[np.ndarray, "n_resamples *columns"], confidence: float = 0.95
) -> tuple[Float[np.ndarray, "*columns"], Float[np.ndarray, "*columns"]]:
    """The bounds between which that share of resampled values lies; NaN are passed over."""
    tail = (1 - confidence) / 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of columns of nothing but NaN
        low, high = np.nanquantile(resampled, [tail, 1 - tail], axis=0)
    return low, high


def _strata(strata: Sequence[object] | None, n: int) -> list[np.ndarray]:
    if strata is None:
        return [np.arange(n)]
    if len(strata) != n:
        raise ValueError(f"strata has {len(strata)} entries; want one for each of the {n} units")
    units: dict[object, list[int]] = {}
    for unit, stratum in enumerate(strata):
        units.setdefault(stratum, []).append(unit)
    return [np.array(of_stratum) for of_stratum in units.values()]


def resampled_means(
    columns: Float[np.ndarray, "units columns"], n_resamples: int, generator: np.random.Generator
) -> Float[np.ndarray, "n_resamples columns"]:
    """How often each unit is drawn, times its values: no resample is ever copied out."""
    n = len(columns)
    n_at_a_time = max(1, _MAX_COUNTS // n)
    means = []
    for start in range(0, n_resamples, n_at_a_time):
        n_rows = min(n_at_a_time, n_resamples - start)
        drawn = generator.integers(n, size=(n_rows, n)) + np.arange(n_rows)[:, None] * n
        counts = np.bincount(drawn.ravel(), minlength=n_rows * n).reshape(n_rows, n)
        means.append(counts @ columns / n)
    return np.concatenate(means)
