"""For each latent, the k images with the largest values, in bounded memory."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vit_sae_plugin.cpu_kernels import load_kernels, run_kernel

INDEX_LIMIT = 2**32
_ENTRIES_AT_ONCE = 2**21


class LargestKeys(nn.Module):
    """Keeps, for each latent, the k images with the largest values, as keys made by ``pack``.

    Whatever the order and the batches in which images are offered, the same ones stay. ``keys``
    ``[d_sae, k]`` falls along each row; 0 marks an empty place.

    Args:
        with_payload: keep a number with each key, in ``payload`` ``[d_sae, k]``; else that is
            ``[d_sae, 0]``.
    """

    keys: Tensor
    payload: Tensor

    def __init__(self, d_sae: int, k: int, *, with_payload: bool = False) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(d_sae, k, dtype=torch.int64))
        payload = torch.full((d_sae, k if with_payload else 0), -1, dtype=torch.int32)
        self.register_buffer("payload", payload)
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []
        self._pending_limit = max(2**16, 16 * d_sae)

    def offer(
        self,
        value: Float[Tensor, "batch d_sae"],
        index: Int[Tensor, " batch"],
        payload: Int[Tensor, "batch d_sae"],
    ) -> Int[Tensor, " n"]:
        """Offer images to every latent for which they have a positive value.

        Args:
            value: of each image for each latent.
            index: of each image, 0 … 2³² − 1, each offered only once.
            payload: kept with the key, if payloads are.

        Returns:
            Positions in the batch of all images that entered somewhere; others may have driven
            some out again, or will when ``settle`` is called.
        """
        kernels = load_kernels(__file__) if self.keys.is_cpu else None
        if kernels is None:
            return self._put_off(value, index, payload)
        entered = torch.zeros(len(index), dtype=torch.bool)
        offered = (value.contiguous(), index.contiguous(), payload.int().contiguous())
        tensors = (*offered, self.keys, self.payload, entered)  # an empty payload is NULL in C
        d_sae, k = self.keys.shape
        run_kernel(kernels.insert_images, *tensors, k, len(index), d_sae)
        return entered.nonzero().flatten()

    def _put_off(self, value: Tensor, index: Tensor, payload: Tensor) -> Tensor:
        smallest = self.keys[:, -1]
        # a cheap test on values first: after some batches hardly any pair passes it
        wanted = (value >= unpack_value(smallest)) & (value > 0)
        image, latent = wanted.nonzero(as_tuple=True)
        key = pack(value[image, latent], index[image])
        larger = key > smallest[latent]
        image, latent, key = image[larger], latent[larger], key[larger]
        self._pending.append((latent, key, payload[image, latent].int()))
        if sum(len(latent) for latent, _, _ in self._pending) > self._pending_limit:
            self.settle()
        return image.unique()

    def settle(self) -> None:
        """Bring ``keys`` and ``payload`` up to date.

        Without C, what was offered is merged in bulk now and then, and when this is called.
        """
        if not self._pending:
            return
        latent, key, payload = (torch.cat(column) for column in zip(*self._pending, strict=True))
        self._pending = []
        order = torch.argsort(key, descending=True)
        order = order[torch.argsort(latent[order], stable=True)]
        rows, counts = torch.unique_consecutive(latent[order], return_counts=True)
        rows_at_once = max(1, _ENTRIES_AT_ONCE // self.keys.shape[1])
        n_blocks = max(1, -(-len(rows) // rows_at_once))
        blocks = zip(rows.tensor_split(n_blocks), counts.tensor_split(n_blocks), strict=True)
        for block, size in blocks:
            mine, order = order.tensor_split([int(size.sum())])
            self._merge(block, size, key[mine], payload[mine])

    def _merge(self, rows: Tensor, counts: Tensor, key: Tensor, payload: Tensor) -> None:
        """Merge keys, sorted by latent and falling, into the rows of these latents."""
        k = self.keys.shape[1]
        row = torch.arange(len(rows), device=key.device).repeat_interleave(counts)
        rank = torch.arange(len(key), device=key.device) - (counts.cumsum(0) - counts)[row]
        among_first = rank < k
        row, column = row[among_first], rank[among_first]

        def beside(old: Tensor, new: Tensor) -> Tensor:
            both = torch.cat([old[rows], torch.zeros_like(old[rows])], dim=1)
            both[row, column + k] = new[among_first]
            return both

        largest, place = beside(self.keys, key).topk(k, dim=1)
        self.keys[rows] = largest
        if self.payload.numel():
            self.payload[rows] = beside(self.payload, payload).gather(1, place)


def pack(value: Float[Tensor, "*n"], index: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
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
    value = unpack_value(key).masked_fill(empty, torch.nan)
    index = (INDEX_LIMIT - 1 - (key & (INDEX_LIMIT - 1))).masked_fill(empty, -1)
    return value, index


def unpack_value(key: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The values of keys; 0 for empty places."""
    return (key >> 32).int().view(torch.float32)
