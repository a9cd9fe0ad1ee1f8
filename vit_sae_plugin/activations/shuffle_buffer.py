"""A block of rows, filled in order and served once in random order.

Several processes may share a block: each holds some of its rows, and all draw the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass
class RowRun:
    """Rows that follow one another in a block."""

    n_rows: int
    """How many."""
    rows: Float[Tensor, "n_held d_in"]
    """Those that this process holds: all of them, or none."""
    coordinates: Int[Tensor, "n_held coordinates"]
    """What goes along with each row."""


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
        n_ranks: processes that share the block. Each has memory for its part, and more if that
            turns out larger.
    """

    def __init__(
        self,
        n_batches: int,
        batch_size: int,
        d_in: int,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        n_coordinates: int = 0,
        n_ranks: int = 1,
    ) -> None:
        self.n_batches = n_batches
        self.batch_size = batch_size
        n_held = -(-n_batches * batch_size // n_ranks)
        self._rows = torch.empty(n_held, d_in, dtype=dtype, device=device)
        self._coordinates = torch.empty(n_held, n_coordinates, dtype=torch.long)
        self._batches: tuple[Tensor, ...] | None = None

    @property
    def is_filled(self) -> bool:
        """Whether there are batches to serve."""
        return self._batches is not None

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

        def take_run(n_rows: int) -> RowRun:
            rows, coordinates = take_rows(n_rows)
            return RowRun(len(rows), rows, coordinates)

        self.fill_share(take_run, seed)

    def fill_share(self, take_run: Callable[[int], RowRun], seed: tuple[int, ...]) -> None:
        """Fill this process's part of a shared buffer; all processes draw the same order.

        Args:
            take_run: gives the next rows of the whole, at least one and at most as many as it is
                asked for, with those of them that this process holds.
            seed: as of ``fill``, the same in all processes.
        """
        n_rows = self.n_batches * self.batch_size
        place = torch.full((n_rows,), -1)  # where in memory a row is; -1: in another process's
        n_filled = n_held = 0
        while n_filled < n_rows:
            run = take_run(n_rows - n_filled)
            if len(run.rows) > 0:
                self._hold(run, n_held)
                end = n_held + run.n_rows
                place[n_filled : n_filled + run.n_rows] = torch.arange(n_held, end)
                n_held = end
            n_filled += run.n_rows
        # neighbouring seeds must not give related orders
        mixed = np.random.SeedSequence(seed).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(mixed[0]))
        order = place[torch.randperm(n_rows, generator=generator)]
        self._batches = tuple(
            batch[batch >= 0].to(self._rows.device) for batch in order.split(self.batch_size)
        )

    def _hold(self, run: RowRun, n_held: int) -> None:
        end = n_held + run.n_rows
        if end > len(self._rows):  # others' images could not be used
            self._rows = torch.cat([self._rows, torch.empty_like(run.rows).to(self._rows)])
            self._coordinates = torch.cat([self._coordinates, run.coordinates])
        self._rows[n_held:end].copy_(run.rows)
        self._coordinates[n_held:end].copy_(run.coordinates)

    def coordinates(self, number: int) -> Int[Tensor, "batch_size coordinates"]:
        """What goes along with the rows of a batch, on the CPU.

        Raises:
            RuntimeError: the buffer isn't filled.
        """
        return self._coordinates[self._rows_of(number).cpu()]

    def batch(self, number: int) -> Float[Tensor, "batch_size d_in"]:
        """A batch, in memory of its own; of a shared buffer, those of its rows that are held here.

        Raises:
            RuntimeError: the buffer isn't filled.
        """
        return self._rows.index_select(0, self._rows_of(number))

    def _rows_of(self, number: int) -> Tensor:
        if self._batches is None:
            raise RuntimeError("the buffer isn't filled; call fill() first")
        return self._batches[number]

    def empty(self) -> None:
        """Forget the rows; the memory is kept."""
        self._batches = None
