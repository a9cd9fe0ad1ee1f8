"""One training step of MatryoshkaTopKTrainingSAE against recorded steps of the published method."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from sae_lens.saes.sae import TrainStepInput
from safetensors import safe_open

from vit_sae_plugin.saes import (
    MatryoshkaTopKTrainingSAE,
    MatryoshkaTopKTrainingSAEConfig,
    matryoshka_topk_training,
)

DATA = Path(__file__).parents[1] / "data"
PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
ORACLES = {
    "uw_mse": {"level_weights": "uniform", "reconstruction_loss": "mse"},
    "rw_mse": {"level_weights": "reverse", "reconstruction_loss": "mse"},
    "rw_nmse": {"level_weights": "reverse", "reconstruction_loss": "nmse"},
    "uw_softcap": {"level_weights": "uniform", "reconstruction_loss": "mse", "soft_cap": 30.0},
}


@pytest.fixture(params=ORACLES)
def step(request):
    """The SAE before the step, the step's input, and what was recorded."""
    with safe_open(DATA / f"msae_step_{request.param}.safetensors", "pt") as file:
        settings = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    d_in, d_sae = tensors["W_enc"].shape
    cfg = MatryoshkaTopKTrainingSAEConfig(
        d_in=d_in, d_sae=d_sae, k_list=json.loads(settings["nesting"]), **ORACLES[request.param]
    )
    assert settings["reconstruction_loss"] == cfg.reconstruction_loss
    assert float(settings["soft_cap"]) == (cfg.soft_cap or 0)
    sae = MatryoshkaTopKTrainingSAE(cfg)
    sae.load_state_dict({name: tensors[name] for name in PARAMETERS})
    step_input = TrainStepInput(
        sae_in=tensors["x"],
        coefficients={},
        dead_neuron_mask=torch.zeros(d_sae, dtype=torch.bool),
        n_training_steps=0,
        is_logging_step=False,
    )
    return sae, step_input, settings, tensors


def relative_error(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return ((ours - expected).norm() / expected.norm()).item()


def test_loss_of_every_level_and_in_all(step):
    sae, step_input, settings, tensors = step
    output = sae.training_forward_pass(step_input)
    name = f"{sae.cfg.reconstruction_loss}_loss"
    for k in json.loads(settings["nesting"]):
        expected = tensors[f"level_loss/{k}"].squeeze()
        torch.testing.assert_close(output.metrics[f"{name}_k_{k}"], expected, **CLOSE)
    torch.testing.assert_close(output.loss, tensors["loss"].squeeze(), **CLOSE)
    assert output.losses.keys() == {name}
    torch.testing.assert_close(output.feature_acts, tensors["latents_all_relu"], **CLOSE)
    torch.testing.assert_close(output.sae_out, tensors["recon_all_relu"], **CLOSE)


def test_reconstruction_of_every_level(step, tmp_path):
    sae, step_input, settings, tensors = step
    for k in json.loads(settings["nesting"]):
        latents = sae.encode(step_input.sae_in, k=k)
        torch.testing.assert_close(sae.decode(latents), tensors[f"level_recon/{k}"], **CLOSE)
        if f"latents_k/{k}" in tensors:
            torch.testing.assert_close(latents, tensors[f"latents_k/{k}"], **CLOSE)
    torch.testing.assert_close(sae.encode(step_input.sae_in), tensors["latents_all_relu"], **CLOSE)
    torch.testing.assert_close(sae(step_input.sae_in), tensors["recon_all_relu"], **CLOSE)


def test_raw_gradients(step, monkeypatch):
    sae, step_input, _, tensors = step
    monkeypatch.setattr(matryoshka_topk_training, "tangent_rows", lambda W_dec: W_dec)
    sae.training_forward_pass(step_input).loss.backward()
    for name in PARAMETERS:
        gradient = sae.get_parameter(name).grad
        assert relative_error(gradient, tensors[f"grad_raw/{name}"]) <= 5e-4, name


def test_projected_gradient_clip_and_optimizer_step(step):
    sae, step_input, settings, tensors = step
    optimizer = torch.optim.AdamW(
        sae.parameters(), lr=float(settings["lr"]), eps=6.25e-10, weight_decay=0.0
    )
    sae.training_forward_pass(step_input).loss.backward()
    assert relative_error(sae.W_dec.grad, tensors["grad_projected/W_dec"]) <= 5e-4
    # The projection has something to do: unprojected, the same comparison fails by far.
    assert relative_error(tensors["grad_raw/W_dec"], tensors["grad_projected/W_dec"]) > 0.05
    norm = torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
    torch.testing.assert_close(norm, tensors["grad_norm_before_clip"].squeeze(), **CLOSE)
    optimizer.step()
    for name in PARAMETERS:
        parameter = sae.get_parameter(name).data
        assert relative_error(parameter, tensors[f"after_adamw_step/{name}"]) <= 5e-4, name
