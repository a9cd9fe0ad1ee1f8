"""What a training run needs of its rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from vit_sae_plugin.activations.embedding_statistics import EmbeddingStatistics
    from vit_sae_plugin.datasets import SkippedImages


class RowStore(ABC, Iterator[Tensor]):
    """A SAELens data provider that can go on where it was, and says what its rows are.

    A store of one's own gives ``d_in``, ``__next__``, ``state_dict`` and ``load_state_dict``; the
    rest has an answer already.
    """

    d_in: int
    """Width of a row."""
    statistics: EmbeddingStatistics | None = None
    """What rows were centred and scaled by, which is kept with the SAE; None: rows are as they
    came."""
    skipped: SkippedImages | None = None
    """The images that could not be used so far; None where rows don't come from images."""

    @abstractmethod
    def __next__(self) -> Float[Tensor, "rows d_in"]:
        """The next batch of rows, without end."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Plain values from which ``load_state_dict`` goes on."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the store that gave ``state`` was."""

    def describe(self) -> dict[str, Any]:
        """What the SAE's metadata should say of the rows: model, hook, tokens."""
        return {}

    def fingerprint(self) -> dict[str, Any]:
        """By what a resumed run knows that its rows are the same, by name, as plain values."""
        return {}

    def close(self) -> None:
        """End what was started to make rows, such as worker processes; the next row starts it
        again."""
