"""Our architectures train under SAELens's own trainer and its text runner, unchanged."""

from __future__ import annotations

import pytest
import torch
from sae_lens import SAE, SAETrainer, TrainingSAE

from benchmarks.dead_latents import D_IN, KnownDirections, evaluate, trainer_config
from vit_sae_plugin.saes import (
    PatchTrainingSAE,
    PatchTrainingSAEConfig,
    StandardGhostTrainingSAEConfig,
    TopKGhostTrainingSAEConfig,
)

from .text_runner import D_MODEL, train_on_text

ARCHITECTURES = {
    "patchsae": (PatchTrainingSAEConfig, {"l1_coefficient": 1e-3}),
    "standard_ghost": (StandardGhostTrainingSAEConfig, {"l1_coefficient": 0.05}),
    "topk_ghost": (TopKGhostTrainingSAEConfig, {"k": 8}),
}


def config(architecture: str, d_in: int, d_sae: int = 64):
    config_class, settings = ARCHITECTURES[architecture]
    return config_class(d_in=d_in, d_sae=d_sae, **settings)


@pytest.mark.parametrize(
    ("architecture", "autocast"),
    [("patchsae", False), ("patchsae", True), ("standard_ghost", True), ("topk_ghost", True)],
)
def test_trains_under_the_stock_trainer(architecture, autocast):
    torch.manual_seed(0)
    sae = TrainingSAE.from_dict(config(architecture, D_IN).to_dict())
    data = KnownDirections(seed=0)
    settings = trainer_config(lr=0.01, n_steps=80, dead_feature_window=16)
    settings.autocast = autocast
    SAETrainer(settings, sae, data).fit()
    outcome = evaluate(sae.eval(), next(data), data.directions)
    assert outcome.explained_variance > 0.5


def test_a_resumed_run_of_the_stock_trainer_ends_with_the_same_weights(tmp_path):
    def new_trainer() -> SAETrainer:
        torch.manual_seed(0)
        cfg = PatchTrainingSAEConfig(d_in=D_IN, d_sae=64, l1_coefficient=0.05)
        settings = trainer_config(lr=0.04, n_steps=40, dead_feature_window=4)
        return SAETrainer(settings, PatchTrainingSAE(cfg), iter(()))

    def advance(trainer: SAETrainer, batches) -> None:
        for batch in batches:
            trainer.step(batch)
            trainer.n_training_steps += 1

    data = KnownDirections(seed=0)
    batches = [next(data) for _ in range(40)]
    straight, first, second = new_trainer(), new_trainer(), new_trainer()
    advance(straight, batches)
    advance(first, batches[:15])
    first.save_checkpoint("half", base_path=tmp_path)
    second.sae.load_weights_from_checkpoint(tmp_path / "half")
    second.load_trainer_state(tmp_path / "half")
    advance(second, batches[15:])
    assert straight.dead_neurons.any()
    for name, value in straight.sae.state_dict().items():
        assert torch.equal(second.sae.state_dict()[name], value), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_trains_under_the_text_runner(architecture, tmp_path):
    cfg = config(architecture, D_MODEL)
    untrained, trained, rows = train_on_text(cfg, tmp_path / "sae")
    loaded = SAE.load_from_disk(tmp_path / "sae")
    assert loaded.cfg.metadata.training_architecture == architecture
    torch.testing.assert_close(loaded(rows), trained(rows))
    assert (loaded(rows) - rows).norm() < 0.7 * (untrained(rows) - rows).norm()
    residual, centred = loaded(rows) - rows, rows - rows.mean(dim=0)
    assert residual.norm() < 0.8 * centred.norm()
