"""A ReLU SAE's training step on a CPU, as one function with a backward pass written by hand.

The five matrix products of such a step (encode, decode, and the gradients of latents, decoder and
encoder) take their time anywhere. What autograd adds to them is passes over ``[rows, d_sae]`` and
``[d_sae, d_in]`` arrays, each for one small thing: bias, ReLU, penalty, a mask, a count of what
fired, a sum over rows. Here they are a few, in C (with a C compiler at hand, see
``vit_sae_plugin.cpu_kernels``).

Latents that no row of the batch uses have no part in three of the five products: neither do they
change the reconstruction, nor do they get a gradient from it. Once few of a row's latents are
active, as the penalty wants it, all but the encoder's product are worked out from lists of those
(``sparse_products``). Dead latents of a PatchSAE are decoded by the ghost term alone, so a step
with ghost gradients, too, costs little more than five products, whatever the share of dead latents.

Wide SAEs are worked on a block of latents at a time. Of ``[rows, d_sae]`` arrays a step keeps the
latents before ReLU, for its backward pass, and those of dead latents' exponentials; latents and
their gradients are there for one block only.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vit_sae_plugin.cpu_kernels import load_kernels, run_kernel

from .dense_gradients import Ghosts, Gradients, Part, columns_of, reused_empty, rows_of
from .ghost_gradients import EPSILON
from .largest_latents import ActiveLatents
from .mixed_precision import autocast_dtype, multiply
from .sparse_products import decode_active, has_sparse_products, list_active
from .unit_norm_decoder import remove_parallel_part_

MIN_SHARE_UNUSED = 0.1
"""Share of latents without use from which on it pays to copy the others out of the arrays."""

MAX_SHARE_DECODED = 0.04
"""Share of active latents up to which the reconstruction is summed up from decoder rows."""

MAX_SHARE_LISTED = 0.14
"""Share of active latents up to which gradients are worked out from lists of them."""

MAX_WIDTH = 8192
"""Latents that are worked on at once: enough for fast products, few enough for little memory."""

_ADDS_IN_PLACE: ContextVar[bool] = ContextVar("adds_in_place", default=False)


class DenseWeights(NamedTuple):
    """Of a ReLU SAE: ``h = ReLU((z − b_dec) W_enc + b_enc)``, ``ẑ = h W_dec + b_dec``."""

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, "d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_dec: Float[Tensor, "d_in"]


class DenseStep(NamedTuple):
    """What ``dense_step`` gives. All but ``n_fired`` can be differentiated once."""

    mse_loss: Tensor
    """Mean over rows and features of the weighted squared error."""
    l1_loss: Tensor
    """The penalty's weight times the mean over rows of the sum of latents."""
    ghost_loss: Tensor
    """Mean over rows and features of the ghost term; zero without."""
    sae_out: Float[Tensor, "rows d_in"]
    hidden_pre: Float[Tensor, "rows d_sae"]
    """Latents before ReLU."""
    n_fired: Float[Tensor, "d_sae"]
    """In how many rows each latent fires."""


def step_kernels(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The C functions for a number format; None where there are none."""
    if dtype not in (torch.float32, torch.float64):
        return None
    return load_kernels(__file__, "double" if dtype == torch.float64 else "float")


def dense_step(
    rows: Float[Tensor, "rows d_in"],
    weights: DenseWeights,
    penalty: Float[Tensor, ""],
    ghosts: Bool[Tensor, " d_sae"] | None,
    kernels: ctypes.CDLL,
    *,
    divide_by_norm: bool,
) -> DenseStep:
    """The losses of one batch.

    The decoder's gradient has no part parallel to its rows. Under autocast dense products are in
    its lower precision; lists, sums and losses are not.

    Args:
        rows: the SAE's input, and what it is to reconstruct; on a CPU, contiguous, and of the
            weights' format. It gets no gradient.
        penalty: weight of the mean over rows of the sum of latents.
        ghosts: True for latents that take part in the ghost term; None: no ghost term.
        kernels: from ``step_kernels``.
        divide_by_norm: divide each row's squared error by the row's norm, if it has one.
    """
    settings = _Settings(kernels, penalty, ghosts, divide_by_norm, autocast_dtype(rows))
    of_encoder, of_decoder = weights.W_enc.grad, weights.W_dec.grad
    if _ADDS_IN_PLACE.get() and of_encoder is not None and of_decoder is not None:
        settings = replace(settings, gradients=(of_encoder, of_decoder))
    return DenseStep(*_DenseStep.apply(rows, *weights, settings))


@contextmanager
def gradients_added_in_place() -> Iterator[None]:
    """Steps made within add to the matrices' ``grad``, where there is one, in their backward pass.

    For batches in parts: autograd would need a part's gradients beside their sum. What is in
    ``grad`` must come from such steps (of the sum for the decoder, what is parallel to its rows is
    removed), and the backward pass be that of ``backward()``.
    """
    token = _ADDS_IN_PLACE.set(True)
    try:
        yield
    finally:
        _ADDS_IN_PLACE.reset(token)


@dataclass(frozen=True)
class _Settings:
    kernels: ctypes.CDLL
    penalty: Tensor
    ghosts: Tensor | None
    divide_by_norm: bool
    dtype: torch.dtype | None
    """Of matrix products' factors; None: their own."""
    gradients: tuple[Tensor, Tensor] | None = None
    """The encoder's and the decoder's, to be added to; None: the step makes them."""


class _DenseStep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        settings: _Settings,
    ) -> tuple[Tensor, ...]:
        kernels, n_rows, (d_sae, d_in) = settings.kernels, len(rows), W_dec.shape
        centred = torch.sub(rows, b_dec, out=reused_empty(rows, n_rows, d_in))
        hidden_pre = reused_empty(rows, n_rows, d_sae)
        sae_out = reused_empty(rows, n_rows, d_in).copy_(b_dec.expand(n_rows, d_in))
        n_fired, sums = torch.empty_like(b_enc), torch.empty_like(b_enc)
        blocks, used, active, acts = _blocks(d_sae), [], [], None
        for block in blocks:
            acts = None  # so that the next has its memory
            hidden = multiply(centred, W_enc[:, block], settings.dtype, hidden_pre[:, block])
            acts = reused_empty(rows, *hidden.shape)
            arrays = (hidden, b_enc[block], acts, n_fired[block], sums[block])
            run_kernel(kernels.rectify, *arrays, *hidden.shape, d_sae)
            share = n_fired[block].sum() / max(acts.numel(), 1)
            active.append(_listed(acts) if share <= MAX_SHARE_LISTED else None)
            used.append(_used_latents(n_fired[block]))
            if active[-1] is not None and share <= MAX_SHARE_DECODED:
                sae_out += decode_active(active[-1], W_dec[block])
                continue
            acts = columns_of(acts, used[-1], kernels)
            multiply(acts, rows_of(W_dec[block], used[-1]), settings.dtype, sae_out, adds=True)
        if len(blocks) > 1 or active[0] is not None:
            acts = None  # made again, or not needed; a single block's stay
        residual, (weight, error) = reused_empty(rows, n_rows, d_in), rows.new_empty(2, n_rows, 1)
        arrays = (rows, sae_out, residual, weight, error)
        run_kernel(kernels.residual_rows, *arrays, n_rows, d_in, int(settings.divide_by_norm))
        ghosts, ghost_loss = _ghosts(hidden_pre, W_dec, settings, residual, weight)

        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(n_fired)
        ctx.settings, ctx.used = settings, used
        lists = [t for block in active for t in (block.tensors() if block else [None] * 3)]
        # Unlike attributes these go with the backward pass, however long the output is kept.
        ctx.save_for_backward(
            centred, W_enc, W_dec, residual, weight, hidden_pre, acts, *ghosts, *lists
        )
        mse_loss, l1_loss = error.sum() / rows.numel(), settings.penalty * (sums.sum() / n_rows)
        return mse_loss, l1_loss, ghost_loss, sae_out, hidden_pre, n_fired

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        centred, W_enc, W_dec, residual, weight, hidden_pre, acts, *more = ctx.saved_tensors
        d_mse, d_l1, d_ghost, d_out, d_hidden, _ = grad_outputs
        settings, kernels, ghosts = ctx.settings, ctx.settings.kernels, Ghosts(*more[:3])
        lists = [more[i : i + 3] for i in range(3, len(more), 3)]
        n_rows, (d_sae, d_in) = len(residual), W_dec.shape
        zero = residual.new_zeros(())

        scale = zero if d_mse is None else d_mse * (-2 / residual.numel())
        grad_out = torch.mul(residual, scale * weight, out=reused_empty(residual, n_rows, d_in))
        if d_out is not None:
            grad_out += d_out
        penalty = zero if d_l1 is None else (d_l1 * settings.penalty / n_rows).to(zero.dtype)
        scale = zero if d_ghost is None else d_ghost / residual.numel()
        ghosts = ghosts._replace(grad_out=ghosts.grad_out * scale)

        adds = settings.gradients is not None
        matrices = settings.gradients or (
            reused_empty(zero, d_in, d_sae),
            reused_empty(zero, d_sae, d_in),
        )
        grad_W_enc, grad_W_dec = matrices
        grad_b_enc = zero.new_empty(d_sae)
        gradients = Gradients(grad_W_enc, grad_b_enc, grad_W_dec, adds)
        for block, used, listed in zip(_blocks(d_sae), ctx.used, lists, strict=True):
            part = Part(block, used, ghosts.within(block), kernels, settings.dtype)
            if listed[0] is not None:
                active = ActiveLatents(*listed)
                part.fill_from_lists(gradients, active, centred, grad_out, W_dec, penalty)
                continue
            own_acts = part.acts(hidden_pre) if acts is None else acts
            part.fill(gradients, own_acts, centred, grad_out, W_dec, penalty)
            del own_acts  # so that the next has their memory
        if d_hidden is not None:
            multiply(centred.T, d_hidden, settings.dtype, grad_W_enc, adds=True)
            grad_b_enc += d_hidden.sum(dim=0)
        remove_parallel_part_(grad_W_dec, W_dec)
        # What b_dec does in the encoder is what b_enc does, by way of W_enc.
        grad_b_dec = grad_out.sum(dim=0) - W_enc @ grad_b_enc
        if adds:
            grad_W_enc = grad_W_dec = None  # so that autograd has nothing to add
        return None, grad_W_enc, grad_b_enc, grad_W_dec, grad_b_dec, None


def _blocks(d_sae: int) -> list[slice]:
    width = -(-d_sae // -(-d_sae // MAX_WIDTH))  # all about as wide
    return [slice(begin, min(begin + width, d_sae)) for begin in range(0, d_sae, width)]


def _listed(acts: Tensor) -> ActiveLatents | None:
    return list_active(acts) if has_sparse_products(acts.device, acts.dtype) else None


def _used_latents(n_fired: Tensor) -> Tensor | None:
    """The latents that some row uses; None if (nearly) all are in use."""
    used = n_fired.nonzero().squeeze(-1)
    return used if len(used) <= (1 - MIN_SHARE_UNUSED) * len(n_fired) else None


def _ghosts(
    hidden_pre: Tensor, W_dec: Tensor, settings: _Settings, residual: Tensor, weight: Tensor
) -> tuple[Ghosts, Tensor]:
    """What is kept of the term, and the term, a mean over rows and features."""
    latents = torch.empty(0, dtype=torch.long)
    if settings.ghosts is not None:
        latents = settings.ghosts.nonzero().squeeze(-1)
    if len(latents) == 0:
        none = residual.new_empty(len(residual), 0)
        return Ghosts(latents, none, none), residual.new_zeros(())
    acts = columns_of(hidden_pre, latents, settings.kernels)
    # as exponential_acts and scaled_ghost_error, in place
    acts.sub_(acts.amax(dim=-1, keepdim=True).clamp_(min=0)).exp_()
    decoded = reused_empty(acts, *residual.shape).zero_()
    for block in _blocks(len(latents)):
        own, dtype = acts[:, block], settings.dtype
        multiply(own, rows_of(W_dec, latents[block]), dtype, decoded, adds=True)
    error = torch.empty_like(weight)
    constants = acts.new_tensor([EPSILON, torch.finfo(acts.dtype).tiny])
    arrays = (residual, weight, decoded, error, constants)
    run_kernel(settings.kernels.ghost_rows, *arrays, *residual.shape)
    return Ghosts(latents, acts, decoded), error.sum() / residual.numel()


def has_hooks(sae: nn.Module) -> bool:
    """Whether something looks into a step: a hook on any of the SAE's hook points."""
    points = sae.hook_dict.values()  # type: ignore[union-attr, operator]
    return any(p._forward_hooks or p._forward_pre_hooks or p._backward_hooks for p in points)
