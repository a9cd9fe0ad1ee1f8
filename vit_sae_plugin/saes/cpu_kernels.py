"""C functions for what PyTorch has no fast operator for on a CPU, compiled when first used."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

_FLAGS = ["-O3", "-shared", "-fPIC"]


@cache
def load_kernels(source: str, real: str = "float") -> ctypes.CDLL | None:
    """The functions of a C file of this folder; None where they can't be had.

    Compiling takes about a second, by the compiler named in ``CC``, or ``cc``, ``gcc`` or
    ``clang``. Nothing stays on disk: code for this machine's processor would fail on another one
    that shares the disk.

    Args:
        source: name of the file.
        real: the C type of floating-point values, which the file calls ``REAL``.
    """
    names = [os.environ.get("CC"), "cc", "gcc", "clang"]
    compiler = next((found for name in names if name and (found := shutil.which(name))), None)
    if compiler is None:
        failure = "there is no C compiler"
    else:
        with tempfile.TemporaryDirectory() as folder:
            library = str(Path(folder) / "kernels.so")
            path = str(Path(__file__).with_name(source))
            for machine in (["-march=native"], []):  # which not every compiler knows
                command = [compiler, *_FLAGS, *machine, f"-DREAL={real}", "-o", library, path]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode == 0:
                    return ctypes.CDLL(library)
        failure = f"{compiler} can't compile {source}: {done.stderr.strip()[-300:]}"
    warnings.warn(
        f"{failure}. Matryoshka TopK SAEs train about three times slower on the CPU without one.",
        stacklevel=2,
    )
    return None


def address(tensor: Tensor) -> ctypes.c_void_p:
    """Where a contiguous CPU tensor's values are, for a C function."""
    return ctypes.c_void_p(tensor.data_ptr())


def sizes(*values: int) -> list[ctypes.c_long]:
    """Whole numbers for a C function."""
    return [ctypes.c_long(value) for value in values]


def in_parallel(call: Callable[[int, int], int], n: int) -> list[int]:
    """The results of ``call(begin, end)`` for consecutive parts of ``range(n)``.

    Each part has a thread of its own, as many as PyTorch may use.

    Raises:
        MemoryError: a result is negative, by which a C function says that it got no memory.
    """
    n_parts = max(min(torch.get_num_threads(), n), 1)
    bounds = [n * part // n_parts for part in range(n_parts + 1)]
    with ThreadPoolExecutor(n_parts) as pool:
        results = list(pool.map(call, bounds[:-1], bounds[1:]))
    if min(results) < 0:
        raise MemoryError(
            "no memory for the working space of a nested decoding; use smaller batches"
        )
    return results
