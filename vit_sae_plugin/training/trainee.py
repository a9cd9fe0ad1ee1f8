"""One SAE in training: its trainer, what it reports, and its checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from sae_lens.saes.sae import TrainStepOutput
from sae_lens.training.activation_scaler import ActivationScaler
from safetensors.torch import load_file, save_file
from torch import Tensor

from vit_sae_plugin.saved_sae import check_finite_weights
from vit_sae_plugin.training.checkpoints import (
    CheckpointFolder,
    DamagedCheckpointError,
    read_state,
)
from vit_sae_plugin.training.divergence import DivergenceWatch
from vit_sae_plugin.training.generators import drawing_from, generator_states, restore_generators
from vit_sae_plugin.training.training_metrics import step_metrics
from vit_sae_plugin.training.vit_sae_trainer import ViTSAETrainer

RNG_FILE = "rng_state.safetensors"


class Trainee:
    """An SAE in training. ``TrainingLoop`` gives it rows; the rest is its own affair.

    Args:
        trainer: holds the SAE, its optimizer and its schedules.
        checkpoints: where to save; None: nowhere.
        run_state: plain values to keep in each checkpoint.
        on_checkpoint: called after each checkpoint.
        report: called with the metrics of every ``log_every_n_steps``-th step.
        report_window: called with SAELens's sparsity metrics after each sampling window.
        report_step: called with the output of every step.
        first_batch: called with the rows of the first step.
        evaluate: gives measures on held-out images, which are reported with the metrics.
        eval_every_n_steps: how often; 0: never. The last step is always measured.
        log_every_n_steps: how often metrics are taken.
        rows_name: which of the rows, where the store serves several kinds by name.
        generators: random numbers of its own; None: the process's.
    """

    def __init__(
        self,
        trainer: ViTSAETrainer,
        *,
        checkpoints: CheckpointFolder | None = None,
        run_state: dict[str, Any] | None = None,
        on_checkpoint: Callable[[], None] = lambda: None,
        report: Callable[[dict[str, Any]], None] = lambda metrics: None,
        report_window: Callable[[dict[str, Any]], None] = lambda metrics: None,
        report_step: Callable[[TrainStepOutput], None] = lambda output: None,
        first_batch: Callable[[Tensor], None] = lambda rows: None,
        evaluate: Callable[[], dict[str, float]] = dict,
        eval_every_n_steps: int = 0,
        log_every_n_steps: int = 10,
        rows_name: str | None = None,
        generators: dict[str, Tensor] | None = None,
    ) -> None:
        self.trainer = trainer
        self.checkpoints = checkpoints
        self.run_state = dict(run_state or {})
        self.on_checkpoint = on_checkpoint
        self.report = report
        self.report_window = report_window
        self.report_step = report_step
        self.first_batch = first_batch
        self.evaluate = evaluate
        self.eval_every_n_steps = eval_every_n_steps
        self.log_every_n_steps = log_every_n_steps
        self.rows_name = rows_name
        self.generators = generators
        self.l0: float | None = None
        """Mean number of active latents of a row, in the last training batch; None before it."""
        self.summary = ""
        """The metrics taken last, for a progress bar."""
        self._last_checkpoint: Path | None = None
        self._watch = DivergenceWatch(lambda: self._last_checkpoint)
        self._clock = _RowClock(0)

    @property
    def n_steps(self) -> int:
        """Training steps done."""
        return self.trainer.n_training_steps

    @property
    def saves_with_others(self) -> bool:
        """Whether a checkpoint takes several processes at once."""
        return self.checkpoints is not None and self.checkpoints.takes_all_processes

    @property
    def is_finished(self) -> bool:
        """Whether its budget of rows is used up."""
        return self.trainer.n_training_samples >= self.trainer.cfg.total_training_samples

    def rows_of(self, batch: Any) -> Tensor:
        """Its rows of a store's batch."""
        return batch if self.rows_name is None else batch[self.rows_name]

    @property
    def wanted_estimate(self) -> str | None:
        """The kind of normalisation whose scale must be estimated before the first step.

        None where there is nothing to estimate; a checkpoint's own estimate is kept.
        """
        kind, scaler = self.trainer.sae.cfg.normalize_activations, self.trainer.activation_scaler
        if kind == "expected_average_only_in" and scaler.scaling_factor is None:
            return kind
        if kind == "covariance_whitening" and scaler.whitening is None:
            return kind
        return None

    def estimate(self, batches: Any) -> ActivationScaler:
        """Estimate the scale of rows from the batches that follow, as ``SAETrainer.fit`` does."""
        trainer, scaler = self.trainer, self.trainer.activation_scaler
        d_in, n_batches = trainer.sae.cfg.d_in, trainer.cfg.n_batches_for_norm_estimate
        rows = map(self.rows_of, batches)
        if self.wanted_estimate == "expected_average_only_in":
            scaler.estimate_scaling_factor(d_in, rows, n_batches)
        else:
            scaler.estimate_whitening(d_in, rows, n_batches)
        return scaler

    def start_clock(self) -> None:
        """Begin to count rows a second."""
        self._clock = _RowClock(self.trainer.n_training_samples)

    def step(self, batch: Any, wait_for: Callable[[Callable[[], Any]], Any]) -> None:
        """Train on a batch of the store, and report.

        Args:
            batch: what the store gave.
            wait_for: calls what may be left anywhere, see ``InterruptRequest``.

        Raises:
            DivergedError: the loss or the gradient is no longer finite; on a GPU that may have
                been so in the step before already.
        """
        trainer, rows = self.trainer, self.rows_of(batch)
        with self._drawing():
            if self.n_steps == 0:
                self.first_batch(trainer.whole_batch(rows))
            if window := trainer.maybe_reset_sparsity():
                self.report_window(window)
            output = trainer.step(rows)
            trainer.n_training_steps += 1
            self._watch.note(
                self.n_steps, output.loss, trainer.grad_norm, trainer.input_is_finite(output)
            )
            self.report_step(output)
            is_measured = self._is_measured()
            measures = wait_for(self.evaluate) or {} if is_measured else {}
        if is_measured or self.is_finished or self.n_steps % self.log_every_n_steps == 0:
            self._watch.settle()
            metrics = step_metrics(trainer, output) | measures
            self.report({**metrics, **self._clock.rates(trainer.n_training_samples)})
            self.l0 = metrics["l0"] if self.is_finished else None
            self.summary = _summary(metrics, trainer.sae.cfg.d_sae)

    def passes_threshold(self) -> bool:
        """Whether the last step has reached one of the checkpoints to keep for good."""
        thresholds, n_rows = self.trainer.checkpoint_thresholds, self.trainer.n_training_samples
        passed = bool(thresholds) and n_rows > thresholds[0]
        while thresholds and n_rows > thresholds[0]:
            thresholds.pop(0)
        return passed

    def save(self, store_state: dict[str, Any], keep: bool = False) -> None:
        """Save a checkpoint, unless this step's is there already.

        Args:
            store_state: where the store stands after the last step.
            keep: for good.

        Raises:
            DivergedError: the last step's loss or gradient is not finite: nothing is saved.
        """
        trainer = self.trainer
        self._watch.settle()
        if self.checkpoints is None or self._is_saved(self.n_steps):
            return
        trainer.sae.cfg.metadata.input_scaling = trainer.activation_scaler.scaling_factor
        state = {
            **self.run_state,
            "n_tokens": trainer.n_training_samples,
            "n_steps_above_max_norm": int(trainer.n_steps_above_max_norm.item()),
            "l0": self.l0,
            "store": store_state,
        }
        with self._drawing():
            self._last_checkpoint = self.checkpoints.save(
                self.n_steps, self._write_files, state, keep
            )
        self.on_checkpoint()

    def restore(self, checkpoint: Path) -> None:
        """Put SAE, trainer and random generators where they were at a checkpoint."""
        state = read_state(checkpoint)
        trainer = self.trainer
        trainer.read_files(checkpoint)
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
        with self._drawing():
            restore_generators(load_file(checkpoint / RNG_FILE))
        self._last_checkpoint = checkpoint

    def _drawing(self) -> AbstractContextManager[None]:
        return nullcontext() if self.generators is None else drawing_from(self.generators)

    def _is_measured(self) -> bool:
        every = self.eval_every_n_steps
        return every > 0 and (self.is_finished or self.n_steps % every == 0)

    def _is_saved(self, step: int) -> bool:
        return self._last_checkpoint is not None and self._last_checkpoint == (
            self.checkpoints.folder_of(step) if self.checkpoints else None
        )

    def _write_files(self, folder: Path) -> None:
        self.trainer.write_files(folder)
        save_file(generator_states(), folder / RNG_FILE)


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
