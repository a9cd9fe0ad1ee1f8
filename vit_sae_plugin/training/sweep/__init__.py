"""Several SAEs trained from one stream of rows: file, runner, results."""

from vit_sae_plugin.training.sweep.sweep_file import Sweep
from vit_sae_plugin.training.sweep.sweep_folder import is_sweep_folder
from vit_sae_plugin.training.sweep.sweep_results import MemberResult, SweepResults
from vit_sae_plugin.training.sweep.sweep_runner import ViTSAESweepRunner

__all__ = ["MemberResult", "Sweep", "SweepResults", "ViTSAESweepRunner", "is_sweep_folder"]
