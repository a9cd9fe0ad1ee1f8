"""A step's loss is looked at late on a GPU, and nothing in a step waits for one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sae_lens import TrainingSAE
from sae_lens.config import SAETrainerConfig
from torch.utils._python_dispatch import TorchDispatchMode

from tests.training.small_run import D_IN, sae_config
from vit_sae_plugin.saes import patch_sae
from vit_sae_plugin.training import DivergedError, ViTSAETrainer
from vit_sae_plugin.training.divergence import DivergenceWatch
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
    ("architecture", "settings", "waits"),
    [
        ("standard", {}, []),
        ("patchsae", {"use_ghost_grads": False}, []),
        # the size of the ghost term is the number of dead latents, which only the device knows
        ("patchsae", {}, ["nonzero"]),
    ],
)
def test_a_step_does_not_wait_for_a_device(architecture, settings, waits, monkeypatch) -> None:
    monkeypatch.setattr(DivergenceWatch, "_is_late", staticmethod(lambda device: True))
    monkeypatch.setattr(patch_sae, "step_kernels", lambda dtype: None)  # as on a GPU
    sae = TrainingSAE.from_dict(sae_config(architecture, **settings).to_dict())
    trainer = ViTSAETrainer(SAETrainerConfig(10**6, 64, lr=1e-3, lr_end=1e-4), sae, iter(()))
    trainee = Trainee(trainer, log_every_n_steps=1000)
    rows = torch.randn(64, D_IN)
    for _ in range(2):
        trainee.step(rows, lambda call: call())
    with _Waits() as operators:
        trainee.step(rows, lambda call: call())
    assert operators.seen == waits
