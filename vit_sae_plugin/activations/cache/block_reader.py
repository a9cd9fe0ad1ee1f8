"""Blocks of a cache's rows, from the disk into memory that is used again and again."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from vit_sae_plugin.activations.cache.activation_cache import ActivationCache
from vit_sae_plugin.activations.cache.cache_errors import DamagedCacheError
from vit_sae_plugin.activations.cache.read_order import Block, Group
from vit_sae_plugin.activations.cache.shard_files import (
    COORDINATE_COLUMNS,
    COORDINATES_FILE,
    HOW_TO_MEND,
    rows_file,
    scales_file,
    shard_folder,
)


class LoadedGroup:
    """The blocks of a group that one process reads, in memory.

    Args:
        cache: the cache.
        hooks: whose rows.
        n_rows: room for these.
        with_coordinates: read coordinates, too.
    """

    def __init__(
        self, cache: ActivationCache, hooks: Sequence[str], n_rows: int, with_coordinates: bool
    ) -> None:
        self.cache = cache
        stored = np.dtype(cache.plan.format.stored)
        self._files: dict[str, np.ndarray] = {
            rows_file(hook): np.empty((n_rows, cache.d_in(hook)), stored) for hook in hooks
        }
        if cache.plan.format.has_scales:
            self._files |= {scales_file(hook): np.empty((n_rows, 1), "<f4") for hook in hooks}
        if with_coordinates:
            self._files[COORDINATES_FILE] = np.empty((n_rows, len(COORDINATE_COLUMNS)), "<i4")
        self._hooks = list(hooks)
        self.group = Group(-1, -1, 0, [], np.empty(0, dtype=np.int64))
        """What was read last."""
        self._place = np.empty(0, dtype=np.int64)

    def load(self, group: Group, rank: int, n_ranks: int, readers: ThreadPoolExecutor) -> Self:
        """Read the blocks that are this process's; returns itself.

        Raises:
            DamagedCacheError: a file is missing, or too short.
        """
        edges = np.concatenate([[0], np.cumsum([block.n_rows for block in group.blocks])])
        place = np.full(edges[-1], -1, dtype=np.int64)
        tasks, n_rows = [], 0
        for number in range(rank, len(group.blocks), n_ranks):
            block = group.blocks[number]
            place[edges[number] : edges[number + 1]] = np.arange(n_rows, n_rows + block.n_rows)
            tasks += [
                readers.submit(_read, self.cache.path, name, block, target[n_rows:])
                for name, target in self._files.items()
            ]
            n_rows += block.n_rows
        wait(tasks)  # also if one fails: whoever tries again would be given what is written late
        for task in tasks:
            task.result()
        self._place, self.group = place, group
        return self

    def rows(self, chosen: np.ndarray, dtype: torch.dtype) -> Tensor:
        """Rows by their number in the group, hooks side by side; those of others are left out."""
        index = torch.from_numpy(self._mine(chosen))
        row_format = self.cache.plan.format
        parts = []
        for hook in self._hooks:
            numbers = row_format.as_tensor(self._files[rows_file(hook)]).index_select(0, index)
            scales = None
            if row_format.has_scales:
                scales = torch.from_numpy(self._files[scales_file(hook)])[index, 0]
            parts.append(row_format.decode(numbers, scales, dtype))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def coordinates(self, chosen: np.ndarray) -> Tensor:
        """Image, row and column of rows by their number in the group."""
        found = self._files[COORDINATES_FILE][self._mine(chosen), :3]
        return torch.from_numpy(found.astype(np.int64))

    def _mine(self, chosen: np.ndarray) -> np.ndarray:
        places = self._place[chosen]
        return places[places >= 0]


def _read(cache: Path, name: str, block: Block, target: np.ndarray) -> None:
    """Read a block into the first rows of `target`.

    Not by a memory map: a file that is cut short while it is mapped would end the process.
    """
    path = shard_folder(cache, block.shard) / name
    row_bytes = target.shape[1] * target.itemsize
    memory = target[: block.n_rows].reshape(-1).view(np.uint8).data
    n_read = 0
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(block.start * row_bytes)
            while n_read < len(memory):
                n_more = file.readinto(memory[n_read:])
                if not n_more:
                    raise OSError(f"it ends after {file.tell()} bytes")
                n_read += n_more
    except OSError as error:
        raise DamagedCacheError(
            f"shard {block.shard} is damaged or was deleted: {path} can't be read "
            f"({error.strerror or error}); {HOW_TO_MEND}"
        ) from error
