"""A uniform sample of rows from a stream of unknown length."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


class RowSample:
    """Keeps at most ``n_rows`` rows, each row of the stream with equal chance; constant memory.

    Every row has a random number and the smallest stay, so the sample doesn't depend on how the
    rows were cut into batches.

    Args:
        n_rows: rows to keep.
        seed: of the random numbers drawn here; the sample then depends on the order of the rows.
    """

    def __init__(self, n_rows: int, seed: int = 0):
        self.n_rows = n_rows
        self._random = np.random.default_rng(seed)
        self._draws: list[Tensor] = []
        self._rows: list[Tensor] = []
        self._n_held = 0
        self._limit = torch.inf

    def update(
        self, rows: Float[Tensor, "rows d"], draws: Float[Tensor, " rows"] | None = None
    ) -> None:
        """Show it the next rows.

        Args:
            rows: any tensors of one shape, an item each.
            draws: their random numbers in [0, 1), where the caller knows what identifies a row:
                the sample then doesn't depend on their order either. Default: drawn here.
        """
        if draws is None:
            draws = torch.from_numpy(self._random.random(len(rows)))
        fresh = draws < self._limit
        if not fresh.any():
            return
        self._draws.append(draws[fresh])
        self._rows.append(rows[fresh.to(rows.device)].detach().cpu())
        self._n_held += len(self._rows[-1])
        if self._n_held >= 2 * self.n_rows:
            self._keep_smallest()

    def _keep_smallest(self) -> None:
        draws, rows = torch.cat(self._draws), torch.cat(self._rows)
        kept = draws.argsort(stable=True)[: self.n_rows].sort().values
        self._draws, self._rows, self._n_held = [draws[kept]], [rows[kept]], len(kept)
        if self._n_held == self.n_rows:
            self._limit = self._draws[0].max().item()

    @property
    def rows(self) -> Float[Tensor, "sample d"]:
        """The sample, in the order in which its rows came."""
        if not self._rows:
            return torch.zeros(0, 0)
        self._keep_smallest()
        return self._rows[0]
