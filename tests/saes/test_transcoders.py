"""Transcoders: trained on two hooks of one forward pass, saved as SAELens's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sae_lens import SAE
from sae_lens.config import SAETrainerConfig
from sae_lens.registry import get_sae_class, get_sae_training_class
from sae_lens.saes.sae import TrainingSAE, TrainStepInput
from sae_lens.training.sae_trainer import SAETrainer
from sae_lens.util import temporary_seed
from torch import Tensor

import vit_sae_plugin.saes  # noqa: F401  (registers the architectures)

D_IN, D_OUT, D_SAE = 6, 9, 40
SETTINGS: dict[str, dict[str, Any]] = {
    "transcoder": {"l1_coefficient": 1e-3},
    "skip_transcoder": {"l1_coefficient": 1e-3},
    "jumprelu_transcoder": {"l0_coefficient": 1e-3},
    "jumprelu_skip_transcoder": {"l0_coefficient": 1e-3},
}


def _transcoder(architecture: str, **changes: Any) -> TrainingSAE[Any]:
    sizes = {"d_in": D_IN, "d_out": D_OUT, "d_sae": D_SAE}
    config = get_sae_training_class(architecture)[1](**sizes, **SETTINGS[architecture], **changes)
    with temporary_seed(0):
        return TrainingSAE.from_dict(config.to_dict())


def _rows(n: int, generator: torch.Generator) -> Tensor:
    """An input, and what a small ReLU network makes of it."""
    weights = torch.Generator().manual_seed(7)
    first, second = (
        torch.randn(D_IN, 12, generator=weights),
        torch.randn(12, D_OUT, generator=weights),
    )
    x = torch.randn(n, D_IN, generator=generator)
    return torch.cat([x, (x @ first).relu() @ second / 3], dim=1)


@pytest.mark.parametrize("architecture", SETTINGS)
def test_it_learns_under_saelens_s_trainer_and_is_saved_as_saelens_s(architecture, tmp_path):
    sae = _transcoder(architecture)
    generator = torch.Generator().manual_seed(0)
    trainer = SAETrainer(
        SAETrainerConfig(400 * 64, 64, lr=1e-2, lr_end=1e-3),
        sae,
        iter(lambda: _rows(64, generator), None),
    )
    sae = trainer.fit()
    x, y = _rows(500, torch.Generator().manual_seed(1)).split([D_IN, D_OUT], dim=1)
    with torch.no_grad():
        unexplained = (sae(x) - y).square().sum() / (y - y.mean(0)).square().sum()
    assert unexplained < 0.2

    sae.save_inference_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path)
    assert type(loaded) is get_sae_class(architecture)[0]
    with torch.no_grad():
        torch.testing.assert_close(loaded.encode(x), sae.encode(x))
        torch.testing.assert_close(loaded(x), sae(x))
    checkpoint = tmp_path / "checkpoint"
    sae.save_model(checkpoint)
    with torch.no_grad():
        torch.testing.assert_close(SAE.load_from_disk(checkpoint)(x), sae(x))
        torch.testing.assert_close(TrainingSAE.load_from_disk(checkpoint)(x), sae(x))


def test_the_loss_by_hand():
    sae = _transcoder("skip_transcoder", decoder_init_norm=None)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.zero_()
        sae.W_enc[0, 0] = 1.0  # latent 0 is the positive part of x0
        sae.W_dec[0, 2] = 3.0  # and writes three times itself to output 2
        sae.W_skip[5, 1] = -1.0  # output 5 is −x1
        sae.b_dec[7] = 0.5
    x = torch.tensor([[2.0, 4.0, 0, 0, 0, 0], [-2.0, 0, 0, 0, 0, 0]])
    target = torch.zeros(2, D_OUT)
    target[0, 2] = 5.0
    step = TrainStepInput(torch.cat([x, target], 1), {"l1": 0.1}, None, 0, False)
    output = sae.training_forward_pass(step_input=step)
    # row 0: (6 − 5)² + (−4)² + 0.5² = 17.25; row 1: 0.25
    assert output.losses["mse_loss"].item() == pytest.approx((17.25 + 0.25) / 2)
    # 0.1 · the mean of 2 and 0, times the decoder row's norm 3
    assert output.losses["l1_loss"].item() == pytest.approx(0.1 * 3.0)
    assert output.loss.item() == pytest.approx(8.75 + 0.3)
    assert torch.equal(output.sae_in, target)


def test_settings_that_make_no_transcoder_are_refused():
    with pytest.raises(ValueError, match="d_out is 0; want the width of the output hook"):
        get_sae_training_class("transcoder")[1](d_in=4, d_sae=8, d_out=0)
    for setting, value in (("apply_b_dec_to_input", True), ("normalize_activations", "layer_norm")):
        with pytest.raises(ValueError, match=f"{setting} is {value!r}; want"):
            _transcoder("transcoder", **{setting: value})
