"""MSAE's ReLU baseline, ``standard_relative_l1``: an L1 penalty relative to the input's norm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sae_lens import StandardSAEConfig, StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.saes.sae import SAEConfig, TrainStepInput, TrainStepOutput
from torch import Tensor
from typing_extensions import override

from .unit_norm_decoder import move_row_norms_to_encoder_, tangent_rows


@dataclass
class RelativeL1TrainingSAEConfig(StandardTrainingSAEConfig):
    """Settings of the baseline; defaults as in MSAE (arXiv 2502.20578, appendix)."""

    l1_coefficient: float = 0.003
    """λ: weight of the mean over rows of ``‖h‖₁ / ‖x‖₂``. SAELens's ``standard`` has no such
    division, sums the squared error over features and weighs ``|h|`` by decoder norms, so its
    coefficients are not these."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lp_norm != 1.0:
            raise ValueError(
                f"lp_norm is {self.lp_norm}; standard_relative_l1 has an L1 penalty, want 1.0"
            )

    @override
    @classmethod
    def architecture(cls) -> str:
        return "standard_relative_l1"

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return StandardSAEConfig


class RelativeL1TrainingSAE(StandardTrainingSAE):
    """``mean over rows and features of (x̂ − x)² + λ · mean over rows of ‖h‖₁ / ‖x‖₂``.

    Decoder rows have unit norm in every step; what rescales them goes into the encoder, and their
    gradient's parallel part is removed. Saved as SAELens's plain ``standard``.
    """

    cfg: RelativeL1TrainingSAEConfig

    @override
    def decode(self, feature_acts: Tensor) -> Tensor:
        sae_out = self.hook_sae_recons(feature_acts @ tangent_rows(self.W_dec) + self.b_dec)
        return self.reshape_fn_out(self.run_time_activation_norm_fn_out(sae_out), self.d_head)

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """One step's loss on rows ``[n, d_in]``."""
        if self.training:
            move_row_norms_to_encoder_(self.W_dec, self.W_enc, self.b_enc)
        sae_in = step_input.sae_in
        feature_acts, hidden_pre = self.encode_with_hidden_pre(sae_in)
        sae_out = self.decode(feature_acts)
        # A row of zeros has no norm to divide by.
        norm = sae_in.norm(dim=-1)
        norm = torch.where(norm > 0, norm, torch.ones_like(norm))
        sum_dtype = torch.promote_types(feature_acts.dtype, torch.float32)
        l1 = feature_acts.sum(dim=-1, dtype=sum_dtype) / norm
        losses = {
            "mse_loss": (sae_out - sae_in).square().mean(),
            "l1_loss": step_input.coefficients["l1"] * l1.mean(),
        }
        return TrainStepOutput(
            sae_in=sae_in,
            sae_out=sae_out,
            feature_acts=feature_acts,
            hidden_pre=hidden_pre,
            loss=losses["mse_loss"] + losses["l1_loss"],
            losses=losses,
        )
