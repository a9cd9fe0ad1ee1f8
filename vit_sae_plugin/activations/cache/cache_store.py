"""Batches of a cache's rows for training, shuffled over the whole cache."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_sae_plugin.activations.cache.activation_cache import ActivationCache
from vit_sae_plugin.activations.cache.block_reader import LoadedGroup
from vit_sae_plugin.activations.cache.read_order import Group, ReadOrder, rows_of_a_block
from vit_sae_plugin.activations.row_store import Gather, RowStore

if TYPE_CHECKING:
    from vit_sae_plugin.activations.embedding_statistics import EmbeddingStatistics


class CacheStore(RowStore):
    """An endless SAELens data provider over an `ActivationCache`.

    An epoch visits each row once, in an order that follows from the seed, the epoch, the cache and
    the sizes given (`ReadOrder`); a batch that an epoch's end cuts short is filled from the next.
    Threads read what comes next while a batch is trained on. The whole state is the number of rows
    served.

    Memory: two groups of rows, each of `n_batches_in_buffer` batches, in the cache's number format.

    Args:
        cache: the cache.
        hook_name: whose rows.
        hook_name_out: for transcoders: another hook of the cache; rows are then `[input | output]`.
        train_batch_size_tokens: rows of a batch.
        n_batches_in_buffer: batches whose rows are mixed. A batch draws on some 128 places in the
            cache, or fewer if rows are small.
        seed: of the order.
        dtype, device: of the batches.
        statistics: centre and scale rows by these; None: rows as they are.
        with_coordinates: keep where each row comes from, see `coordinates`.
        n_readers: threads that read. Does not change the rows.

    Attributes:
        coordinates: `[rows, 3]` of the batch given last: the image's index in the cache, and row
            and column of the patch, −1 and −1 for what is no patch. None without
            `with_coordinates`.

    Raises:
        CacheMismatchError: the cache doesn't hold a hook.
        ValueError: a size below 1, or a cache without rows.
    """

    def __init__(
        self,
        cache: ActivationCache,
        *,
        hook_name: str,
        hook_name_out: str | None = None,
        train_batch_size_tokens: int = 4096,
        n_batches_in_buffer: int = 20,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        statistics: EmbeddingStatistics | None = None,
        with_coordinates: bool = False,
        n_readers: int = 4,
    ) -> None:
        for name, size in (
            ("train_batch_size_tokens", train_batch_size_tokens),
            ("n_batches_in_buffer", n_batches_in_buffer),
            ("n_readers", n_readers),
        ):
            if size < 1:
                raise ValueError(f"{name} is {size}; want 1 or more")
        if cache.n_rows == 0:
            raise ValueError(f"the cache {cache.path} has no rows; want one whose images are read")
        self.cache = cache
        self.hook_name = hook_name
        self.hook_name_out = hook_name_out
        self.hooks = [hook_name] if hook_name_out is None else [hook_name, hook_name_out]
        self.d_in = sum(cache.d_in(hook) for hook in self.hooks)
        self.train_batch_size_tokens = train_batch_size_tokens
        self.n_batches_in_buffer = n_batches_in_buffer
        self.seed = seed
        self.dtype = dtype
        self.device = torch.device(device)
        self.statistics = statistics
        self.with_coordinates = with_coordinates
        self.coordinates: Int[Tensor, "rows 3"] | None = None
        self.n_readers = n_readers
        self.n_rows_served = 0
        """Rows of all epochs before the next batch, whoever of several processes gave them."""

        buffer_rows = n_batches_in_buffer * train_batch_size_tokens
        block_rows = rows_of_a_block(self.d_in, buffer_rows)
        rows_of_shard = {number: entry.n_rows for number, entry in cache.entries.items()}
        self._order = ReadOrder(rows_of_shard, block_rows, buffer_rows, seed)
        self._rank, self._n_ranks = 0, 1
        self._threads: tuple[ThreadPoolExecutor, ThreadPoolExecutor] | None = None
        self._memory: list[LoadedGroup] = []
        self._now: LoadedGroup | None = None
        self._next: Future[LoadedGroup] | None = None

    def __repr__(self) -> str:
        return (
            f"<CacheStore of {self.cache!r}: {' and '.join(self.hooks)}, batches of "
            f"{self.train_batch_size_tokens:,} rows of {self.d_in}>"
        )

    def __next__(self) -> Float[Tensor, "rows d_in"]:
        """The next batch, or this process's share of it, in memory of its own.

        Raises:
            DamagedCacheError: a shard was deleted or cut short; the store stays where it was.
        """
        position, wanted = self.n_rows_served, self.train_batch_size_tokens
        rows, coordinates = [], []
        while wanted > 0:
            loaded, group = self._group_at(position)
            start = position % self._order.n_rows - group.first_row
            chosen = group.order[start : start + wanted]
            rows.append(loaded.rows(chosen, self.dtype))
            if self.with_coordinates:
                coordinates.append(loaded.coordinates(chosen))
            position += len(chosen)
            wanted -= len(chosen)
        self.n_rows_served = position
        self.global_batch_rows = self.train_batch_size_tokens
        self.coordinates = torch.cat(coordinates) if self.with_coordinates else None
        batch = rows[0] if len(rows) == 1 else torch.cat(rows)
        batch = batch.to(self.device)
        return batch if self.statistics is None else self.statistics.standardize(batch)

    def take_share(self, rank: int, n_ranks: int, gather: Gather) -> None:
        """Read only every `n_ranks`-th block, and give only its rows: none is read twice."""
        if not 0 <= rank < n_ranks:
            raise ValueError(f"rank is {rank}; want 0 to {n_ranks - 1}")
        self._forget()
        self._rank, self._n_ranks = rank, n_ranks

    def state_dict(self) -> dict[str, Any]:
        """Where the store stands, in rows of the whole; `load_state_dict` goes on from there."""
        return {"n_rows_served": self.n_rows_served, "cache": self.cache.fingerprint()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a store with the same settings stood.

        Raises:
            ValueError: it was a store of another cache, or no `CacheStore`.
        """
        if state.get("cache") != self.cache.fingerprint():
            there = "other rows" if "cache" in state else "no cache"
            raise ValueError(
                f"the run read {there}, but now it would read {self.cache.path}; want the cache "
                "that it began with, as it was then"
            )
        self.n_rows_served = int(state["n_rows_served"])
        self._forget()

    def describe(self) -> dict[str, Any]:
        """What the rows' metadata say, as if they came from images."""
        description = self.cache.source(self.hook_name).to_metadata()
        if self.hook_name_out is not None:
            description["hook_name_out"] = self.hook_name_out
        return description

    def fingerprint(self) -> dict[str, Any]:
        """The source's description, and the cache's hash in place of the images'."""
        return {"model": self.describe(), "images": f"cache {self.cache.fingerprint()}"}

    def close(self) -> None:
        """End the threads that read."""
        self._forget()
        if self._threads is not None:
            for threads in self._threads:
                threads.shutdown()
            self._threads = None

    def _group_at(self, position: int) -> tuple[LoadedGroup, Group]:
        """The rows in memory among which is the one that is served as number `position`."""
        epoch, row = divmod(position, self._order.n_rows)
        if self._now is None or not _holds(self._now, epoch, row):
            self._now = None
            if self._next is None:
                self._next = self._start(lambda: self._order.group_at(position), 0)
            ahead, self._next = self._next, None
            self._now = ahead.result()
            done = self._now.group
            free = 1 - self._memory.index(self._now)
            self._next = self._start(lambda: self._order.group(done.epoch, done.number + 1), free)
        return self._now, self._now.group

    def _start(self, group: Callable[[], Group], number: int) -> Future[LoadedGroup]:
        """Read a group into one of the two memories, in other threads."""
        if self._threads is None:
            self._threads = (ThreadPoolExecutor(1), ThreadPoolExecutor(self.n_readers))
        if not self._memory:
            n_rows = -(-self._order.blocks_in_group // self._n_ranks) * self._order.block_rows
            settings = (self.cache, self.hooks, n_rows, self.with_coordinates)
            self._memory = [LoadedGroup(*settings), LoadedGroup(*settings)]
        ahead, readers = self._threads
        loaded, rank, n_ranks = self._memory[number], self._rank, self._n_ranks
        return ahead.submit(lambda: loaded.load(group(), rank, n_ranks, readers))

    def _forget(self) -> None:
        if self._next is not None:
            wait([self._next])
        self._now = self._next = None
        self._memory = []


def _holds(loaded: LoadedGroup, epoch: int, row: int) -> bool:
    group = loaded.group
    return group.epoch == epoch and group.first_row <= row < group.first_row + len(group.order)
