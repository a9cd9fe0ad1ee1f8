"""How a latent's positive activations spread over orders of magnitude."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vit_sae_plugin.analysis.latent_batch import LatentBatch

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
        entries = batch.active
        n_bins = self.counts.shape[1]
        cell = entries.latent * n_bins + _bins(entries.value)
        self.counts += torch.bincount(cell, minlength=self.counts.numel()).view_as(self.counts)


def _bins(value: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """The bin of each value: what ``torch.bucketize`` finds, in a third of its time."""
    edges = bin_edges().to(value.device)
    # the logarithm is right but for values next to an edge
    guess = ((value.log10() - LOWEST) * BINS_PER_DECADE).clamp(0, len(edges) - 2).int()
    low, high = (edges[:-1].index_select(0, guess), edges[1:].index_select(0, guess))
    return guess.add_((value >= high).int() - (value < low).int()).clamp_(0, len(edges) - 2)


def bin_edges() -> Float[Tensor, " n_bins_plus_1"]:
    """The edges of the bins, in units of activation."""
    steps = (HIGHEST - LOWEST) * BINS_PER_DECADE + 1
    return torch.logspace(LOWEST, HIGHEST, steps, dtype=torch.float64).float()
