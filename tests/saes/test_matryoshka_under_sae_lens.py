"""matryoshka_topk trains under SAELens's own trainer and its text runner, unchanged."""

from __future__ import annotations

import pytest
import torch
from sae_lens import SAE, SAETrainer, TrainingSAE

from benchmarks.dead_latents import D_IN, KnownDirections, trainer_config
from vit_sae_plugin.saes import MatryoshkaTopKTrainingSAEConfig

from .text_runner import D_MODEL, train_on_text

K_LIST = [4, 8, 64]


def explained_variance(sae: SAE, rows: torch.Tensor, k: int) -> float:
    with torch.no_grad():
        residual = rows - sae.decode(sae.encode(rows, k=k))
    return 1 - (residual.square().sum() / (rows - rows.mean(dim=0)).square().sum()).item()


@pytest.mark.parametrize(
    ("settings", "autocast"),
    [
        ({}, False),
        ({"aux_loss_coefficient": 0.1, "use_ghost_grads": True}, True),
        ({"tied_weights": True}, True),
    ],
)
def test_trains_under_the_stock_trainer(settings, autocast):
    torch.manual_seed(0)
    cfg = MatryoshkaTopKTrainingSAEConfig(d_in=D_IN, d_sae=64, k_list=K_LIST, **settings)
    sae = TrainingSAE.from_dict(cfg.to_dict())
    data = KnownDirections(seed=0)
    trainer = trainer_config(lr=0.01, n_steps=80, dead_feature_window=16)
    trainer.autocast = autocast
    SAETrainer(trainer, sae, data).fit()
    rows = next(data)
    at_each_k = [explained_variance(sae.eval(), rows, k) for k in K_LIST]
    assert at_each_k[0] > 0.5
    assert at_each_k == sorted(at_each_k)


def test_a_resumed_run_ends_with_the_same_weights(tmp_path):
    def new_trainer() -> SAETrainer:
        torch.manual_seed(0)
        cfg = MatryoshkaTopKTrainingSAEConfig(d_in=D_IN, d_sae=64, k_list=K_LIST)
        config = trainer_config(lr=0.01, n_steps=12, dead_feature_window=4)
        return SAETrainer(config, TrainingSAE.from_dict(cfg.to_dict()), None)

    def advance(trainer: SAETrainer, batches) -> None:
        for batch in batches:
            trainer.step(batch)
            trainer.n_training_steps += 1

    data = KnownDirections(seed=0)
    batches = [next(data) for _ in range(12)]
    straight, first, second = new_trainer(), new_trainer(), new_trainer()
    advance(straight, batches)
    advance(first, batches[:5])
    first.save_checkpoint("half", base_path=tmp_path)
    second.sae.load_weights_from_checkpoint(tmp_path / "half")
    second.load_trainer_state(tmp_path / "half")
    advance(second, batches[5:])
    for name, value in straight.sae.state_dict().items():
        assert torch.equal(second.sae.state_dict()[name], value), name
    # A training checkpoint opens for inference too.
    x = batches[0]
    torch.testing.assert_close(SAE.load_from_disk(tmp_path / "half")(x), first.sae.eval()(x))


def test_trains_under_the_text_runner(tmp_path):
    cfg = MatryoshkaTopKTrainingSAEConfig(d_in=D_MODEL, d_sae=64, k_list=K_LIST)
    _, trained, rows = train_on_text(cfg, tmp_path / "sae")
    loaded = SAE.load_from_disk(tmp_path / "sae")
    assert loaded.cfg.architecture() == "matryoshka_topk"
    assert loaded.cfg.metadata.training_architecture_details["k_list"] == K_LIST
    torch.testing.assert_close(loaded(rows), trained(rows))
    at_each_k = [explained_variance(loaded, rows, k) for k in K_LIST]
    assert at_each_k == sorted(at_each_k)
    assert at_each_k[-1] > 0.5
