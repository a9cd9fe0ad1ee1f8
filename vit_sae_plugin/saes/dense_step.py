"""A ReLU SAE's training step on a CPU, as one function with a backward pass written by hand.

The five matrix products of such a step (encode, decode, and the gradients of latents, decoder and
encoder) take their time anywhere. What autograd adds to them is passes over ``[rows, d_sae]`` and
``[d_sae, d_in]`` arrays, each for one small thing: bias, ReLU, penalty, a mask, a count of what
fired, a sum over rows. Here they are a few, in C (with a C compiler at hand, see
``vit_sae_plugin.cpu_kernels``).

Latents that no row of the batch uses have no part in three of the five products: neither do they
change the reconstruction, nor do they get a gradient from it. Dead latents of a PatchSAE are
decoded by the ghost term alone, so a step with ghost gradients, too, costs little more than five
products, whatever the share of dead latents.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vit_sae_plugin.cpu_kernels import load_kernels, run_kernel
from vit_sae_plugin.reused_memory import REUSED_MEMORY

from .ghost_gradients import EPSILON
from .unit_norm_decoder import remove_parallel_part_

MIN_SHARE_UNUSED = 0.1
"""Share of latents without use from which on it pays to copy the others out of the arrays."""


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
    feature_acts: Float[Tensor, "rows d_sae"]
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

    The decoder's gradient has no part parallel to its rows.

    Args:
        rows: the SAE's input, and what it is to reconstruct; on a CPU, contiguous, and of the
            weights' format. It gets no gradient.
        penalty: weight of the mean over rows of the sum of latents.
        ghosts: True for latents that take part in the ghost term; None: no ghost term.
        kernels: from ``step_kernels``.
        divide_by_norm: divide each row's squared error by the row's norm, if it has one.
    """
    settings = _Settings(kernels, penalty, ghosts, divide_by_norm)
    return DenseStep(*_DenseStep.apply(rows, *weights, settings))


@dataclass(frozen=True)
class _Settings:
    kernels: ctypes.CDLL
    penalty: Tensor
    ghosts: Tensor | None
    divide_by_norm: bool


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
        centred = torch.sub(rows, b_dec, out=_empty(rows, n_rows, d_in))
        hidden_pre = torch.mm(centred, W_enc, out=_empty(rows, n_rows, d_sae))
        acts = _empty(rows, n_rows, d_sae)
        n_fired, sums = torch.empty_like(b_enc), torch.empty_like(b_enc)
        run_kernel(kernels.rectify, hidden_pre, b_enc, acts, n_fired, sums, n_rows, d_sae)

        used = _used_latents(n_fired)
        used_acts = _columns(acts, used, kernels)
        sae_out = _empty(rows, n_rows, d_in)
        torch.addmm(b_dec, used_acts, _rows(W_dec, used), out=sae_out)
        residual, (weight, error) = _empty(rows, n_rows, d_in), rows.new_empty(2, n_rows, 1)
        arrays = (rows, sae_out, residual, weight, error)
        run_kernel(kernels.residual_rows, *arrays, n_rows, d_in, int(settings.divide_by_norm))
        ghosts, ghost_loss = _ghosts(hidden_pre, W_dec, settings, residual, weight)

        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(n_fired)
        ctx.settings, ctx.used, ctx.ghosts = settings, used, ghosts
        ctx.save_for_backward(centred, W_enc, W_dec, residual, weight, used_acts)
        mse_loss, l1_loss = error.sum() / rows.numel(), settings.penalty * (sums.sum() / n_rows)
        return mse_loss, l1_loss, ghost_loss, sae_out, acts, hidden_pre, n_fired

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        centred, W_enc, W_dec, residual, weight, acts = ctx.saved_tensors
        d_mse, d_l1, d_ghost, d_out, d_acts, d_hidden, _ = grad_outputs
        settings, used, ghosts = ctx.settings, ctx.used, ctx.ghosts
        kernels, n_rows, (d_sae, d_in) = settings.kernels, len(residual), W_dec.shape
        zero = acts.new_zeros(())

        scale = zero if d_mse is None else d_mse * (-2 / residual.numel())
        grad_out = torch.mul(residual, scale * weight, out=_empty(acts, n_rows, d_in))
        if d_out is not None:
            grad_out += d_out
        # Those latents that some row uses come first, then the ghosts.
        n_used, n_ghosts = acts.shape[1], 0 if ghosts is None else len(ghosts.latents)
        n = n_used + n_ghosts
        grad_hidden, grad_b_enc = _empty(acts, n_rows, n), acts.new_empty(n)
        grad_W_dec = _empty(acts, n, d_in)

        # The gradient of latents, then, in the same memory, of latents before ReLU.
        torch.mm(grad_out, _rows(W_dec, used).T, out=grad_hidden[:, :n_used])
        if d_acts is not None:
            grad_hidden[:, :n_used] += d_acts if used is None else d_acts[:, used]
        penalty = zero if d_l1 is None else (d_l1 * settings.penalty / n_rows).to(acts.dtype)
        arrays = (acts, grad_hidden, penalty, grad_b_enc)
        run_kernel(kernels.rectify_gradient, *arrays, n_rows, n_used, n)
        torch.mm(acts.T, grad_out, out=grad_W_dec[:n_used])
        if ghosts is not None:
            grad_ghosts = grad_hidden[:, n_used:]
            scale = zero if d_ghost is None else d_ghost / residual.numel()
            grad_ghost_out = ghosts.grad_out * scale
            torch.mm(grad_ghost_out, _rows(W_dec, ghosts.latents).T, out=grad_ghosts)
            grad_ghosts *= ghosts.acts
            torch.sum(grad_ghosts, dim=0, out=grad_b_enc[n_used:])
            torch.mm(ghosts.acts.T, grad_ghost_out, out=grad_W_dec[n_used:])
        # One after the other, so that the second can have the memory that the first has left.
        places = _Places.of(used, ghosts, d_sae, kernels)
        grad_W_dec = grad_W_dec if places is None else places.rows(grad_W_dec)
        grad_W_enc = torch.mm(centred.T, grad_hidden, out=_empty(acts, d_in, n))
        if places is not None:
            grad_W_enc, grad_b_enc = places.columns(grad_W_enc), places.columns(grad_b_enc)
        if d_hidden is not None:
            grad_W_enc += centred.T @ d_hidden
            grad_b_enc += d_hidden.sum(dim=0)
        remove_parallel_part_(grad_W_dec, W_dec)
        # What b_dec does in the encoder is what b_enc does, by way of W_enc.
        grad_b_dec = grad_out.sum(dim=0) - W_enc @ grad_b_enc
        return None, grad_W_enc, grad_b_enc, grad_W_dec, grad_b_dec, None


def _empty(like: Tensor, *shape: int) -> Tensor:
    return REUSED_MEMORY.empty(*shape, dtype=like.dtype)


def _used_latents(n_fired: Tensor) -> Tensor | None:
    """The latents that some row uses; None if (nearly) all are in use."""
    used = n_fired.nonzero().squeeze(-1)
    return used if len(used) <= (1 - MIN_SHARE_UNUSED) * len(n_fired) else None


def _columns(array: Tensor, latents: Tensor | None, kernels: ctypes.CDLL) -> Tensor:
    if latents is None:
        return array
    columns = _empty(array, len(array), len(latents))
    run_kernel(kernels.gather_columns, array, latents, columns, *array.shape, len(latents))
    return columns


def _rows(array: Tensor, latents: Tensor | None) -> Tensor:
    if latents is None:
        return array
    out = _empty(array, len(latents), array.shape[1])
    return torch.index_select(array, 0, latents, out=out)


@dataclass(frozen=True)
class _Places:
    """Where each latent is in arrays of some: in one place, in two (that add up), or nowhere."""

    one: Tensor
    other: Tensor
    kernels: ctypes.CDLL

    @classmethod
    def of(
        cls, used: Tensor | None, ghosts: _Ghosts | None, d_sae: int, kernels: ctypes.CDLL
    ) -> _Places | None:
        if used is None and ghosts is None:
            return None  # all are there, in order
        one, other = torch.full((2, d_sae), -1).unbind()
        n_used = d_sae if used is None else len(used)
        one[slice(None) if used is None else used] = torch.arange(n_used)
        if ghosts is not None:
            other[ghosts.latents] = torch.arange(n_used, n_used + len(ghosts.latents))
        return cls(one, other, kernels)

    def columns(self, part: Tensor) -> Tensor:
        """``[…, some]`` to ``[…, d_sae]``."""
        n, d_sae = part.shape[-1], len(self.one)
        whole = _empty(part, *part.shape[:-1], d_sae)
        arrays = (part, self.one, self.other, whole)
        run_kernel(self.kernels.spread_columns, *arrays, whole.numel() // d_sae, n, d_sae)
        return whole

    def rows(self, part: Tensor) -> Tensor:
        """``[some, d_in]`` to ``[d_sae, d_in]``."""
        whole = _empty(part, len(self.one), part.shape[1])
        run_kernel(self.kernels.spread_rows, part, self.one, self.other, whole, *whole.shape)
        return whole


@dataclass(frozen=True)
class _Ghosts:
    """What the ghost term's backward pass needs.

    Not the term itself: an output that its own graph holds is freed by the garbage collector alone,
    and with it all these arrays.
    """

    latents: Tensor
    acts: Tensor
    """``[rows, ghosts]``: their exponentials, up to a factor of each row."""
    grad_out: Tensor
    """``[rows, d_in]``: the gradient of the term, times its elements, with respect to what they
    decode."""


def _ghosts(
    hidden_pre: Tensor, W_dec: Tensor, settings: _Settings, residual: Tensor, weight: Tensor
) -> tuple[_Ghosts | None, Tensor]:
    """The term, a mean over rows and features, and what is kept of it."""
    if settings.ghosts is None:
        return None, residual.new_zeros(())
    latents = settings.ghosts.nonzero().squeeze(-1)
    if len(latents) == 0:
        return None, residual.new_zeros(())
    n_rows, d_in = residual.shape
    acts = _columns(hidden_pre, latents, settings.kernels)
    # as exponential_acts and scaled_ghost_error, in place
    acts.sub_(acts.amax(dim=-1, keepdim=True).clamp_(min=0)).exp_()
    decoded = torch.mm(acts, _rows(W_dec, latents), out=_empty(acts, n_rows, d_in))
    error = torch.empty_like(weight)
    constants = acts.new_tensor([EPSILON, torch.finfo(acts.dtype).tiny])
    arrays = (residual, weight, decoded, error, constants)
    run_kernel(settings.kernels.ghost_rows, *arrays, n_rows, d_in)
    return _Ghosts(latents, acts, decoded), error.sum() / residual.numel()


def has_hooks(sae: nn.Module) -> bool:
    """Whether something looks into a step: a hook on any of the SAE's hook points."""
    points = sae.hook_dict.values()  # type: ignore[union-attr, operator]
    return any(p._forward_hooks or p._forward_pre_hooks or p._backward_hooks for p in points)
