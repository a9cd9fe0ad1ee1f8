"""PatchSAE: the sparse autoencoder of Lim et al. (ICLR 2025, arXiv 2412.05276), one row a token."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from jaxtyping import Float
from sae_lens import StandardSAE
from sae_lens.saes.sae import (
    SAEConfig,
    TrainCoefficientConfig,
    TrainingSAE,
    TrainingSAEConfig,
    TrainStepInput,
    TrainStepOutput,
)
from torch import Tensor, nn
from typing_extensions import override

from .b_dec_init import BDecInitMethod, central_point, check_b_dec_init_method
from .dead_latents import n_dead_at_most
from .dense_step import DenseWeights, dense_step, has_hooks, step_kernels
from .firing_counts import LateStepOutput
from .ghost_gradients import ghost_gradient_error
from .image_aggregation import COUNT_RULE, ImageAggregationMixin, check_rule
from .l1_coefficient import MSENormalization
from .unit_norm_decoder import normalize_rows_, tangent_rows

_STARTED_FLAG = "b_dec_is_initialized"
_L1_SCALE = "l1_scale"


@dataclass
class PatchSAEConfig(SAEConfig):
    """A PatchSAE for inference: SAELens's fields, and how image latents are made."""

    aggregation: dict[str, Any] = field(default_factory=lambda: dict(COUNT_RULE))
    """How ``encode_image`` turns patch latents into image latents: ``"name"`` and settings, as
    ``vit_sae_plugin.aggregation.make_aggregation`` takes them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.aggregation = check_rule(self.aggregation)

    @override
    @classmethod
    def architecture(cls) -> str:
        return "patchsae"


class PatchSAE(ImageAggregationMixin, StandardSAE):
    """``h = ReLU((z − b_dec) W_enc + b_enc)``, ``ẑ = h W_dec + b_dec`` (Eq. 1).

    The same function as SAELens's ``standard``; what differs is how it is trained
    (``PatchTrainingSAE``). ``export_as_standard`` makes a plain ``standard`` SAE of it.
    """

    cfg: PatchSAEConfig  # type: ignore[assignment]

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        # Training checkpoints can be opened for inference too; they carry the training's state.
        state_dict.pop(_STARTED_FLAG, None)
        state_dict.pop(_L1_SCALE, None)


@dataclass
class PatchTrainingSAEConfig(TrainingSAEConfig):
    """Settings of a PatchSAE in training; the defaults are the published ones.

    SAELens's coefficients do not carry over: its architectures *sum* the squared error over the
    ``d_in`` features, do not divide by ``‖z‖``, and weight ``|h|`` by the decoder's row norms
    (which are 1 here). With ``N`` a typical norm of a token's activation,

    - ``mse_normalization="none"``: ``l1_coefficient = (SAELens's l1_coefficient) / d_in``;
    - ``mse_normalization="input_norm"``: ``l1_coefficient = (SAELens's) / (d_in · N)``.

    (Both losses then are SAELens's, divided by a constant.) The published 8e-5 for ``d_in = 768``
    is SAELens's 0.061 without normalisation, times ``N`` with it.
    """

    l1_coefficient: float = 8e-5
    """λ of Eq. 2: weight of the mean over tokens of ``Σ|h|``. Larger is sparser and blunter. What
    it becomes on rows of another width or scale:
    ``equivalent_l1_coefficient``."""

    relative_l1_coefficient: float | None = None
    """Takes the place of ``l1_coefficient``, in units of the data: the penalty for writing each row
    with one latent of its own, ``λ · mean ‖z − b_dec‖``, divided by the error of writing none,
    ``mean (z − b_dec)²`` (over ``‖z‖`` with "input_norm"). From 2 on, writing none is cheapest.
    λ is worked out from the first batch and saved with checkpoints; it then asks the same of any
    model, whatever the scale, width and mean of its rows. The published 8e-5 is 0.061 where rows
    are 768 wide and their mean is small beside their norm. None: ``l1_coefficient`` as it is."""

    l1_warm_up_steps: int = 0
    """Steps over which λ rises linearly from zero. 0: the full penalty from the first step."""

    use_ghost_grads: bool = True
    """Add the ghost term for dead latents. The trainer's ``dead_feature_window`` says when a
    latent is dead; published: 64 steps."""

    b_dec_init_method: BDecInitMethod = "geometric_median"
    """What of the first training batch ``b_dec`` starts at: "geometric_median", "mean", or
    "zeros" (leave it at zero)."""

    mse_normalization: MSENormalization = "input_norm"
    """"input_norm" divides a token's squared error by ``‖z‖₂``, so that large tokens don't rule
    the loss; "none" doesn't."""

    cls_mse_coefficient: float = 1.0
    """Weight of token 0's reconstruction error. Other than 1 it needs input
    ``[batch, token, d_in]``, so it can't be used with shuffled rows."""

    decoder_init_norm: float | None = 1.0
    """Always 1: decoder rows have unit norm throughout."""

    aggregation: dict[str, Any] = field(default_factory=lambda: dict(COUNT_RULE))
    """How the saved SAE's ``encode_image`` makes image latents (``PatchSAEConfig``)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.aggregation = check_rule(self.aggregation)
        check_b_dec_init_method(self.b_dec_init_method)
        if self.mse_normalization not in get_args(MSENormalization):
            raise ValueError(
                f"mse_normalization is {self.mse_normalization!r}; want one of "
                f"{', '.join(map(repr, get_args(MSENormalization)))}"
            )
        for name in ("l1_coefficient", "l1_warm_up_steps", "cls_mse_coefficient"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; want 0 or more")
        if self.relative_l1_coefficient is not None and not self.relative_l1_coefficient >= 0:
            raise ValueError(
                f"relative_l1_coefficient is {self.relative_l1_coefficient}; want 0 or more"
            )
        if self.decoder_init_norm != 1.0:
            raise ValueError(
                f"decoder_init_norm is {self.decoder_init_norm}; want 1.0, the norm of the rows of "
                "a PatchSAE's decoder at each step"
            )

    @override
    @classmethod
    def architecture(cls) -> str:
        return "patchsae"

    @override
    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> PatchTrainingSAEConfig:
        # An inference folder keeps the training settings in its metadata only. Without them,
        # training on from such a folder would silently go back to the defaults.
        metadata = config_dict.get("metadata") or {}
        trained_with = metadata.get("training_architecture_details") or {}
        return super().from_dict({**trained_with, **config_dict})


class PatchTrainingSAE(TrainingSAE[PatchTrainingSAEConfig]):
    """A PatchSAE in training.

    Loss (Eq. 2): ``mean over tokens and features of (ẑ − z)² / ‖z‖₂``
    ``+ λ · mean over tokens of Σ|h|`` ``+ ghost term``.

    In training mode each step first scales the decoder's rows to norm 1, and the decoder's
    gradient has no part parallel to its rows. The very first step sets ``b_dec``; a buffer,
    saved with checkpoints, remembers that, so that neither a resumed run nor one that starts
    from a saved SAE sets it again.

    Runs under ``sae_lens.SAETrainer``, which clips gradients at norm 1 (the published training
    doesn't), autocast and ``torch.compile(fullgraph=True)``.
    """

    b_enc: nn.Parameter
    b_dec_is_initialized: Tensor
    l1_scale: Tensor

    def __init__(self, cfg: PatchTrainingSAEConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        self.register_buffer(
            _STARTED_FLAG, torch.zeros((), dtype=torch.bool, device=self.W_dec.device)
        )
        if cfg.relative_l1_coefficient is not None:
            # λ ÷ relative_l1_coefficient; NaN until the first batch.
            unknown = torch.full((), torch.nan, device=self.W_dec.device)
            self.register_buffer(_L1_SCALE, unknown)

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        # Not the decoder's transpose. As in the released code the fan counted for this
        # [d_in, d_sae] matrix is d_sae, so that latents start small.
        nn.init.kaiming_uniform_(self.W_enc)
        self.b_enc = nn.Parameter(torch.zeros(self.cfg.d_sae, dtype=self.dtype, device=self.device))

    @override
    def get_coefficients(self) -> dict[str, float | TrainCoefficientConfig]:
        relative = self.cfg.relative_l1_coefficient
        value = self.cfg.l1_coefficient if relative is None else relative
        return {"l1": TrainCoefficientConfig(value=value, warm_up_steps=self.cfg.l1_warm_up_steps)}

    @override
    def encode_with_hidden_pre(
        self, x: Float[Tensor, "*batch d_in"]
    ) -> tuple[Float[Tensor, "*batch d_sae"], Float[Tensor, "*batch d_sae"]]:
        """The latents, and the latents before ReLU."""
        hidden_pre = self.hook_sae_acts_pre(self.process_sae_in(x) @ self.W_enc + self.b_enc)
        return self.hook_sae_acts_post(self.activation_fn(hidden_pre)), hidden_pre

    @override
    def decode(self, feature_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]:
        return self._decode_by(tangent_rows(self.W_dec), feature_acts)

    def _decode_by(self, decoder_rows: Tensor, feature_acts: Tensor) -> Tensor:
        sae_out = self.hook_sae_recons(feature_acts @ decoder_rows + self.b_dec)
        return self.reshape_fn_out(self.run_time_activation_norm_fn_out(sae_out), self.d_head)

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """One step's loss; call ``backward`` on the result's ``loss``.

        Args:
            step_input: ``sae_in`` is ``[n_tokens, d_in]``, or ``[batch, token, d_in]``.

        Raises:
            ValueError: ``cls_mse_coefficient`` is not 1 and the input is not 3-dimensional.
        """
        sae_in = step_input.sae_in
        if self.training:
            self._start_step(sae_in, step_input.n_training_steps)
        if kernels := self._kernels_for(sae_in):
            return self._dense_step(step_input, kernels)
        decoder_rows = tangent_rows(self.W_dec)
        feature_acts, hidden_pre = self.encode_with_hidden_pre(sae_in)
        sae_out = self._decode_by(decoder_rows, feature_acts)

        error = self._reconstruction_error(sae_in, sae_out)
        # Sums over thousands of latents lose too much in 16 bits. No abs: ReLU leaves nothing
        # negative, and this tensor is the largest of the step.
        sum_dtype = torch.promote_types(feature_acts.dtype, torch.float32)
        l1_per_token = feature_acts.sum(dim=-1, dtype=sum_dtype)
        if self.cfg.relative_l1_coefficient is not None:
            l1_per_token = l1_per_token * self.l1_scale
        losses = {
            "mse_loss": self._weigh_class_token(error).mean(),
            "l1_loss": step_input.coefficients["l1"] * l1_per_token.mean(),
        }
        dead = step_input.dead_neuron_mask
        if self.cfg.use_ghost_grads and self.training and dead is not None:
            ghost = ghost_gradient_error(
                sae_in,
                sae_out,
                hidden_pre,
                decoder_rows,
                dead,
                error,
                n_dead_at_most=n_dead_at_most(step_input),
            )
            losses["ghost_grad_loss"] = ghost.mean()
        return TrainStepOutput(
            sae_in=sae_in,
            sae_out=sae_out,
            feature_acts=feature_acts,
            hidden_pre=hidden_pre,
            loss=torch.stack(list(losses.values())).sum(),
            losses=losses,
        )

    def _kernels_for(self, sae_in: Tensor) -> ctypes.CDLL | None:
        """The C functions of a step on a CPU, if it needs nothing that they don't do."""
        cfg = self.cfg
        plain = (
            type(self) is PatchTrainingSAE  # one derived from it may compute something else
            and sae_in.device.type == self.W_dec.device.type == "cpu"
            and sae_in.dtype == self.W_dec.dtype
            and sae_in.ndim == 2
            and not sae_in.requires_grad
            and cfg.apply_b_dec_to_input
            and cfg.normalize_activations not in ("layer_norm", "constant_norm_rescale")
            and cfg.cls_mse_coefficient == 1.0
            and type(self.activation_fn) is nn.ReLU
            and not torch.compiler.is_compiling()
            and not has_hooks(self)
        )
        return step_kernels(sae_in.dtype) if plain else None

    def _dense_step(self, step_input: TrainStepInput, kernels: ctypes.CDLL) -> TrainStepOutput:
        """The same as ``training_forward_pass``, faster."""
        sae_in = step_input.sae_in.contiguous()
        penalty = torch.as_tensor(step_input.coefficients["l1"], dtype=torch.float64)
        if self.cfg.relative_l1_coefficient is not None:
            penalty = penalty * self.l1_scale
        dead = step_input.dead_neuron_mask
        has_ghosts = self.cfg.use_ghost_grads and self.training and dead is not None
        step = dense_step(
            sae_in,
            DenseWeights(self.W_enc, self.b_enc, self.W_dec, self.b_dec),
            penalty.to(sae_in.dtype),
            dead if has_ghosts else None,
            kernels,
            divide_by_norm=self.cfg.mse_normalization == "input_norm",
        )
        losses = {"mse_loss": step.mse_loss, "l1_loss": step.l1_loss}
        if has_ghosts:
            losses["ghost_grad_loss"] = step.ghost_loss

        def feature_acts() -> Tensor:
            with torch.enable_grad():  # as all else of a step's output, whoever asks
                return step.hidden_pre.relu()

        return LateStepOutput(
            feature_acts,
            sae_in=sae_in,
            sae_out=step.sae_out,
            hidden_pre=step.hidden_pre,
            loss=torch.stack(list(losses.values())).sum(),
            losses=losses,
            n_fired=step.n_fired,
        )

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
    def start_from(self, first_batch: Float[Tensor, "rows d_in"]) -> None:
        """Set what the first batch decides, ``b_dec`` and the scale of λ, unless it is set.

        The first training step does so itself. This is for those that train on parts of a batch,
        and have to know the whole of the first.
        """
        self._start_step(first_batch, n_training_steps=0)

    @torch.no_grad()
    def _start_step(self, sae_in: Tensor, n_training_steps: int) -> None:
        normalize_rows_(self.W_dec)
        if n_training_steps == 0 and self.cfg.b_dec_init_method != "zeros":
            # b_dec lives where the encoder subtracts it: after the activations' normalisation.
            rows = self.run_time_activation_norm_fn_in(self.reshape_fn_in(sae_in.to(self.dtype)))
            start = central_point(rows.reshape(-1, self.cfg.d_in), self.cfg.b_dec_init_method)
            # No ``if``: it would wait for the device, and break a compiled graph.
            self.b_dec.copy_(torch.where(self.b_dec_is_initialized, self.b_dec, start))
        if n_training_steps == 0 and self.cfg.relative_l1_coefficient is not None:
            scale = self._l1_scale_of(sae_in.to(self.dtype))
            self.l1_scale.copy_(torch.where(self.l1_scale.isnan(), scale, self.l1_scale))
        self.b_dec_is_initialized.fill_(True)

    def _l1_scale_of(self, sae_in: Tensor) -> Tensor:
        """Error of rows without latents ÷ their mean distance from ``b_dec``."""
        rows = self.run_time_activation_norm_fn_in(self.reshape_fn_in(sae_in))
        distance = (rows - self.b_dec).float().norm(dim=-1).mean()
        without_latents = self.run_time_activation_norm_fn_out(self.b_dec.expand_as(rows))
        without_latents = self.reshape_fn_out(without_latents, self.d_head)
        error = self._reconstruction_error(sae_in.float(), without_latents.float()).mean()
        scale = torch.where(distance > 0, error / distance, torch.ones_like(distance))
        # Few enough digits to survive loaders that cast all tensors to 16-bit weights' type.
        return scale.bfloat16().float()

    def _reconstruction_error(self, sae_in: Tensor, sae_out: Tensor) -> Tensor:
        error = (sae_out - sae_in).square()
        if self.cfg.mse_normalization == "none":
            return error
        norm = sae_in.to(error.dtype).norm(dim=-1, keepdim=True)
        # A token of zeros has no norm to divide by: its error counts as it is.
        return error / torch.where(norm > 0, norm, torch.ones_like(norm))

    def _weigh_class_token(self, error: Tensor) -> Tensor:
        if self.cfg.cls_mse_coefficient == 1.0 or not self.training:
            return error
        if error.ndim != 3:
            raise ValueError(
                f"cls_mse_coefficient is {self.cfg.cls_mse_coefficient} and the input is "
                f"{list(error.shape)}; want [batch, token, d_in], whose token 0 it weights, or a "
                f"coefficient of 1: rows of shuffled tokens don't say which is the class token"
            )
        weight = torch.ones(error.shape[1], 1, dtype=error.dtype, device=error.device)
        weight[0] = self.cfg.cls_mse_coefficient
        return error * weight

    @override
    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        super().fold_activation_norm_scaling_factor(scaling_factor)
        # SAELens folds the factor into the decoder; a training step of a later run would
        # normalise it away again. Latents are therefore given in units of the raw activations.
        self.fold_W_dec_norm()

    @override
    @torch.no_grad()
    def fold_activation_whitening(
        self, mean: Tensor, whitening_matrix: Tensor, unwhitening_matrix: Tensor
    ) -> None:
        super().fold_activation_whitening(mean, whitening_matrix, unwhitening_matrix)
        self.fold_W_dec_norm()

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving_inference(state_dict)
        state_dict.pop(_STARTED_FLAG)
        state_dict.pop(_L1_SCALE, None)

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        # Weights without the flag are a finished SAE's. SAELens's loader also casts it to the
        # weights' dtype.
        started = state_dict.get(_STARTED_FLAG, torch.ones((), device=state_dict["b_dec"].device))
        state_dict[_STARTED_FLAG] = started.bool()
        scale = state_dict.pop(_L1_SCALE, torch.full_like(started, torch.nan, dtype=torch.float32))
        if self.cfg.relative_l1_coefficient is not None:
            state_dict[_L1_SCALE] = scale.float()
