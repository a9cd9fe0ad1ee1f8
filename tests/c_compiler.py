"""Whether this machine can compile the kernels; else only the way without them is tested."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest

C_COMPILERS = [found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))]

WAYS = ["compiled", "torch"] if C_COMPILERS else ["torch"]
"""How a module that has kernels can do its work: in C, or by torch operators (GPUs, or no
compiler)."""


@contextmanager
def doing_it(way: str, *modules: ModuleType) -> Iterator[None]:
    """Let modules do their work one of the ways."""
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            if way == "torch":
                patch.setattr(module, "load_kernels", lambda *arguments: None)
            else:
                assert module.load_kernels(module.__file__) is not None
        yield
