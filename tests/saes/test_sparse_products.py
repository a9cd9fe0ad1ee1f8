"""Lists of active latents, of arrays and not of a top-k."""

from __future__ import annotations

import pytest
import torch

from tests.c_compiler import C_COMPILERS
from vit_sae_plugin.saes.sparse_products import has_sparse_products, list_active

pytestmark = pytest.mark.skipif(not C_COMPILERS, reason="needs a C compiler")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 15, 16, 37])
def test_lists_what_is_not_zero_row_by_row(dtype, width):
    assert has_sparse_products(torch.device("cpu"), dtype)
    generator = torch.Generator().manual_seed(width)
    acts = torch.randn(9, width, generator=generator, dtype=dtype).relu()
    acts[2] = 0
    acts[4] = torch.arange(1, width + 1)
    active = list_active(acts)
    row, latent = acts.nonzero(as_tuple=True)
    assert torch.equal(active.row(), row)
    assert torch.equal(active.latent, latent.int())
    assert torch.equal(active.act, acts[row, latent])
    assert active.row_start.tolist()[2] == active.row_start.tolist()[3]


def test_nan_is_listed():
    acts = torch.zeros(2, 20)
    acts[1, [3, 18]] = torch.nan
    active = list_active(acts)
    assert active.row_start.tolist() == [0, 0, 2]
    assert active.latent.tolist() == [3, 18]
    assert active.act.isnan().all()


def test_no_rows():
    active = list_active(torch.zeros(0, 5))
    assert active.row_start.tolist() == [0]
    assert len(active.latent) == len(active.act) == 0
