"""How a latent's positive activations spread over orders of magnitude."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_sae_plugin.analysis.latent_batch import LatentBatch
from vit_sae_plugin.analysis.token_scan import count_bins

LOWEST, HIGHEST, BINS_PER_DECADE = -5, 4, 8


class ActivationHistogram(nn.Module):
    """For each latent, how many tokens activate it by how much, in bins of log10 activation.

    Bins are an eighth of a decade wide, from 1e-5 to 1e4; the first and the last also take what
    lies beyond. A value on an edge belongs to the bin above.
    """

    counts: Tensor

    def __init__(self, d_sae: int) -> None:
        super().__init__()
        n_bins = (HIGHEST - LOWEST) * BINS_PER_DECADE
        self.register_buffer("counts", torch.zeros(d_sae, n_bins, dtype=torch.int64))

    def update(self, batch: LatentBatch) -> None:
        count_bins(batch.latents_btd, bin_edges(), self.counts)


def bin_edges() -> Float[Tensor, " n_bins_plus_1"]:
    """The edges of the bins, in units of activation."""
    steps = (HIGHEST - LOWEST) * BINS_PER_DECADE + 1
    return torch.logspace(LOWEST, HIGHEST, steps, dtype=torch.float64).float()
