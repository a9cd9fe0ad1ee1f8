"""Measures on held-out images during training: those that evaluate_sae gives for the same SAE."""

from __future__ import annotations

import pytest
import torch
from sae_lens import SAE

from tests.training.small_run import sae_config, small_config, small_images, small_model
from vit_sae_plugin.evaluation import evaluate_sae
from vit_sae_plugin.training import ViTSAETrainingRunner, read_metrics
from vit_sae_plugin.training import runner as runner_module


@pytest.fixture(scope="module")
def held_out():
    return small_images(60)


@pytest.fixture(autouse=True)
def opened(held_out, monkeypatch):
    monkeypatch.setattr(runner_module, "open_images", lambda images, **_: held_out)


@pytest.mark.parametrize("normalization", ["none", "expected_average_only_in", "layer_norm"])
def test_it_is_what_evaluation_gives(normalization, held_out, tmp_path) -> None:
    sae = sae_config("standard", normalize_activations=normalization)
    settings = {"sae": sae, "training_tokens": 24 * 128, "n_workers": 0}
    config = small_config(
        tmp_path / "with", "standard", **settings, eval_dataset_path="held out", n_eval_images=40
    )
    model = small_model()
    trained = ViTSAETrainingRunner(config, held_out, model).run()
    lines = read_metrics(tmp_path / "with/metrics.jsonl").set_index("step")
    measured = lines.filter(like="held_out_").dropna()
    assert list(measured.index) == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24]

    finished = SAE.load_from_disk(tmp_path / "with/sae")
    report = evaluate_sae(model, finished, held_out, n_images=40)
    expected = report.reconstruction.loc["all"]
    last = measured.iloc[-1]
    assert last["held_out_explained_variance"] == pytest.approx(
        expected["explained_variance"], rel=1e-4
    )
    assert last["held_out_l0"] == pytest.approx(expected["l0"], rel=1e-4)
    assert last["held_out_mse"] == pytest.approx(expected["mse"], rel=1e-4)
    assert -1 <= last["held_out_output_cosine"] <= 1
    assert last["held_out_output_cosine"] > measured.iloc[0]["held_out_output_cosine"]

    # measuring changes nothing
    alone = ViTSAETrainingRunner(small_config(None, "standard", **settings), held_out, model).run()
    for mine, theirs in zip(trained.parameters(), alone.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_whitened_sae_is_measured_on_whitened_rows(held_out, tmp_path) -> None:
    config = small_config(
        tmp_path,
        "standard",
        sae=sae_config("standard", normalize_activations="covariance_whitening"),
        training_tokens=24 * 128,
        eval_dataset_path="held out",
        eval_every_n_steps=100,
        n_eval_images=40,
    )
    model = small_model()
    ViTSAETrainingRunner(config, held_out, model).run()
    last = read_metrics(tmp_path / "metrics.jsonl").iloc[-1]
    report = evaluate_sae(model, SAE.load_from_disk(tmp_path / "sae"), held_out, n_images=40)
    expected = report.reconstruction.loc["all", "explained_variance"]
    assert last["held_out_explained_variance"] == pytest.approx(expected, rel=1e-3)


def test_without_a_model_it_is_refused(tmp_path, monkeypatch) -> None:
    import numpy as np

    monkeypatch.undo()
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(300, 32)).astype("f4"))
    config = small_config(
        None,
        "standard",
        embeddings_path=str(tmp_path / "rows.npy"),
        token_kind="all",
        eval_dataset_path="shapes",
    )
    with pytest.raises(ValueError, match="eval_every_n_steps is 12, but without a model"):
        ViTSAETrainingRunner(config)
    with pytest.raises(ValueError, match="eval_every_n_steps is 5, but eval_dataset_path is empty"):
        small_config(None, eval_every_n_steps=5)
