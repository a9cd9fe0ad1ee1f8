"""The trainer: SAELens's but for rounding by default; on request, the published unclipped step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import TrainStepInput
from sae_lens.training.sae_trainer import SAETrainer
from sae_lens.util import temporary_seed
from safetensors import safe_open
from torch import Tensor

from vit_sae_plugin.saes import PatchTrainingSAE, PatchTrainingSAEConfig
from vit_sae_plugin.training import ViTSAETrainer
from vit_sae_plugin.training.vit_sae_trainer import is_within

ORACLE = Path(__file__).parents[1] / "data/patchsae_step_flat.safetensors"


def _sae() -> StandardTrainingSAE:
    with temporary_seed(0):
        return StandardTrainingSAE(StandardTrainingSAEConfig(d_in=6, d_sae=10, l1_coefficient=0.1))


def _trainer_config(n_steps: int = 12, lr: float = 1e-2) -> SAETrainerConfig:
    return SAETrainerConfig(
        total_training_samples=n_steps * 8,
        train_batch_size_samples=8,
        lr=lr,
        lr_end=lr / 10,
        lr_warm_up_steps=3,
        lr_decay_steps=4,
    )


def _batches(scale: float = 3.0) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(1)
    while True:
        yield scale * torch.randn(8, 6, generator=generator)


def _train(trainer: SAETrainer, n_steps: int = 12) -> list[float]:
    norms = []
    for _ in range(n_steps):
        trainer.step(next(trainer.data_provider))
        trainer.n_training_steps += 1
        if isinstance(trainer, ViTSAETrainer):
            norms.append(trainer.grad_norm.item())
    return norms


def _same_weights(one, other) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(mine, theirs) for mine, theirs in pairs)


def test_by_default_it_trains_as_saelens_does() -> None:
    ours, theirs = _sae(), _sae()
    _train(SAETrainer(_trainer_config(), theirs, _batches()))
    norms = _train(ViTSAETrainer(_trainer_config(), ours, _batches()))
    assert max(norms) > 1, "the clip must bind for this to say anything"
    # a fused optimizer rounds in another order
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)


def test_unclipped_steps_are_those_of_a_bare_optimizer() -> None:
    ours, bare = _sae(), _sae()
    trainer = ViTSAETrainer(_trainer_config(), ours, _batches(), clip_grad_norm=None)
    optimizer = torch.optim.Adam(bare.parameters(), lr=1e-2)
    rows = _batches()
    norms = []
    for step in range(12):
        warm_up, decay = (step + 1) / 3, 1 - (step - 8) / 4
        optimizer.param_groups[0]["lr"] = 1e-2 * min(1.0, warm_up, decay)
        losses = bare.training_forward_pass(
            TrainStepInput(next(rows), {"l1": 0.1}, None, step, False)
        )
        optimizer.zero_grad()
        losses.loss.backward()
        norms.append(torch.cat([p.grad.flatten() for p in bare.parameters()]).norm().item())
        optimizer.step()
    assert _train(trainer) == pytest.approx(norms, rel=1e-4)
    for mine, theirs in zip(ours.parameters(), bare.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    assert not _same_weights(ours, _clipped())


def _clipped():
    sae = _sae()
    _train(SAETrainer(_trainer_config(), sae, _batches()))
    return sae


def test_how_often_saelens_would_clip_is_counted() -> None:
    trainer = ViTSAETrainer(_trainer_config(), _sae(), _batches(), clip_grad_norm=None)
    norms = _train(trainer)
    assert trainer.share_of_steps_above_max_norm == sum(norm > 1 for norm in norms) / 12 > 0
    quiet = ViTSAETrainer(_trainer_config(), _sae(), _batches(scale=1e-3))
    _train(quiet)
    assert quiet.share_of_steps_above_max_norm == 0


def test_gradients_are_clipped_at_the_norm_asked_for() -> None:
    trainer = ViTSAETrainer(_trainer_config(), _sae(), _batches(), clip_grad_norm=0.25)
    seen = []

    def note_norm(optimizer, args, kwargs):
        gradients = [p.grad for p in trainer.sae.parameters()]
        seen.append(torch.cat([g.flatten() for g in gradients]).norm().item())

    trainer.optimizer.register_step_pre_hook(note_norm)
    norms = _train(trainer, 3)
    assert seen == pytest.approx([0.25] * 3, rel=1e-4)
    assert min(norms) > 0.25


@pytest.mark.parametrize(
    ("norm", "expected"), [(0.9, True), (1.0, False), (1.1, False), (torch.inf, False)]
)
def test_gradients_within_the_norm_are_let_alone(norm, expected) -> None:
    norm = torch.tensor(norm)
    assert is_within(norm, 1.0) is expected
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([1.0, 1 / 3])
    torch.nn.utils.clip_grads_with_norm_([weight], 1.0, norm)  # what is left out multiplies by 1
    assert torch.equal(weight.grad, torch.tensor([1.0, 1 / 3])) is expected


def test_a_norm_that_is_no_number_is_not_within() -> None:
    assert not is_within(torch.tensor(torch.nan), 1.0)  # so that it reaches the weights and is seen


def test_adamw_with_its_eps_and_decay() -> None:
    trainer = ViTSAETrainer(
        _trainer_config(),
        _sae(),
        _batches(),
        optimizer="adamw",
        adam_eps=6.25e-10,
        weight_decay=0.1,
    )
    assert type(trainer.optimizer) is torch.optim.AdamW
    group = trainer.optimizer.param_groups[0]
    assert (group["eps"], group["weight_decay"]) == (6.25e-10, 0.1)
    # the schedule drives this optimizer and not the one that SAELens made
    rates = []
    for _ in range(12):
        rates.append(group["lr"])
        _train(trainer, 1)
    expected = [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert rates == pytest.approx([1e-2 * factor for factor in expected])


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_a_frozen_decoder_stays_while_the_rest_learns(optimizer) -> None:
    sae = PatchTrainingSAE(PatchTrainingSAEConfig(d_in=6, d_sae=10))
    before = {name: weight.detach().clone() for name, weight in sae.named_parameters()}
    trainer = ViTSAETrainer(
        _trainer_config(),
        sae,
        _batches(),
        optimizer=optimizer,
        weight_decay=0.1,
        freeze_decoder=True,
    )
    _train(trainer)
    # rows are set to norm 1 at each step, which they have already
    assert torch.allclose(sae.W_dec, before["W_dec"], atol=1e-6)
    assert not torch.allclose(sae.W_enc, before["W_enc"], atol=1e-3)


def test_one_step_is_the_published_one() -> None:
    with safe_open(ORACLE, "pt") as file:
        oracle = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        settings = file.metadata()
    d_in, d_sae = oracle["W_enc"].shape
    sae = PatchTrainingSAE(
        PatchTrainingSAEConfig(
            d_in=d_in,
            d_sae=d_sae,
            l1_coefficient=float(settings["l1_coefficient"]),
            b_dec_init_method="zeros",
        )
    )
    with torch.no_grad():
        sae.W_dec.copy_(oracle["W_dec_unnormalized"])
        for name in ("W_enc", "b_enc", "b_dec"):
            getattr(sae, name).copy_(oracle[name])
    n_rows = len(oracle["x"])
    config = SAETrainerConfig(
        n_rows, n_rows, lr=float(settings["lr"]), lr_end=0.0, dead_feature_window=3
    )
    trainer = ViTSAETrainer(config, sae, iter([oracle["x"]]), clip_grad_norm=None)
    trainer.n_forward_passes_since_fired[oracle["dead_mask"].bool()] = 4
    _train(trainer, 1)
    for name, value in sae.named_parameters():
        expected = oracle[f"after_adam_step/{name}"]
        assert (value - expected).norm() <= 5e-4 * expected.norm(), name
