"""The encoder's product, from whose input the decoder's bias is taken off."""

from __future__ import annotations

import pytest
import torch

from vit_sae_plugin.saes.centred_encoding import column_sums, encode_centred


def arrays(*, shape=(3, 4), has_bias=True, dtype=torch.float64) -> list[torch.Tensor | None]:
    """x, W_enc, b_enc and b_dec."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(*shape, 5), (5, 7), (7,), (5,)]
    made = [torch.randn(size, generator=generator, dtype=dtype) for size in sizes]
    return [a.requires_grad_() for a in made[: 3 + has_bias]] + [None] * (not has_bias)


def plainly(x, W_enc, b_enc, b_dec) -> torch.Tensor:
    return (x if b_dec is None else x - b_dec) @ W_enc + b_enc


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("shape", [(3,), (3, 4), (1, 1)])
def test_equals_the_formula(shape, has_bias):
    ours, theirs = arrays(shape=shape, has_bias=has_bias), arrays(shape=shape, has_bias=has_bias)
    made, expected = encode_centred(*ours), plainly(*theirs)
    torch.testing.assert_close(made, expected)
    weights = torch.randn(made.shape, dtype=made.dtype)
    (made * weights).sum().backward()
    (expected * weights).sum().backward()
    for own, other in zip(ours, theirs, strict=True):
        if own is not None:
            torch.testing.assert_close(own.grad, other.grad)


def test_what_needs_no_gradient_gets_none():
    x, W_enc, b_enc, b_dec = arrays()
    x.requires_grad_(False)
    W_enc.requires_grad_(False)
    encode_centred(x, W_enc, b_enc, b_dec).sum().backward()
    assert x.grad is None
    assert W_enc.grad is None
    torch.testing.assert_close(b_dec.grad, -12 * W_enc.sum(dim=1))


def test_a_transposed_encoder():
    x, W_enc, b_enc, b_dec = arrays()
    rows = W_enc.detach().T.contiguous().requires_grad_()
    encode_centred(x, rows.T, b_enc, b_dec).square().sum().backward()
    expected = arrays()
    plainly(*expected).square().sum().backward()
    torch.testing.assert_close(rows.grad, expected[1].grad.T)


def test_under_autocast_the_biases_stay_exact():
    x, W_enc, b_enc, b_dec = arrays(dtype=torch.float32)
    with torch.no_grad():
        b_enc += 1000
    with torch.autocast("cpu", torch.bfloat16):
        made = encode_centred(x, W_enc, b_enc, b_dec)
    made.sum().backward()
    assert made.dtype == torch.float32
    assert (made - plainly(x, W_enc, b_enc, b_dec)).abs().max() < 0.1  # bfloat16 has 4 near 1000
    torch.testing.assert_close(b_dec.grad, -12 * W_enc.sum(dim=1), rtol=0.02, atol=0.3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_column_sums(dtype):
    rows = torch.arange(12.0).view(4, 3).to(dtype)
    assert column_sums(rows).tolist() == [18, 22, 26]
    assert column_sums(rows).dtype == dtype
