"""Adapted CLIPs: MaPLe, CoOp, VPT, LoRA and linear probes, trained here or loaded."""

from vit_sae_plugin.adaptation.accuracy import accuracy_of_halves, class_accuracy
from vit_sae_plugin.adaptation.adapt import adapt, load_adapted
from vit_sae_plugin.adaptation.config import METHODS, AdaptationConfig
from vit_sae_plugin.adaptation.official_checkpoints import load_checkpoint
from vit_sae_plugin.adaptation.saved_model import AdaptationFileError, read_config

__all__ = [
    "METHODS",
    "AdaptationConfig",
    "AdaptationFileError",
    "accuracy_of_halves",
    "adapt",
    "class_accuracy",
    "load_adapted",
    "load_checkpoint",
    "read_config",
]
