"""Candidate features of patches, read column by column: latents of an SAE, or directions."""

from __future__ import annotations

from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Features(Protocol):
    """Scores of every patch under many features, never all in memory at once."""

    n_features: int

    def columns(self, chosen: Int[Tensor, " chosen"]) -> Float[Tensor, "chosen n"]:
        """Scores of all patches under the chosen features."""
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
        self._parts.append((row.cpu() + self.n, latent.cpu().int(), value.cpu()))
        self.n += len(latents)
        self._ordered = None

    def _by_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        if self._ordered is None:
            row, latent, value = (torch.cat(parts) for parts in zip(*self._parts, strict=True))
            order = latent.argsort()
            counts = torch.bincount(latent, minlength=self.n_features)
            starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
            self._ordered = (row[order], value[order], starts)
            self._parts = [(row, latent, value)]
        return self._ordered

    def columns(self, chosen: Int[Tensor, " chosen"]) -> Float[Tensor, "chosen n"]:
        """Scores of all patches under the chosen latents."""
        row, value, starts = self._by_latent()
        dense = torch.zeros(len(chosen), self.n)
        for at, latent in enumerate(chosen.tolist()):
            span = slice(int(starts[latent]), int(starts[latent + 1]))
            dense[at, row[span]] = value[span]
        return dense

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
