"""From which clearness on a match makes a name: set on latents whose truth is known, or on none."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class NamingThreshold:
    """A latent is named where the clearness of its best word is at least this."""

    clearness: float
    """The threshold; infinity where none keeps what was stated, so that nothing is named."""
    rule: str
    """What was stated, in words."""
    n_calibration: int
    """Latents, or random directions, that it was set on."""

    def to_metadata(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "clearness": self.clearness if math.isfinite(self.clearness) else None,
            "rule": self.rule,
            "n_calibration": self.n_calibration,
        }


def threshold_for_precision(
    clearness: Float[ArrayLike, " n"],
    is_right: Bool[ArrayLike, " n"],
    precision: float = 0.9,
    confidence: float = 0.9,
) -> NamingThreshold:
    """The lowest threshold above which names are right often enough.

    That is where the lower bound on the share of right names (Wilson 1927, one-sided) among the
    calibration latents that pass is at least ``precision``. The bound makes up for a few lucky
    latents, and for the threshold being chosen on those it is judged by; not wholly for the latter,
    so judge names on other latents.

    Args:
        clearness: of each calibration latent's best word.
        is_right: whether that word is right.
        precision: the share of names that are to be right.
        confidence: of the bound.

    Raises:
        ValueError: no latents, different lengths, NaN, or a setting that is no share.
    """
    clearness, is_right = np.asarray(clearness, dtype=float), np.asarray(is_right, dtype=bool)
    if clearness.shape != is_right.shape or clearness.ndim != 1 or not len(clearness):
        raise ValueError(
            f"clearness has shape {clearness.shape} and is_right {is_right.shape}; want one number "
            "and one truth for each of some latents"
        )
    _check(clearness)
    for name, value in (("precision", precision), ("confidence", confidence)):
        if not 0 < value < 1:
            raise ValueError(f"{name} is {value}; want a share between 0 and 1")
    order = np.argsort(-clearness, kind="stable")
    values = clearness[order]
    n = np.arange(1, len(values) + 1)
    good = _wilson_lower(np.cumsum(is_right[order]) / n, n, confidence) >= precision
    # latents of equal clearness pass together, and unclear ones never
    good &= np.append(values[1:] < values[:-1], True) & (values > 0)
    at = np.flatnonzero(good)
    threshold = float(values[at[-1]]) if len(at) else math.inf
    rule = f"precision {precision:g} on known truth, at {confidence:.0%} confidence"
    return NamingThreshold(threshold, rule, len(values))


def _wilson_lower(share: np.ndarray, n: np.ndarray, confidence: float) -> np.ndarray:
    z = NormalDist().inv_cdf(confidence)
    spread = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return (share + z**2 / (2 * n) - spread) / (1 + z**2 / n)


def threshold_against_null(
    null_clearness: Float[ArrayLike, " n"], false_naming_rate: float = 0.01
) -> NamingThreshold:
    """The threshold that so few random directions, named in the same way, pass.

    Args:
        null_clearness: clearness of the best words of random directions.
        false_naming_rate: share of them that may be named.

    Raises:
        ValueError: too few directions for the rate, NaN, or a rate that is no share.
    """
    null = np.sort(np.asarray(null_clearness, dtype=float))
    if not 0 < false_naming_rate < 1:
        raise ValueError(f"false_naming_rate is {false_naming_rate}; want a share between 0 and 1")
    _check(null)
    # the rank of a new direction among those seen is evenly distributed, hence n + 1
    allowed = math.floor(false_naming_rate * (len(null) + 1)) - 1
    if allowed < 0:
        wanted = math.ceil(1 / false_naming_rate) - 1
        raise ValueError(
            f"there are {len(null)} random directions; want at least {wanted} for a rate of "
            f"{false_naming_rate:g}"
        )
    threshold = float(np.nextafter(max(null[len(null) - 1 - allowed], 0.0), math.inf))
    return NamingThreshold(
        threshold, f"names {false_naming_rate:.2g} of random directions at most", len(null)
    )


def _check(clearness: np.ndarray) -> None:
    if np.isnan(clearness).any():
        raise ValueError("clearness holds NaN; want a number for each latent, 0 for unclear ones")
