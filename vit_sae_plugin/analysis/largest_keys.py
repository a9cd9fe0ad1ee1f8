"""For each latent, the k largest of the whole numbers offered to it, in bounded memory."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

INDEX_LIMIT = 2**32
_ENTRIES_AT_ONCE = 2**21


class LargestKeys(nn.Module):
    """Keeps the k largest keys of each latent, with a payload for each.

    Keys are positive, and different from one another within a latent. Whatever the order and the
    batches in which they are offered, the same ones stay. ``keys`` ``[d_sae, k]`` falls along each
    row; 0 marks an empty place.
    """

    keys: Tensor
    payload: Tensor

    def __init__(self, d_sae: int, k: int) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(d_sae, k, dtype=torch.int64))
        self.register_buffer("payload", torch.full((d_sae, k), -1, dtype=torch.int32))

    @property
    def smallest(self) -> Int[Tensor, " d_sae"]:
        """What a key must exceed to enter, for each latent."""
        return self.keys[:, -1]

    def offer(
        self, latent: Int[Tensor, " n"], key: Int[Tensor, " n"]
    ) -> tuple[Int[Tensor, " m"], Int[Tensor, " m"], Int[Tensor, " m"]]:
        """Offer one key to one latent each.

        Returns:
            Where new keys were placed: latent, column, and position among those offered. Their
            payload is −1 until the caller writes it.
        """
        offered = (key > self.smallest[latent]).nonzero().flatten()
        order = offered[torch.argsort(key[offered], descending=True)]
        order = order[torch.argsort(latent[order], stable=True)]
        rows, counts = torch.unique_consecutive(latent[order], return_counts=True)
        rows_at_once = max(1, _ENTRIES_AT_ONCE // self.keys.shape[1])
        n_blocks = -(-len(rows) // rows_at_once)
        placed = []
        for block, size in zip(
            rows.tensor_split(n_blocks or 1), counts.tensor_split(n_blocks or 1), strict=True
        ):
            n_keys = int(size.sum())
            placed.append(self._merge(block, size, key, order[:n_keys]))
            order = order[n_keys:]
        latents, columns, sources = zip(*placed, strict=True)
        return torch.cat(latents), torch.cat(columns), torch.cat(sources)

    def _merge(
        self, rows: Tensor, counts: Tensor, key: Tensor, order: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Merge keys, sorted by latent and falling, into the table of these latents."""
        k = self.keys.shape[1]
        row = torch.arange(len(rows), device=key.device).repeat_interleave(counts)
        rank = torch.arange(len(order), device=key.device) - (counts.cumsum(0) - counts)[row]
        row, column, order = row[rank < k], rank[rank < k], order[rank < k]

        new_keys = torch.zeros(len(rows), k, dtype=torch.int64, device=key.device)
        new_keys[row, column] = key[order]
        source = torch.full((len(rows), 2 * k), -1, device=key.device)
        source[row, column + k] = order
        payload = torch.cat([self.payload[rows], torch.full_like(self.payload[rows], -1)], dim=1)

        largest, place = torch.cat([self.keys[rows], new_keys], dim=1).topk(k, dim=1)
        self.keys[rows] = largest
        self.payload[rows] = payload.gather(1, place)
        source = source.gather(1, place)
        row, column = (source >= 0).nonzero(as_tuple=True)
        return rows[row], column, source[row, column]


def pack(value: Float[Tensor, " n"], index: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """A key that orders by value and, where values are equal, by the smaller index.

    Args:
        value: positive float32; the bits of such numbers grow with the numbers.
        index: 0 … 2³² − 1.
    """
    bits = value.contiguous().view(torch.int32).long()
    return (bits << 32) | (INDEX_LIMIT - 1 - index)


def unpack(key: Int[Tensor, "*shape"]) -> tuple[Float[Tensor, "*shape"], Int[Tensor, "*shape"]]:
    """The values and indices of keys; NaN and −1 for empty places."""
    empty = key == 0
    value = (key >> 32).int().view(torch.float32).masked_fill(empty, torch.nan)
    index = (INDEX_LIMIT - 1 - (key & (INDEX_LIMIT - 1))).masked_fill(empty, -1)
    return value, index
