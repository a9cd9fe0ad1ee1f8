"""The gradients of a ReLU SAE's step on a CPU, a block of latents at a time.

Either as matrix products over the latents that some row uses, or, where few of a row's latents are
active, from lists of those; and beside them those of dead latents, from the ghost term.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from vit_sae_plugin.cpu_kernels import run_kernel
from vit_sae_plugin.reused_memory import REUSED_MEMORY

from .largest_latents import ActiveLatents
from .mixed_precision import multiply
from .sparse_products import SparseGradients, sparse_gradients


def reused_empty(like: Tensor, *shape: int) -> Tensor:
    """``torch.empty`` of the same number format, in memory that steps before have left."""
    return REUSED_MEMORY.empty(*shape, dtype=like.dtype)


def columns_of(array: Tensor, latents: Tensor | None, kernels: ctypes.CDLL) -> Tensor:
    """Those of some latents; None: of all."""
    if latents is None:
        return array
    columns = reused_empty(array, len(array), len(latents))
    sizes = (len(array), array.stride(0), len(latents))
    run_kernel(kernels.gather_columns, array, latents, columns, *sizes)
    return columns


def rows_of(array: Tensor, latents: Tensor | None) -> Tensor:
    """Likewise."""
    if latents is None:
        return array
    out = reused_empty(array, len(latents), array.shape[1])
    return torch.index_select(array, 0, latents, out=out)


class Ghosts(NamedTuple):
    """What the ghost term's backward pass needs. Without such a term, there are no latents."""

    latents: Tensor
    """In ascending order."""
    acts: Tensor
    """``[rows, ghosts]``: their exponentials, up to a factor of each row."""
    grad_out: Tensor
    """``[rows, d_in]``: the gradient of the term, times its elements, with respect to what they
    decode."""

    def within(self, block: slice) -> Ghosts:
        """Those of a block, counted from its first latent."""
        edges = self.latents.new_tensor([block.start, block.stop])
        begin, end = torch.searchsorted(self.latents, edges).tolist()
        return Ghosts(self.latents[begin:end] - block.start, self.acts[:, begin:end], self.grad_out)


class Gradients(NamedTuple):
    """A step's, filled block by block."""

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    adds: bool
    """Whether the matrices are to be added to."""


@dataclass(frozen=True)
class Part:
    """The latents of a block that get a gradient: those that some row uses, then the ghosts."""

    block: slice
    used: Tensor | None
    ghosts: Ghosts
    kernels: ctypes.CDLL
    dtype: torch.dtype | None
    """Of matrix products' factors; None: their own."""

    def acts(self, hidden_pre: Tensor) -> Tensor:
        """Those that are used, from latents before ReLU."""
        hidden = hidden_pre[:, self.block]
        if self.used is None:
            return torch.clamp(hidden, min=0, out=reused_empty(hidden, *hidden.shape))
        return columns_of(hidden, self.used, self.kernels).clamp_(min=0)

    def fill(
        self,
        gradients: Gradients,
        acts: Tensor,
        centred: Tensor,
        grad_out: Tensor,
        W_dec: Tensor,
        penalty: Tensor,
    ) -> None:
        """Work out the block's share of the gradients."""
        (n_rows, n_used), n_ghosts = acts.shape, len(self.ghosts.latents)
        n, W_dec, dtype = n_used + n_ghosts, W_dec[self.block], self.dtype
        places = _Places.of(self.used, self.ghosts.latents, len(W_dec), self.kernels)

        # The decoder's first, so that the encoder's can have the memory that it leaves.
        whole, adds = gradients.W_dec[self.block], gradients.adds
        made = whole if places is None else reused_empty(whole, n, whole.shape[1])
        multiply(acts.T, grad_out, dtype, made[:n_used], adds=adds and places is None)
        if n_ghosts:
            multiply(self.ghosts.acts.T, self.ghosts.grad_out, dtype, made[n_used:])
        if places is not None:
            places.spread_rows(made, whole, adds)
        del made

        # The gradient of latents, then, in the same memory, of latents before ReLU.
        grad_hidden, sums = reused_empty(acts, n_rows, n), acts.new_empty(n)
        multiply(grad_out, rows_of(W_dec, self.used).T, dtype, grad_hidden[:, :n_used])
        arrays = (acts, grad_hidden, penalty, sums)
        run_kernel(self.kernels.rectify_gradient, *arrays, n_rows, n_used, n)
        if n_ghosts:
            of_ghosts = grad_hidden[:, n_used:]
            ghosts_T = rows_of(W_dec, self.ghosts.latents).T
            multiply(self.ghosts.grad_out, ghosts_T, dtype, of_ghosts)
            del ghosts_T
            of_ghosts *= self.ghosts.acts
            torch.sum(of_ghosts, dim=0, out=sums[n_used:])

        whole, adds = gradients.W_enc[:, self.block], gradients.adds
        if places is None:
            multiply(centred.T, grad_hidden, dtype, whole, adds=adds)
            gradients.b_enc[self.block] = sums
        else:
            made = reused_empty(acts, len(whole), n)
            multiply(centred.T, grad_hidden, dtype, made)
            places.spread_columns(made, whole, adds)
            places.spread_columns(sums[None], gradients.b_enc[None, self.block], adds=False)

    def fill_from_lists(
        self,
        gradients: Gradients,
        active: ActiveLatents,
        centred: Tensor,
        grad_out: Tensor,
        W_dec: Tensor,
        penalty: Tensor,
    ) -> None:
        """As ``fill``, of latents few of which are active in a row."""
        of_decoder, of_encoder = gradients.W_dec[self.block], gradients.W_enc[:, self.block]
        out = SparseGradients(of_decoder, of_encoder, gradients.b_enc[self.block])
        if gradients.adds:
            made = (
                reused_empty(of_decoder, *of_decoder.shape),
                reused_empty(of_encoder, *of_encoder.shape),
            )
            out = SparseGradients(*made, out.b_enc)
        sparse_gradients(active, W_dec[self.block], grad_out, centred, penalty=penalty, out=out)
        if gradients.adds:
            of_decoder += out.W_dec
            of_encoder += out.W_enc
        if len(self.ghosts.latents):
            # to which those are added that don't fire
            rest = gradients._replace(b_enc=torch.zeros_like(gradients.b_enc), adds=True)
            none = self.ghosts.latents[:0]
            no_acts = centred.new_empty(len(centred), 0)
            replace(self, used=none).fill(rest, no_acts, centred, grad_out, W_dec, penalty)
            gradients.b_enc[self.block] += rest.b_enc[self.block]


@dataclass(frozen=True)
class _Places:
    """Where each latent of a block is in arrays of some: in one place, in two (that add up), or
    nowhere."""

    one: Tensor
    other: Tensor
    kernels: ctypes.CDLL

    @classmethod
    def of(
        cls, used: Tensor | None, ghosts: Tensor, width: int, kernels: ctypes.CDLL
    ) -> _Places | None:
        if used is None and len(ghosts) == 0:
            return None  # all are there, in order
        one, other = torch.full((2, width), -1).unbind()
        n_used = width if used is None else len(used)
        one[slice(None) if used is None else used] = torch.arange(n_used)
        other[ghosts] = torch.arange(n_used, n_used + len(ghosts))
        return cls(one, other, kernels)

    def spread_columns(self, part: Tensor, whole: Tensor, adds: bool) -> None:
        """``[n, some]`` to ``[n, width]``, or added to what is there."""
        arrays = (part, self.one, self.other, whole)
        sizes = (*part.shape, whole.shape[1], whole.stride(0), int(adds))
        run_kernel(self.kernels.spread_columns, *arrays, *sizes)

    def spread_rows(self, part: Tensor, whole: Tensor, adds: bool) -> None:
        """``[some, n]`` to ``[width, n]``, likewise."""
        arrays = (part, self.one, self.other, whole)
        run_kernel(self.kernels.spread_rows, *arrays, *whole.shape, int(adds))
