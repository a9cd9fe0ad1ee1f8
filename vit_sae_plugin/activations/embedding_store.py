"""Batches of embedding rows for training, newly shuffled in each epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vit_sae_plugin.activations.embedding_rows import EmbeddingRows
from vit_sae_plugin.activations.embedding_statistics import EmbeddingStatistics
from vit_sae_plugin.activations.row_store import Gather, RowStore


class EmbeddingStore(RowStore):
    """An endless SAELens data provider over ``EmbeddingRows``.

    Every epoch visits each row once, in an order drawn from ``(seed, epoch)``; a batch that an
    epoch's end cuts short is filled from the next one. The whole state is the number of rows
    served, so a run resumes exactly.

    Args:
        embeddings: the rows.
        train_batch_size_tokens: rows in a batch.
        seed: of the order.
        statistics: centre and scale rows by these; None: rows as they are.
        dtype, device: of the batches.
    """

    def __init__(
        self,
        embeddings: EmbeddingRows,
        *,
        train_batch_size_tokens: int,
        seed: int = 0,
        statistics: EmbeddingStatistics | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        if train_batch_size_tokens <= 0:
            raise ValueError(
                f"train_batch_size_tokens is {train_batch_size_tokens}; want a positive number"
            )
        self.embeddings = embeddings
        self.d_in = embeddings.d_in
        self.train_batch_size_tokens = train_batch_size_tokens
        self.seed = seed
        self.statistics = statistics
        self.dtype = dtype
        self.device = torch.device(device)
        self.n_rows_served = 0
        self._order: tuple[int, np.ndarray] | None = None
        self._share = (0, 1)

    def __repr__(self) -> str:
        n_rows = self.train_batch_size_tokens
        return f"<EmbeddingStore of {self.embeddings!r}: batches of {n_rows:,}, {self.dtype}>"

    def __next__(self) -> Float[Tensor, "rows d_in"]:
        wanted = self.train_batch_size_tokens
        pieces = []
        while wanted > 0:
            epoch, position = divmod(self.n_rows_served, len(self.embeddings))
            piece = self._epoch_order(epoch)[position : position + wanted]
            pieces.append(piece)
            wanted -= len(piece)
            self.n_rows_served += len(piece)
        rank, n_ranks = self._share
        own = np.array_split(np.concatenate(pieces), n_ranks)[rank]
        self.global_batch_rows = self.train_batch_size_tokens
        rows = self.embeddings.tensor(own)
        if self.statistics is not None:
            rows = self.statistics.standardize(rows)
        return rows.to(self.device, self.dtype)

    def take_share(self, rank: int, n_ranks: int, gather: Gather) -> None:
        """Give one of ``n_ranks`` consecutive parts of each batch, as equal as can be."""
        self._share = (rank, n_ranks)

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            generator = np.random.default_rng([self.seed, epoch])
            self._order = (epoch, generator.permutation(len(self.embeddings)))
        return self._order[1]

    def fingerprint(self) -> dict[str, Any]:
        """The embeddings' hash."""
        return {"embeddings": self.embeddings.fingerprint()}

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` needs to go on with the very next batch."""
        return {"n_rows_served": self.n_rows_served}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the store that gave ``state`` was."""
        self.n_rows_served = int(state["n_rows_served"])
