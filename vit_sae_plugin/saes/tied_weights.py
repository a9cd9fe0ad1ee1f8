"""An encoder that stays the transpose of its decoder, as a parameter of its own."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .unit_norm_decoder import remove_parallel_part


class _TiedRows(torch.autograd.Function):
    @staticmethod
    def forward(W_dec: Tensor, W_enc: Tensor) -> Tensor:
        return W_dec.view_as(W_dec)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        (W_dec,) = ctx.saved_tensors
        gradient = remove_parallel_part(grad_outputs[0], W_dec)
        return gradient, gradient.T


def tied_rows(
    W_dec: Float[Tensor, "d_sae d_in"], W_enc: Float[Tensor, "d_in d_sae"]
) -> Float[Tensor, "d_sae d_in"]:
    """``W_dec`` itself, to be used by decoder and (transposed) encoder; ``W_enc`` follows it.

    SAELens reads, saves and folds ``W_enc`` as a parameter, so it has to stay one. Both parameters
    get the same gradient (without its part parallel to the rows), so an optimizer that treats
    elements alike, as Adam does, moves them alike. The gradient's norm, which SAELens's trainer
    clips, counts both.
    """
    return _TiedRows.apply(W_dec, W_enc)
