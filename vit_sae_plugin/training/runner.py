"""From settings to a trained SAE in a folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from sae_lens.config import LanguageModelSAERunnerConfig
from sae_lens.constants import (
    RUNNER_CFG_FILENAME,
    SPARSITY_FILENAME,
)
from sae_lens.saes.sae import TrainingSAE
from sae_lens.util import temporary_seed
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from vit_sae_plugin.activations.activation_source import ActivationSource
from vit_sae_plugin.activations.row_store import RowStore
from vit_sae_plugin.atomic_files import write_folder_atomically
from vit_sae_plugin.datasets import ImageSource, SkippedImages, open_images
from vit_sae_plugin.fingerprints import write_manifest
from vit_sae_plugin.hooked_vit import HookedViT
from vit_sae_plugin.training.checkpoints import read_state, restoring
from vit_sae_plugin.training.held_out import HeldOutImages
from vit_sae_plugin.training.l1_guidance import l1_guidance
from vit_sae_plugin.training.language_model_config import from_language_model_config
from vit_sae_plugin.training.ranks.process_group import Ranks, n_ranks_started
from vit_sae_plugin.training.ranks.shared_run import config_of_rank, connected, path_from_first
from vit_sae_plugin.training.resume_checks import (
    check_same_input,
    check_same_settings,
    settings_that_count,
)
from vit_sae_plugin.training.run_folder import (
    SAE_FOLDER,
    SKIPPED_FILE,
    check_run_folder,
    checkpoints_of,
    load_config,
    prepare_run_folder,
)
from vit_sae_plugin.training.run_input import store_of_run
from vit_sae_plugin.training.run_lock import check_free, locked
from vit_sae_plugin.training.run_trainer import (
    checkpoints_of_trainer,
    sae_of_run,
    split_of_run,
    trainer_of_run,
)
from vit_sae_plugin.training.runner_config import ViTSAERunnerConfig
from vit_sae_plugin.training.trainee import Trainee
from vit_sae_plugin.training.training_loop import TrainingLoop
from vit_sae_plugin.training.training_metrics import METRICS_FILE, MetricsFile
from vit_sae_plugin.training.weights_and_biases import WeightsAndBiases


class ViTSAETrainingRunner:
    """Trains an SAE on a vision transformer's activations.

    The run's folder (``cfg.output_path``) holds ``config.yaml``, ``metrics.jsonl``,
    ``skipped_images.csv``, ``checkpoints/`` and, once training is done, the SAE in ``sae/``, which
    ``sae_lens.SAE.load_from_disk`` reads.

    A run that was killed goes on by ``resume``, and on a CPU ends with the same weights, to
    the bit, as one that wasn't.

    Started by ``torchrun`` in several processes, they share each training batch and end with the
    weights that one would end with, but for rounding; rank 0 writes the folder.

    Args:
        cfg: the settings; SAELens's own config with ``model_class_name="HookedViT"`` will do.
        override_images: use these images instead of ``cfg.dataset_path``: anything that
            ``vit_sae_plugin.datasets.open_images`` takes, or a cache. A config may have come from
            anyone's file, so images that start a program (``"wds:pipe:…"``, ``"wds:https://…"``)
            are only taken from here.
        override_model: use this model instead of loading ``cfg.model_name``. For the same reason
            one whose loading takes more than plain settings is only taken from here.
        override_sae: train this SAE instead of a new one.
        override_store: train on these rows, and load neither model nor images.
        override_eval_images: use these instead of ``cfg.eval_dataset_path``.

    Raises:
        ValueError: a setting doesn't fit the model (unknown hook, other width) or this machine;
            or, in a resumed run, differs from what the run began with.
        FileExistsError: the folder holds another run.
        RunInUseError: another process writes in the folder.
    """

    def __init__(
        self,
        cfg: ViTSAERunnerConfig | LanguageModelSAERunnerConfig[Any],
        override_images: Any = None,
        override_model: HookedViT | None = None,
        override_sae: TrainingSAE[Any] | None = None,
        override_store: RowStore | None = None,
        override_eval_images: Any = None,
    ) -> None:
        if isinstance(override_images, HookedViT):
            raise TypeError(
                "override_images is a HookedViT; want images (as in SAELens the data come first): "
                "name the arguments, override_images=… and override_model=…"
            )
        self.model = override_model
        if isinstance(cfg, LanguageModelSAERunnerConfig):
            if self.model is None:
                self.model = HookedViT.from_recorded(
                    cfg.model_name, cfg.model_from_pretrained_kwargs or {}, device=cfg.llm_device
                )
            cfg = from_language_model_config(cfg, self.model.cfg.tokens)
        self.ranks = Ranks.from_environment()
        if self.ranks is not None:
            cfg = config_of_rank(cfg, self.ranks)
        self.cfg: ViTSAERunnerConfig = cfg
        if cfg.run_folder is not None:
            check_free(cfg.run_folder)
        check_run_folder(cfg)
        _check_devices(cfg)
        self.images: ImageSource | None = None
        if override_store is not None:
            self.store = override_store
        else:
            self.store, given = store_of_run(cfg, self.model, override_images, self.ranks)
            self.model, self.images = given.model, given.images
        self.eval_images: ImageSource | None = None
        if cfg.eval_every_n_steps > 0:
            self.eval_images = (
                open_images(cfg.eval_dataset_path, from_file=True)
                if override_eval_images is None
                else open_images(override_eval_images)
            )
        if self.eval_images is not None and self.model is None:
            raise ValueError(
                f"eval_every_n_steps is {cfg.eval_every_n_steps}, but without a model there are no "
                "activations of held-out images; want 0, or override_model="
            )
        _check_width(cfg, self.store.d_in)
        self.split = split_of_run(cfg, self.ranks)
        if self.split is not None and override_sae is not None:
            raise ValueError(
                f"override_sae= is a whole SAE, but n_latent_shards is {cfg.n_latent_shards}; want "
                "one of the two"
            )
        self.sae = sae_of_run(cfg, self.split) if override_sae is None else override_sae
        self.sae.to(cfg.device)
        self._set_metadata()

    @classmethod
    def resume(
        cls,
        run_folder: str | Path,
        override_images: Any = None,
        override_model: HookedViT | None = None,
        override_store: RowStore | None = None,
        override_eval_images: Any = None,
        **changes: Any,
    ) -> ViTSAETrainingRunner:
        """The runner of a run that was stopped; its ``run`` goes on from the last checkpoint.

        Latents that were split over processes are now split over as many as there are.

        Args:
            run_folder: the run's folder.
            override_images, override_model, override_store, override_eval_images: as the run
                began with.
            changes: settings that may differ from the run's: devices, workers, what is logged.

        Raises:
            FileNotFoundError: the folder holds no run.
            ValueError: a change that would alter the result.
        """
        cfg = load_config(Path(run_folder), **changes)
        if cfg.n_latent_shards > 1 and "n_latent_shards" not in changes:
            cfg = replace(cfg, n_latent_shards=n_ranks_started())
        return cls(
            cfg,
            override_images,
            override_model,
            override_store=override_store,
            override_eval_images=override_eval_images,
        )

    def run(self) -> TrainingSAE[Any]:
        """Train, save, and return the SAE.

        Raises:
            TrainingInterruptedError: Ctrl-C or SIGTERM; the message says how to go on.
            DivergedError: the loss or the gradient is no longer finite.
            DamagedCheckpointError: a resumed run has checkpoints, but none is intact.
            RunInUseError: another process writes in the run's folder.
            RankLostError: another of the processes that train together has ended.
        """
        if self.ranks is None:
            return self._run_locked()
        with connected(self.ranks, checkpoints_of(self.cfg), self._how_to_resume):
            return self._run_locked()

    def _run_locked(self) -> TrainingSAE[Any]:
        if self.cfg.run_folder is None or not self.is_first:
            return self._run()
        self.cfg.run_folder.mkdir(parents=True, exist_ok=True)
        with locked(self.cfg.run_folder):
            check_run_folder(self.cfg)  # another run may have come and gone
            return self._run()

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and says something: it is alone, or rank 0."""
        return self.ranks is None or self.ranks.is_first

    @property
    def _how_to_resume(self) -> str:
        command = f"vit-sae train --resume {self.cfg.output_path}"
        if self.ranks is None:
            return f"Go on with: {command}"
        return (
            f"Go on with: torchrun --nproc-per-node N --no-python {command} (any number N, or "
            "without torchrun)"
        )

    def _run(self) -> TrainingSAE[Any]:
        cfg = self.cfg
        with temporary_seed(cfg.seed), self.trainee() as trainee:
            loop = TrainingLoop(
                [trainee],
                self.store,
                checkpoint_every_minutes=cfg.checkpoint_every_minutes,
                how_to_resume=self._how_to_resume,
                progress=cfg.verbose,
                ranks=self.ranks,
            )
            if cfg.resume_from_checkpoint is not None:
                loop.go_to([self.restore(trainee)])
            loop.run()
            self.finish(trainee)
        return self.sae

    @contextmanager
    def trainee(self, **settings: Any) -> Iterator[Trainee]:
        """The SAE with all that its training takes, for a loop to drive; for the process that holds
        the run's folder.

        Args:
            settings: what else ``Trainee`` takes.
        """
        cfg, wandb = self.cfg, WeightsAndBiases(self.cfg, writes=self.is_first)
        with self._compiled_sae(), wandb.run():
            trainer = trainer_of_run(cfg, self.sae, self.store, self.ranks, self.split)
            metrics_file = prepare_run_folder(cfg) if self.is_first else None

            def report(metrics: dict[str, Any]) -> None:
                if metrics_file is not None:
                    metrics_file.append(metrics)
                wandb.log_line(metrics, trainer.n_training_steps)

            yield Trainee(
                trainer,
                checkpoints=checkpoints_of_trainer(cfg, trainer, self.ranks, self.split),
                run_state=self._run_state(),
                on_checkpoint=self._save_skipped,
                report=report,
                report_window=lambda window: wandb.log(window, trainer.n_training_steps),
                report_step=lambda output: wandb.log_step(trainer, output),
                first_batch=self._say_l1_guidance,
                evaluate=self._evaluation(trainer),
                eval_every_n_steps=cfg.eval_every_n_steps,
                log_every_n_steps=cfg.log_every_n_steps,
                **settings,
            )

    def _say_l1_guidance(self, rows: Tensor) -> None:
        if self.cfg.verbose and (line := l1_guidance(self.cfg.sae, rows)) is not None:
            tqdm.write(line, file=sys.stderr)

    def _evaluation(self, trainer: ViTSAETrainer) -> Callable[[], dict[str, float]]:
        cfg, model = self.cfg, self.model
        if self.eval_images is None or model is None or not self.is_first:
            return dict
        held_out = HeldOutImages(
            model,
            self.eval_images,
            ActivationSource.from_model(model, cfg.hook_name, cfg.token_kind, cfg.seqpos_slice),
            statistics=self.store.statistics,
            n_images=cfg.n_eval_images,
            batch_size_images=cfg.store_batch_size_images,
            n_workers=cfg.n_workers,
        )
        return lambda: held_out.measure(self.sae, trainer.activation_scaler)

    def _set_metadata(self) -> None:
        metadata = self.sae.cfg.metadata
        if self.model is not None:
            ActivationSource.from_model(
                self.model, self.cfg.hook_name, self.cfg.token_kind, self.cfg.seqpos_slice
            ).stamp(self.sae, self.model)
        else:
            names = "model_name model_class_name model_from_pretrained_kwargs hook_name token_kind"
            for name in names.split():
                metadata[name] = getattr(self.cfg, name)
        for name, value in self.store.describe().items():
            metadata[name] = value
        if self.store.statistics is not None:
            metadata["input_statistics"] = self.store.statistics.to_metadata()
        metadata["dataset_path"] = self.cfg.dataset_path

    def _run_state(self) -> dict[str, Any]:
        state: dict[str, Any] = self.store.fingerprint()
        state["settings"] = settings_that_count(self.cfg)
        if self.model is not None:
            state["model_sha256"] = self.sae.cfg.metadata.model_sha256
        if self.images is not None:
            state["images"] = self.images.fingerprint()
        return state

    def restore(self, trainee: Trainee) -> Path | None:
        """Put a trainee where its newest intact checkpoint is, and take back what was written
        after it.

        Returns:
            The checkpoint; None: there is none.

        Raises:
            ValueError: the run began with other settings or other input.
            DamagedCheckpointError: there are checkpoints, but none can be restored.
        """
        checkpoint = trainee.checkpoints.newest_intact() if trainee.checkpoints else None
        if self.ranks is not None:
            checkpoint = path_from_first(self.ranks, checkpoint)
        if checkpoint is not None:
            saved, now = read_state(checkpoint), dict(trainee.run_state)
            settings = now.pop("settings")
            check_same_settings(saved.get("settings", settings), self.cfg)
            check_same_input(saved, now)
            with restoring(checkpoint):
                trainee.restore(checkpoint)
        folder = Path(self.cfg.output_path or "")
        if self.is_first:
            MetricsFile(folder / METRICS_FILE).rewind(trainee.n_steps)
        skipped_file = folder / SKIPPED_FILE
        if self.store.skipped is not None and skipped_file.is_file():
            self.store.skipped = SkippedImages.load(skipped_file)
        return checkpoint

    def _save_skipped(self) -> None:
        if self.is_first and self.cfg.run_folder is not None and self.store.skipped is not None:
            self.store.skipped.save(self.cfg.run_folder / SKIPPED_FILE)

    def finish(self, trainee: Trainee) -> None:
        """Fold the input's normalisation into the weights, as SAELens does, and save the SAE."""
        trainer = trainee.trainer
        scaler, sae = trainer.activation_scaler, trainer.sae
        if scaler.scaling_factor is not None:
            sae.fold_activation_norm_scaling_factor(scaler.scaling_factor)
            scaler.scaling_factor = None
        if scaler.whitening is not None:
            white = scaler.whitening
            sae.fold_activation_whitening(white.mean, white.matrix, white.inverse_matrix)
            scaler.whitening = None
        trainer.set_final_sae_metadata()
        if trainee.l0 is not None:
            # SAELens's is the mean of the last sparsity window: of the whole run, if it is short
            sae.cfg.metadata.l0 = trainee.l0
        sae.cfg.metadata.input_scaling = None
        sae.cfg.metadata.share_grad_norm_above_1 = trainer.share_of_steps_above_max_norm
        if self.cfg.run_folder is None:
            return
        sparsity = trainer.log_feature_sparsity
        if not self.is_first:
            trainer.write_sae(None)
            return
        self._save_skipped()

        def write(folder: Path) -> None:
            trainer.write_sae(folder)
            save_file({"sparsity": sparsity}, folder / SPARSITY_FILENAME)
            (folder / RUNNER_CFG_FILENAME).write_text(json.dumps(self.cfg.to_dict(), indent=1))
            write_manifest(folder)

        folder = self.cfg.run_folder / SAE_FOLDER
        write_folder_atomically(folder, write)
        WeightsAndBiases(self.cfg).log_sae(trainer, folder)

    @contextmanager
    def _compiled_sae(self) -> Iterator[None]:
        if not self.cfg.compile_sae:
            yield
            return
        backend = "aot_eager" if self.cfg.device == "mps" else "inductor"
        self.sae.training_forward_pass = torch.compile(  # type: ignore[method-assign]
            self.sae.training_forward_pass, mode=self.cfg.sae_compilation_mode, backend=backend
        )
        try:
            yield
        finally:
            # the class's own method is back, so that the SAE can be copied and pickled
            del self.sae.training_forward_pass


def _check_devices(cfg: ViTSAERunnerConfig) -> None:
    for name in ("device", "model_device", "act_store_device"):
        device = torch.device(getattr(cfg, name) or "cpu")
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(
                f"{name} is {str(device)!r}, but this machine has {torch.cuda.device_count()} CUDA "
                "devices; want 'cpu' or a device it has"
            )


def _check_width(cfg: ViTSAERunnerConfig, width: int) -> None:
    d_out = getattr(cfg.sae, "d_out", None)
    if d_out is None and cfg.sae.d_in != width:
        raise ValueError(
            f"sae.d_in is {cfg.sae.d_in}, but {cfg.hook_name} of {cfg.model_name} has width "
            f"{width}; want d_in={width}"
        )
    if d_out is not None and cfg.sae.d_in + d_out != width:
        raise ValueError(
            f"sae.d_in is {cfg.sae.d_in} and sae.d_out {d_out}, but {cfg.hook_name} and "
            f"{cfg.hook_name_out} of {cfg.model_name} have {width} together; want their widths"
        )
