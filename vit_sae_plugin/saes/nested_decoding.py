"""Reconstructions at several nested levels of sparsity for little more than the price of one.

MSAE (Zaigrajew et al., ICML 2025, arXiv 2502.20578) decodes each input at every k of a list.
Levels are nested, so only what a level *adds* has to be decoded: a latent belongs to the first
level that keeps it, and later levels sum up. Going back, its gradient is one dot product of its
decoder row with the summed gradients of all levels that keep it.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .nested_topk_selection import NestedSelection


@torch.compiler.disable
def nested_decode(
    acts: Float[Tensor, "rows d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    selection: NestedSelection,
) -> Float[Tensor, "levels rows d_in"]:
    """The kept latents times the decoder, for each level of a selection; no bias is added.

    Differentiable once with respect to ``acts`` and ``W_dec``. Sums over latents and levels are
    in float32 at least; under autocast only the products are in the lower precision.
    """
    return _NestedDecode.apply(acts, W_dec, selection)


def nested_decode_plainly(
    acts: Float[Tensor, "rows d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    selection: NestedSelection,
) -> Float[Tensor, "levels rows d_in"]:
    """The same as :func:`nested_decode`, with one full decoding per level and autograd."""
    levels = range(selection.n_levels)
    return torch.stack([(acts * (selection.first_level <= level)) @ W_dec for level in levels])


class _NestedDecode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, acts: Tensor, W_dec: Tensor, selection: NestedSelection) -> Tensor:
        ctx.save_for_backward(acts, W_dec, selection.first_level)
        ctx.product_dtype = _product_dtype(acts, W_dec)
        sum_dtype = torch.promote_types(ctx.product_dtype, torch.float32)
        shape = (selection.n_levels, len(acts), W_dec.shape[1])
        decoded = torch.empty(shape, dtype=sum_dtype, device=acts.device)
        with torch.autocast(acts.device.type, enabled=False):
            rows = W_dec.to(ctx.product_dtype)
            for level in range(selection.n_levels):
                added = acts.to(ctx.product_dtype) * (selection.first_level == level)
                decoded[level] = added @ rows
        for level in range(1, selection.n_levels):
            decoded[level] += decoded[level - 1]
        return decoded

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        acts, W_dec, first_level = ctx.saved_tensors
        product_dtype, sum_dtype = ctx.product_dtype, grad_outputs[0].dtype
        n_levels = len(grad_outputs[0])
        grad_acts = torch.zeros_like(acts)
        grad_W_dec = torch.zeros_like(W_dec, dtype=sum_dtype)
        grad = torch.zeros_like(grad_outputs[0][0])
        rows = W_dec.to(product_dtype)
        for level in reversed(range(n_levels)):
            grad = grad + grad_outputs[0][level]
            own = first_level == level
            product = grad.to(product_dtype) @ rows.T
            grad_acts = torch.where(own, product.to(acts.dtype), grad_acts)
            grad_W_dec += (acts.to(product_dtype) * own).T @ grad.to(product_dtype)
        return grad_acts, grad_W_dec.to(W_dec.dtype), None


def _product_dtype(acts: Tensor, W_dec: Tensor) -> torch.dtype:
    if torch.is_autocast_enabled(acts.device.type):
        return torch.get_autocast_dtype(acts.device.type)
    return torch.promote_types(acts.dtype, W_dec.dtype)
