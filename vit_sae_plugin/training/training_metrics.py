"""What a training run reports of itself, and the file that keeps it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from sae_lens.saes.sae import TrainStepOutput

from vit_sae_plugin.atomic_files import write_text_atomically
from vit_sae_plugin.training.vit_sae_trainer import ViTSAETrainer

METRICS_FILE = "metrics.jsonl"
"""Name of the file in a run's folder that holds its metrics: a JSON object a line."""


@torch.no_grad()
def step_metrics(trainer: ViTSAETrainer, output: TrainStepOutput) -> dict[str, float | int]:
    """The metrics of one training step, over its batch.

    ``explained_variance`` is ``1 − Σ residual² / Σ (x − mean x)²``; ``l0`` the mean number of
    active latents of a row; ``n_dead_latents`` as the trainer counts them; ``grad_norm`` the norm
    before clipping; ``share_grad_norm_above_1`` the share of all steps so far whose norm was above
    SAELens's limit of 1. All losses that the SAE names are there too, under its names.
    """
    return {
        "step": trainer.n_training_steps,
        "n_tokens": trainer.n_training_samples,
        "loss": output.loss.item(),
        **{name: _number(value) for name, value in output.losses.items()},
        "l0": trainer.l0_of(output).item(),
        "explained_variance": trainer.explained_variance_of(output).item(),
        "n_dead_latents": trainer.n_dead_latents(),
        "lr": trainer.optimizer.param_groups[0]["lr"],
        "grad_norm": trainer.grad_norm.item(),
        "share_grad_norm_above_1": trainer.share_of_steps_above_max_norm,
        **{name: _number(value) for name, value in output.metrics.items()},
    }


def _number(value: Any) -> float | int:
    if callable(value) and not isinstance(value, torch.Tensor):
        value = value()
    return value.item() if isinstance(value, torch.Tensor) else value


class MetricsFile:
    """A file of JSON lines, one for every logged training step.

    Args:
        path: the file; made when the first line is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, metrics: dict[str, Any]) -> None:
        """Add a line; it is handed to the system at once, so a killed run loses none."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")

    def rewind(self, step: int) -> None:
        """Drop the lines after a step, and a last one that was cut short.

        A run that goes on from a checkpoint writes the steps after it again.
        """
        if self.path.exists():
            lines = [line for line in self.path.read_text().splitlines() if _step(line) <= step]
            write_text_atomically(self.path, "".join(line + "\n" for line in lines))


def read_metrics(path: str | Path) -> pd.DataFrame:
    """A run's ``metrics.jsonl`` as a table: a row for each logged step, columns as in
    ``step_metrics``."""
    return pd.read_json(path, lines=True, orient="records")


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
