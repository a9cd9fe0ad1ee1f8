"""Training an SAE on images: settings, runner, checkpoints."""

from vit_sae_plugin.training.checkpoints import CheckpointFolder, DamagedCheckpointError
from vit_sae_plugin.training.config_files import check_settings, parse_setting
from vit_sae_plugin.training.config_files import read as read_settings
from vit_sae_plugin.training.divergence import DivergedError
from vit_sae_plugin.training.interruption import TrainingInterruptedError
from vit_sae_plugin.training.presets import (
    complete_settings,
    load_preset,
    preset_names,
    preset_summary,
)
from vit_sae_plugin.training.ranks import RankLostError, Ranks
from vit_sae_plugin.training.runner import ViTSAETrainingRunner
from vit_sae_plugin.training.runner_config import ViTSAERunnerConfig
from vit_sae_plugin.training.sweep import Sweep, SweepResults, ViTSAESweepRunner
from vit_sae_plugin.training.training_metrics import METRICS_FILE, read_metrics
from vit_sae_plugin.training.vit_sae_trainer import ViTSAETrainer

__all__ = [
    "METRICS_FILE",
    "CheckpointFolder",
    "DamagedCheckpointError",
    "DivergedError",
    "RankLostError",
    "Ranks",
    "Sweep",
    "SweepResults",
    "TrainingInterruptedError",
    "ViTSAERunnerConfig",
    "ViTSAESweepRunner",
    "ViTSAETrainer",
    "ViTSAETrainingRunner",
    "check_settings",
    "complete_settings",
    "load_preset",
    "parse_setting",
    "preset_names",
    "preset_summary",
    "read_metrics",
    "read_settings",
]
