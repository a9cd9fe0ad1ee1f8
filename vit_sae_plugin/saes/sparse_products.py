"""The products of a training step that few active latents make cheap.

Of the five matrix products of an SAE's step only the encoder's has to be done in full when a few
latents of a row are active, as under top-k, or once an L1 penalty has done its work. The
reconstruction is a sum of a few decoder rows; a latent's gradient is one dot product; and each
latent's decoder row and encoder column get their gradients from the rows alone in which the latent
is active.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vit_sae_plugin.cpu_kernels import load_kernels, run_kernel

from .largest_latents import ActiveLatents


@dataclass(frozen=True)
class SparseGradients:
    """Of a loss of ``acts @ W_dec``, where ``acts`` are active latents of ``x @ W_enc + b_enc``."""

    W_dec: Float[Tensor, "d_sae d_in"]
    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]


def has_sparse_products(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this machine has them for such tensors: on a CPU, if there is a C compiler."""
    return device.type == "cpu" and dtype in _REAL and _kernels(dtype) is not None


def list_active(acts: Float[Tensor, "rows d_sae"]) -> ActiveLatents:
    """The latents that aren't zero, NaN among them, of contiguous rows on a CPU."""
    kernels, (n_rows, d_sae) = _kernels(acts.dtype), acts.shape
    row_start = torch.zeros(n_rows + 1, dtype=torch.int64)
    run_kernel(kernels.count_active, acts, row_start[1:], n_rows, d_sae)
    row_start.cumsum_(0)
    latent = torch.empty(int(row_start[-1]), dtype=torch.int32)
    active = ActiveLatents(row_start, latent, acts.new_empty(len(latent)))
    run_kernel(kernels.list_active, acts, *active.tensors(), n_rows, d_sae)
    return active


def decode_active(
    active: ActiveLatents, W_dec: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, "rows d_in"]:
    """``acts @ W_dec``."""
    n_rows, d_in = len(active.row_start) - 1, W_dec.shape[1]
    decoded = W_dec.new_empty(n_rows, d_in)
    tensors = (*active.tensors(), W_dec.contiguous(), decoded)
    run_kernel(_kernels(W_dec.dtype).decode_rows, *tensors, d_in, n_rows)
    return decoded


def sparse_gradients(
    active: ActiveLatents,
    W_dec: Float[Tensor, "d_sae d_in"],
    grad: Float[Tensor, "rows d_in"],
    x: Float[Tensor, "rows d_in"],
    *,
    penalty: Float[Tensor, ""] | None = None,
    out: SparseGradients | None = None,
) -> SparseGradients:
    """The gradients of what ``decode_active`` returns, all the way back to the encoder.

    Args:
        active, W_dec: as they were decoded.
        grad: gradient of the reconstruction.
        x: what was encoded.
        penalty: what the loss grows by with each active latent's act, beside that.
        out: where they go, as columns or rows of larger arrays may be; None: into new ones.
    """
    kernels = _kernels(W_dec.dtype)
    (d_sae, d_in), n_rows, n_active = W_dec.shape, len(x), len(active.act)
    latent_start = torch.empty(d_sae + 1, dtype=torch.int64)
    use_row, use_act = torch.empty(n_active, dtype=torch.int32), torch.empty_like(active.act)
    lists = (latent_start, use_row, use_act)
    run_kernel(kernels.sort_by_latent, *active.tensors(), *lists, n_rows, d_sae)
    if out is None:
        matrices = W_dec.new_empty(d_sae, d_in), W_dec.new_empty(d_in, d_sae)
        out = SparseGradients(*matrices, W_dec.new_empty(d_sae))
    factors = (W_dec.contiguous(), grad.contiguous(), x.contiguous())
    penalty = W_dec.new_zeros(()) if penalty is None else penalty
    results = (torch.empty_like(use_act), out.W_dec, out.W_enc, out.b_enc)
    sizes = (n_rows, d_sae, d_in, out.W_enc.stride(0))
    run_kernel(kernels.gradients, *lists, *factors, penalty, *results, *sizes)
    return out


_REAL = {torch.float32: "float", torch.float64: "double"}


def _kernels(dtype: torch.dtype) -> ctypes.CDLL:
    return load_kernels(__file__, _REAL[dtype])  # type: ignore[return-value]
