"""Compiling the C files, and what happens where that is not possible."""

from __future__ import annotations

import sys

import pytest
import torch

from tests.c_compiler import C_COMPILERS
from vit_sae_plugin import cpu_kernels
from vit_sae_plugin.saes import nested_topk_selection

MODULE_FILE = nested_topk_selection.__file__
fresh = cpu_kernels._compiled.__wrapped__


def test_without_a_compiler_it_says_so_and_goes_on(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    with pytest.warns(UserWarning, match="no C compiler"):
        assert fresh(MODULE_FILE) is None
    monkeypatch.undo()
    monkeypatch.setenv("CC", "false")
    with pytest.warns(UserWarning, match=r"can't compile nested_topk_selection\.c"):
        assert fresh(MODULE_FILE) is None


@pytest.mark.parametrize("real", C_COMPILERS[:1])
def test_a_compiler_without_openmp_will_do(real, monkeypatch, tmp_path):
    compiler = tmp_path / "cc"
    compiler.write_text(
        f"#!{sys.executable}\nimport os, sys\n"
        "if '-fopenmp' in sys.argv: sys.exit('unknown option -fopenmp')\n"
        f"os.execv({real!r}, [{real!r}, *sys.argv[1:]])\n"
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    kernels = fresh(MODULE_FILE)
    acts = torch.tensor([[0.0, 3.0, 1.0], [5.0, 0.0, 2.0], [0.0, 0.0, 1.0]])
    first_level = torch.empty(3, 3, dtype=torch.uint8)
    most_active = cpu_kernels.run_kernel(
        kernels.select_levels, acts, first_level, torch.tensor([1, 2]), 2, 3, 3
    )
    assert most_active == 2
    assert first_level.tolist() == [[255, 0, 1], [0, 255, 1], [255, 255, 0]]


def test_a_kernel_out_of_memory_is_an_error():
    def function(*arguments):
        return -1

    with pytest.raises(MemoryError, match="smaller batches"):
        cpu_kernels.run_kernel(function, torch.zeros(2), 2, 0.5)
