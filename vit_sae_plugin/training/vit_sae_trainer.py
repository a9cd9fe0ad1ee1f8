"""SAELens's trainer with a choice of gradient clipping and optimizer.

All else that this package asks of SAELens's trainer is public: ``step``, ``maybe_reset_sparsity``,
``save_trainer_state``, ``load_trainer_state``, ``set_final_sae_metadata``,
``build_train_step_log_dict``, its counters and its ``activation_scaler``. Its clip, at a norm of 1,
and its counting of firing latents, by several passes over all latents of the batch, lie inside
``_train_step``, so that is the one private method written anew here; a test holds the weights to
SAELens's own within 1e-6. (The optimizer is torch's fused one, a pass over the weights instead of a
dozen, and rounds in another order.)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from sae_lens.config import SAETrainerConfig
from sae_lens.constants import SPARSITY_FILENAME
from sae_lens.saes.sae import TrainingSAE, TrainStepOutput
from sae_lens.training.optim import get_lr_scheduler
from sae_lens.training.sae_trainer import SAETrainer
from sae_lens.training.types import DataProvider
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Adam, AdamW
from typing_extensions import override

from vit_sae_plugin.saes.dead_latents import BoundedStepInput
from vit_sae_plugin.saes.firing_counts import firing_counts
from vit_sae_plugin.training.batch_parts import check_parts, step_in_parts
from vit_sae_plugin.training.checkpoint_weights import load_weights, save_weights
from vit_sae_plugin.training.checkpoints import SHARD_FILES
from vit_sae_plugin.training.late_numbers import DeadBound

SAE_LENS_MAX_NORM = 1.0


class ViTSAETrainer(SAETrainer[TrainingSAE[Any], Any]):
    """``SAETrainer`` with clipping at any norm or none, Adam or AdamW, and their eps.

    With ``clip_grad_norm=1`` and the other defaults, training is SAELens's but for rounding.

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
        n_parts: hand the SAE each batch in so many parts, one after another (``batch_parts``).
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
        n_parts: int = 1,
    ) -> None:
        super().__init__(cfg=cfg, sae=sae, data_provider=data_provider)
        self.clip_grad_norm = clip_grad_norm
        self.freeze_decoder = freeze_decoder
        check_parts(n_parts, sae.cfg.architecture(), cfg.train_batch_size_samples)
        self.n_parts = n_parts
        self.grad_norm = torch.tensor(torch.nan, device=cfg.device)
        """Norm of the last step's gradients before clipping; NaN before the first step."""
        self.n_steps_above_max_norm = torch.zeros((), dtype=torch.long, device=cfg.device)
        self.dead_bound: DeadBound | None = None
        """Where the number of dead latents isn't asked of the device in a step; None: it is."""
        if torch.device(cfg.device).type == "cuda":
            self.dead_bound = DeadBound(cfg.dead_feature_window)
        optimizer_class: Any = {"adam": Adam, "adamw": AdamW}[optimizer]
        # a new pair, because the first scheduler has already changed the first optimizer's rate
        self.optimizer = optimizer_class(
            sae.parameters(),
            lr=cfg.lr,
            betas=(cfg.adam_beta1, cfg.adam_beta2),
            eps=adam_eps,
            weight_decay=weight_decay,
            fused=True,
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
    def share_of_steps_above_max_norm(self) -> float:
        """Share of the steps so far in which SAELens's clip at norm 1 binds, or would."""
        return self.n_steps_above_max_norm.item() / max(1, self.n_training_steps)

    def whole_batch(self, rows: Float[Tensor, "rows d_in"]) -> Float[Tensor, "all_rows d_in"]:
        """All rows of a batch, where several processes have some each."""
        return rows

    @torch.no_grad()
    def input_is_finite(self, output: TrainStepOutput) -> Tensor:
        """Whether all rows of a step's batch are finite."""
        return torch.isfinite(output.sae_in).all()

    def write_sae(self, folder: Path | None) -> None:
        """Write the SAE for use; where several processes hold it, all must call this.

        Args:
            folder: where to; None: this process writes nothing.
        """
        if folder is not None:
            self.sae.save_inference_model(folder)

    def write_files(self, folder: Path) -> None:
        """Write what of a checkpoint is the trainer's and its SAE's."""
        save_weights(self.sae, self.activation_scaler.whitening, folder)
        self.save_trainer_state(folder)
        save_file({"sparsity": self.log_feature_sparsity}, folder / SPARSITY_FILENAME)

    def read_files(self, folder: Path) -> None:
        """Go on from what ``write_files`` wrote, here or in processes that shared the latents."""
        if self.dead_bound is not None:
            self.dead_bound.forget()
        if any(folder.glob(SHARD_FILES)):
            # takes a second to import, and few have such checkpoints
            from vit_sae_plugin.training.split_latents.latent_split import LatentSplit
            from vit_sae_plugin.training.split_latents.split_checkpoint import load_split

            load_split(self, LatentSplit(), folder)
            return
        load_weights(self.sae, folder)
        self.load_trainer_state(folder)

    @torch.no_grad()
    def l0_of(self, output: TrainStepOutput) -> Tensor:
        """Mean number of active latents of a batch's rows."""
        return firing_counts(output).sum() / len(output.sae_in)

    def n_dead_latents(self) -> int:
        """How many latents count as dead."""
        return int(self.dead_neurons.sum())

    @torch.no_grad()
    def explained_variance_of(self, output: TrainStepOutput) -> Tensor:
        """``1 − Σ residual² / Σ (x − mean x)²`` over a step's batch."""
        sae_in = output.sae_in.float()  # sums over a batch are too coarse in 16 bits
        residual = (output.sae_out.float() - sae_in).square().sum()
        return 1 - residual / (sae_in - sae_in.mean(dim=0)).square().sum()

    @override
    @torch.no_grad()
    def build_train_step_log_dict(
        self, output: TrainStepOutput, n_training_samples: int
    ) -> dict[str, Any]:
        logged = super().build_train_step_log_dict(output, n_training_samples)
        return logged | {"metrics/l0": self.l0_of(output).item()}

    @override
    def _train_step(self, sae: TrainingSAE[Any], sae_in: Tensor) -> TrainStepOutput:
        sae.train()
        step_input = BoundedStepInput(
            sae_in=sae_in,
            dead_neuron_mask=self.dead_neurons,
            coefficients=self.get_coefficients(),
            n_training_steps=self.n_training_steps,
            is_logging_step=self._is_logging_step(),
            n_dead_at_most=None if self.dead_bound is None else self.dead_bound.at_most(),
        )
        if self.n_parts > 1:
            output = step_in_parts(sae, step_input, self.n_parts, self.autocast_if_enabled)
        else:
            with self.autocast_if_enabled:
                output = sae.training_forward_pass(step_input=step_input)
            output.loss.backward()
        self._count_firing(firing_counts(output), self.cfg.train_batch_size_samples)
        self._finish_gradients()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.lr_scheduler.step()
        for scheduler in self.coefficient_schedulers.values():
            scheduler.step()
        return output

    @torch.no_grad()
    def _count_firing(self, n_fired: Tensor, n_rows: int) -> None:
        """Bring the trainer's counters of firing and dead latents up to date.

        Args:
            n_fired: ``[d_sae]``, in how many of the batch's rows each latent fired.
            n_rows: rows of the batch.
        """
        self.n_forward_passes_since_fired += 1
        self.n_forward_passes_since_fired.masked_fill_(n_fired > 0, 0)
        if self.dead_bound is not None:
            self.dead_bound.note(self.n_forward_passes_since_fired)
        self.act_freq_scores += n_fired
        self.n_frac_active_samples += n_rows

    @torch.no_grad()
    def _finish_gradients(self) -> None:
        """Between the backward pass and the optimizer's step: measure and clip the gradients."""
        if self.freeze_decoder:
            self.sae.W_dec.grad = None  # the optimizer passes over it, weight decay included
        self.grad_norm = self._gradient_norm()
        if self.clip_grad_norm is not None and not is_within(self.grad_norm, self.clip_grad_norm):
            parameters = self.sae.parameters()
            nn.utils.clip_grads_with_norm_(parameters, self.clip_grad_norm, self.grad_norm)
        self.n_steps_above_max_norm += self.grad_norm > SAE_LENS_MAX_NORM

    def _gradient_norm(self) -> Tensor:
        gradients = [p.grad for p in self.sae.parameters() if p.grad is not None]
        return gradient_norm(gradients)


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients together, as ``torch.nn.utils.get_total_norm`` gives it."""
    if not all(g.device.type == "cpu" and g.is_contiguous() for g in gradients):
        return nn.utils.get_total_norm(gradients)
    # a dot product takes half the time of a norm, and adds up in the same precision
    squares = [torch.dot(g.flatten(), g.flatten()) for g in gradients]
    return torch.stack(squares).sum().sqrt()


def is_within(norm: Tensor, max_norm: float) -> bool:
    """Whether clipping would multiply by 1; False on a GPU, where one would have to wait to know.

    PyTorch's factor is the largest norm divided by the norm and 1e-6.
    """
    return norm.device.type == "cpu" and bool(norm + 1e-6 <= max_norm)
