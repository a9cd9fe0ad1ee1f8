"""Memory is used again when nothing refers to it, and never before."""

from __future__ import annotations

import os
import sys

import pytest
import torch

from vit_sae_plugin.reused_memory import MAX_IDLE, ReusedMemory

pytestmark = pytest.mark.skipif(
    sys.implementation.name != "cpython", reason="no reference counts: memory is never used again"
)
SHAPE = (300, 7)


def empty(memory, *shape, dtype=torch.float32):
    return memory.empty(*(shape or SHAPE), dtype=dtype)


def test_what_is_free_is_used_again():
    memory = ReusedMemory()
    first = empty(memory)
    assert (first.shape, first.dtype, first.is_contiguous()) == (SHAPE, torch.float32, True)
    place = first.data_ptr()
    del first
    second = empty(memory)
    assert second.data_ptr() == place
    del second
    assert empty(memory, 140, 7, dtype=torch.float64).data_ptr() == place, "fewer bytes"


@pytest.mark.parametrize("keep", [torch.Tensor.view_as, lambda a, b: a[3:], torch.Tensor.numpy])
def test_what_a_view_still_shows_is_not(keep):
    memory = ReusedMemory()
    first = empty(memory).fill_(1)
    kept = first.numpy() if keep is torch.Tensor.numpy else keep(first, first)
    del first
    empty(memory).fill_(2)
    assert (kept == 1).all()


def test_a_parameters_gradient_keeps_its_memory_until_it_is_dropped():
    memory, weight = ReusedMemory(), torch.nn.Parameter(torch.zeros(SHAPE))

    class Ones(torch.autograd.Function):
        @staticmethod
        def forward(ctx, weight):
            return weight.sum()

        @staticmethod
        def backward(ctx, grad):
            return empty(memory).fill_(1)

    Ones.apply(weight).backward()
    place = weight.grad.data_ptr()
    assert empty(memory).fill_(5).data_ptr() != place
    assert (weight.grad == 1).all()
    weight.grad = None
    others = [empty(memory), empty(memory)]
    assert place in [other.data_ptr() for other in others]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
def test_a_forked_process_has_memory_of_its_own():
    values = empty(ReusedMemory()).fill_(1)
    child = os.fork()
    if child == 0:
        values.fill_(2)
        os._exit(0)
    os.waitpid(child, 0)
    assert (values == 1).all()


def test_arrays_of_changing_size_need_little_more_than_the_largest():
    memory = ReusedMemory()
    for n in (5000, 5100, 4000, 5050, 6000, 3000, 5900):
        empty(memory, n, 7)
    assert len(memory._blocks) == 2
    small = empty(memory, 2000, 7)
    assert len(memory._blocks) == 3, "a block more than twice as large is left for larger arrays"
    assert small.shape == (2000, 7)


def test_idle_memory_is_given_back():
    memory = ReusedMemory()
    kept, idle = empty(memory, 5000), empty(memory, 6000)
    del idle
    for _ in range(MAX_IDLE + 1):
        empty(memory)
    assert len(memory._blocks) == 2
    del kept
    memory.release()
    assert memory._blocks == []


def test_small_arrays_and_other_formats_are_ordinary_ones():
    memory = ReusedMemory()
    assert empty(memory, 3).shape == (3,)
    assert empty(memory, 0, 5).shape == (0, 5)
    assert empty(memory, 5000, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert memory._blocks == []


def test_how_many_passing_references_python_counts_does_not_matter(monkeypatch):
    # Python 3.14 counts one less than those before it
    counted = sys.getrefcount
    monkeypatch.setattr(sys, "getrefcount", lambda thing: counted(thing) - 3)
    test_what_is_free_is_used_again()
    memory = ReusedMemory()
    first = empty(memory).fill_(1)
    empty(memory).fill_(2)
    assert (first == 1).all()
