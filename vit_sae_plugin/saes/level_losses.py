"""The squared error of every level of a nested reconstruction, in few passes over the levels."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vit_sae_plugin.cpu_kernels import load_kernels, run_kernel
from vit_sae_plugin.reused_memory import REUSED_MEMORY

from .nested_decoding import SparseProducts, nested_decode, products_for
from .nested_topk_selection import NestedSelection


@torch.compiler.disable
def decoded_losses(
    acts: Float[Tensor, "rows d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    selection: NestedSelection,
    target: Float[Tensor, "rows d_in"],
    scale: Float[Tensor, "rows 1"] | None = None,
) -> tuple[Float[Tensor, " levels"], Float[Tensor, "rows d_in"]]:
    """``level_losses`` of ``nested_decode``, and the last level's reconstruction.

    Differentiable once, with respect to ``acts``, ``W_dec`` and ``target``. On a CPU (with a C
    compiler at hand) one pass over the levels makes the differences to the target, and one on the
    way back their gradients.
    """
    products = products_for(acts, W_dec)
    factors = [target] if scale is None else [target, scale]
    if isinstance(products, SparseProducts) and all(
        torch.promote_types(factor.dtype, products.dtype) == products.dtype for factor in factors
    ):
        kernels = load_kernels(__file__, "double" if products.dtype == torch.float64 else "float")
        if kernels is not None:
            levels = _Levels(products, kernels, selection, scale)
            return _DecodedLosses.apply(acts, W_dec, target, levels)
    decoded = nested_decode(acts, W_dec, selection)
    return level_losses(decoded, target, scale), decoded[-1]


def level_losses(
    decoded: Float[Tensor, "levels rows d_in"],
    target: Float[Tensor, "rows d_in"],
    scale: Float[Tensor, "rows 1"] | None = None,
) -> Float[Tensor, " levels"]:
    """Mean over rows and features of ``(decoded − target)²``, each row's times its ``scale``.

    Differentiable once, with respect to ``decoded`` and ``target``. Autograd of one loss a level
    would keep each level's difference, and copy the gradients of all together again.
    """
    return _LevelLosses.apply(decoded, target, scale)


class _LevelLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, decoded: Tensor, target: Tensor, scale: Tensor | None) -> Tensor:
        ctx.save_for_backward(decoded, target, scale)
        losses = []
        for level in decoded:
            square = torch.linalg.vector_norm(level - target, dim=-1, keepdim=True).square()
            losses.append((square if scale is None else square * scale).sum())
        return torch.stack(losses) / target.numel()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        decoded, target, scale = ctx.saved_tensors
        factors = grad_outputs[0] * (2 / target.numel())
        grad = torch.empty_like(decoded)
        grad_target = torch.zeros_like(decoded[0])
        for level, factor, own in zip(decoded, factors, grad, strict=True):
            torch.sub(level, target, out=own)
            own *= factor if scale is None else factor * scale
            grad_target -= own
        return grad, grad_target.to(target.dtype), None


@dataclass(frozen=True)
class _Levels:
    products: SparseProducts
    kernels: ctypes.CDLL
    selection: NestedSelection
    scale: Tensor | None


class _DecodedLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, acts: Tensor, W_dec: Tensor, target: Tensor, levels: _Levels
    ) -> tuple[Tensor, Tensor]:
        products, selection = levels.products, levels.selection
        arrays = products.decode(acts, W_dec, selection.first_level, selection.n_levels)
        ready, scale = products.ready(target), levels.scale
        last, error = torch.empty_like(ready), ready.new_empty(arrays.shape[:2])
        run_kernel(levels.kernels.level_differences, arrays, ready, last, error, *arrays.shape)
        ctx.products, ctx.kernels = products, levels.kernels
        ctx.set_materialize_grads(False)
        scale = None if scale is None else products.ready(scale).flatten()
        ctx.save_for_backward(acts, W_dec, target, scale, selection.first_level, arrays)
        return (error if scale is None else error * scale).sum(dim=-1) / target.numel(), last

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        acts, W_dec, target, scale, first_level, differences = ctx.saved_tensors
        grad_losses, grad_last = grad_outputs
        if grad_losses is None:
            grad_losses = differences.new_zeros(len(differences))
        none = differences.new_empty(0)
        grad = REUSED_MEMORY.empty(*differences.shape, dtype=differences.dtype)
        grad_target = differences.new_empty(target.shape)
        arrays = (
            differences,
            ctx.products.ready(grad_losses * (2 / target.numel())),
            none if scale is None else scale,
            none if grad_last is None else ctx.products.ready(grad_last),
            grad,
            grad_target,
        )
        run_kernel(ctx.kernels.level_gradients, *arrays, *differences.shape)
        grad_acts, grad_W_dec = ctx.products.gradients(acts, W_dec, first_level, grad)
        return (
            grad_acts.to(acts.dtype),
            grad_W_dec.to(W_dec.dtype),
            grad_target.to(target.dtype),
            None,
        )
