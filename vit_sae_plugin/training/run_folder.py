"""What lies in a run's folder, and who may begin or go on there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from vit_sae_plugin.atomic_files import delete_leftovers
from vit_sae_plugin.training.checkpoints import CheckpointFolder
from vit_sae_plugin.training.resume_checks import check_same_settings, settings_that_count
from vit_sae_plugin.training.runner_config import ViTSAERunnerConfig
from vit_sae_plugin.training.training_metrics import METRICS_FILE, MetricsFile

CONFIG_FILE = "config.yaml"
SAE_FOLDER = "sae"
SKIPPED_FILE = "skipped_images.csv"


def load_config(folder: Path, **changes: Any) -> ViTSAERunnerConfig:
    """The settings to go on with the run in a folder.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: its settings can't be read, or don't go with the changes.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"{folder} holds no run to resume: there is no {CONFIG_FILE} in it")
    cfg = ViTSAERunnerConfig.load(folder / CONFIG_FILE)
    places = {"output_path": str(folder), "resume_from_checkpoint": str(folder)}
    return replace(cfg, **{**places, **changes})


def checkpoints_of(cfg: ViTSAERunnerConfig) -> CheckpointFolder | None:
    """The run's checkpoints; None if it writes nothing."""
    return None if cfg.checkpoint_folder is None else CheckpointFolder(cfg.checkpoint_folder)


def check_run_folder(cfg: ViTSAERunnerConfig) -> None:
    """Raise unless a run with these settings may begin, or go on, in its folder.

    Raises:
        FileExistsError: it would begin where another run is.
        FileNotFoundError: it would go on where none is.
        ValueError: it would go on with other settings.
    """
    folder, resumed = cfg.run_folder, cfg.resume_from_checkpoint
    if folder is None:
        return
    if resumed is None:
        if (folder / CONFIG_FILE).exists():
            raise FileExistsError(
                f"{folder} already holds a run; go on with it by 'vit-sae train --resume "
                f"{folder}', delete it, or choose another output_path"
            )
        return
    if Path(resumed).resolve() != folder.resolve():
        raise ValueError(
            f"resume_from_checkpoint is {resumed!r} but output_path is {str(folder)!r}; want "
            "the run's folder as both"
        )
    if not (folder / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"{folder} holds no run: there is no {CONFIG_FILE} in it")
    checkpoints = checkpoints_of(cfg)
    settings = None if checkpoints is None else checkpoints.settings()
    if settings is None:
        # nothing has been trained yet with other settings than the file's
        settings = settings_that_count(ViTSAERunnerConfig.load(folder / CONFIG_FILE))
    check_same_settings(settings, cfg)


def prepare_run_folder(cfg: ViTSAERunnerConfig) -> MetricsFile | None:
    """Clear away what an earlier life of the run left half-written, and write its settings.

    Only for the process that holds the folder.
    """
    folder = cfg.run_folder
    if folder is None:
        return None
    for place in {folder, cfg.checkpoint_folder or folder}:
        delete_leftovers(place, exclusive=True)
    replace(cfg, resume_from_checkpoint=None).save(folder / CONFIG_FILE)
    return MetricsFile(folder / METRICS_FILE)
