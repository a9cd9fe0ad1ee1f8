"""What a training run needs of its rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from vit_sae_plugin.activations.embedding_statistics import EmbeddingStatistics
    from vit_sae_plugin.datasets import SkippedImages


Gather = Callable[[str], list[str]]
"""Takes a text from each of several processes, and gives all of them all texts, in order of rank.
They call it together; while one hasn't, the others wait."""


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
    global_batch_rows: int = 0
    """Once ``take_share`` was called: rows of the whole batch of which ``__next__`` gave a share
    last."""

    @abstractmethod
    def __next__(self) -> Float[Tensor, "rows d_in"]:
        """The next batch of rows, without end."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Plain values from which ``load_state_dict`` goes on."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the store that gave ``state`` was."""

    def take_share(self, rank: int, n_ranks: int, gather: Gather) -> None:
        """From now on give only one process's rows of each batch.

        Together, the ``n_ranks`` processes give the very batches that one alone would: each row of
        a batch is given by exactly one of them, in the batch's order. A share may be any part of
        the batch, also none of it. ``state_dict`` goes on to describe the place of the whole, so a
        run can be resumed by another number of processes.

        Args:
            rank: which of the processes this is, from 0.
            n_ranks: how many there are.
            gather: for what a store must learn from the others while it makes rows.

        Raises:
            ValueError: the store's rows can't be shared.
        """
        raise ValueError(
            f"the rows come from a {type(self).__name__}, which can't be shared by {n_ranks} "
            "processes: it has no take_share(); train in one process"
        )

    def describe(self) -> dict[str, Any]:
        """What the SAE's metadata should say of the rows: model, hook, tokens."""
        return {}

    def fingerprint(self) -> dict[str, Any]:
        """By what a resumed run knows that its rows are the same, by name, as plain values."""
        return {}

    def close(self) -> None:
        """End what was started to make rows, such as worker processes; the next row starts it
        again."""
