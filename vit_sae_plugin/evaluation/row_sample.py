"""A uniform sample of rows from a stream of unknown length."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


class RowSample:
    """Keeps at most ``n_rows`` rows, each row of the stream with equal chance; constant memory.

    Every row draws a random number and the smallest stay, so the sample depends on the seed and on
    the order of the rows, not on how they were cut into batches.
    """

    def __init__(self, n_rows: int, seed: int = 0):
        self.n_rows = n_rows
        self._random = np.random.default_rng(seed)
        self._draws = torch.zeros(0, dtype=torch.float64)
        self._rows: Tensor | None = None

    def update(self, rows: Float[Tensor, "rows d"]) -> None:
        """Show it the next rows."""
        new = torch.from_numpy(self._random.random(len(rows)))
        limit = self._draws.max() if len(self._draws) == self.n_rows else torch.inf
        fresh = new < limit
        draws = torch.cat([self._draws, new[fresh]])
        candidates = rows[fresh.to(rows.device)].detach().cpu()
        if self._rows is not None:
            candidates = torch.cat([self._rows, candidates])
        kept = draws.argsort(stable=True)[: self.n_rows].sort().values
        self._draws, self._rows = draws[kept], candidates[kept]

    @property
    def rows(self) -> Float[Tensor, "sample d"]:
        """The sample, in the order in which its rows came."""
        return torch.zeros(0, 0) if self._rows is None else self._rows
