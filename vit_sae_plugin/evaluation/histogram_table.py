"""How large are active latents? A table of counts, over all latents and by their frequency."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from vit_sae_plugin.aggregation.activation_histogram import ActivationHistogram

FREQUENCY_LEVELS = (0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def histogram_table(histogram: ActivationHistogram, n_rows: int) -> pd.DataFrame:
    """One row a bin, named by its lower and upper edge; columns are counts of active values.

    ``all``: of every latent. ``(a, b]``: of latents active on a share of rows above a and at most
    b. The frequency of a latent is the share of rows on which it is active.

    Args:
        histogram: counts of magnitudes.
        n_rows: rows that were counted.
    """
    edges, counts = histogram.edges.tolist(), histogram.counts.cpu()
    index = pd.MultiIndex.from_arrays(
        [edges[:-1], edges[1:]], names=["magnitude_from", "magnitude_to"]
    )
    frequency = counts.sum(1).double() / max(n_rows, 1)
    columns = {"all": counts.sum(0)}
    for low, high in pairwise(FREQUENCY_LEVELS):
        level = (frequency > low) & (frequency <= high)
        columns[f"({low:g}, {high:g}]"] = counts[level].sum(0)
    return pd.DataFrame({name: count.numpy() for name, count in columns.items()}, index=index)
