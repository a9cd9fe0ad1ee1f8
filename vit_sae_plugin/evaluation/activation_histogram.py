"""How large are active latents? Counts of magnitudes, over all latents and by their frequency."""

from __future__ import annotations

from itertools import pairwise

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

_LOWEST_DECADE, _HIGHEST_DECADE = -6, 4
FREQUENCY_LEVELS = (0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


class ActivationHistogram:
    """Counts of log₁₀ magnitudes of active latents; memory d_sae × bins.

    Bins are equal in log magnitude from 1e-6 to 1e4; smaller and larger values fall into the first
    and the last.

    Args:
        d_sae: number of latents.
        bins_per_decade: bins for each factor of ten.
    """

    def __init__(self, d_sae: int, bins_per_decade: int = 5):
        self.bins_per_decade = bins_per_decade
        self.n_bins = (_HIGHEST_DECADE - _LOWEST_DECADE) * bins_per_decade
        self.n_rows = 0
        self.counts = torch.zeros(d_sae, self.n_bins, dtype=torch.int64)

    def update(self, latents: Float[Tensor, "... d_sae"]) -> None:
        """Add rows of latents."""
        latents = latents.flatten(0, -2)
        row, latent = latents.nonzero(as_tuple=True)
        decade = latents[row, latent].abs().float().log10()
        bins = ((decade - _LOWEST_DECADE) * self.bins_per_decade).floor().long()
        key = latent * self.n_bins + bins.clamp(0, self.n_bins - 1)
        self.counts += torch.bincount(key.cpu(), minlength=self.counts.numel()).view_as(self.counts)
        self.n_rows += len(latents)

    def compute(self) -> pd.DataFrame:
        """One row a bin, named by its lower and upper edge; columns are counts of active values.

        ``all``: of every latent. ``(a, b]``: of latents active on a share of rows above a and at
        most b. The frequency of a latent is the share of rows on which it is active.
        """
        edges = [
            10 ** (_LOWEST_DECADE + step / self.bins_per_decade) for step in range(self.n_bins + 1)
        ]
        index = pd.MultiIndex.from_arrays(
            [edges[:-1], edges[1:]], names=["magnitude_from", "magnitude_to"]
        )
        frequency = self.counts.sum(1).double() / max(self.n_rows, 1)
        columns = {"all": self.counts.sum(0)}
        for low, high in pairwise(FREQUENCY_LEVELS):
            level = (frequency > low) & (frequency <= high)
            columns[f"({low:g}, {high:g}]"] = self.counts[level].sum(0)
        return pd.DataFrame({name: count.numpy() for name, count in columns.items()}, index=index)
