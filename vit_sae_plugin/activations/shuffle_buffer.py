"""A block of rows, filled in order and served once in random order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


class ShuffleBuffer:
    """Memory for ``n_batches`` batches of rows, which is filled again and again.

    A row is copied twice, into the buffer and into its batch; and a batch draws on the whole
    buffer, as uniform sampling without replacement does.

    Args:
        n_batches: batches the buffer holds.
        batch_size: rows of a batch.
        d_in: width of a row.
        dtype, device: of the rows.
        n_coordinates: integers that go along with each row.
    """

    def __init__(
        self,
        n_batches: int,
        batch_size: int,
        d_in: int,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        n_coordinates: int = 0,
    ) -> None:
        self.n_batches = n_batches
        self.batch_size = batch_size
        self._rows = torch.empty(n_batches * batch_size, d_in, dtype=dtype, device=device)
        self._coordinates = torch.empty(n_batches * batch_size, n_coordinates, dtype=torch.long)
        self._order: Tensor | None = None

    @property
    def is_filled(self) -> bool:
        """Whether there are batches to serve."""
        return self._order is not None

    def fill(
        self,
        take_rows: Callable[[int], tuple[Float[Tensor, "n d_in"], Int[Tensor, "n coordinates"]]],
        seed: tuple[int, ...],
    ) -> None:
        """Fill the buffer and draw the order of its rows.

        Args:
            take_rows: gives the next rows and their coordinates, at least one row and at most as
                many as it is asked for.
            seed: of the order, such as (seed of the run, number of the buffer).
        """
        n_filled = 0
        while n_filled < len(self._rows):
            taken, coordinates = take_rows(len(self._rows) - n_filled)
            self._rows[n_filled : n_filled + len(taken)].copy_(taken)
            self._coordinates[n_filled : n_filled + len(taken)].copy_(coordinates)
            n_filled += len(taken)
        # neighbouring seeds must not give related orders
        mixed = np.random.SeedSequence(seed).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(mixed[0]))
        self._order = torch.randperm(n_filled, generator=generator).to(self._rows.device)

    def coordinates(self, number: int) -> Int[Tensor, "batch_size coordinates"]:
        """What goes along with the rows of a batch, on the CPU.

        Raises:
            RuntimeError: the buffer isn't filled.
        """
        return self._coordinates[self._rows_of(number).cpu()]

    def batch(self, number: int) -> Float[Tensor, "batch_size d_in"]:
        """A batch, in memory of its own.

        Raises:
            RuntimeError: the buffer isn't filled.
        """
        return self._rows.index_select(0, self._rows_of(number))

    def _rows_of(self, number: int) -> Tensor:
        if self._order is None:
            raise RuntimeError("the buffer isn't filled; call fill() first")
        first = number * self.batch_size
        return self._order[first : first + self.batch_size]

    def empty(self) -> None:
        """Forget the rows; the memory is kept."""
        self._order = None
