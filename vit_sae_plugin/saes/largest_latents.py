"""The largest latents of each row, or of a whole batch, as lists."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_sae_plugin.cpu_kernels import load_kernels, run_kernel

_GROUPS_PER_KEPT = 6


@dataclass(frozen=True)
class ActiveLatents:
    """The positive latents of some rows, row after row and in the order of their columns."""

    row_start: Int[Tensor, " rows+1"]
    """Where each row's latents begin, and at the end how many there are (int64)."""

    latent: Int[Tensor, " active"]
    """Which latents they are (int32)."""

    act: Float[Tensor, " active"]
    """How active they are."""

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """All three, in the order of the fields."""
        return self.row_start, self.latent, self.act

    def row(self) -> Int[Tensor, " active"]:
        """The row of each latent."""
        n_rows = len(self.row_start) - 1
        return torch.arange(n_rows, device=self.act.device).repeat_interleave(self.row_start.diff())

    @torch.compiler.disable
    def to_sparse(self, d_sae: int) -> Float[Tensor, "rows d_sae"]:
        """As a sparse COO tensor, such as SAELens's ``use_sparse_activations`` gives."""
        places = torch.stack([self.row(), self.latent.long()])
        shape = (len(self.row_start) - 1, d_sae)
        return torch.sparse_coo_tensor(
            places, self.act, shape, is_coalesced=True, check_invariants=False
        )


@torch.no_grad()
def largest_of_rows(hidden_pre: Float[Tensor, "rows d_sae"], k: int) -> ActiveLatents:
    """Of the ``k`` largest latents of each row, those that are positive.

    Which of equal latents are kept, is open. NaN counts as largest, so that it reaches the loss
    and is seen.

    Raises:
        ValueError: ``k`` is below 1, or above the number of latents.
    """
    kernels = _kernels_for(hidden_pre)
    n_rows, d_sae = hidden_pre.shape
    if not 1 <= k <= d_sae:
        raise ValueError(f"k is {k}; want 1 to {d_sae}, the number of latents")
    if kernels is None:
        act, latent = hidden_pre.topk(k, dim=-1, sorted=False)
        latent, order = latent.int().sort(dim=-1)
        act = act.gather(-1, order)
        kept = ~(act <= 0)
        return ActiveLatents(_starts(kept.sum(dim=-1)), latent[kept], act[kept])
    n_kept = torch.empty(n_rows, dtype=torch.int64)
    latent = torch.empty((n_rows, k), dtype=torch.int32)
    act = hidden_pre.new_empty(n_rows, k)
    tensors = (hidden_pre.contiguous(), n_kept, latent, act)
    n_groups = min(_GROUPS_PER_KEPT * k, d_sae)
    run_kernel(kernels.largest_of_rows, *tensors, k, n_groups, d_sae, n_rows)
    row_start = _starts(n_kept)
    if row_start[-1] == latent.numel():
        return ActiveLatents(row_start, latent.flatten(), act.flatten())
    kept = torch.arange(k) < n_kept[:, None]
    return ActiveLatents(row_start, latent[kept], act[kept])


@torch.no_grad()
def largest_of_batch(hidden_pre: Float[Tensor, "rows d_sae"], n: int) -> ActiveLatents:
    """Of the ``n`` largest latents of all rows together, those that are positive.

    Equal latents and NaN: as in ``largest_of_rows``.
    """
    kernels = _kernels_for(hidden_pre)
    n_rows, d_sae = hidden_pre.shape
    n = min(n, hidden_pre.numel())
    if n == 0:
        return _none_of(hidden_pre)
    if kernels is None:
        place = hidden_pre.flatten().topk(n, sorted=False).indices.sort().values
        act = hidden_pre.flatten()[place]
        place, act = place[~(act <= 0)], act[~(act <= 0)]
        n_kept = torch.bincount(place // d_sae, minlength=n_rows)
        return ActiveLatents(_starts(n_kept), (place % d_sae).int(), act)
    hidden_pre = hidden_pre.contiguous()
    reached = _those_reaching(_bound(hidden_pre, n, kernels), hidden_pre, kernels)
    if len(reached.act) <= n:
        return reached
    smallest = _nth_largest(reached.act.nan_to_num(nan=torch.inf, posinf=torch.inf), n)
    run_kernel(kernels.keep_largest, smallest, *reached.tensors(), n, n_rows)
    return ActiveLatents(reached.row_start, reached.latent[:n], reached.act[:n])


def _kernels_for(hidden_pre: Tensor) -> ctypes.CDLL | None:
    real = {torch.float32: "float", torch.float64: "double"}.get(hidden_pre.dtype)
    return load_kernels(__file__, real) if hidden_pre.is_cpu and real else None


def _bound(hidden_pre: Tensor, n: int, kernels: ctypes.CDLL) -> Tensor:
    """A value that at least ``n`` latents reach, or 0."""
    n_rows, d_sae = hidden_pre.shape
    n_groups = min(-(-_GROUPS_PER_KEPT * n // n_rows), d_sae)
    maxima = hidden_pre.new_empty(n_rows, n_groups)
    run_kernel(kernels.row_maxima, hidden_pre, maxima, n_groups, d_sae, n_rows)
    return _nth_largest(maxima.flatten(), n).clone()


def _nth_largest(values: Tensor, n: int) -> Tensor:
    # NumPy's partition is several times as fast as torch.kthvalue
    return torch.from_numpy(np.partition(values.numpy(), len(values) - n))[len(values) - n]


def _those_reaching(bound: Tensor, hidden_pre: Tensor, kernels: ctypes.CDLL) -> ActiveLatents:
    n_rows, d_sae = hidden_pre.shape
    n_kept, none = torch.empty(n_rows, dtype=torch.int64), torch.empty(0)
    sizes = (d_sae, n_rows)
    run_kernel(kernels.at_least, hidden_pre, bound, none, n_kept, none, none, *sizes)
    row_start = _starts(n_kept)
    latent = torch.empty(int(row_start[-1]), dtype=torch.int32)
    act = hidden_pre.new_empty(len(latent))
    run_kernel(kernels.at_least, hidden_pre, bound, row_start, none, latent, act, *sizes)
    return ActiveLatents(row_start, latent, act)


def _starts(n_kept: Tensor) -> Tensor:
    return torch.cat([n_kept.new_zeros(1), n_kept.cumsum(0)])


def _none_of(hidden_pre: Tensor) -> ActiveLatents:
    n_kept = torch.zeros(len(hidden_pre), dtype=torch.int64, device=hidden_pre.device)
    latent = torch.empty(0, dtype=torch.int32, device=hidden_pre.device)
    return ActiveLatents(_starts(n_kept), latent, hidden_pre.new_empty(0))
