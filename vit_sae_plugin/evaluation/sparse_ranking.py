"""The scores of ``ranking.py`` for latents that are mostly zero, at the cost of the others only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_sae_plugin.evaluation.ranking import area_from_ranks, new_values, tie_bounds


class SparseRanks:
    """Ranks of every latent's values over all rows, its zeros being one tie.

    Args:
        row, latent, value: each value that isn't zero, ordered by latent.
        n: number of rows.
        n_latents: number of latents.
    """

    def __init__(
        self,
        row: Int[Tensor, " values"],
        latent: Int[Tensor, " values"],
        value: Float[Tensor, " values"],
        n: int,
        n_latents: int,
    ):
        by_value = value.argsort()
        order = by_value[latent[by_value].argsort(stable=True)]
        self.n, self.n_latents = n, n_latents
        self.row, self.latent, self.value = row[order], latent[order].long(), value[order]
        n_nonzero = torch.bincount(self.latent, minlength=n_latents)
        self.n_negative = torch.bincount(self.latent[self.value < 0], minlength=n_latents)
        self.n_zero = n - n_nonzero
        starts = n_nonzero.cumsum(0) - n_nonzero
        is_start = new_values(self.value) | new_values(self.latent)
        first, last = tie_bounds(is_start)
        # Zeros lie between a latent's negative and positive values.
        shift = self.n_zero[self.latent] * (self.value > 0) - starts[self.latent]
        self.middle = (first + last).double() / 2 + shift
        self.n_at_least = n - (first + shift)

    def scores(
        self, positives: Sequence[Int[Tensor, " positives"]], score: str
    ) -> Float[Tensor, "latents concepts"]:
        """``"auroc"`` or ``"average_precision"`` of every latent for every set of positive rows."""
        n_concepts = len(positives)
        n_positive = torch.tensor([len(rows) for rows in positives])
        entry, concept = self._pairs(positives)
        key = self.latent[entry] * n_concepts + concept
        shape, size = (self.n_latents, n_concepts), self.n_latents * n_concepts
        n_zero_positive = n_positive - torch.bincount(key, minlength=size).view(shape)
        if score == "auroc":
            ranks = torch.bincount(key, self.middle[entry], minlength=size).view(shape)
            middle_of_zeros = self.n_negative + (self.n_zero - 1) / 2
            ranks = ranks + n_zero_positive * middle_of_zeros[:, None]
            return area_from_ranks(ranks, n_positive, self.n)

        order = key.argsort(stable=True)  # within a key the values keep rising
        entry, key = entry[order], key[order]
        n_in_key = torch.bincount(key, minlength=size)
        value = self.value[entry]
        first, _ = tie_bounds(new_values(value) | new_values(key))
        n_hits = n_in_key.cumsum(0)[key] - first
        n_hits = n_hits + n_zero_positive.flatten()[key] * (value < 0)
        precision = torch.bincount(key, n_hits / self.n_at_least[entry].double(), minlength=size)
        above_zero = torch.bincount(key[value > 0], minlength=size).view(shape)
        n_not_negative = (self.n - self.n_negative)[:, None]
        at_zero = (above_zero + n_zero_positive) / n_not_negative.clamp(min=1).double()
        return (precision.view(shape) + n_zero_positive * at_zero) / n_positive

    def _pairs(self, positives: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Every (entry, concept) such that the entry's row is positive for the concept."""
        row = torch.cat(list(positives))
        sizes = torch.tensor([len(rows) for rows in positives])
        concept = torch.arange(len(positives)).repeat_interleave(sizes)
        concept = concept[row.argsort(stable=True)]
        n_of_row = torch.bincount(row, minlength=self.n)
        first_of_row = n_of_row.cumsum(0) - n_of_row
        repeats = n_of_row[self.row]
        entry = torch.arange(len(self.row)).repeat_interleave(repeats)
        within = torch.arange(len(entry)) - (repeats.cumsum(0) - repeats)[entry]
        return entry, concept[first_of_row[self.row[entry]] + within]
