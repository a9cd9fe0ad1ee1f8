"""README's five lines of Python and its one line of shell train the same."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import vit_sae
from tests.tiny_models import tiny_open_clip
from tests.training.small_run import to_pixels
from vit_sae_plugin.datasets import ShapeScenes
from vit_sae_plugin.hooked_vit import HookedViT
from vit_sae_plugin.saes import PatchTrainingSAEConfig
from vit_sae_plugin.training import ViTSAERunnerConfig, ViTSAETrainingRunner, read_metrics

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def photos(tmp_path, monkeypatch) -> None:
    """A folder ``photos/`` here, and a small model for ViT-B-16."""

    def load(name: str, settings: dict[str, Any], device: str) -> HookedViT:
        model = HookedViT.from_module(tiny_open_clip(layers=12, width=768), preprocess=to_pixels)
        model.model_name = name
        return model

    monkeypatch.setattr(HookedViT, "from_recorded", load)
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    scenes = ShapeScenes(3)
    for index in range(3):
        scenes.scene(index).image.resize((32, 32)).save(f"photos/{index}.png")


def test_the_two_ways_of_the_readme_give_equal_settings(photos, monkeypatch) -> None:
    configs: list[ViTSAERunnerConfig] = []
    monkeypatch.setattr(ViTSAETrainingRunner, "run", lambda runner: configs.append(runner.cfg))
    section = README.read_text().partition("## Your own photos")[2]
    exec(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1], {})
    command = re.search(r"```sh\n(vit-sae train .*?)```", section, re.DOTALL)[1]
    assert vit_sae(*shlex.split(command)[1:]) == 0
    in_python, in_shell = configs
    assert in_python == in_shell
    assert in_python.dead_feature_window < in_python.total_training_steps


@pytest.mark.parametrize("way", ["python", "shell"])
def test_ghosts_act_both_ways(way, tmp_path) -> None:
    """With nothing said of when a latent is dead, on a run as short as 110 steps."""
    sizes = {"training_tokens": 110 * 128, "train_batch_size_tokens": 128, "lr": 0.03}
    source = "shapes?n_images=60"
    if way == "python":
        sae = PatchTrainingSAEConfig(d_in=128, d_sae=128, l1_coefficient=1.0)
        settings = {"model_name": "shapes-clip", "hook_name": "blocks.2.hook_resid_post", **sizes}
        config = ViTSAERunnerConfig(
            sae, dataset_path=source, output_path=str(tmp_path), verbose=False, **settings
        )
        ViTSAETrainingRunner(replace(config, n_batches_in_buffer=10)).run()
    else:
        code = vit_sae(
            *("train", "--images", source, "--model", "shapes-clip", "--d-sae", 128),
            *("--output-path", tmp_path, "--set", "sae.l1_coefficient=1.0"),
            *(f"--set={name}={value}" for name, value in sizes.items()),
            *("--set", "n_batches_in_buffer=10", "--set", "verbose=false"),
        )
        assert code == 0
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert metrics["n_dead_latents"].iloc[-1] > 0
    assert metrics["ghost_grad_loss"].iloc[-1] > 0
