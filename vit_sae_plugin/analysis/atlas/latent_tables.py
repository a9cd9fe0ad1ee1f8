"""What an atlas keeps of each latent besides numbers: images and other latents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass
class ReferenceTable:
    """Each latent's reference images under one aggregation, the highest first."""

    image: Int[np.ndarray, "d_sae k"]
    """Index of the image in its source; −1 where there is none."""
    value: Float[np.ndarray, "d_sae k"]
    """Its value under the aggregation; NaN where there is none."""
    peak_patch: Int[np.ndarray, "d_sae k"]
    """Its patch with the largest activation, row-major; −1 where there is none."""


@dataclass
class Partners:
    """For each latent the others that go with it best, the best first."""

    latent: Int[np.ndarray, "d_sae n"]
    """Index of the partner; −1 where there is none."""
    score: Float[np.ndarray, "d_sae n"]
    """How well it goes with it, at most 1; NaN where there is none."""
