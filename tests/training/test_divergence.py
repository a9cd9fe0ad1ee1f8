"""A step's loss is looked at late on a GPU, and nothing in a step waits for one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sae_lens.config import SAETrainerConfig
from torch.utils._python_dispatch import TorchDispatchMode

from tests.training.small_run import D_IN, sae_config
from vit_sae_plugin.saes import new_training_sae, patch_sae, sparse_topk_training
from vit_sae_plugin.training import DivergedError, ViTSAETrainer, vit_sae_trainer
from vit_sae_plugin.training.divergence import DivergenceWatch
from vit_sae_plugin.training.late_numbers import DeadBound
from vit_sae_plugin.training.trainee import Trainee


def test_a_diverged_step_is_seen_in_the_next_one_or_when_asked() -> None:
    def figures(loss, grad_norm):
        return torch.tensor(loss), torch.tensor(grad_norm), torch.tensor(True)

    at_once, late = DivergenceWatch(), DivergenceWatch(lambda: Path("step_4"))
    with pytest.raises(DivergedError, match=r"loss is nan .* 0.5 at step 5: the activations are f"):
        at_once.note(5, *figures(torch.nan, 0.5))
    late._is_late = lambda device: True
    late.note(5, *figures(1.0, torch.inf))
    with pytest.raises(DivergedError, match=r"loss is 1.0 .* inf at step 5: .*step_4\)"):
        late.note(6, *figures(1.0, 0.5))
    late.settle()
    late.note(7, *figures(torch.nan, 0.5))
    with pytest.raises(DivergedError, match="step 7"):
        late.settle()
    late.settle()


class _Waits(TorchDispatchMode):
    """Counts the operators for which a GPU would make the process wait."""

    NAMES = ("_local_scalar_dense", "nonzero", "is_nonzero", "unique", "masked_select", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put_") else ()
        by_mask = any(i is not None and i.dtype == torch.bool for i in indices)
        if name in self.NAMES or by_mask:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("standard", {}),
        ("patchsae", {"use_ghost_grads": False}),
        ("patchsae", {}),
        ("standard_ghost", {}),
        ("topk", {}),
        ("topk_ghost", {"aux_loss_coefficient": 0.5}),
        ("batchtopk", {}),
    ],
)
@pytest.mark.parametrize("window", [1, 1000])
def test_a_step_does_not_wait_for_a_device(architecture, settings, window, monkeypatch) -> None:
    monkeypatch.setattr(DivergenceWatch, "_is_late", staticmethod(lambda device: True))
    _as_on_a_gpu(monkeypatch)
    trainer = _trainer(sae_config(architecture, **settings), window, DeadBound(window))
    trainee = Trainee(trainer, log_every_n_steps=1000)
    rows = torch.randn(64, D_IN)
    for _ in range(4):
        trainee.step(rows, lambda call: call())
    assert window > 1 or int(trainer.dead_neurons.sum()) > 0
    with _Waits() as operators:
        trainee.step(rows, lambda call: call())
    assert operators.seen == []


def _as_on_a_gpu(monkeypatch) -> None:
    """A step that leaves out what only a CPU has."""
    monkeypatch.setattr(patch_sae, "step_kernels", lambda dtype: None)
    monkeypatch.setattr(sparse_topk_training, "has_sparse_products", lambda device, dtype: False)
    monkeypatch.setattr(vit_sae_trainer, "is_within", lambda norm, max_norm: False)


def _trainer(cfg, window: int, bound: DeadBound | None) -> ViTSAETrainer:
    torch.manual_seed(0)
    settings = SAETrainerConfig(10**6, 64, lr=2e-2, lr_end=1e-4, dead_feature_window=window)
    trainer = ViTSAETrainer(settings, new_training_sae(cfg, "cpu"), iter(()))
    trainer.sae.b_enc.data[::3] = -5  # so that a third is dead
    trainer.dead_bound = bound
    return trainer


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("patchsae", {}),
        ("standard_ghost", {}),
        ("topk", {}),
        ("topk_ghost", {"aux_loss_coefficient": 0.5}),
        ("batchtopk", {}),
    ],
)
def test_without_waiting_the_dead_latents_are_the_same(architecture, settings, monkeypatch) -> None:
    _as_on_a_gpu(monkeypatch)
    cfg = sae_config(architecture, **settings)
    window, n_dead, spare = 3, [], []
    exact = _trainer(cfg, window, None)
    bounded = _trainer(cfg, window, DeadBound(window))
    generator = torch.Generator().manual_seed(1)
    for step in range(30):
        rows = torch.randn(64, D_IN, generator=generator)
        if step in (8, 9, 10, 16, 17, 18, 19, 20):  # few latents fire, many are soon dead, or are
            rows = rows[:1].repeat(64, 1)
        n_dead.append(int(exact.dead_neurons.sum()))
        if (at_most := bounded.dead_bound.at_most()) is not None:
            spare.append(at_most - n_dead[-1])
        outputs = [trainer.step(rows) for trainer in (exact, bounded)]
        for name, loss in outputs[0].losses.items():
            torch.testing.assert_close(outputs[1].losses[name], loss, rtol=1e-6, atol=1e-6)
        # steps that had drifted apart by rounding would not be the same any more
        with torch.no_grad():
            for one, other in zip(bounded.sae.parameters(), exact.sae.parameters(), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
                one.copy_(other)
    assert min(n_dead) == 0
    assert max(n_dead) > 5
    assert min(spare) >= 0
    assert max(spare) > 0, "living latents must have been among them"
