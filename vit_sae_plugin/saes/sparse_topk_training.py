"""SAELens's ``topk`` and ``batchtopk`` in training, at the price of their few active latents.

The same losses and gradients, to rounding, as ``TopKTrainingSAE`` and ``BatchTopKTrainingSAE`` by
autograd, for about two fifths of the time: see ``sparse_products``. Config, weights and what is
saved are SAELens's own, so such an SAE is read back as SAELens's class.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
    TrainingSAE,
)
from sae_lens.saes.sae import TrainingSAEConfig, TrainStepInput, TrainStepOutput
from torch import Tensor
from typing_extensions import override

from .auxiliary_loss import auxiliary_error
from .dead_latents import n_dead_at_most
from .dense_step import has_hooks
from .firing_counts import CountedStepOutput
from .largest_latents import ActiveLatents, largest_of_batch, largest_of_rows
from .mixed_precision import autocast_dtype, multiply
from .sparse_products import (
    SparseGradients,
    decode_active,
    has_sparse_products,
    sparse_gradients,
)


class SparseTopKTrainingSAE(TopKTrainingSAE):
    """``TopKTrainingSAE`` whose training steps decode and differentiate only active latents.

    They do on a CPU with a C compiler, for rows ``[rows, d_in]``, in float32 or float64. Elsewhere,
    and while any of the SAE's hooks is in use, a step is SAELens's own. Under autocast the
    encoder's product is in its lower precision, and what active latents make isn't.
    ``feature_acts`` of a step is a sparse tensor, as with SAELens's ``use_sparse_activations``.
    """

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        if not self._can_be_sparse(step_input.sae_in):
            return super().training_forward_pass(step_input)
        x = self.run_time_activation_norm_fn_in(
            self.reshape_fn_in(step_input.sae_in.to(self.dtype))
        )
        decoded, hidden_pre, active = self._code(x)
        sae_out = self.run_time_activation_norm_fn_out(decoded + self.b_dec)
        sae_out = self.reshape_fn_out(sae_out, self.d_head)
        error = self.mse_loss_fn(sae_out, step_input.sae_in)
        feature_acts = active.to_sparse(self.cfg.d_sae)
        losses = {
            "mse_loss": error.sum(dim=-1).mean(),
            **self.calculate_aux_loss(step_input, feature_acts, hidden_pre, sae_out),
        }
        return CountedStepOutput(
            sae_in=step_input.sae_in,
            sae_out=sae_out,
            feature_acts=feature_acts,
            hidden_pre=hidden_pre,
            loss=torch.stack(list(losses.values())).sum(),
            losses=losses,
            n_fired=torch.bincount(active.latent, minlength=self.cfg.d_sae).float(),
        )

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: Tensor,
        hidden_pre: Tensor,
        sae_out: Tensor,
    ) -> dict[str, Tensor]:
        loss = self.calculate_topk_aux_loss(
            step_input.sae_in,
            sae_out,
            hidden_pre,
            step_input.dead_neuron_mask,
            n_dead_at_most(step_input),
        )
        return {"auxiliary_reconstruction_loss": loss}

    @override
    def calculate_topk_aux_loss(
        self,
        sae_in: Tensor,
        sae_out: Tensor,
        hidden_pre: Tensor,
        dead_neuron_mask: Tensor | None,
        n_dead_at_most: int | None = None,
    ) -> Tensor:
        if dead_neuron_mask is None or n_dead_at_most == 0:
            return sae_out.new_zeros(())
        if n_dead_at_most is None and not dead_neuron_mask.any():
            return sae_out.new_zeros(())
        if self.cfg.normalize_activations in ("constant_norm_rescale", "layer_norm"):
            # which says why it can't
            return super().calculate_topk_aux_loss(sae_in, sae_out, hidden_pre, dead_neuron_mask)
        rows = unit_rows(self) if self.cfg.rescale_acts_by_decoder_norm else self.W_dec
        error = auxiliary_error(
            sae_in - sae_out,
            hidden_pre,
            rows,
            dead_neuron_mask,
            n_dead_at_most=n_dead_at_most,
        )
        return self.cfg.aux_loss_coefficient * error.sum(dim=-1).mean()

    def _can_be_sparse(self, sae_in: Tensor) -> bool:
        return (
            self.training
            and sae_in.ndim == 2
            and not sae_in.requires_grad
            and self.cfg.k <= self.cfg.d_sae
            and not has_hooks(self)
            and has_sparse_products(sae_in.device, self.dtype)
        )

    @torch.compiler.disable
    def _code(self, x: Tensor) -> tuple[Tensor, Tensor, ActiveLatents]:
        decoded, hidden_pre, row_start, latent, act = _SparseCode.apply(
            x, self.W_enc, self.b_enc, self.W_dec, self.b_dec, self
        )
        return decoded, hidden_pre, ActiveLatents(row_start, latent, act)

    def largest(self, hidden_pre: Float[Tensor, "rows d_sae"]) -> ActiveLatents:
        """The latents that a training step keeps."""
        return largest_of_rows(hidden_pre, self.cfg.k)


class SparseBatchTopKTrainingSAE(BatchTopKTrainingSAE, SparseTopKTrainingSAE):
    """``BatchTopKTrainingSAE``, trained as ``SparseTopKTrainingSAE`` is."""

    topk_threshold: Tensor

    @override
    def largest(self, hidden_pre: Float[Tensor, "rows d_sae"]) -> ActiveLatents:
        return largest_of_batch(hidden_pre, int(self.cfg.k * len(hidden_pre)))

    @override
    @torch.no_grad()
    def update_topk_threshold(self, acts_topk: Tensor) -> None:
        if acts_topk.is_sparse:
            super().update_topk_threshold(acts_topk.values())
            return
        # as SAELens's, which asks the device whether any is positive
        lr, before = self.cfg.topk_threshold_lr, self.topk_threshold
        smallest = acts_topk.masked_fill(acts_topk <= 0, torch.inf).min().to(before)
        moved = (1 - lr) * before + lr * smallest
        self.topk_threshold = torch.where(smallest.isinf(), before, moved)


def new_training_sae(cfg: TrainingSAEConfig, device: str) -> TrainingSAE[Any]:
    """A new SAE with these settings, on a device.

    SAELens's own class, or one that does the same faster. The global random generator gives the
    initial weights.
    """
    settings = cfg.to_dict() | {"device": device}
    if type(cfg) is TopKTrainingSAEConfig:
        return SparseTopKTrainingSAE(TopKTrainingSAEConfig.from_dict(settings))
    if type(cfg) is BatchTopKTrainingSAEConfig:
        return SparseBatchTopKTrainingSAE(BatchTopKTrainingSAEConfig.from_dict(settings))
    return TrainingSAE.from_dict(settings)


def unit_rows(sae: TopKTrainingSAE) -> Float[Tensor, "d_sae d_in"]:
    """The decoder's rows at norm 1, by which an SAE decodes that rescales its latents."""
    return sae.W_dec / sae.W_dec.norm(dim=-1, keepdim=True)


class _SparseCode(torch.autograd.Function):
    """Reconstruction without ``b_dec``, pre-activations (scaled, if so configured) and latents."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        sae: SparseTopKTrainingSAE,
    ) -> tuple[Tensor, ...]:
        if sae.cfg.apply_b_dec_to_input:
            x = x - b_dec
        hidden_pre = b_enc.repeat(len(x), 1)
        multiply(x, W_enc, autocast_dtype(x), out=hidden_pre, adds=True)
        norm = W_dec.norm(dim=-1) if sae.cfg.rescale_acts_by_decoder_norm else None
        if norm is not None:
            hidden_pre.mul_(norm)
        active = decoded_by = sae.largest(hidden_pre)
        if norm is not None:
            decoded_by = replace(active, act=active.act / norm[active.latent])
        ctx.applies_b_dec = sae.cfg.apply_b_dec_to_input
        ctx.save_for_backward(x, W_enc, W_dec, hidden_pre, norm, *decoded_by.tensors())
        ctx.mark_non_differentiable(*active.tensors())
        ctx.set_materialize_grads(False)
        return decode_active(decoded_by, W_dec), hidden_pre, *active.tensors()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        # The norm by which a latent is multiplied divides it again, so that the reconstruction
        # doesn't depend on it, nor does its gradient.
        x, W_enc, W_dec, hidden_pre, norm, *lists = ctx.saved_tensors
        grad_decoded, grad_hidden_pre = grad_outputs[:2]
        if grad_decoded is None:
            grad_decoded = torch.zeros_like(x)
        grads = sparse_gradients(ActiveLatents(*lists), W_dec, grad_decoded, x)
        if grad_hidden_pre is not None:
            _add_dense_part(grads, grad_hidden_pre, x, W_dec, hidden_pre, norm)
        # By way of x it would be the sum of a [rows, d_in] gradient, a sixth product.
        grad_b_dec = -(W_enc @ grads.b_enc) if ctx.applies_b_dec else None
        return None, grads.W_enc, grads.b_enc, grads.W_dec, grad_b_dec, None


@torch.no_grad()
def _add_dense_part(
    grads: SparseGradients,
    grad_hidden_pre: Tensor,
    x: Tensor,
    W_dec: Tensor,
    hidden_pre: Tensor,
    norm: Tensor | None,
) -> None:
    """Add what comes back through the pre-activations: from dead latents, which may be few."""
    latents = (grad_hidden_pre != 0).any(dim=0).nonzero().squeeze(-1)
    grad = grad_hidden_pre[:, latents]
    if norm is not None:
        own = norm[latents]
        grad_norm = (grad * hidden_pre[:, latents]).sum(dim=0) / own
        grads.W_dec[latents] += (grad_norm / own)[:, None] * W_dec[latents]
        grad = grad * own
    grads.W_enc[:, latents] += x.T @ grad
    grads.b_enc[latents] += grad.sum(dim=0)
