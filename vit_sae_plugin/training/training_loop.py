"""The training loop: SAELens's trainers, driven so that they can stop and go on anywhere."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tqdm.auto import tqdm

from vit_sae_plugin.activations.row_store import RowStore
from vit_sae_plugin.activations.shared_rows import SharedRows
from vit_sae_plugin.datasets.worker_processes import WorkerDiedError
from vit_sae_plugin.training.checkpoints import read_state, restoring
from vit_sae_plugin.training.divergence import DivergedError
from vit_sae_plugin.training.interruption import (
    InterruptRequest,
    StopWaiting,
    TrainingInterruptedError,
)
from vit_sae_plugin.training.ranks.process_group import Ranks
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
        ranks: the processes that share each batch, of which this is one; None: this one is alone.
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
        ranks: Ranks | None = None,
    ) -> None:
        self.trainees = list(trainees)
        self.store = store
        self.checkpoint_every_minutes = checkpoint_every_minutes
        self.on_finished = on_finished
        self.on_diverged = on_diverged
        self.how_to_resume = how_to_resume
        self.progress = progress
        self._given_up: list[Trainee] = []
        self.ranks = ranks
        self._interrupt: InterruptRequest | None = None
        if ranks is not None:
            if not isinstance(store, RowStore):
                raise ValueError(f"the rows are {store!r}; want those of one SAE, to be shared")
            store.take_share(ranks.rank, ranks.n_ranks, self._gather)
        self._saved_at = time.monotonic()

    def run(self) -> None:
        """Train, from wherever the trainees and the store are, and save the last states.

        Raises:
            TrainingInterruptedError: Ctrl-C or SIGTERM; the state was saved.
            DivergedError: the loss or the gradient is no longer finite; the last good checkpoint
                is kept.
            RankLostError: another of the processes has ended.
        """
        self._saved_at = time.monotonic()
        request = InterruptRequest(with_others=self.ranks is not None)
        with request as self._interrupt, self._progress_bar() as bar:
            try:
                self._train(request, bar)
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
        wait_for = interrupt.wait_for if self.ranks is None else interrupt.wait_for_all
        if not wait_for(self._estimate_normalization):
            raise TrainingInterruptedError("stopped before the first step: nothing to save")
        training = self._without_finished(self.trainees)
        while training:
            step = min(trainee.n_steps for trainee in training)
            here = [trainee for trainee in training if trainee.n_steps == step]
            position = self.store.state_dict()
            try:
                batch = wait_for(self._next_batch)
            except Exception:
                if step > 0:
                    # the others may be anywhere now
                    self._save([each for each in here if not each.saves_with_others], position)
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
            if training and self._is_asked_to_stop():
                self._stop(here, self.store.state_dict(), step + 1)

    def _next_batch(self) -> Any:
        try:
            return next(self.store)
        except WorkerDiedError:
            if self.ranks is not None and self._is_asked_here():
                self._gather("")  # they were stopped together with this process: all stop
            raise

    def _is_asked_here(self) -> bool:
        return self._interrupt is not None and self._interrupt.requested

    def _is_asked_to_stop(self) -> bool:
        """Whether this process, or one that it works with, is asked to stop; all get one answer."""
        asked = self._is_asked_here()
        return asked if self.ranks is None else self.ranks.any(asked)

    def _gather(self, text: str) -> list[str]:
        """What the store of each process has to say; all leave the store if any is to stop."""
        if self.ranks is None:
            return [text]
        texts = self.ranks.gather(f"{int(self._is_asked_here())}{text}")
        if any(text.startswith("1") for text in texts):
            raise StopWaiting
        return [text[1:] for text in texts]

    def _batches(self) -> Iterator[Any]:
        """Batches for an estimate, until all processes are to stop."""
        for batch in self.store:
            if self.ranks is not None and self._is_asked_to_stop():
                raise StopWaiting
            yield batch

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
            estimates[wanted] = trainee.estimate(self._batches())
        return True

    def _save_if_due(self, trainees: list[Trainee]) -> None:
        """Save all of them if any is due, so that they can go on together."""
        keep = [trainee.passes_threshold() for trainee in trainees]
        due = (time.monotonic() - self._saved_at) / 60 >= self.checkpoint_every_minutes
        if self.ranks is not None and any(trainee.saves_with_others for trainee in trainees):
            due = self.ranks.any(due)
        if trainees and (any(keep) or due):
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
