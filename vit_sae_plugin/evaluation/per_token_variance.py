"""SAELens's legacy explained variance, a ratio a token, about the mean of all tokens."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_sae_plugin.evaluation.reconstruction import at_least_float32
from vit_sae_plugin.evaluation.row_sample import RowSample

MAX_KEPT_VALUES = 2**26
"""Activations kept (256 MiB in float32, twice that for a moment)."""


class PerTokenVariance:
    """Mean over tokens of ``1 − ‖z − ẑ‖² / ‖z − mean z‖²``.

    The mean is known only once all tokens were seen, and no sum over tokens gives what follows from
    it. So tokens are kept: of all images as long as they fit in ``max_values``, else of the images
    that a random number of their own, fixed by the seed and their index, chooses. So neither the
    order of images nor their batches matter. (SAELens takes the mean of each evaluation batch.)

    Args:
        seed: of the choice of images.
        max_values: activations to keep.
    """

    def __init__(self, seed: int = 0, max_values: int = MAX_KEPT_VALUES):
        self.seed = seed
        self.max_values = max_values
        self.n_images = 0
        self._sample: RowSample | None = None

    def update(
        self,
        index: Int[Tensor, " batch"],
        x: Float[Tensor, "batch token d_in"],
        x_hat: Float[Tensor, "batch token d_in"],
    ) -> None:
        """Add images, by their index in the source, with the same tokens each."""
        x = at_least_float32(x)
        squared_residual = (x - at_least_float32(x_hat)).square().sum(-1, keepdim=True)
        kept = torch.cat([x, squared_residual], dim=-1)
        if self._sample is None:
            self._sample = RowSample(max(1, self.max_values // max(1, kept[0].numel())))
        draws = [np.random.default_rng([self.seed, image]).random() for image in index.tolist()]
        self._sample.update(kept, torch.tensor(draws, dtype=torch.float64))
        self.n_images += len(x)

    @property
    def n_sampled(self) -> int:
        """How many images the mean over tokens is of."""
        return 0 if self._sample is None else len(self._sample.rows)

    def compute(self, tokens: slice | Tensor, mean: Float[Tensor, " d_in"]) -> float:
        """For some of the tokens, about their mean; NaN where there are none.

        Tokens that lie on the mean have no variance to explain and are left out.
        """
        if self._sample is None:
            return math.nan
        total, n = 0.0, 0
        for part in self._sample.rows.split(64):
            chosen = part[:, tokens].double()
            distance = (chosen[..., :-1] - mean).square().sum(-1)
            ratio = (chosen[..., -1] / distance)[distance > 0]
            total, n = total + ratio.sum().item(), n + ratio.numel()
        return 1 - total / n if n else math.nan
