"""Training of SAELens's transcoders, of which SAELens has the finished ones only.

A transcoder reads one hook and reconstructs another, such as an MLP's input and its output
(Dunefsky et al. 2024, arXiv 2406.11944; with a linear path beside the latents, Paulo et al. 2025,
arXiv 2501.18823). A training row holds both, ``[input | output]``, so that these train under any
SAELens trainer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from jaxtyping import Float
from sae_lens import (
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
)
from sae_lens.saes.sae import TrainingSAE, TrainingSAEConfig, TrainStepInput, TrainStepOutput
from torch import Tensor, nn
from typing_extensions import override


@dataclass(kw_only=True)
class _OfTranscoders(TrainingSAEConfig):
    """Settings that all transcoders have."""

    d_out: int
    """Width of the output hook."""

    apply_b_dec_to_input: bool = False
    """Always False: the decoder's bias belongs to the output."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.d_out < 1:
            raise ValueError(f"d_out is {self.d_out}; want the width of the output hook")
        if self.apply_b_dec_to_input:
            raise ValueError(
                "apply_b_dec_to_input is True; want False: a transcoder's b_dec is of its output"
            )
        if self.normalize_activations != "none":
            raise ValueError(
                f"normalize_activations is {self.normalize_activations!r}; want 'none': it would "
                "scale a transcoder's input and output together"
            )


@dataclass(kw_only=True)
class TranscoderTrainingSAEConfig(_OfTranscoders, StandardTrainingSAEConfig):
    """Settings of a ReLU transcoder in training: those of SAELens's ``standard``, and ``d_out``."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "transcoder"


@dataclass(kw_only=True)
class SkipTranscoderTrainingSAEConfig(TranscoderTrainingSAEConfig):
    """Settings of a ReLU transcoder with a linear path beside its latents."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "skip_transcoder"


@dataclass(kw_only=True)
class JumpReLUTranscoderTrainingSAEConfig(_OfTranscoders, JumpReLUTrainingSAEConfig):
    """Settings of a JumpReLU transcoder: those of SAELens's ``jumprelu``, and ``d_out``."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "jumprelu_transcoder"


@dataclass(kw_only=True)
class JumpReLUSkipTranscoderTrainingSAEConfig(JumpReLUTranscoderTrainingSAEConfig):
    """Settings of a JumpReLU transcoder with a linear path beside its latents."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "jumprelu_skip_transcoder"


if TYPE_CHECKING:
    _Base: TypeAlias = TrainingSAE[Any]
else:
    _Base = object


class _TranscoderTraining(_Base):
    """What makes a transcoder of a training SAE; stands before it among the bases."""

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        options = {"dtype": self.dtype, "device": self.device}
        decoder = nn.init.kaiming_uniform_(torch.empty(self.cfg.d_sae, self.cfg.d_out, **options))
        if self.cfg.decoder_init_norm is not None:
            decoder *= self.cfg.decoder_init_norm / decoder.norm(dim=-1, keepdim=True)
        self.W_dec = nn.Parameter(decoder)
        self.b_dec = nn.Parameter(torch.zeros(self.cfg.d_out, **options))
        # nothing to be the transpose of: the decoder's rows lie in another space
        self.W_enc = nn.Parameter(
            nn.init.kaiming_uniform_(torch.empty(self.cfg.d_in, self.cfg.d_sae, **options))
        )

    @override
    def process_sae_in(self, sae_in: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_in"]:
        return self.hook_sae_input(sae_in.to(self.dtype))

    def skip(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"] | float:
        """What goes past the latents."""
        return 0.0

    @override
    def forward(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        """Reconstruct the output hook's rows from the input hook's."""
        return self.hook_sae_output(self.decode(self.encode(x)) + self.skip(x))

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """One step's loss on rows ``[input | output]``; its ``sae_in`` is what to reconstruct."""
        self.start_step()
        x, target = step_input.sae_in.split([self.cfg.d_in, self.cfg.d_out], dim=-1)
        feature_acts, hidden_pre = self.encode_with_hidden_pre(x)
        sae_out = self.decode(feature_acts) + self.skip(x)
        losses = {"mse_loss": self.mse_loss_fn(sae_out, target).sum(dim=-1).mean()}
        aux_losses = self.calculate_aux_loss(step_input, feature_acts, hidden_pre, sae_out)
        losses |= aux_losses if isinstance(aux_losses, dict) else {"aux_loss": aux_losses}
        return TrainStepOutput(
            sae_in=target,
            sae_out=sae_out,
            feature_acts=feature_acts,
            hidden_pre=hidden_pre,
            loss=torch.stack(list(losses.values())).sum(),
            losses=losses,
        )

    def start_step(self) -> None:
        """What comes before each step."""


class _Skip(_TranscoderTraining):
    """A linear path beside the latents, zero at first."""

    W_skip: nn.Parameter

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        self.W_skip = nn.Parameter(
            torch.zeros(self.cfg.d_out, self.cfg.d_in, dtype=self.dtype, device=self.device)
        )

    @override
    def skip(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        return x.to(self.dtype) @ self.W_skip.T


class TranscoderTrainingSAE(_TranscoderTraining, StandardTrainingSAE):  # type: ignore[misc]
    """A ReLU transcoder in training, saved as SAELens's ``transcoder``."""


class SkipTranscoderTrainingSAE(_Skip, StandardTrainingSAE):  # type: ignore[misc]
    """A ReLU transcoder with a skip connection, saved as SAELens's ``skip_transcoder``."""


class JumpReLUTranscoderTrainingSAE(_TranscoderTraining, JumpReLUTrainingSAE):  # type: ignore[misc]
    """A JumpReLU transcoder in training, saved as SAELens's ``jumprelu_transcoder``."""

    @override
    @torch.no_grad()
    def start_step(self) -> None:
        self.threshold.clamp_(min=0.0)  # as SAELens does: below it negative latents would pass


class JumpReLUSkipTranscoderTrainingSAE(_Skip, JumpReLUTranscoderTrainingSAE):  # type: ignore[misc]
    """The same with a skip connection, saved as SAELens's ``jumprelu_skip_transcoder``."""
