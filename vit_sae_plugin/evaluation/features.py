"""Candidate features of patches, read column by column: latents of an SAE, or directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vit_sae_plugin.evaluation.ranking import Ranks
from vit_sae_plugin.evaluation.sparse_ranking import SparseRanks

Criterion = Literal["average_precision", "auroc"]
_MAX_BLOCK_VALUES = 2**23


class Features(Protocol):
    """Scores of every patch under many features, never all in memory at once."""

    n_features: int

    def columns(self, chosen: Int[Tensor, " chosen"]) -> Float[Tensor, "chosen n"]:
        """Scores of all patches under the chosen features."""
        ...

    def scores(
        self, positives: Sequence[Int[Tensor, " positives"]], criteria: Sequence[Criterion]
    ) -> dict[Criterion, Float[Tensor, "features concepts"]]:
        """Each criterion of every feature for every set of patches."""
        ...

    def describe(self, feature: int) -> tuple[int, int]:
        """The latent, neuron or component behind a feature, and its sign."""
        ...


class SparseFeatures:
    """Latents, of which only those that aren't zero are kept, ordered by latent.

    Args:
        d_sae: number of latents.
    """

    def __init__(self, d_sae: int):
        self.n_features = d_sae
        self.n = 0
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self._ordered: tuple[Tensor, Tensor, Tensor] | None = None

    def append(self, latents: Float[Tensor, "rows d_sae"]) -> None:
        """Add the latents of the next patches."""
        row, latent = latents.nonzero(as_tuple=True)
        value = latents[row, latent].float()
        self._parts.append((row.cpu() + self.n, latent.cpu(), value.cpu()))
        self.n += len(latents)
        self._ordered = None

    def _by_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        if self._ordered is None:
            row, latent, value = (torch.cat(parts) for parts in zip(*self._parts, strict=True))
            order = latent.argsort(stable=True)
            self._ordered = row[order], latent[order], value[order]
            self._parts = [self._ordered]
        return self._ordered

    def n_active(self) -> Int[Tensor, " d_sae"]:
        """At how many patches each latent isn't zero."""
        _, latent, _ = self._by_latent()
        return torch.bincount(latent, minlength=self.n_features)

    def active_rows(self) -> Bool[Tensor, " n"]:
        """The patches on which any latent isn't zero."""
        active = torch.zeros(self.n, dtype=torch.bool)
        active[self._by_latent()[0]] = True
        return active

    def columns(self, chosen: Int[Tensor, " chosen"]) -> Float[Tensor, "chosen n"]:
        """Scores of all patches under the chosen latents."""
        row, latent, value = self._by_latent()
        starts = torch.searchsorted(latent, chosen)
        stops = torch.searchsorted(latent, chosen, right=True)
        dense = torch.zeros(len(chosen), self.n)
        for at, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
            dense[at, row[start:stop]] = value[start:stop]
        return dense

    def scores(
        self, positives: Sequence[Int[Tensor, " positives"]], criteria: Sequence[Criterion]
    ) -> dict[Criterion, Float[Tensor, "latents concepts"]]:
        """Each criterion of every latent for every set of patches."""
        ranks = SparseRanks(*self._by_latent(), self.n, self.n_features)
        return {criterion: ranks.scores(positives, criterion) for criterion in criteria}

    def describe(self, feature: int) -> tuple[int, int]:
        """A latent is its own feature; it has no sign to choose."""
        return feature, 1


class LinearFeatures:
    """Projections of activations on directions; with ``both_signs``, on their opposites too.

    Args:
        acts: activations of the patches, centred.
        directions: one a row.
        both_signs: a neuron may stand for a concept by being low: let the choice decide.
    """

    def __init__(
        self,
        acts: Float[Tensor, "n d_in"],
        directions: Float[Tensor, "directions d_in"],
        both_signs: bool,
    ):
        self.acts = acts
        self.directions = torch.cat([directions, -directions]) if both_signs else directions
        self.n_directions = len(directions)
        self.n_features = len(self.directions)

    def columns(self, chosen: Int[Tensor, " chosen"]) -> Float[Tensor, "chosen n"]:
        """Scores of all patches under the chosen directions."""
        return self.directions[chosen] @ self.acts.T

    def scores(
        self, positives: Sequence[Int[Tensor, " positives"]], criteria: Sequence[Criterion]
    ) -> dict[Criterion, Float[Tensor, "directions concepts"]]:
        """Each criterion of every direction for every set of patches."""
        blocks = torch.arange(self.n_features).split(max(1, _MAX_BLOCK_VALUES // len(self.acts)))
        found: dict[Criterion, list[Tensor]] = {criterion: [] for criterion in criteria}
        for block in blocks:
            ranks = Ranks(self.columns(block))
            for criterion, parts in found.items():
                ask = ranks.auroc if criterion == "auroc" else ranks.average_precision
                parts.append(torch.stack([ask(patches) for patches in positives], dim=-1))
        return {criterion: torch.cat(parts) for criterion, parts in found.items()}

    def describe(self, feature: int) -> tuple[int, int]:
        """The direction and its sign."""
        return feature % self.n_directions, 1 if feature < self.n_directions else -1


def principal_directions(acts: Float[Tensor, "n d_in"]) -> Float[Tensor, "d_in d_in"]:
    """All principal components of centred rows, the strongest first, one a row."""
    covariance = acts.double().T @ acts.double()
    return torch.linalg.eigh(covariance).eigenvectors.flip(-1).T.to(acts.dtype)


def random_directions(n: int, d_in: int, seed: int) -> Float[Tensor, "n d_in"]:
    """Directions drawn uniformly from the sphere."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(n, d_in, generator=generator)
    return directions / directions.norm(dim=-1, keepdim=True)


def firing_thresholds(
    acts: Float[Tensor, "n d_in"],
    directions: Float[Tensor, "latents d_in"],
    n_active: Int[Tensor, " latents"],
) -> Float[Tensor, " latents"]:
    """For each direction the threshold above which as many rows lie as asked; ties may leave fewer.

    One that is asked for all rows gets all but the lowest.
    """
    # the largest value that is no longer above the threshold
    cut = n_active.clamp(max=len(acts) - 1)
    thresholds = []
    blocks = torch.arange(len(n_active)).split(max(1, _MAX_BLOCK_VALUES // len(acts)))
    for block in blocks:
        ordered = (directions[block] @ acts.T).sort(dim=-1, descending=True).values
        thresholds.append(ordered.gather(-1, cut[block, None]).squeeze(-1))
    return torch.cat(thresholds)


def random_latents(
    first: Float[Tensor, "n d_in"],
    second: Float[Tensor, "m d_in"],
    n_active: Int[Tensor, " latents"],
    seed: int,
) -> tuple[SparseFeatures, SparseFeatures]:
    """An untrained SAE's latents: random directions, each cut off so that it fires as asked.

    Args:
        first, second: centred activations of the two halves.
        n_active: at how many rows of ``first`` each latent is above zero; ties may leave it fewer.
            The threshold found there holds for ``second`` too.
        seed: of the directions.
    """
    directions = random_directions(len(n_active), first.shape[1], seed)
    threshold = firing_thresholds(first, directions, n_active)
    halves = SparseFeatures(len(n_active)), SparseFeatures(len(n_active))
    for features, acts in zip(halves, (first, second), strict=True):
        for rows in acts.split(max(1, _MAX_BLOCK_VALUES // len(n_active))):
            features.append((rows @ directions.T - threshold).relu())
    return halves
