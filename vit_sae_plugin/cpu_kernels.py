"""C functions for what PyTorch has no fast operator for on a CPU, compiled when first used."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import threading
import warnings
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_FLAGS = ["-O3", "-shared", "-fPIC", f"-I{Path(__file__).parent}"]


_COMPILING = threading.Lock()


def load_kernels(module_file: str, real: str = "float") -> ctypes.CDLL | None:
    """The functions of the C file beside a Python file; None where they can't be had.

    Compiling takes about a second, by the compiler named in ``CC``, or ``cc``, ``gcc`` or
    ``clang``. Nothing stays on disk: code for this machine's processor would fail on another one
    that shares the disk.

    Args:
        module_file: the Python file, ``__file__`` of the module that calls.
        real: the C type of floating-point values, which the file calls ``REAL``.
    """
    with _COMPILING:  # a thread may have begun already
        return _compiled(module_file, real)


@cache
def _compiled(module_file: str, real: str = "float") -> ctypes.CDLL | None:
    source = Path(module_file).with_suffix(".c")
    names = [os.environ.get("CC"), "cc", "gcc", "clang"]
    compiler = next((found for name in names if name and (found := shutil.which(name))), None)
    if compiler is None:
        failure = "there is no C compiler"
    else:
        with tempfile.TemporaryDirectory() as folder:
            library = str(Path(folder) / "kernels.so")
            # not every compiler knows these two
            for openmp, machine in product((["-fopenmp"], []), (["-march=native"], [])):
                flags = [*_FLAGS, *openmp, *machine, f"-DREAL={real}"]
                command = [compiler, *flags, "-o", library, str(source)]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode == 0:
                    return ctypes.CDLL(library)
        failure = f"{compiler} can't compile {source.name}: {done.stderr.strip()[-300:]}"
    warnings.warn(
        f"{failure}. PyTorch does the work of {source.name} instead, more slowly.",
        stacklevel=3,
    )
    return None


def run_kernel(function: Any, *arguments: Tensor | float) -> int:
    """Call a C function of ``load_kernels`` on as many threads as PyTorch may use.

    They are PyTorch's own threads where both use the same OpenMP library: others would have to
    share the processor with threads that PyTorch keeps waiting.

    Args:
        arguments: contiguous CPU tensors for pointers (NULL if empty), ints for ``long`` and floats
            for ``float``. The number of threads is added as the last.

    Returns:
        What the function returns, a ``long``.

    Raises:
        MemoryError: it is negative, by which a C function says that it got no memory.
    """
    function.restype = ctypes.c_long
    result = int(function(*map(_as_c, (*arguments, torch.get_num_threads()))))
    if result < 0:
        raise MemoryError("no memory for the working space of a CPU kernel; use smaller batches")
    return result


def _as_c(argument: Tensor | float) -> Any:
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    return ctypes.c_long(argument) if isinstance(argument, int) else ctypes.c_float(argument)
