"""Compiling the C files, and what happens where that is not possible."""

from __future__ import annotations

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.c_compiler import C_COMPILERS
from vit_sae_plugin import cpu_kernels, kernel_cache
from vit_sae_plugin.saes import nested_topk_selection

MODULE_FILE = nested_topk_selection.__file__
fresh = cpu_kernels._compiled.__wrapped__
needs_compiler = pytest.mark.skipif(not C_COMPILERS, reason="no C compiler")


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """The cache folder of these tests."""
    monkeypatch.setenv(kernel_cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def compilations(monkeypatch):
    """What was compiled."""
    compiled, compile_it = [], cpu_kernels._compile

    def note(source, *arguments):
        compiled.append(source.name)
        compile_it(source, *arguments)

    monkeypatch.setattr(cpu_kernels, "_compile", note)
    return compiled


def do_they_work(kernels) -> bool:
    acts = torch.tensor([[0.0, 3.0, 1.0], [5.0, 0.0, 2.0], [0.0, 0.0, 1.0]])
    first_level = torch.empty(3, 3, dtype=torch.uint8)
    levels = torch.tensor([1, 2])
    arguments = (acts, first_level, levels, 2, 3, 3)
    assert cpu_kernels.run_kernel(kernels.select_levels, *arguments) == 2
    return first_level.tolist() == [[255, 0, 1], [0, 255, 1], [255, 255, 0]]


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
    assert do_they_work(fresh(MODULE_FILE))


@needs_compiler
def test_a_machine_compiles_a_source_once(folder, compilations):
    assert do_they_work(fresh(MODULE_FILE))
    assert do_they_work(fresh(MODULE_FILE))
    assert compilations == ["nested_topk_selection.c"]
    (library,) = folder.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert library.stat().st_mode & 0o077 == 0


@needs_compiler
def test_whatever_the_library_depends_on_makes_another(tmp_path, monkeypatch, compilations):
    package = tmp_path / "package"
    package.mkdir()
    for path in [*Path(MODULE_FILE).parent.glob("*.[ch]"), *cpu_kernels._PACKAGE.glob("*.h")]:
        shutil.copy(path, package)
    module = str(package / "nested_topk_selection.py")
    fresh(module)
    fresh(module, "double")
    assert len(compilations) == 2
    for changed in ("nested_topk_selection.c", "strips.h"):
        with (package / changed).open("a") as file:
            file.write("/* */\n")
        fresh(module)
    monkeypatch.setattr(kernel_cache, "processor", lambda: {"model name": "another"})
    fresh(module)
    compiler = tmp_path / "cc"
    compiler.write_text(f'#!/bin/sh\nexec {C_COMPILERS[0]} "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    fresh(module)
    assert len(compilations) == 6
    fresh(module)
    assert len(compilations) == 6


@needs_compiler
@pytest.mark.parametrize("how", ["cut off", "changed", "renamed", "writable by others", "a link"])
def test_a_library_that_someone_changed_is_not_loaded(how, folder, tmp_path, compilations):
    fresh(MODULE_FILE)
    (library,) = folder.iterdir()
    data = library.read_bytes()
    library.rename(tmp_path / "in use")  # this process has it mapped
    if how == "cut off":
        library.write_bytes(data[:-100])
    elif how == "changed":
        library.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif how == "renamed":  # as one would plant it who knows the key
        planted = folder / f"{library.name.split('-')[0]}-{'0' * 64}.so"
        planted.write_bytes(data)
    elif how == "writable by others":
        library.write_bytes(data)
        library.chmod(0o666)
    else:
        (tmp_path / "elsewhere.so").write_bytes(data)
        library.symlink_to(tmp_path / "elsewhere.so")
    assert do_they_work(fresh(MODULE_FILE))
    assert len(compilations) == 2
    assert do_they_work(fresh(MODULE_FILE))
    assert len(compilations) == 2, "the good one has taken its place"


@needs_compiler
@pytest.mark.parametrize("what", ["library", "folder"])
def test_what_takes_its_place_after_it_was_checked_is_not_loaded(
    what, folder, tmp_path, compilations, monkeypatch
):
    fresh(MODULE_FILE)
    find = kernel_cache.find

    def swapped_behind(*arguments):
        found = find(*arguments)
        (library,) = folder.iterdir()
        if what == "folder":  # as anyone may who can write in the one above
            folder.rename(tmp_path / "elsewhere")
            folder.mkdir()
        library.unlink(missing_ok=True)  # this process may have it mapped
        library.write_bytes(b"planted")
        return found

    monkeypatch.setattr(kernel_cache, "find", swapped_behind)
    assert do_they_work(fresh(MODULE_FILE))
    assert len(compilations) == 1


@needs_compiler
def test_where_temporary_files_may_not_run_it_says_so(monkeypatch):
    def refuse(path):
        raise OSError("failed to map segment from shared object")

    monkeypatch.setattr(cpu_kernels.ctypes, "CDLL", refuse)
    with pytest.warns(UserWarning, match=r"lets no program run .*failed to map.* let TMPDIR name"):
        assert fresh(MODULE_FILE) is None


@needs_compiler
@pytest.mark.parametrize("how", ["shared", "a file"])
def test_without_a_folder_of_ones_own_nothing_is_kept(how, folder, compilations):
    if how == "shared":
        folder.mkdir()
        folder.chmod(0o777)
    else:
        folder.write_text("")
    for _ in range(2):
        with pytest.warns(UserWarning, match=f"not kept.*{kernel_cache.CACHE_VARIABLE}"):
            assert do_they_work(fresh(MODULE_FILE))
    assert len(compilations) == 2
    assert how == "a file" or list(folder.iterdir()) == []


@needs_compiler
def test_a_full_disk_doesnt_keep_kernels_from_running(folder, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kernel_cache.os, "fsync", full)
    with pytest.warns(UserWarning, match="not kept.*No space left"):
        assert do_they_work(fresh(MODULE_FILE))
    assert list(folder.iterdir()) == []


@needs_compiler
def test_processes_that_compile_at_once_end_with_a_whole_library(folder, compilations):
    with ThreadPoolExecutor(4) as pool:
        for kernels in pool.map(lambda _: fresh(MODULE_FILE), range(4)):
            assert do_they_work(kernels)
    assert {path.suffix for path in folder.iterdir()} == {".so"}
    n_compiled = len(compilations)
    assert do_they_work(fresh(MODULE_FILE))
    assert len(compilations) == n_compiled


def test_where_the_folder_is(monkeypatch, tmp_path):
    assert kernel_cache.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv(kernel_cache.CACHE_VARIABLE)
    monkeypatch.setattr(kernel_cache.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert kernel_cache.cache_folder() == tmp_path / "xdg/vit_sae_plugin/kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert kernel_cache.cache_folder() == tmp_path / ".cache/vit_sae_plugin/kernels"


@needs_compiler
def test_a_library_that_came_with_the_package_serves_where_there_is_no_compiler(
    tmp_path, monkeypatch
):
    package = tmp_path / "package"
    package.mkdir()
    module = package / "nested_topk_selection.py"
    for source in (Path(MODULE_FILE).with_suffix(".c"), Path(MODULE_FILE).with_name("strips.h")):
        shutil.copy(source, package)
    shipped = package / "nested_topk_selection.float.x86-64-v3.so"
    cpu_kernels._compile(module.with_suffix(".c"), C_COMPILERS[0], "float", shipped)
    better = package / "nested_topk_selection.float.x86-64-v4.so"
    better.write_text("for another system")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    flags = " ".join(cpu_kernels._LEVELS["x86-64-v4"])
    monkeypatch.setattr(kernel_cache, "processor", lambda: {"flags": flags})
    assert do_they_work(fresh(str(module)))
    monkeypatch.setattr(kernel_cache, "processor", lambda: {"flags": "sse2 avx avx2"})
    with pytest.warns(UserWarning, match="no C compiler"):
        assert fresh(str(module)) is None


def test_a_kernel_out_of_memory_is_an_error():
    def function(*arguments):
        return -1

    with pytest.raises(MemoryError, match="smaller batches"):
        cpu_kernels.run_kernel(function, torch.zeros(2), 2, 0.5)
