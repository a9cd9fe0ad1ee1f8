"""Random latents of like frequency: the control for a set of chosen latents."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

N_BINS = 20
"""Latents are alike in frequency if their shares of images fall in the same of so many bins."""


def like_frequency(
    chosen: Bool[np.ndarray, "n_classes d_sae"],
    frequency: Float[np.ndarray, "n_classes d_sae"],
    *,
    seed: int,
    draw: int = 0,
) -> Bool[np.ndarray, "n_classes d_sae"]:
    """For each class as many random latents as were chosen, of each frequency the same number.

    They are drawn from those not chosen; only where a bin of frequencies holds too few of these,
    the rest is drawn from the chosen ones of that bin.

    Args:
        chosen: the latents of each class.
        frequency: share of the class's images in which each latent is active.
        seed, draw: of the random order.
    """
    bins = np.ceil(frequency * N_BINS).astype(np.int64)  # a latent that is never active: bin 0
    drawn = np.zeros_like(chosen)
    for label in range(len(chosen)):
        generator = np.random.default_rng([seed, draw, label])
        own, bin_of = chosen[label], bins[label]
        wanted = np.bincount(bin_of[own], minlength=N_BINS + 1)
        order = np.lexsort([generator.random(len(own)), own, bin_of])
        ordered = bin_of[order]
        first = np.searchsorted(ordered, np.arange(N_BINS + 1))
        place_in_bin = np.arange(len(ordered)) - first[ordered]
        drawn[label, order[place_in_bin < wanted[ordered]]] = True
    return drawn
