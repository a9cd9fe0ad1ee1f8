"""Reconstructions at several nested levels of sparsity for little more than the price of one.

MSAE (Zaigrajew et al., ICML 2025, arXiv 2502.20578) decodes each input at every k of a list.
Levels are nested, so only what a level *adds* has to be decoded: a latent belongs to the first
level that keeps it, and later levels sum up. Going back, its gradient is one dot product of its
decoder row with the summed gradients of all levels that keep it.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vit_sae_plugin.cpu_kernels import load_kernels, run_kernel
from vit_sae_plugin.reused_memory import REUSED_MEMORY, empty_for_a_step

from .mixed_precision import autocast_dtype
from .nested_topk_selection import NestedSelection

_GRADIENTS_FILE = str(Path(__file__).with_name("nested_gradients.c"))


@torch.compiler.disable
def nested_decode(
    acts: Float[Tensor, "rows d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    selection: NestedSelection,
) -> Float[Tensor, "levels rows d_in"]:
    """The kept latents times the decoder, for each level of a selection; no bias is added.

    Differentiable once, with respect to ``acts`` and ``W_dec``. The result, and all sums over
    latents and levels, are in float32 at least. On a CPU all is (with a C compiler at hand, see
    ``vit_sae_plugin.cpu_kernels``); elsewhere autocast's lower precision applies to the
    products.
    """
    return _NestedDecode.apply(acts, W_dec, selection)


class _NestedDecode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, acts: Tensor, W_dec: Tensor, selection: NestedSelection) -> Tensor:
        products = products_for(acts, W_dec)
        ctx.products = products
        ctx.save_for_backward(acts, W_dec, selection.first_level)
        decoded = products.decode(acts, W_dec, selection.first_level, selection.n_levels)
        for level in range(1, selection.n_levels):
            decoded[level] += decoded[level - 1]
        return decoded

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        acts, W_dec, first_level = ctx.saved_tensors
        # What reaches a latent is the sum over all levels that keep it.
        by_level = grad_outputs[0]
        grad = torch.empty_like(by_level, memory_format=torch.contiguous_format)
        grad[-1] = by_level[-1]
        for level in reversed(range(len(grad) - 1)):
            torch.add(by_level[level], grad[level + 1], out=grad[level])
        grad_acts, grad_W_dec = ctx.products.gradients(acts, W_dec, first_level, grad)
        return grad_acts.to(acts.dtype), grad_W_dec.to(W_dec.dtype), None


@dataclass(frozen=True)
class DenseProducts:
    """One matrix product per level, in which all latents of other levels are set to zero.

    On a GPU, products of so many zeros are still faster than gathering single decoder rows.
    """

    dtype: torch.dtype

    def decode(self, acts: Tensor, W_dec: Tensor, first_level: Tensor, n_levels: int) -> Tensor:
        rows = W_dec.to(self.dtype)
        sum_dtype = torch.promote_types(self.dtype, torch.float32)
        decoded = acts.new_empty((n_levels, len(acts), W_dec.shape[1]), dtype=sum_dtype)
        with torch.autocast(acts.device.type, enabled=False):
            for level in range(n_levels):
                decoded[level] = (acts.to(self.dtype) * (first_level == level)) @ rows
        return decoded

    def gradients(
        self, acts: Tensor, W_dec: Tensor, first_level: Tensor, grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        rows = W_dec.to(self.dtype)
        grad_acts = torch.zeros_like(acts, dtype=self.dtype)
        grad_W_dec = torch.zeros_like(W_dec, dtype=grad.dtype)
        for level in range(len(grad)):
            own = first_level == level
            level_grad = grad[level].to(self.dtype)
            grad_acts = torch.where(own, level_grad @ rows.T, grad_acts)
            grad_W_dec += (acts.to(self.dtype) * own).T @ level_grad
        return grad_acts, grad_W_dec


@dataclass(frozen=True)
class SparseProducts:
    """Products of the kept latents alone, in C."""

    kernels: ctypes.CDLL
    gradient_kernels: ctypes.CDLL
    dtype: torch.dtype

    def decode(self, acts: Tensor, W_dec: Tensor, first_level: Tensor, n_levels: int) -> Tensor:
        acts, W_dec = self.ready(acts), self.ready(W_dec)
        n_rows, (d_sae, d_in) = len(acts), W_dec.shape
        decoded = REUSED_MEMORY.empty(n_levels, n_rows, d_in, dtype=self.dtype)
        tensors = (acts, first_level, W_dec, decoded)
        run_kernel(self.kernels.decode_rows, *tensors, n_rows, d_sae, d_in, n_levels)
        return decoded

    def gradients(
        self, acts: Tensor, W_dec: Tensor, first_level: Tensor, grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        acts, W_dec = self.ready(acts), self.ready(W_dec)
        n_levels, n_rows, (d_sae, d_in) = len(grad), len(acts), W_dec.shape
        grad_acts = empty_for_a_step(*acts.shape, like=acts, n_latents=d_sae)
        grad_W_dec = empty_for_a_step(*W_dec.shape, like=W_dec, n_latents=d_sae)
        tensors = (acts, first_level, W_dec, grad, grad_acts, grad_W_dec)
        run_kernel(self.gradient_kernels.decode_gradients, *tensors, n_rows, d_sae, d_in, n_levels)
        return grad_acts, grad_W_dec

    def ready(self, tensor: Tensor) -> Tensor:
        """As the kernels take it."""
        return tensor.detach().to(self.dtype).contiguous()


def products_for(acts: Tensor, W_dec: Tensor) -> DenseProducts | SparseProducts:
    """How to multiply these arrays."""
    dtype = torch.promote_types(acts.dtype, W_dec.dtype)
    if acts.device.type == "cpu":
        dtype = torch.promote_types(dtype, torch.float32)
        real = "double" if dtype == torch.float64 else "float"
        kernels = load_kernels(__file__, real)
        gradient_kernels = load_kernels(_GRADIENTS_FILE, real)
        if kernels is not None and gradient_kernels is not None:
            return SparseProducts(kernels, gradient_kernels, dtype)
    return DenseProducts(autocast_dtype(acts) or dtype)
