"""What eight SAEs on one stream cost beside eight runs of their own, on ViT-B/32.

The tower has random weights, which cost what trained ones do; images are arrays of the model's own
size, preprocessed as in any run. All take turns, a training batch each:

- sweep: one batch of rows from the store, and the step of each of the eight SAEs on it;
- eight runs: for each SAE, a store of its own that serves a batch, and its step. What a run costs
  grows with its batches, so that one batch of each is to one batch of the sweep what whole runs
  are to a whole sweep; loading, checkpoints and the last save are the same for both and left out;
- tower alone: the model up to the hook on one batch's images, pixels ready;
- steps alone: the eight steps on rows in memory. With the tower's one pass they are the floor:
  no way of training these SAEs on fresh images does less.

    python -m benchmarks.sweep_cost
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import open_clip
import torch

from benchmarks.ratios import Ratio, ratio_of, seconds_in_turns
from vit_sae_plugin.datasets import ArrayImages
from vit_sae_plugin.hooked_vit import HookedViT
from vit_sae_plugin.training import (
    ViTSAERunnerConfig,
    ViTSAESweepRunner,
    ViTSAETrainingRunner,
)
from vit_sae_plugin.training.trainee import Trainee

HOOK = "blocks.10.hook_resid_post"
ROWS, IMAGES = 800, 16  # 50 tokens an image
SAES: dict[str, dict[str, Any]] = {
    "topk 16": {"architecture": "topk", "d_sae": 1536, "k": 16},
    "topk 32": {"architecture": "topk", "d_sae": 3072, "k": 32},
    "topk 64": {"architecture": "topk", "d_sae": 3072, "k": 64},
    "batchtopk 32": {"architecture": "batchtopk", "d_sae": 3072, "k": 32},
    "relu": {"architecture": "standard", "d_sae": 1536, "l1_coefficient": 1.0},
    "patchsae": {"architecture": "patchsae", "d_sae": 1536, "l1_coefficient": 8e-5},
    "patchsae wide": {"architecture": "patchsae", "d_sae": 3072, "l1_coefficient": 2e-4},
    "msae": {"architecture": "matryoshka_topk", "d_sae": 1536, "k_start": 64},
}
"""Name → settings of the SAE; small to medium, as in a first sweep."""


def config(sae: dict[str, Any]) -> ViTSAERunnerConfig:
    """A run that doesn't end while it is measured, logs little and saves nothing by itself."""
    return ViTSAERunnerConfig.from_dict(
        {
            "sae": {**sae, "d_in": 768},
            "model_name": "ViT-B-32",
            "hook_name": HOOK,
            "train_batch_size_tokens": ROWS,
            "store_batch_size_images": IMAGES,
            "n_batches_in_buffer": 1,  # each batch pays for its own images
            "training_tokens": ROWS * 10**6,
            "log_every_n_steps": 10**6,
            "device": "cpu",
            "output_path": None,
            "verbose": False,
        }
    )


def at_once(function: Callable[[], Any]) -> Any:
    """What a step may leave anywhere when it is interrupted; here nothing interrupts."""
    return function()


def measure(rounds: int = 5) -> list[Ratio]:
    """The sweep beside eight runs and beside the floor."""
    bare, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32")
    model = HookedViT.from_module(bare.eval(), preprocess=preprocess, model_name="ViT-B-32")
    pictures = np.random.default_rng(0).integers(0, 256, (4 * IMAGES, 224, 224, 3), np.uint8)
    images = ArrayImages(pictures)
    members = {name.replace(" ", "-"): config(sae) for name, sae in SAES.items()}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        sweep = ViTSAESweepRunner(members, folder, images, model)
        together = [
            stack.enter_context(runner.trainee(rows_name=HOOK)) for runner in sweep.runners.values()
        ]
        runners = {name: ViTSAETrainingRunner(cfg, images, model) for name, cfg in members.items()}
        alone = {
            name: (runner.store, stack.enter_context(runner.trainee()))
            for name, runner in runners.items()
        }
        rows = next(sweep.rows)
        pixels = torch.stack([preprocess(images.record(i).load()) for i in range(IMAGES)])

        def train(trainees: list[Trainee], batch: Any) -> None:
            for trainee in trainees:
                trainee.step(batch, at_once)

        def train_alone(name: str) -> Callable[[], None]:
            store, trainee = alone[name]
            return lambda: trainee.step(next(store), at_once)

        @torch.no_grad()
        def tower() -> None:
            model(pixels, stop_at_layer=11)

        seconds = seconds_in_turns(
            {
                "sweep": lambda: train(together, next(sweep.rows)),
                "tower": tower,
                "steps": lambda: train(together, rows),
                **{f"alone {name}": train_alone(name) for name in alone},
            },
            rounds,
        )
    eight = [sum(parts) for parts in zip(*(seconds[f"alone {n}"] for n in alone), strict=True)]
    floor = [t + s for t, s in zip(seconds["tower"], seconds["steps"], strict=True)]
    tower_s, steps_s = (statistics.median(seconds[name]) for name in ("tower", "steps"))
    note = f"tower {tower_s:.2f} s, eight steps {steps_s:.2f} s for {ROWS} rows"
    per_second = ROWS / statistics.median(seconds["sweep"])
    rates = {"rows_per_second": per_second, "rows_per_second_tower": ROWS / tower_s}
    return [
        replace(
            ratio_of("a sweep of eight", seconds["sweep"], eight, "eight runs", None, note),
            rates=rates,
        ),
        ratio_of("the floor: tower once, eight steps", floor, eight, "eight runs"),
        ratio_of("a sweep of eight", seconds["sweep"], floor, "the floor", "≤ 1.15"),
    ]


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    warnings.simplefilter("ignore")
    for line in measure(parser.parse_args().rounds):
        spread = f"({line.low:.2f} to {line.high:.2f})"
        print(f"{line.name} ÷ {line.against}: {line.ratio:.2f} {spread} {line.note}")


if __name__ == "__main__":
    main()
