"""One training step of PatchTrainingSAE against recorded steps of the published method."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sae_lens.saes.sae import TrainStepInput
from safetensors import safe_open

from vit_sae_plugin.saes import PatchTrainingSAE, PatchTrainingSAEConfig, patch_sae

DATA = Path(__file__).parents[1] / "data"
PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")
LOSSES = {
    "mse_loss": "mse_loss",
    "l1_loss": "l1_loss",
    "ghost_grad_loss": "mse_loss_ghost_resid",
}


@pytest.fixture(params=["patches", "cls_weighted", "flat", "nodead"])
def oracle(request):
    with safe_open(DATA / f"patchsae_step_{request.param}.safetensors", "pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def sae_before_step(settings, tensors) -> PatchTrainingSAE:
    cfg = PatchTrainingSAEConfig(
        d_in=int(settings["d_in"]),
        d_sae=int(settings["d_sae"]),
        l1_coefficient=float(settings["l1_coefficient"]),
        cls_mse_coefficient=float(settings["mse_cls_coefficient"]),
    )
    sae = PatchTrainingSAE(cfg)
    weights = {name: tensors[name] for name in ("W_enc", "b_enc", "b_dec")}
    weights["W_dec"] = tensors["W_dec_unnormalized"]
    sae.process_state_dict_for_loading(weights)
    sae.load_state_dict(weights)
    return sae


def step_input(sae, tensors) -> TrainStepInput:
    return TrainStepInput(
        sae_in=tensors["x"],
        coefficients={"l1": sae.cfg.l1_coefficient},
        dead_neuron_mask=tensors["dead_mask"].bool(),
        n_training_steps=0,
        is_logging_step=False,
    )


def relative_error(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return ((ours - expected).norm() / expected.norm()).item()


def test_forward_and_every_loss_term(oracle):
    settings, tensors = oracle
    sae = sae_before_step(settings, tensors)
    output = sae.training_forward_pass(step_input(sae, tensors))
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(sae.W_dec.data, tensors["W_dec"], **close)
    torch.testing.assert_close(output.feature_acts, tensors["feature_acts"], **close)
    torch.testing.assert_close(output.sae_out, tensors["sae_out"], **close)
    for ours, theirs in LOSSES.items():
        expected = tensors[f"loss/{theirs}"].squeeze()
        torch.testing.assert_close(output.losses[ours], expected, **close)
    torch.testing.assert_close(output.loss, tensors["loss/loss"].squeeze(), **close)
    assert set(output.losses) == set(LOSSES)


def test_raw_gradients(oracle, monkeypatch):
    settings, tensors = oracle
    monkeypatch.setattr(patch_sae, "tangent_rows", lambda W_dec: W_dec)
    monkeypatch.setattr(patch_sae, "step_kernels", lambda dtype: None)
    sae = sae_before_step(settings, tensors)
    sae.training_forward_pass(step_input(sae, tensors)).loss.backward()
    for name in PARAMETERS:
        gradient = sae.get_parameter(name).grad
        assert relative_error(gradient, tensors[f"grad_raw/{name}"]) <= 5e-4, name


def test_projected_gradient_and_adam_step(oracle):
    settings, tensors = oracle
    sae = sae_before_step(settings, tensors)
    optimizer = torch.optim.Adam(
        sae.parameters(),
        lr=float(settings["lr"]),
        betas=tuple(float(beta) for beta in settings["adam_betas"].split(",")),
        eps=float(settings["adam_eps"]),
    )
    sae.training_forward_pass(step_input(sae, tensors)).loss.backward()
    assert relative_error(sae.W_dec.grad, tensors["grad_projected/W_dec"]) <= 5e-4
    # The projection has something to do: unprojected, the same comparison fails by far.
    assert relative_error(tensors["grad_raw/W_dec"], tensors["grad_projected/W_dec"]) > 0.05
    optimizer.step()
    for name in PARAMETERS:
        parameter = sae.get_parameter(name).data
        assert relative_error(parameter, tensors[f"after_adam_step/{name}"]) <= 5e-4, name
