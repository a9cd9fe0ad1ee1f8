"""The training loop: SAELens's trainer, driven so that it can stop and go on anywhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from sae_lens.constants import SPARSITY_FILENAME
from sae_lens.saes.sae import TrainStepOutput
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from vit_sae_plugin.activations.row_store import RowStore
from vit_sae_plugin.saes.saved_sae import check_finite_weights
from vit_sae_plugin.training.checkpoint_weights import load_weights, save_weights
from vit_sae_plugin.training.checkpoints import (
    CheckpointFolder,
    DamagedCheckpointError,
    read_state,
)
from vit_sae_plugin.training.interruption import InterruptRequest, TrainingInterruptedError
from vit_sae_plugin.training.training_metrics import step_metrics
from vit_sae_plugin.training.vit_sae_trainer import ViTSAETrainer

RNG_FILE = "rng_state.safetensors"


class DivergedError(RuntimeError):
    """The loss or the gradient is no longer finite."""


class TrainingLoop:
    """Trains until the trainer's budget of rows is used up.

    Args:
        trainer: holds the SAE, its optimizer and its schedules.
        store: gives the rows.
        checkpoints: where to save; None: nowhere.
        checkpoint_every_minutes: how often to save.
        run_state: plain values to keep in each checkpoint.
        on_checkpoint: called after each checkpoint.
        report: called with the metrics of every ``log_every_n_steps``-th step.
        report_window: called with SAELens's sparsity metrics after each sampling window.
        report_step: called with the output of every step.
        first_batch: called with the rows of the first step.
        evaluate: gives measures on held-out images, which are reported with the metrics.
        eval_every_n_steps: how often; 0: never. The last step is always measured.
        log_every_n_steps: how often metrics are taken.
        how_to_resume: said when an interrupted run has been saved.
        progress: draw a progress bar.
    """

    def __init__(
        self,
        trainer: ViTSAETrainer,
        store: RowStore,
        *,
        checkpoints: CheckpointFolder | None = None,
        checkpoint_every_minutes: float = 5.0,
        run_state: dict[str, Any] | None = None,
        on_checkpoint: Callable[[], None] = lambda: None,
        report: Callable[[dict[str, Any]], None] = lambda metrics: None,
        report_window: Callable[[dict[str, Any]], None] = lambda metrics: None,
        report_step: Callable[[TrainStepOutput], None] = lambda output: None,
        first_batch: Callable[[Tensor], None] = lambda rows: None,
        evaluate: Callable[[], dict[str, float]] = dict,
        eval_every_n_steps: int = 0,
        log_every_n_steps: int = 10,
        how_to_resume: str = "",
        progress: bool = True,
    ) -> None:
        self.trainer = trainer
        self.store = store
        self.checkpoints = checkpoints
        self.checkpoint_every_minutes = checkpoint_every_minutes
        self.run_state = dict(run_state or {})
        self.on_checkpoint = on_checkpoint
        self.report = report
        self.report_window = report_window
        self.report_step = report_step
        self.first_batch = first_batch
        self.evaluate = evaluate
        self.eval_every_n_steps = eval_every_n_steps
        self.log_every_n_steps = log_every_n_steps
        self.how_to_resume = how_to_resume
        self.progress = progress
        self.l0: float | None = None
        """Mean number of active latents of a row, in the last training batch; None before it."""
        self._last_checkpoint: Path | None = None
        self._saved_at = time.monotonic()

    def run(self) -> None:
        """Train, from wherever the trainer and the store are, and save the last state.

        Raises:
            TrainingInterruptedError: Ctrl-C or SIGTERM; the state was saved.
            DivergedError: the loss or the gradient is no longer finite; the last good checkpoint
                is kept.
        """
        self._saved_at = time.monotonic()
        budget = self.trainer.cfg.total_training_samples
        with InterruptRequest() as interrupt, self._progress_bar(budget) as bar:
            try:
                self._train(interrupt, bar)
            finally:
                self.store.close()

    def restore(self, checkpoint: Path) -> None:
        """Put SAE, trainer, store and random generators where they were at a checkpoint."""
        state = read_state(checkpoint)
        trainer = self.trainer
        load_weights(trainer.sae, checkpoint)
        trainer.load_trainer_state(checkpoint)
        scaling = trainer.activation_scaler.scaling_factor
        if scaling is not None and not (isinstance(scaling, float) and 0 < scaling < math.inf):
            raise DamagedCheckpointError(
                f"checkpoint {checkpoint} is damaged: its rows' scale is {scaling!r}; delete it to "
                "go on from the one before"
            )
        check_finite_weights(trainer.sae.state_dict(), f"checkpoint {checkpoint}")
        trainer.n_steps_above_max_norm.fill_(state["n_steps_above_max_norm"])
        trainer.checkpoint_thresholds = [
            n_rows for n_rows in trainer.checkpoint_thresholds if n_rows >= state["n_tokens"]
        ]
        self.l0 = state.get("l0")
        self.store.load_state_dict(state["store"])
        _restore_generators(load_file(checkpoint / RNG_FILE))
        self._last_checkpoint = checkpoint

    def _train(self, interrupt: InterruptRequest, bar: tqdm) -> None:
        trainer, budget = self.trainer, bar.total
        clock = _RowClock(trainer.n_training_samples)
        if not interrupt.wait_for(self._estimate_normalization):
            raise TrainingInterruptedError("stopped before the first step: nothing to save")
        while trainer.n_training_samples < budget:
            position = self.store.state_dict()
            try:
                batch = interrupt.wait_for(lambda: next(self.store))
            except Exception:
                if trainer.n_training_steps > 0:
                    self._save(position)
                raise
            if batch is None:
                self._stop(position)
            if trainer.n_training_steps == 0:
                self.first_batch(batch)
            if window := trainer.maybe_reset_sparsity():
                self.report_window(window)
            output = trainer.step(batch)
            trainer.n_training_steps += 1
            self._check_finite(output)
            bar.update(min(len(batch), budget - bar.n))  # past its total it shows no share
            self.report_step(output)
            finished = trainer.n_training_samples >= budget
            measures = self._measures_if_due(interrupt, finished)
            if measures or finished or trainer.n_training_steps % self.log_every_n_steps == 0:
                metrics = step_metrics(trainer, output) | measures
                self.report({**metrics, **clock.rates(trainer.n_training_samples)})
                self.l0 = metrics["l0"] if finished else None
                bar.set_postfix_str(_summary(metrics, trainer.sae.cfg.d_sae))
            self._save_if_due()
            if interrupt.requested and not finished:
                self._stop(self.store.state_dict())
        self._save(self.store.state_dict())

    def _measures_if_due(self, interrupt: InterruptRequest, finished: bool) -> dict[str, float]:
        every = self.eval_every_n_steps
        if every == 0 or not (finished or self.trainer.n_training_steps % every == 0):
            return {}
        return interrupt.wait_for(self.evaluate) or {}

    def _estimate_normalization(self) -> bool:
        # as SAETrainer.fit does; a checkpoint's own estimate is kept
        trainer, scaler = self.trainer, self.trainer.activation_scaler
        n_batches = trainer.cfg.n_batches_for_norm_estimate
        kind, d_in = trainer.sae.cfg.normalize_activations, trainer.sae.cfg.d_in
        if kind == "expected_average_only_in" and scaler.scaling_factor is None:
            scaler.estimate_scaling_factor(d_in, trainer.data_provider, n_batches)
        if kind == "covariance_whitening" and scaler.whitening is None:
            scaler.estimate_whitening(d_in, trainer.data_provider, n_batches)
        return True

    def _check_finite(self, output: TrainStepOutput) -> None:
        if bool(torch.isfinite(output.loss) & torch.isfinite(self.trainer.grad_norm)):
            return
        if not bool(torch.isfinite(output.sae_in).all()):
            cause = "the activations aren't finite; a 16-bit model may have overflowed"
        else:
            cause = "the activations are finite; a smaller lr or clip_grad_norm may help"
        kept = self._last_checkpoint or "none"
        raise DivergedError(
            f"the loss is {output.loss.item()} and the gradient's norm "
            f"{self.trainer.grad_norm.item()} at step {self.trainer.n_training_steps}: {cause} "
            f"(last good checkpoint: {kept})"
        )

    def _save_if_due(self) -> None:
        thresholds = self.trainer.checkpoint_thresholds
        keep = bool(thresholds) and self.trainer.n_training_samples > thresholds[0]
        while thresholds and self.trainer.n_training_samples > thresholds[0]:
            thresholds.pop(0)
        minutes = (time.monotonic() - self._saved_at) / 60
        if keep or minutes >= self.checkpoint_every_minutes:
            self._save(self.store.state_dict(), keep)

    def _save(self, store_state: dict[str, Any], keep: bool = False) -> None:
        trainer = self.trainer
        if self.checkpoints is None or self._is_saved(trainer.n_training_steps):
            return
        trainer.sae.cfg.metadata.input_scaling = trainer.activation_scaler.scaling_factor
        state = {
            **self.run_state,
            "n_tokens": trainer.n_training_samples,
            "n_steps_above_max_norm": int(trainer.n_steps_above_max_norm.item()),
            "l0": self.l0,
            "store": store_state,
        }
        self._last_checkpoint = self.checkpoints.save(
            trainer.n_training_steps, self._write_files, state, keep
        )
        self._saved_at = time.monotonic()
        self.on_checkpoint()

    def _is_saved(self, step: int) -> bool:
        return self._last_checkpoint is not None and self._last_checkpoint == (
            self.checkpoints.folder_of(step) if self.checkpoints else None
        )

    def _write_files(self, folder: Path) -> None:
        save_weights(self.trainer.sae, self.trainer.activation_scaler.whitening, folder)
        self.trainer.save_trainer_state(folder)
        save_file({"sparsity": self.trainer.log_feature_sparsity}, folder / SPARSITY_FILENAME)
        save_file(_generators(), folder / RNG_FILE)

    def _stop(self, store_state: dict[str, Any]) -> NoReturn:
        self._save(store_state)
        done, total = self.trainer.n_training_steps, self.trainer.cfg.total_training_steps
        saved = "nothing saved" if self.checkpoints is None else f"saved. {self.how_to_resume}"
        raise TrainingInterruptedError(f"stopped after {done} of {total} training steps, {saved}")

    def _progress_bar(self, budget: int) -> tqdm:
        return tqdm(
            total=budget,
            initial=min(self.trainer.n_training_samples, budget),
            desc="training",
            unit="tok",
            unit_scale=True,
            smoothing=0,  # rows come in bursts, a buffer at a time
            disable=not self.progress,
        )


class _RowClock:
    """Rows a second, over wall time."""

    def __init__(self, n_rows: int) -> None:
        self._first = self._last = (n_rows, time.perf_counter())

    def rates(self, n_rows: int) -> dict[str, float]:
        """Since the start or resumption of the run, and since this was last asked.

        The latter comes in bursts, for rows do: a buffer is filled, then served.
        """
        now = (n_rows, time.perf_counter())
        rates = {
            "tokens_per_second": _rate(self._first, now),
            "tokens_per_second_since_last_line": _rate(self._last, now),
        }
        self._last = now
        return rates


def _rate(before: tuple[int, float], now: tuple[int, float]) -> float:
    return (now[0] - before[0]) / max(now[1] - before[1], 1e-9)


def _summary(metrics: dict[str, Any], d_sae: int) -> str:
    return (
        f"loss {metrics['loss']:.4g}, L0 {metrics['l0']:.1f}, "
        f"explained variance {metrics['explained_variance']:.3f}, "
        f"dead {metrics['n_dead_latents'] / d_sae:.1%}"
    )


def _generators() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda:{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return states


def _restore_generators(states: dict[str, Tensor]) -> None:
    for device, state in states.items():
        if device == "cpu":
            torch.set_rng_state(state)
        elif torch.cuda.is_available() and int(device[5:]) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, device)
