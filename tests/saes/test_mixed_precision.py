"""Products in a lower precision, written to given memory."""

import torch

from vit_sae_plugin.saes.mixed_precision import autocast_dtype, multiply


def test_the_precision_is_autocasts():
    single, double = torch.ones(1), torch.ones(1, dtype=torch.float64)
    assert autocast_dtype(single) is None
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            assert autocast_dtype(single) == dtype == (single[None] @ single[:, None]).dtype
            assert autocast_dtype(double) is None
            assert (double[None] @ double[:, None]).dtype == torch.float64


def test_a_product_by_hand():
    # 257 isn't a bfloat16: it rounds to 256
    a, b = torch.tensor([[257.0, 1.0]]), torch.tensor([[1.0], [2.0]])
    for dtype, product in ((None, 259.0), (torch.bfloat16, 258.0)):
        out = torch.full((1, 1), torch.nan)
        assert multiply(a, b, dtype, out) is out
        assert out.item() == product
        multiply(a, b, dtype, out, adds=True)
        assert out.item() == 2 * product
