"""In which order a cache is read: blocks at random, and rows at random among some blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

_LARGEST_BLOCK_BYTES = 1 << 20
_SMALLEST_BLOCK_BYTES = 1 << 16
_BLOCKS_IN_BUFFER = 128


@dataclass(frozen=True)
class Block:
    """Rows that lie side by side in a shard."""

    shard: int
    start: int
    n_rows: int


@dataclass(frozen=True)
class Group:
    """The blocks that are in memory at once, and the order in which their rows are served."""

    epoch: int
    number: int
    """Within the epoch."""
    first_row: int
    """Rows of the epoch that are served before it."""
    blocks: list[Block]
    order: np.ndarray
    """A permutation of the rows of all blocks, counted block after block."""


def rows_of_a_block(d_in: int, buffer_rows: int) -> int:
    """How many rows to read at once: few enough that a buffer has rows of many places, and enough
    that a disk reads them nearly as fast as if all followed each other.

    As many in every number format, so that a run sees the same rows in the same order.

    Args:
        d_in: width of a row, over all hooks that are read.
        buffer_rows: rows that are in memory at once.
    """
    row_bytes = 4 * d_in
    wanted = buffer_rows * row_bytes // _BLOCKS_IN_BUFFER
    n_bytes = min(max(wanted, _SMALLEST_BLOCK_BYTES), _LARGEST_BLOCK_BYTES)
    return max(1, n_bytes // row_bytes)


class ReadOrder:
    """The order of a cache's rows in every epoch: a function of the seed and of the sizes given.

    An epoch visits the blocks of all shards in random order, some at a time, and the rows of these
    in random order. As rows lie in random order within their shard, a block is a sample of the
    shard's images. It takes 40 bytes for each block of the cache.

    Args:
        rows_of_shard: shard → its rows.
        block_rows: rows of a block at most; a shard is cut into equal ones.
        buffer_rows: rows that are in memory at once, at least.
        seed: of the order.
    """

    def __init__(
        self, rows_of_shard: Mapping[int, int], block_rows: int, buffer_rows: int, seed: int
    ) -> None:
        self.seed = seed
        shards, starts, sizes = [], [], []
        for shard, n_rows in rows_of_shard.items():
            # equal parts: a small last block of each shard would cost a read and mix little
            n_blocks = -(-n_rows // block_rows)
            edges = np.arange(n_blocks + 1) * n_rows // max(n_blocks, 1)
            shards.append(np.full(n_blocks, shard, dtype=np.int64))
            starts.append(edges[:-1])
            sizes.append(np.diff(edges))
        self._shards, self._starts = np.concatenate(shards), np.concatenate(starts)
        self._sizes = np.concatenate(sizes)
        self.n_rows = int(self._sizes.sum())
        self.n_blocks = len(self._sizes)
        self.block_rows = int(self._sizes.max())
        """Rows of the largest block."""
        blocks_in_memory = -(-buffer_rows // self.block_rows)
        self.n_groups = -(-self.n_blocks // blocks_in_memory)
        self.blocks_in_group = -(-self.n_blocks // self.n_groups)
        """Blocks of the largest group."""
        self._epoch: tuple[int, np.ndarray, np.ndarray] | None = None

    def group(self, epoch: int, number: int) -> Group:
        """One group of an epoch; after its last one comes the first of the next epoch."""
        epoch, number = epoch + number // self.n_groups, number % self.n_groups
        blocks, first_rows = self._blocks_of(epoch)
        edges = self._edges()
        chosen = blocks[edges[number] : edges[number + 1]]
        n_rows = int(self._sizes[chosen].sum())
        return Group(
            epoch,
            number,
            int(first_rows[number]),
            [self._block(number) for number in chosen],
            np.random.default_rng([self.seed, epoch, number]).permutation(n_rows),
        )

    def group_at(self, position: int) -> Group:
        """The group in which the row lies that is served as number `position`, over all epochs."""
        epoch, row = divmod(position, self.n_rows)
        _, first_rows = self._blocks_of(epoch)
        return self.group(epoch, int(np.searchsorted(first_rows, row, side="right")) - 1)

    def _block(self, number: int) -> Block:
        shard, start, size = self._shards[number], self._starts[number], self._sizes[number]
        return Block(int(shard), int(start), int(size))

    def _edges(self) -> np.ndarray:
        """Groups of nearly equal numbers of blocks: a small last one would mix few images."""
        return np.arange(self.n_groups + 1) * self.n_blocks // self.n_groups

    def _blocks_of(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of an epoch's blocks, and the first row of each group."""
        if self._epoch is None or self._epoch[0] != epoch:
            blocks = np.random.default_rng([self.seed, epoch]).permutation(self.n_blocks)
            before = np.concatenate([[0], np.cumsum(self._sizes[blocks])])
            self._epoch = (epoch, blocks, before[self._edges()[:-1]])
        return self._epoch[1], self._epoch[2]
