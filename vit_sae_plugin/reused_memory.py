"""Large CPU arrays in memory that was used before.

The C library gives a large array's memory back to the system as soon as the array is gone, and the
system fills each page of the next one with zeros when it is first touched. For the arrays of a
training step that takes as long as a good part of its arithmetic. Here memory stays until the
next array of its size, on huge pages where the system has them.
"""

from __future__ import annotations

import math
import mmap
import sys
import threading

import numpy as np
import torch
from torch import Tensor

MAX_IDLE = 256
"""Memory that went unused while so many arrays were asked for is given back."""

_NUMPY_DTYPES = {torch.float32: np.float32, torch.float64: np.float64}


class ReusedMemory:
    """Gives out arrays whose memory is used again once nothing refers to it any more."""

    def __init__(self) -> None:
        self._blocks: list[tuple[np.ndarray, int]] = []
        self._n_asked = 0
        self._lock = threading.Lock()

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """A CPU tensor whose values are arbitrary.

        Args:
            shape: its size.
            dtype: ``torch.float32`` or ``torch.float64``; others are not kept for reuse.
        """
        n_bytes = math.prod(shape) * dtype.itemsize
        if dtype not in _NUMPY_DTYPES or n_bytes < mmap.PAGESIZE:
            return torch.empty(*shape, dtype=dtype)
        with self._lock:
            block = self._take(n_bytes)
        return torch.from_numpy(block.view(_NUMPY_DTYPES[dtype])).view(shape)

    def release(self) -> None:
        """Give back all memory that is not in use."""
        with self._lock:
            self._blocks = []

    def _take(self, n_bytes: int) -> np.ndarray:
        self._n_asked += 1
        found, kept = None, []
        while self._blocks:
            block, asked = self._blocks.pop()
            # Referred to by ``block`` and by the call's argument; else by tensors.
            is_free = sys.getrefcount(block) == 2
            if found is None and is_free and block.nbytes == n_bytes:
                found = block
            elif not is_free or self._n_asked - asked < MAX_IDLE:
                kept.append((block, self._n_asked if not is_free else asked))
        self._blocks = kept[::-1]
        if found is None:
            found = _new_block(n_bytes)
        self._blocks.append((found, self._n_asked))
        return found


def _new_block(n_bytes: int) -> np.ndarray:
    if hasattr(mmap, "MAP_PRIVATE"):  # Python's default is memory that forked processes share
        memory = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    else:
        memory = mmap.mmap(-1, n_bytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype=np.uint8)


REUSED_MEMORY = ReusedMemory()
"""The process's own."""
