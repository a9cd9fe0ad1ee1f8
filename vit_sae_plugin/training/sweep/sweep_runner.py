"""From several runs' settings to several trained SAEs, on one stream of rows."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from sae_lens.saes.sae import TrainingSAE
from sae_lens.util import temporary_seed
from tqdm.auto import tqdm

from vit_sae_plugin.atomic_files import delete_leftovers, write_text_atomically
from vit_sae_plugin.devices import best_device
from vit_sae_plugin.hooked_vit import HookedViT
from vit_sae_plugin.training.divergence import DivergedError
from vit_sae_plugin.training.generators import generator_states
from vit_sae_plugin.training.ranks.process_group import n_ranks_started
from vit_sae_plugin.training.run_folder import check_run_folder
from vit_sae_plugin.training.run_input import RunInput, load_model
from vit_sae_plugin.training.run_lock import check_free, locked
from vit_sae_plugin.training.runner import ViTSAETrainingRunner
from vit_sae_plugin.training.runner_config import ViTSAERunnerConfig
from vit_sae_plugin.training.sweep.shared_input import check_shared_input, rows_name, shared_rows
from vit_sae_plugin.training.sweep.sweep_file import Sweep, check_member_names
from vit_sae_plugin.training.sweep.sweep_folder import (
    TABLE_FILE,
    config_to_resume,
    is_sweep_folder,
    note_diverged,
    read_diverged,
    read_members,
    write_sweep,
)
from vit_sae_plugin.training.sweep.sweep_results import SweepResults
from vit_sae_plugin.training.trainee import Trainee
from vit_sae_plugin.training.training_loop import TrainingLoop


class ViTSAESweepRunner:
    """Trains several SAEs on the same batches of rows: each image runs through the model once.

    Each member is a run in a folder of its own, as ``ViTSAETrainingRunner`` makes it: its own
    architecture, width, learning rate, schedule, optimizer and budget, its checkpoints and its
    metrics. On a CPU its weights are those, to the bit, of the same run alone. A member whose loss
    is no longer finite is stopped; the others go on. What fails for another reason than a member's
    own, such as a full disk, ends the sweep, and ``resume`` goes on with all.

    (SAELens's ``MultiSAETrainer`` gives all SAEs one learning rate, schedule and budget, and saves
    and loads them together only.)

    Args:
        members: name → settings. Members may differ in all but what the rows depend on: model,
            images, tokens, batch size and seed. ``output_path`` is set here.
        output_path: the sweep's folder; a member's is the folder of its name in it.
        override_images, override_model, override_eval_images: as of ``ViTSAETrainingRunner``, for
            all members.

    Raises:
        ValueError: no members; a name that is none for a folder; members that can't share a stream
            of rows, or settings that don't fit the model.
        FileExistsError: the folder holds another sweep.
        RunInUseError: another process writes in the folder.
    """

    def __init__(
        self,
        members: Mapping[str, ViTSAERunnerConfig],
        output_path: str | Path,
        override_images: Any = None,
        override_model: HookedViT | None = None,
        override_eval_images: Any = None,
    ) -> None:
        self._begin(
            {name: _in_folder(cfg, output_path, name) for name, cfg in members.items()},
            Path(output_path),
            override_images,
            override_model,
            override_eval_images,
        )

    @classmethod
    def from_settings(
        cls,
        sweep: Sweep,
        output_path: str | Path,
        override_images: Any = None,
        override_model: HookedViT | None = None,
        override_eval_images: Any = None,
    ) -> ViTSAESweepRunner:
        """The runner of a sweep's file, or of one with other settings for all.

        What a member leaves open (``sae.d_in``, ``training_epochs``, …) follows from model and
        images.

        Raises:
            ValueError: as of the class; or a member's settings that don't fit, with its name.
        """
        settings = {name: sweep.settings_of(name) for name in sweep.members}
        first = {"device": best_device(), **next(iter(settings.values()))}
        given = RunInput.open(first, model=override_model, images=override_images)
        members = {}
        for name, own in settings.items():
            with _naming(name):
                members[name] = given.config(own)
        images = given.images if given.cache is None else given.cache
        return cls(members, output_path, images, given.model, override_eval_images)

    @classmethod
    def resume(
        cls,
        folder: str | Path,
        override_images: Any = None,
        override_model: HookedViT | None = None,
        override_eval_images: Any = None,
        **changes: Any,
    ) -> ViTSAESweepRunner:
        """The runner of a sweep that was stopped; its ``run`` goes on, each member from its last
        intact checkpoint. Members that were stopped because they diverged stay so.

        Args:
            folder: the sweep's.
            override_images, override_model, override_eval_images: as the sweep began with.
            changes: settings that may differ, as of ``ViTSAETrainingRunner.resume``; for all.

        Raises:
            FileNotFoundError: there is no sweep in the folder.
            ValueError: a change that would alter a result.
        """
        folder = Path(folder)
        members = {
            name: config_to_resume(folder, name, settings, **changes)
            for name, settings in read_members(folder).items()
        }
        runner = cls.__new__(cls)
        runner._begin(
            members, folder, override_images, override_model, override_eval_images, resumed=True
        )
        return runner

    def _begin(
        self,
        members: dict[str, ViTSAERunnerConfig],
        folder: Path,
        override_images: Any,
        override_model: HookedViT | None,
        override_eval_images: Any,
        resumed: bool = False,
    ) -> None:
        if (n_processes := n_ranks_started()) > 1:
            raise ValueError(
                f"this is one of {n_processes} processes (WORLD_SIZE), but a sweep trains in one; "
                "leave out torchrun, or train the members apart"
            )
        if not members:
            raise ValueError("there are no members; want the SAEs to train, by name")
        check_member_names(members)
        check_shared_input(members)
        self.folder, self.members, self.resumed = folder, members, resumed
        self._check_folder()
        check_free(folder)
        stopped = {name: read_diverged(folder / name) for name in members}
        self.diverged = {name: why for name, why in stopped.items() if why is not None}
        """Name → why the member was stopped."""
        settings = next(iter(members.values())).to_dict()
        given = RunInput.open(settings, model=override_model, images=override_images)
        if given.model is None:
            given.model = override_model
        evaluates = any(cfg.eval_every_n_steps > 0 for cfg in members.values())
        if given.model is None and evaluates and settings["model_name"] is not None:
            given.model = load_model(settings)
        self.input = given
        self.rows = shared_rows(members, given, folder)
        self.runners: dict[str, ViTSAETrainingRunner] = {}
        for name, cfg in members.items():
            if name in self.diverged:
                continue
            with _naming(name):
                self.runners[name] = ViTSAETrainingRunner(
                    cfg,
                    override_images=given.cache,
                    override_model=given.model,
                    override_store=self.rows.stores[rows_name(cfg)],
                    override_eval_images=override_eval_images,
                )
            self.runners[name].images = given.images  # by which a resumed run knows them again

    @property
    def saes(self) -> dict[str, TrainingSAE[Any]]:
        """The SAEs that were not stopped, by name."""
        return {
            name: runner.sae for name, runner in self.runners.items() if name not in self.diverged
        }

    def run(self) -> SweepResults:
        """Train all members to their ends, and write ``sweep.csv``.

        Raises:
            TrainingInterruptedError: Ctrl-C or SIGTERM; the message says how to go on.
            DivergedError: no member is left.
            DamagedCheckpointError: a resumed member has checkpoints, but none is intact.
            RunInUseError: another process writes in the folder or in a member's.
            OSError: the disk is full, or gone; all checkpoints that were whole are.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            stack.enter_context(locked(self.folder))
            self._check_folder()  # another sweep may have come and gone
            delete_leftovers(self.folder, exclusive=True)
            if not self.resumed:
                write_sweep(self.folder, self.members)
            if self.runners:
                self._train(stack)
            results = SweepResults.load(self.folder)
            write_text_atomically(self.folder / TABLE_FILE, results.table().to_csv())
        if len(self.diverged) == len(self.members):
            listed = "; ".join(f"{name}: {why}" for name, why in self.diverged.items())
            raise DivergedError(f"all members of {self.folder} diverged: {listed}")
        return results

    def _train(self, stack: ExitStack) -> None:
        cfg = next(iter(self.members.values()))
        stack.enter_context(temporary_seed(cfg.seed))
        trainees: dict[str, Trainee] = {}
        for name, runner in self.runners.items():
            run_folder = self.folder / name
            run_folder.mkdir(exist_ok=True)
            stack.enter_context(locked(run_folder))
            check_run_folder(runner.cfg)
            trainees[name] = stack.enter_context(
                runner.trainee(rows_name=rows_name(runner.cfg), generators=generator_states())
            )
        names = {id(trainee): name for name, trainee in trainees.items()}

        def stop(trainee: Trainee, error: DivergedError) -> None:
            name = names[id(trainee)]
            self.diverged[name] = str(error)
            note_diverged(self.folder / name, trainee.n_steps, str(error))
            tqdm.write(f"{name} is stopped, the others go on: {error}", file=sys.stderr)

        loop = TrainingLoop(
            list(trainees.values()),
            self.rows,
            checkpoint_every_minutes=cfg.checkpoint_every_minutes,
            on_finished=lambda trainee: self.runners[names[id(trainee)]].finish(trainee),
            on_diverged=stop,
            how_to_resume=f"Go on with: vit-sae train --resume {self.folder}",
            progress=cfg.verbose,
        )
        loop.go_to(
            [
                None
                if runner.cfg.resume_from_checkpoint is None
                else runner.restore(trainees[name])
                for name, runner in self.runners.items()
            ]
        )
        loop.run()

    def _check_folder(self) -> None:
        if not self.resumed and is_sweep_folder(self.folder):
            raise FileExistsError(
                f"{self.folder} already holds a sweep; go on with it by 'vit-sae train --resume "
                f"{self.folder}', delete it, or choose another output_path"
            )


def _in_folder(cfg: ViTSAERunnerConfig, folder: str | Path, name: str) -> ViTSAERunnerConfig:
    return replace(
        cfg,
        output_path=str(Path(folder) / name),
        checkpoint_path=None,
        resume_from_checkpoint=None,
    )


@contextmanager
def _naming(member: str) -> Iterator[None]:
    """An error of the settings says whose they are."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"member {member!r}: {error}") from error
