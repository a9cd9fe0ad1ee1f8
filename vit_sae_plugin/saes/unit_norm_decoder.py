"""Decoder rows of norm one: rescaling them, and keeping their gradient on the unit sphere.

Both are functions of the weight alone. A gradient hook on the parameter would be lost by
``deepcopy`` and by ``load_state_dict(assign=True)``, which is what SAELens loads with.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vit_sae_plugin.cpu_kernels import load_kernels, run_kernel
from vit_sae_plugin.reused_memory import empty_for_a_step

_SMALLEST_NORM = 1e-8


class _TangentRows(torch.autograd.Function):
    @staticmethod
    def forward(W_dec: Tensor) -> Tensor:
        return W_dec.view_as(W_dec)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (W_dec,) = ctx.saved_tensors
        return remove_parallel_part(grad_outputs[0], W_dec)


def remove_parallel_part(
    gradient: Float[Tensor, "d_sae d_in"], W_dec: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, "d_sae d_in"]:
    """The gradient without its component along each decoder row: ``g - (g·w / w·w) w``."""
    if kernels := _kernels_for(gradient, W_dec):
        rest = empty_for_a_step(*gradient.shape, like=gradient, n_latents=len(gradient))
        return _remove_parallel_part(gradient, W_dec, rest, kernels)
    return remove_parallel_part_(gradient.clone(memory_format=torch.contiguous_format), W_dec)


def remove_parallel_part_(
    gradient: Float[Tensor, "d_sae d_in"], W_dec: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, "d_sae d_in"]:
    """The same in place."""
    if kernels := _kernels_for(gradient, W_dec):
        return _remove_parallel_part(gradient, W_dec, gradient, kernels)
    squared_norm = W_dec.square().sum(dim=-1, keepdim=True).clamp(min=_SMALLEST_NORM**2)
    parallel = (gradient * W_dec).sum(dim=-1, keepdim=True) / squared_norm
    return gradient.sub_(parallel * W_dec)


def _remove_parallel_part(
    gradient: Tensor, W_dec: Tensor, rest: Tensor, kernels: ctypes.CDLL
) -> Tensor:
    least = W_dec.new_tensor(_SMALLEST_NORM**2)
    run_kernel(kernels.project_rows, gradient, W_dec, rest, least, *W_dec.shape)
    return rest


def tangent_rows(W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "d_sae d_in"]:
    """``W_dec`` itself, whose gradient loses the part parallel to each row on the way back.

    A step along a row only changes its norm, which the next step undoes; left in, it would still
    fill Adam's moments. Every use of the decoder in a loss has to go through this function (once
    is enough: use its result in all of them).
    """
    return _TangentRows.apply(W_dec)


@torch.no_grad()
def normalize_rows_(W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, " d_sae"]:
    """Divide each row by its norm, in place. A row of zeros stays as it is.

    Returns:
        What the rows were divided by: their norms, 1 for rows of zeros.
    """
    if kernels := _kernels_for(W_dec):
        norms, least = W_dec.new_empty(len(W_dec)), W_dec.new_tensor(_SMALLEST_NORM)
        run_kernel(kernels.normalize_rows, W_dec, norms, least, *W_dec.shape)
        return norms
    norms = W_dec.norm(dim=-1)
    norms = torch.where(norms > _SMALLEST_NORM, norms, torch.ones_like(norms))
    W_dec.div_(norms.unsqueeze(-1))
    return norms


@torch.no_grad()
def move_row_norms_to_encoder_(
    W_dec: Float[Tensor, "d_sae d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, "d_sae"],
) -> None:
    """Scale each decoder row to norm 1, and its encoder column and bias by what it lost.

    In place. A ReLU SAE computes the same as before; under top-k the ranking of latents can change
    where the norms differed (MSAE, arXiv 2502.20578). Rows of zeros stay as they are.
    """
    norms = normalize_rows_(W_dec)
    W_enc.mul_(norms)
    b_enc.mul_(norms)


def _kernels_for(*arrays: Tensor) -> ctypes.CDLL | None:
    """C functions for these arrays: each is one pass over memory, which takes most of the time."""
    dtype = arrays[0].dtype
    plain = dtype in (torch.float32, torch.float64) and not torch.compiler.is_compiling()
    if not plain or any(
        a.device.type != "cpu" or a.dtype != dtype or not a.is_contiguous() for a in arrays
    ):
        return None
    return load_kernels(__file__, "double" if dtype == torch.float64 else "float")
