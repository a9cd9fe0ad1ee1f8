"""Training of a Matryoshka TopK SAE (Zaigrajew et al., ICML 2025, arXiv 2502.20578)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from sae_lens.saes.sae import (
    TrainCoefficientConfig,
    TrainingSAE,
    TrainingSAEConfig,
    TrainStepInput,
    TrainStepOutput,
)
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from typing_extensions import override

from .auxiliary_loss import auxiliary_error
from .centred_encoding import encode_centred
from .firing_counts import LateStepOutput
from .ghost_gradients import ghost_gradient_error
from .image_aggregation import MEAN_RULE, check_rule
from .level_losses import decoded_losses
from .matryoshka_topk import (
    cap_softly,
    check_inference_settings,
    keep_largest,
    refuse_unequal_norms,
)
from .nested_levels import LevelWeights, check_k_list, doubling_k_list, loss_weights
from .nested_topk_selection import UNUSED, select_nested_topk
from .tied_weights import tied_rows
from .unit_norm_decoder import move_row_norms_to_encoder_, normalize_rows_, tangent_rows


@dataclass
class MatryoshkaTopKTrainingSAEConfig(TrainingSAEConfig):
    """Settings of a Matryoshka TopK SAE in training."""

    k_list: list[int] | None = None
    """How many latents each level keeps, strictly increasing. None: ``k_start``, doubled for as
    long as it stays below ``d_sae``, and ``d_sae``."""

    k_start: int = 64
    """The first k of the list that is made where ``k_list`` is None; published: 64 or 32."""

    level_weights: LevelWeights = "uniform"
    """Weights α of the levels' losses. "uniform": all 1 (the paper's UW). "reverse": the number
    of levels for the smallest k, down to 1 for the largest (RW): better at few latents, a little
    worse at many. Or one number per level."""

    reconstruction_loss: Literal["mse", "nmse"] = "mse"
    """"mse": mean squared error over rows and features. "nmse": each row's divided by its mean
    square (the paper's; the authors found "mse" better after publication)."""

    soft_cap: float | None = None
    """``c`` of ``c · tanh(h / c)``, through which latents pass; keeps single latents from
    growing without bound. An SAE with a cap can't be exported to plain SAELens. None: no cap."""

    tied_weights: bool = False
    """Encode by the decoder's transpose. ``W_enc`` then is a copy that is brought up to date at
    each step and when saving."""

    aux_loss_coefficient: float = 0.0
    """Weight of AuxK, in which dead latents reconstruct what the largest level left over."""

    use_ghost_grads: bool = False
    """Add PatchSAE's ghost term for dead latents, on the largest level's reconstruction."""

    k: int | None = None
    """The k that ``encode`` uses in evaluation and that is saved with the SAE; has no part in
    training. None: all positive latents."""

    aggregation: dict[str, Any] = field(default_factory=lambda: dict(MEAN_RULE))
    """How the saved SAE's ``encode_image`` makes image latents
    (``MatryoshkaTopKSAEConfig``)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.aggregation = check_rule(self.aggregation)
        check_inference_settings(self, self.k, self.soft_cap)
        check_k_list(self.levels(), self.d_sae)
        loss_weights(self.level_weights, self.levels())
        if self.reconstruction_loss not in ("mse", "nmse"):
            raise ValueError(
                f"reconstruction_loss is {self.reconstruction_loss!r}; want 'mse' or 'nmse'"
            )
        if self.aux_loss_coefficient < 0:
            raise ValueError(f"aux_loss_coefficient is {self.aux_loss_coefficient}; want 0 or more")

    def levels(self) -> list[int]:
        """The k of each level."""
        if self.k_list is None:
            return doubling_k_list(self.k_start, self.d_sae)
        return list(self.k_list)

    @override
    @classmethod
    def architecture(cls) -> str:
        return "matryoshka_topk"

    @override
    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> MatryoshkaTopKTrainingSAEConfig:
        # An inference folder keeps the training settings in its metadata only. Without them,
        # training on from such a folder would silently go back to the defaults.
        metadata = config_dict.get("metadata") or {}
        trained_with = metadata.get("training_architecture_details") or {}
        return super().from_dict({**trained_with, **config_dict})


class MatryoshkaTopKTrainingSAE(TrainingSAE[MatryoshkaTopKTrainingSAEConfig]):
    """A Matryoshka TopK SAE in training.

    Loss: ``Σ_i α_i L(x̂_{k_i}, x) / Σ_i α_i`` over the levels, with ``L`` the mean squared error
    ("mse") or that of each row over its mean square ("nmse"); plus the terms for dead latents.

    In training mode each step first scales the decoder's rows to norm 1 and hands the factors to
    the encoder, and the decoder's gradient has no part parallel to its rows. (The authors rescale
    between backward pass and optimizer step. Here the gradient belongs to the rescaled weights.)

    Runs under ``sae_lens.SAETrainer``, with autocast too. Of the largest level are the latents
    that a step returns, of which the trainer counts those that fire.
    """

    b_enc: nn.Parameter

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        self.b_enc = nn.Parameter(torch.zeros(self.cfg.d_sae, dtype=self.dtype, device=self.device))
        if self.cfg.tied_weights:
            self.W_enc.data = self.W_dec.data.T.contiguous()

    @override
    def get_coefficients(self) -> dict[str, float | TrainCoefficientConfig]:
        return {}

    @override
    def encode(
        self, x: Float[Tensor, "*batch d_in"], k: int | None = None
    ) -> Float[Tensor, "*batch d_sae"]:
        """As ``MatryoshkaTopKSAE.encode``."""
        hidden_pre = self._pre_activations(x, self.W_enc)
        return self.hook_sae_acts_post(self._latents(hidden_pre, k))

    @override
    def encode_with_hidden_pre(
        self, x: Float[Tensor, "*batch d_in"]
    ) -> tuple[Float[Tensor, "*batch d_sae"], Float[Tensor, "*batch d_sae"]]:
        """The latents at the config's k, and the latents before top-k and ReLU."""
        hidden_pre = self._pre_activations(x, self.W_enc)
        return self.hook_sae_acts_post(self._latents(hidden_pre)), hidden_pre

    @override
    def decode(self, feature_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]:
        return self.hook_sae_recons(feature_acts @ tangent_rows(self.W_dec) + self.b_dec)

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """One step's loss; call ``backward`` on the result's ``loss``.

        Args:
            step_input: ``sae_in`` is ``[rows, d_in]`` or ``[batch, token, d_in]``.

        Returns:
            ``sae_out`` and ``feature_acts`` of the largest level; in ``metrics`` the loss of each
            level, as ``mse_loss_k_64`` or ``nmse_loss_k_64``.
        """
        sae_in, k_list = step_input.sae_in, self.cfg.levels()
        if self.training:
            self._start_step()
        decoder_rows, encoder = self._weights_of_a_step()
        hidden_pre = self._pre_activations(sae_in, encoder)
        selection = select_nested_topk(hidden_pre.flatten(0, -2), k_list)
        # What is selected is positive. Without ReLU in between there is no backward pass of it.
        acts = hidden_pre
        if self.cfg.soft_cap is not None:
            acts = cap_softly(hidden_pre.relu(), self.cfg.soft_cap)
        # The decoder's bias is taken off the target once, not added to every level.
        target, scale = (sae_in - self.b_dec).flatten(0, -2), self._loss_scale(sae_in)
        scale = None if scale is None else scale.flatten(0, -2)
        latents = acts.flatten(0, -2)
        by_level, decoded = decoded_losses(latents, decoder_rows, selection, target, scale)
        losses_of_k = torch.stack([by_level[level] for level in selection.level_of_k])
        weights = losses_of_k.new_tensor(loss_weights(self.cfg.level_weights, k_list))
        name = f"{self.cfg.reconstruction_loss}_loss"
        losses = {name: (weights * losses_of_k).sum() / weights.sum()}

        sae_out = self.hook_sae_recons(decoded.view_as(sae_in) + self.b_dec)
        if self.training and step_input.dead_neuron_mask is not None:
            losses |= self._dead_latent_losses(
                sae_in, sae_out, hidden_pre, decoder_rows, step_input.dead_neuron_mask
            )

        @torch.no_grad()
        def feature_acts() -> Tensor:
            unused = (selection.first_level == UNUSED).view_as(hidden_pre)
            return self.hook_sae_acts_post(acts.detach().masked_fill(unused, 0))

        output = LateStepOutput(
            feature_acts,
            sae_in=sae_in,
            sae_out=sae_out,
            hidden_pre=hidden_pre,
            loss=torch.stack(list(losses.values())).sum(),
            losses=losses,
            metrics={
                f"{name}_k_{k}": level_loss
                for k, level_loss in zip(k_list, losses_of_k.detach(), strict=True)
            },
            n_fired=selection.n_fired(),
        )
        if self.hook_sae_acts_post.has_hooks():
            output.feature_acts  # noqa: B018 (made now, so that the hooks run)
        return output

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: Tensor,
        hidden_pre: Tensor,
        sae_out: Tensor,
    ) -> dict[str, Tensor]:
        """Nothing: the forward pass above knows all of the loss."""
        return {}

    @torch.no_grad()
    def _start_step(self) -> None:
        if self.cfg.tied_weights:
            normalize_rows_(self.W_dec)
            self.W_enc.copy_(self.W_dec.T)
        else:
            move_row_norms_to_encoder_(self.W_dec, self.W_enc, self.b_enc)

    def _weights_of_a_step(self) -> tuple[Tensor, Tensor]:
        if not self.cfg.tied_weights:
            return tangent_rows(self.W_dec), self.W_enc
        decoder_rows = tied_rows(self.W_dec, self.W_enc)
        return decoder_rows, decoder_rows.T

    def _pre_activations(self, x: Tensor, encoder: Tensor) -> Tensor:
        x = self.hook_sae_input(self.reshape_fn_in(x.to(self.dtype)))
        x = self.run_time_activation_norm_fn_in(x)
        b_dec = self.b_dec if self.cfg.apply_b_dec_to_input else None
        return self.hook_sae_acts_pre(encode_centred(x, encoder, self.b_enc, b_dec))

    def _latents(self, hidden_pre: Tensor, k: int | None = None) -> Tensor:
        return keep_largest(hidden_pre, self.cfg.k if k is None else k, self.cfg.soft_cap)

    def _loss_scale(self, sae_in: Tensor) -> Tensor | None:
        if self.cfg.reconstruction_loss == "mse":
            return None
        dtype = torch.promote_types(sae_in.dtype, torch.float32)
        mean_square = sae_in.to(dtype).square().mean(dim=-1, keepdim=True)
        # A row of zeros has no mean square to divide by: its error counts as it is.
        return torch.where(mean_square > 0, mean_square, 1).reciprocal()

    def _dead_latent_losses(
        self,
        sae_in: Tensor,
        sae_out: Tensor,
        hidden_pre: Tensor,
        decoder_rows: Tensor,
        dead: Tensor,
    ) -> dict[str, Tensor]:
        scale = self._loss_scale(sae_in)
        losses = {}
        if self.cfg.aux_loss_coefficient > 0:
            error = self._auxiliary_error(sae_in - sae_out, hidden_pre, decoder_rows, dead)
            error = error if scale is None else error * scale
            losses["auxiliary_reconstruction_loss"] = self.cfg.aux_loss_coefficient * error.mean()
        if self.cfg.use_ghost_grads:
            error = mse_loss(sae_out, sae_in, reduction="none")
            error = error if scale is None else error * scale
            ghost = self._ghost_error(sae_in, sae_out, hidden_pre, decoder_rows, dead, error)
            losses["ghost_grad_loss"] = ghost.mean()
        return losses

    def _auxiliary_error(self, *of_step: Tensor) -> Tensor:
        return auxiliary_error(*of_step)

    def _ghost_error(self, *of_step: Tensor) -> Tensor:
        return ghost_gradient_error(*of_step)

    @override
    def fold_W_dec_norm(self) -> None:
        """As ``MatryoshkaTopKSAE.fold_W_dec_norm``."""
        refuse_unequal_norms(self.W_dec)
        super().fold_W_dec_norm()

    @override
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        super().fold_activation_norm_scaling_factor(scaling_factor)
        self.cfg.tied_weights = False  # the factor divides the decoder and multiplies the encoder

    @override
    def fold_activation_whitening(
        self, mean: Tensor, whitening_matrix: Tensor, unwhitening_matrix: Tensor
    ) -> None:
        super().fold_activation_whitening(mean, whitening_matrix, unwhitening_matrix)
        self.cfg.tied_weights = False
