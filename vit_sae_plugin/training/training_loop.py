"""The training loop: SAELens's trainers, driven so that they can stop and go on anywhere."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tqdm.auto import tqdm

from vit_sae_plugin.activations.row_store import RowStore
from vit_sae_plugin.activations.shared_rows import SharedRows
from vit_sae_plugin.training.checkpoints import read_state, restoring
from vit_sae_plugin.training.divergence import DivergedError
from vit_sae_plugin.training.interruption import InterruptRequest, TrainingInterruptedError
from vit_sae_plugin.training.trainee import Trainee


class TrainingLoop:
    """Trains one SAE, or several on the same batches, until their budgets of rows are used up.

    An SAE that is behind others, because its last checkpoint is older, is given batches alone until
    it has caught up; so each sees all batches, once and in order.

    Args:
        trainees: the SAEs.
        store: gives the rows; of several kinds by name, where trainees ask for them by name.
        checkpoint_every_minutes: how often to save.
        on_finished: called with each that has used up its budget, when its last state is saved.
        on_diverged: called with each whose loss is no longer finite; the others go on. None: the
            error ends the loop.
        how_to_resume: said when an interrupted run has been saved.
        progress: draw a progress bar.
    """

    def __init__(
        self,
        trainees: Sequence[Trainee],
        store: RowStore | SharedRows,
        *,
        checkpoint_every_minutes: float = 5.0,
        on_finished: Callable[[Trainee], None] = lambda trainee: None,
        on_diverged: Callable[[Trainee, DivergedError], None] | None = None,
        how_to_resume: str = "",
        progress: bool = True,
    ) -> None:
        self.trainees = list(trainees)
        self.store = store
        self.checkpoint_every_minutes = checkpoint_every_minutes
        self.on_finished = on_finished
        self.on_diverged = on_diverged
        self.how_to_resume = how_to_resume
        self.progress = progress
        self._given_up: list[Trainee] = []
        self._saved_at = time.monotonic()

    def run(self) -> None:
        """Train, from wherever the trainees and the store are, and save the last states.

        Raises:
            TrainingInterruptedError: Ctrl-C or SIGTERM; the state was saved.
            DivergedError: the loss or the gradient is no longer finite; the last good checkpoint
                is kept.
        """
        self._saved_at = time.monotonic()
        with InterruptRequest() as interrupt, self._progress_bar() as bar:
            try:
                self._train(interrupt, bar)
            finally:
                self.store.close()

    def go_to(self, checkpoints: Sequence[Path | None]) -> None:
        """Put the store where the trainee was that is farthest behind.

        Args:
            checkpoints: which each trainee was restored from; None: it begins.
        """
        # those that are finished ask for no more rows
        order = sorted(
            range(len(checkpoints)),
            key=lambda i: (self.trainees[i].is_finished, self.trainees[i].n_steps),
        )
        if (checkpoint := checkpoints[order[0]]) is not None:
            with restoring(checkpoint):
                self.store.load_state_dict(read_state(checkpoint)["store"])

    def _train(self, interrupt: InterruptRequest, bar: tqdm) -> None:
        for trainee in self.trainees:
            trainee.start_clock()
        if not interrupt.wait_for(self._estimate_normalization):
            raise TrainingInterruptedError("stopped before the first step: nothing to save")
        training = self._without_finished(self.trainees)
        while training:
            step = min(trainee.n_steps for trainee in training)
            here = [trainee for trainee in training if trainee.n_steps == step]
            position = self.store.state_dict()
            try:
                batch = interrupt.wait_for(lambda: next(self.store))
            except Exception:
                if step > 0:
                    self._save(here, position)
                raise
            if batch is None:
                self._stop(here, position, step)
            for trainee in list(here):
                try:
                    trainee.step(batch, interrupt.wait_for)
                except DivergedError as error:
                    self._give_up(trainee, error)
                    here.remove(trainee)
            if here:
                n_rows = here[0].trainer.n_training_samples
                bar.update(min(n_rows, bar.total) - bar.n)  # past its total it shows no share
            bar.set_postfix_str(self._summary(training))
            self._save_if_due(here)
            training = self._without_finished(training)
            if interrupt.requested and training:
                self._stop(here, self.store.state_dict(), step + 1)

    def _without_finished(self, trainees: list[Trainee]) -> list[Trainee]:
        """Those that go on, when the others have been saved."""
        for trainee in trainees:
            if trainee.is_finished and trainee not in self._given_up:
                trainee.save(self.store.state_dict())
                self.on_finished(trainee)
        going_on = [trainee for trainee in trainees if trainee not in self._given_up]
        return [trainee for trainee in going_on if not trainee.is_finished]

    def _give_up(self, trainee: Trainee, error: DivergedError) -> None:
        if self.on_diverged is None:
            raise error
        self.on_diverged(trainee, error)
        self._given_up.append(trainee)

    def _estimate_normalization(self) -> bool:
        start = self.store.state_dict()
        estimates: dict[Any, Any] = {}
        for trainee in self.trainees:
            if (kind := trainee.wanted_estimate) is None:
                continue
            wanted = (kind, trainee.trainer.cfg.n_batches_for_norm_estimate, trainee.rows_name)
            if wanted in estimates:
                trainee.trainer.activation_scaler = copy.copy(estimates[wanted])
                continue
            if estimates:
                self.store.load_state_dict(start)  # each begins with the same batches
            estimates[wanted] = trainee.estimate(self.store)
        return True

    def _save_if_due(self, trainees: list[Trainee]) -> None:
        """Save all of them if any is due, so that they can go on together."""
        keep = [trainee.passes_threshold() for trainee in trainees]
        minutes = (time.monotonic() - self._saved_at) / 60
        if trainees and (any(keep) or minutes >= self.checkpoint_every_minutes):
            self._save(trainees, self.store.state_dict(), keep)

    def _save(
        self, trainees: list[Trainee], store_state: dict[str, Any], keep: Sequence[bool] = ()
    ) -> None:
        for number, trainee in enumerate(trainees):
            try:
                trainee.save(store_state, bool(keep) and keep[number])
            except DivergedError as error:
                self._give_up(trainee, error)
        self._saved_at = time.monotonic()

    def _stop(self, trainees: list[Trainee], store_state: dict[str, Any], n_done: int) -> NoReturn:
        self._save(trainees, store_state)
        total = max(trainee.trainer.cfg.total_training_steps for trainee in self.trainees)
        writes = any(trainee.checkpoints is not None for trainee in self.trainees)
        saved = f"saved. {self.how_to_resume}" if writes else "nothing saved"
        raise TrainingInterruptedError(f"stopped after {n_done} of {total} training steps, {saved}")

    def _summary(self, training: list[Trainee]) -> str:
        if len(self.trainees) == 1:
            return self.trainees[0].summary
        return f"{len(training)} of {len(self.trainees)} SAEs"

    def _progress_bar(self) -> tqdm:
        budget = max(trainee.trainer.cfg.total_training_samples for trainee in self.trainees)
        behind = [t.trainer.n_training_samples for t in self.trainees if not t.is_finished]
        return tqdm(
            total=budget,
            initial=min(behind, default=budget),
            desc="training",
            unit="tok",
            unit_scale=True,
            smoothing=0,  # rows come in bursts, a buffer at a time
            disable=not self.progress,
        )
