"""Nearest rows: blocks and FAISS change nothing."""

from importlib.util import find_spec

import pytest
import torch

from vit_sae_plugin.concepts import neighbors as module
from vit_sae_plugin.concepts.neighbors import nearest


def test_by_hand_with_the_first_of_equals():
    rows = torch.tensor([[1.0, 0], [0, 2], [1, 0], [3, 3]])
    value, place = nearest(rows, torch.tensor([[1.0, 0], [0, 1]]), 3, use_faiss=False)
    assert place.tolist() == [[3, 0, 2], [3, 1, 0]]
    assert value.tolist() == [[3, 1, 1], [3, 2, 0]]
    assert nearest(rows, rows, 9)[1].shape == (4, 4)


def test_blocks_change_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    rows, queries = torch.randn(57, 5, generator=generator), torch.randn(3, 5, generator=generator)
    whole = nearest(rows, queries, 4, use_faiss=False)[1]
    monkeypatch.setattr(module, "_PRODUCTS_AT_ONCE", 21)
    assert torch.equal(nearest(rows, queries, 4, use_faiss=False)[1], whole)


@pytest.mark.skipif(find_spec("faiss") is None, reason="FAISS is not installed")
def test_faiss_finds_the_same():
    generator = torch.Generator().manual_seed(0)
    rows, queries = torch.randn(999, 8, generator=generator), torch.randn(9, 8, generator=generator)
    ours, theirs = (nearest(rows, queries, 12, use_faiss=use) for use in (False, True))
    assert torch.equal(ours[1], theirs[1])
    torch.testing.assert_close(ours[0], theirs[0])


def test_bad_questions_are_refused(monkeypatch):
    rows = torch.zeros(3, 2)
    with pytest.raises(ValueError, match="k is 0"):
        nearest(rows, rows, 0)
    with pytest.raises(ValueError, match="queries are 3 wide; want 2"):
        nearest(rows, torch.zeros(1, 3), 1)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="FAISS is not installed"):
        nearest(rows, rows, 1, use_faiss=True)
