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

MANY_LATENTS = 16_384
"""Of an SAE: from here on a step's memory kept for the next weighs more than the time it saves."""
MAX_IDLE = 64
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
        return torch.from_numpy(block[:n_bytes].view(_NUMPY_DTYPES[dtype])).view(shape)

    def release(self) -> None:
        """Give back all memory that is not in use."""
        with self._lock:
            self._blocks = []

    def _take(self, n_bytes: int) -> np.ndarray:
        self._n_asked += 1
        unused = _n_references([np.empty(0)])
        free, kept = [], []
        while self._blocks:
            block, asked = self._blocks.pop()
            if _n_references([block]) > unused + 1:  # by ``block``; all others are tensors'
                kept.append((block, self._n_asked))
            elif self._n_asked - asked < MAX_IDLE:
                free.append((block, asked))
        # Sizes change a little from step to step, where they follow the latents in use.
        fitting = [i for i, (b, _) in enumerate(free) if n_bytes <= b.nbytes <= 2 * n_bytes]
        if fitting:
            found = free.pop(min(fitting, key=lambda i: free[i][0].nbytes))[0]
        else:
            found = _new_block(n_bytes)
        self._blocks = [*kept[::-1], *free[::-1], (found, self._n_asked)]
        return found


def _n_references(one: list[np.ndarray]) -> int:
    """How many refer to the array of this list, in Python's count, which takes in passing ones:
    more or fewer of them by its release."""
    return sys.getrefcount(one[0])


def _new_block(n_bytes: int) -> np.ndarray:
    step = max(mmap.PAGESIZE, 1 << n_bytes.bit_length() - 4)
    n_bytes = -(-n_bytes // step) * step  # what isn't touched takes no memory
    if hasattr(mmap, "MAP_PRIVATE"):  # Python's default is memory that forked processes share
        memory = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    else:
        memory = mmap.mmap(-1, n_bytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype=np.uint8)


REUSED_MEMORY = ReusedMemory()
"""The process's own."""


def empty_for_a_step(*shape: int, like: Tensor, n_latents: int) -> Tensor:
    """A tensor whose values are arbitrary, of an array's kind, for the length of a training step.

    In reused memory on a CPU, unless the SAE has many latents or ``torch.compile`` is looking.
    """
    on_cpu = like.device.type == "cpu" and not torch.compiler.is_compiling()
    if on_cpu and n_latents <= MANY_LATENTS:
        return REUSED_MEMORY.empty(*shape, dtype=like.dtype)
    return like.new_empty(shape)
