"""How a latent's positive activations spread over orders of magnitude."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

LOWEST, HIGHEST, BINS_PER_DECADE = -5, 4, 8


class ActivationHistogram(nn.Module):
    """For each latent, how many tokens activate it by how much, in bins of log10 activation.

    Bins are an eighth of a decade wide, from 1e-5 to 1e4; the first and the last also take what
    lies beyond. A value on an edge belongs to the bin above.
    """

    counts: Tensor
    edges: Tensor

    def __init__(self, d_sae: int) -> None:
        super().__init__()
        self.register_buffer("edges", bin_edges(), persistent=False)
        self.register_buffer("counts", torch.zeros(d_sae, self.n_bins, dtype=torch.int64))

    @property
    def n_bins(self) -> int:
        return len(self.edges) - 1

    def add(self, latents: Float[Tensor, "*rows d_sae"]) -> None:
        """Count the positive activations of some rows."""
        active = latents > 0
        value = latents[active].float()
        latent = active.nonzero(as_tuple=True)[-1]
        cell = latent * self.n_bins + torch.bucketize(value, self.edges[1:-1], right=True)
        self.counts += torch.bincount(cell, minlength=self.counts.numel()).view_as(self.counts)


def bin_edges() -> Float[Tensor, " n_bins_plus_1"]:
    """The edges of the bins, in units of activation."""
    steps = (HIGHEST - LOWEST) * BINS_PER_DECADE + 1
    return torch.logspace(LOWEST, HIGHEST, steps, dtype=torch.float64).float()
