"""SAELens's trainer with a choice of gradient clipping and optimizer.

All else that this package asks of SAELens's trainer is public: ``step``, ``maybe_reset_sparsity``,
``save_trainer_state``, ``load_trainer_state``, ``set_final_sae_metadata``,
``build_train_step_log_dict``, its counters and its ``activation_scaler``. Only the clip lies inside
``_train_step``, at a norm of 1 and between the backward pass and the optimizer's step, so that is
the one private method overridden here; a test holds the result to SAELens's own, to the bit.
"""

from __future__ import annotations

from typing import Any

import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import TrainingSAE, TrainStepOutput
from sae_lens.training.optim import get_lr_scheduler
from sae_lens.training.sae_trainer import SAETrainer
from sae_lens.training.types import DataProvider
from torch import Tensor, nn
from torch.optim import Adam, AdamW
from typing_extensions import override

SAE_LENS_MAX_NORM = 1.0


class GradientGate:
    """Stands for the SAE where SAELens's trainer clips its gradients.

    A training step asks the SAE for its parameters once: between the backward pass and the
    optimizer's step, to clip their gradients at norm 1. Here the gradients are measured and
    clipped as configured at that moment, and no parameters are left to clip.
    """

    def __init__(
        self, sae: TrainingSAE[Any], clip_grad_norm: float | None, freeze_decoder: bool = False
    ) -> None:
        self.sae = sae
        self.clip_grad_norm = clip_grad_norm
        self.freeze_decoder = freeze_decoder
        self.grad_norm: Tensor | None = None

    def train(self) -> None:
        """Put the SAE into training mode, as the trainer asks."""
        self.sae.train()

    def parameters(self) -> list[nn.Parameter]:
        """Measure and clip the gradients; returns no parameters."""
        if self.freeze_decoder:
            self.sae.W_dec.grad = None  # the optimizer passes over it, weight decay included
        parameters = list(self.sae.parameters())
        gradients = [p.grad for p in parameters if p.grad is not None]
        self.grad_norm = nn.utils.get_total_norm(gradients)
        if self.clip_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.clip_grad_norm, self.grad_norm)
        return []


class ViTSAETrainer(SAETrainer[TrainingSAE[Any], Any]):
    """``SAETrainer`` with clipping at any norm or none, Adam or AdamW, and their eps.

    With ``clip_grad_norm=1`` and the other defaults, training is SAELens's to the bit.

    Args:
        cfg: SAELens's own settings.
        sae: the SAE to train.
        data_provider: an iterator of batches ``[rows, d_in]``.
        clip_grad_norm: scale gradients down to this norm; None: leave them.
        optimizer: ``"adam"`` or ``"adamw"``.
        adam_eps: added to the root of the squared gradient's mean.
        weight_decay: decoupled from the gradient with ``"adamw"``.
        freeze_decoder: leave ``W_dec`` as it was initialised, at random: what such an SAE still
            finds is owed to its encoder, and to the directions' number (arXiv 2602.14111).
    """

    def __init__(
        self,
        cfg: SAETrainerConfig,
        sae: TrainingSAE[Any],
        data_provider: DataProvider,
        *,
        clip_grad_norm: float | None = SAE_LENS_MAX_NORM,
        optimizer: str = "adam",
        adam_eps: float = 1e-8,
        weight_decay: float = 0.0,
        freeze_decoder: bool = False,
    ) -> None:
        super().__init__(cfg=cfg, sae=sae, data_provider=data_provider)
        self.gradient_gate = GradientGate(sae, clip_grad_norm, freeze_decoder)
        self.n_steps_above_max_norm = torch.zeros((), dtype=torch.long, device=cfg.device)
        optimizer_class: Any = {"adam": Adam, "adamw": AdamW}[optimizer]
        # a new pair, because the first scheduler has already changed the first optimizer's rate
        self.optimizer = optimizer_class(
            sae.parameters(),
            lr=cfg.lr,
            betas=(cfg.adam_beta1, cfg.adam_beta2),
            eps=adam_eps,
            weight_decay=weight_decay,
        )
        self.lr_scheduler = get_lr_scheduler(
            cfg.lr_scheduler_name,
            lr=cfg.lr,
            optimizer=self.optimizer,
            warm_up_steps=cfg.lr_warm_up_steps,
            decay_steps=cfg.lr_decay_steps,
            training_steps=cfg.total_training_steps,
            lr_end=cfg.lr_end,
            num_cycles=cfg.n_restart_cycles,
        )

    @property
    def grad_norm(self) -> Tensor:
        """Norm of the last step's gradients before clipping; NaN before the first step."""
        norm = self.gradient_gate.grad_norm
        return torch.tensor(torch.nan) if norm is None else norm

    @property
    def share_of_steps_above_max_norm(self) -> float:
        """Share of the steps so far in which SAELens's clip at norm 1 binds, or would."""
        return self.n_steps_above_max_norm.item() / max(1, self.n_training_steps)

    @override
    def _train_step(self, sae: TrainingSAE[Any], sae_in: Tensor) -> TrainStepOutput:
        # the trainer takes the forward pass from self.sae, and only the clip's parameters from sae
        output = super()._train_step(sae=self.gradient_gate, sae_in=sae_in)  # type: ignore[arg-type]
        self.n_steps_above_max_norm += self.grad_norm > SAE_LENS_MAX_NORM
        return output
