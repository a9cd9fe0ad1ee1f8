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

from vit_sae_plugin import kernel_cache

_PACKAGE = Path(__file__).parent
_FLAGS = ["-O3", "-shared", "-fPIC"]
# not every compiler knows these two
_OPTIONAL_FLAGS = [[*a, *b] for a, b in product((["-fopenmp"], []), (["-march=native"], []))]

_V3 = frozenset("avx avx2 bmi1 bmi2 f16c fma abm movbe".split())
_LEVELS = {
    "x86-64-v4": _V3 | frozenset("avx512f avx512bw avx512cd avx512dq avx512vl".split()),
    "x86-64-v3": _V3,
}
"""What a processor must know for the libraries that a wheel may hold (``hatch_build.py``)."""

_COMPILING = threading.Lock()


def load_kernels(module_file: str, real: str = "float") -> ctypes.CDLL | None:
    """The functions of the C file beside a Python file; None where they can't be had.

    Compiling takes about a second, by the compiler named in ``CC``, or ``cc``, ``gcc`` or
    ``clang``. The library is kept in the user's cache folder (``kernel_cache``), for this source,
    compiler and kind of processor. Without a compiler, a library that came with the package is
    used, if there is one that this processor can run.

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
        try:
            return _kept_or_compiled(source, compiler, real)
        except _CompilerError as error:
            failure = f"{compiler} can't compile {source.name}: {error}"
        except _NoProgramsError as error:
            failure = str(error)
    if (shipped := _shipped(source, real)) is not None:
        return shipped
    warnings.warn(
        f"{failure}. PyTorch does the work of {source.name} instead, more slowly.",
        stacklevel=3,
    )
    return None


class _CompilerError(RuntimeError):
    """The compiler can't do it; the message is its own."""


class _NoProgramsError(RuntimeError):
    """No program may run from the folder of temporary files."""


def _kept_or_compiled(source: Path, compiler: str, real: str) -> ctypes.CDLL:
    folder, key = kernel_cache.cache_folder(), _key(source, compiler, real)
    kept, can_be_kept = None, True
    try:
        kernel_cache.make_private(folder)
        kept = kernel_cache.find(folder, key)
    except OSError as error:
        warnings.warn(f"Compiled kernels are not kept: {error}", stacklevel=5)
        can_be_kept = False
    with tempfile.TemporaryDirectory() as private:  # nobody else can enter it
        library = Path(private) / "kernels.so"
        if kept is not None:
            library.write_bytes(kept)
            return _open(library)
        _compile(source, compiler, real, library)
        if can_be_kept:
            try:
                kernel_cache.keep(folder, key, library.read_bytes())
            except OSError as error:
                warnings.warn(f"Compiled kernels are not kept: {error}", stacklevel=5)
        return _open(library)


def _open(library: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise _NoProgramsError(
            f"{library.parent.parent} lets no program run ({error}); let TMPDIR name a folder that "
            "does"
        ) from error


def _compile(source: Path, compiler: str, real: str, library: Path) -> None:
    for optional in _OPTIONAL_FLAGS:
        flags = [*_FLAGS, *optional, f"-DREAL={real}", f"-I{_PACKAGE}"]
        command = [compiler, *flags, "-o", str(library), str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return
    raise _CompilerError(done.stderr.strip()[-300:])


def _key(source: Path, compiler: str, real: str) -> str:
    """Of all that the library depends on."""
    version = subprocess.run([compiler, "--version"], capture_output=True).stdout
    headers = {*_PACKAGE.rglob("*.h"), *source.parent.glob("*.h")}
    texts = [path.read_bytes() for path in [source, *sorted(headers)]]
    about = [os.path.realpath(compiler), repr([_FLAGS, _OPTIONAL_FLAGS]), real]
    return kernel_cache.key_of(*about, repr(kernel_cache.processor()), version, *texts)


def _shipped(source: Path, real: str) -> ctypes.CDLL | None:
    """The best library that came with the package, of those that this processor can run."""
    known = set(kernel_cache.processor().get("flags", "").split())
    for level, needed in _LEVELS.items():
        library = source.with_name(f"{source.stem}.{real}.{level}.so")
        if needed <= known and library.is_file():
            try:
                return ctypes.CDLL(str(library))
            except OSError:  # another system than it was made for
                continue
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
