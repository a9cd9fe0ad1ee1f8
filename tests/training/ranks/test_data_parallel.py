"""Two and three processes train as one does: the same weights, counts and metrics."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.training.ranks.processes import Processes
from tests.training.small_run import (
    D_IN,
    D_SAE,
    sae_config,
    small_config,
    small_images,
    small_model,
)
from vit_sae_plugin.activations import EmbeddingRows, EmbeddingStore
from vit_sae_plugin.activations.cache import write_cache
from vit_sae_plugin.saes import MatryoshkaTopKTrainingSAEConfig
from vit_sae_plugin.training import ViTSAETrainingRunner

N_STEPS = 50
N_ROWS = 128

N_DEAD = 20

MATRYOSHKA = MatryoshkaTopKTrainingSAEConfig(
    d_in=D_IN, d_sae=D_SAE, k_list=[4, 16, D_SAE], reconstruction_loss="nmse", use_ghost_grads=True
)
NORM = "expected_average_only_in"
PATCHSAE = {"relative_l1_coefficient": 0.06}
# Gradients of dead latents make rounding errors grow, a million times in 50 steps at a high rate;
# in float64 nothing of that is seen.
RUNS: dict[str, dict[str, Any]] = {
    "patchsae": {"sae": sae_config("patchsae", **PATCHSAE), "lr": 1e-4},
    "patchsae, float64": {"sae": sae_config("patchsae", dtype="float64", **PATCHSAE)},
    "matryoshka_topk": {"sae": MATRYOSHKA, "optimizer": "adamw", "weight_decay": 0.1, "lr": 2e-4},
    "topk": {"sae": sae_config("topk")},
    "batchtopk": {"sae": sae_config("batchtopk")},
    "matryoshka_batchtopk": {"sae": sae_config("matryoshka_batchtopk")},
    "gated": {"sae": sae_config("gated")},
    "jumprelu, scaled": {"sae": sae_config("jumprelu", normalize_activations=NORM)},
    "standard, white": {
        "sae": sae_config("standard", normalize_activations="covariance_whitening"),
        "freeze_decoder": True,
    },
    "topk_ghost": {"sae": sae_config("topk_ghost", dtype="float64")},
    "held out": {
        "sae": sae_config("standard"),
        "eval_every_n_steps": 20,
        "eval_dataset_path": "shapes",
        "n_eval_images": 4,
    },
}
OF_THREE = ("patchsae", "matryoshka_topk", "topk", "batchtopk")
RESUMED = ("patchsae", "batchtopk")
RESUMED_BY = ((1, 2), (2, 1), (2, 2), (2, 3))
"""Processes that wrote a checkpoint, and that went on from it."""
FEW_ROWS = 2
"""Rows of a batch of embeddings: fewer than processes."""


class _Shop:
    """What all runs are made of."""

    def __init__(self) -> None:
        self.model, self.images = small_model(), small_images()
        generator = np.random.default_rng(0)
        self.embeddings = EmbeddingRows(generator.normal(size=(60, D_IN)).astype(np.float32))

    def train(self, folder: Path, name: str, **changes: Any) -> None:
        settings = {"n_checkpoints": 1, "training_tokens": N_STEPS * N_ROWS, "lr": 5e-4}
        settings |= RUNS[name]
        cfg = small_config(folder / name, **{**settings, **changes})
        runner = ViTSAETrainingRunner(
            cfg, self.images, self.model, override_eval_images=self.images
        )
        if hasattr(runner.sae, "b_enc"):
            runner.sae.b_enc.data[:N_DEAD] = -5.0  # these latents never fire
        runner.run()

    def train_on_embeddings(self, folder: Path) -> None:
        settings = {"train_batch_size_tokens": FEW_ROWS, "training_tokens": 20 * FEW_ROWS}
        store = EmbeddingStore(self.embeddings, train_batch_size_tokens=FEW_ROWS, seed=1)
        for name in ("batchtopk", "patchsae"):
            sae = sae_config(name)
            cfg = small_config(folder / f"few rows, {name}", sae=sae, **settings)
            ViTSAETrainingRunner(cfg, override_store=store).run()

    def train_from_cache(self, folder: Path, cache: Path) -> None:
        cfg = small_config(
            folder / "from a cache",
            sae=sae_config("topk"),
            dataset_path=f"cache:{cache}",
            training_tokens=N_STEPS * N_ROWS,
            model_name="shapes-clip",
        )
        ViTSAETrainingRunner(cfg).run()

    def resume(self, folder: Path) -> None:
        ViTSAETrainingRunner.resume(folder, self.images, self.model).run()


@pytest.fixture(scope="module")
def shop() -> _Shop:
    return _Shop()


@pytest.fixture(scope="module")
def runs(shop, tmp_path_factory) -> Path:
    """A folder for each number of processes, with their runs in it."""
    root = tmp_path_factory.mktemp("runs")

    def train_all(n_ranks: int) -> None:
        folder = root / str(n_ranks)
        for name in OF_THREE if n_ranks == 3 else RUNS:
            shop.train(folder, name)
        shop.train_on_embeddings(folder)
        shop.train_from_cache(folder, root / "cache")
        if n_ranks == 2:
            shop.train(folder / "again", "patchsae")

    def resume_all(n_ranks: int) -> None:
        for folder in sorted((root / "resumed").glob(f"* with {n_ranks}")):
            shop.resume(folder)

    hooks, tokens = ["blocks.0.hook_resid_post"], "patches"
    small = {"images_per_shard": 8, "batch_size_images": 8, "progress": False}
    write_cache(
        root / "cache", shop.model, shop.images, hook_names=hooks, token_kind=tokens, **small
    )
    train_all(1)
    Processes(2, lambda: train_all(2), root / "logs 2").end()
    for name in RESUMED:
        for before, after in RESUMED_BY:
            _cut_off(root / str(before) / name, root / "resumed" / f"{name}, {before} with {after}")
    Processes(2, lambda: resume_all(2), root / "logs of resumed 2").end()
    Processes(3, lambda: (train_all(3), resume_all(3)), root / "logs 3").end()
    resume_all(1)
    return root


def _cut_off(run: Path, copy: Path) -> None:
    """A copy of a run as it was in the middle."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "sae")
    *_, last = sorted((copy / "checkpoints").iterdir())
    shutil.rmtree(last)
    assert [p.name for p in (copy / "checkpoints").iterdir()] == ["step_000000026"]


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "sae" / "sae_weights.safetensors")


def _metrics(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "per_second" not in k} for line in lines]


def _check_equal(run: Path, expected: Path, atol: float = 1e-5) -> None:
    """Weights, frequencies of latents, and the metrics of every line."""
    weights = _weights(run)
    for name, value in _weights(expected).items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=atol, msg=f"{run}: {name}")
    sparsity = [load_file(folder / "sae" / "sparsity.safetensors") for folder in (run, expected)]
    torch.testing.assert_close(*sparsity, rtol=1e-3, atol=1e-3)
    lines, wanted = _metrics(run), _metrics(expected)
    assert len(lines) == len(wanted) > 0
    for line, want in zip(lines, wanted, strict=True):
        assert line == pytest.approx(want, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_end_with_the_weights_of_one(runs, name) -> None:
    _check_equal(runs / "2" / name, runs / "1" / name)


@pytest.mark.parametrize("n_ranks", [2, 3])
def test_a_caches_rows_are_shared_out(runs, n_ranks) -> None:
    _check_equal(runs / str(n_ranks) / "from a cache", runs / "1" / "from a cache")


@pytest.mark.parametrize("name", OF_THREE)
def test_three_processes_end_with_the_weights_of_one(runs, name) -> None:
    _check_equal(runs / "3" / name, runs / "1" / name)


def test_the_runs_try_what_is_counted_over_the_whole_batch(runs) -> None:
    for name in ("patchsae", "matryoshka_topk", "topk", "batchtopk", "topk_ghost"):
        assert N_DEAD <= _metrics(runs / "1" / name)[-1]["n_dead_latents"] < D_SAE
    ghost = [line["ghost_grad_loss"] for line in _metrics(runs / "2" / "patchsae")]
    assert ghost[0] == 0 < ghost[-1]
    assert "held_out_mse" in _metrics(runs / "2" / "held out")[-1]


def test_processes_without_rows_keep_in_step(runs) -> None:
    for name in ("batchtopk", "patchsae"):
        for n_ranks in (2, 3):
            _check_equal(
                runs / str(n_ranks) / f"few rows, {name}", runs / "1" / f"few rows, {name}"
            )


def test_again_a_run_is_the_same_to_the_bit(runs) -> None:
    first, again = (_weights(runs / "2" / folder) for folder in ("patchsae", "again/patchsae"))
    assert all(torch.equal(value, again[name]) for name, value in first.items())


@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize(("before", "after"), RESUMED_BY)
def test_a_run_goes_on_with_any_number_of_processes(runs, name, before, after) -> None:
    resumed = runs / "resumed" / f"{name}, {before} with {after}"
    _check_equal(resumed, runs / "1" / name)
    if before == after:  # to the bit, and the metrics too
        expected = runs / str(before) / name
        assert all(torch.equal(v, _weights(expected)[k]) for k, v in _weights(resumed).items())
        assert _metrics(resumed) == _metrics(expected)


def test_one_process_writes_and_the_files_are_those_of_a_run_alone(runs) -> None:
    def files(run: Path) -> list[str]:
        return sorted(str(path.relative_to(run)) for path in run.rglob("*"))

    assert files(runs / "2" / "patchsae") == files(runs / "1" / "patchsae")
    steps = [line["step"] for line in _metrics(runs / "3" / "patchsae")]
    assert steps == list(range(5, N_STEPS + 1, 5))
