from __future__ import annotations

import copy

import pytest
import torch
from sae_lens import SAE, StandardSAE, StandardTrainingSAEConfig, TopKSAE, TrainingSAE
from sae_lens.saes.sae import TrainStepInput

from vit_sae_plugin.saes import (
    StandardGhostTrainingSAEConfig,
    TopKGhostTrainingSAEConfig,
    ghost_gradient_error,
)

D_IN, D_SAE = 6, 20
CONFIGS = {
    "standard_ghost": StandardGhostTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE),
    "topk_ghost": TopKGhostTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=3),
}


def make_sae(architecture: str, **settings) -> TrainingSAE:
    torch.manual_seed(0)
    return TrainingSAE.from_dict(CONFIGS[architecture].to_dict() | settings)


def step_input(dead=()) -> TrainStepInput:
    mask = torch.zeros(D_SAE, dtype=torch.bool)
    mask[list(dead)] = True
    rows = torch.randn(30, D_IN, generator=torch.Generator().manual_seed(1))
    return TrainStepInput(rows, {"l1": 0.1}, mask, 0, False)


def test_standard_ghost_without_dead_latents_is_standard():
    torch.manual_seed(0)
    standard = TrainingSAE.from_dict(StandardTrainingSAEConfig(D_IN, D_SAE).to_dict())
    expected = standard.training_forward_pass(step_input())
    output = make_sae("standard_ghost").training_forward_pass(step_input())
    assert output.losses.pop("ghost_grad_loss") == 0
    assert output.losses == expected.losses
    assert output.loss == expected.loss


@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_ghost_term_is_summed_over_features_as_the_squared_error_is(architecture):
    sae, dead = make_sae(architecture), [2, 7]
    step = step_input(dead)
    output = sae.training_forward_pass(step)
    error = (output.sae_out - output.sae_in).square()
    rows = torch.nn.functional.normalize(sae.W_dec, dim=-1)
    if architecture == "standard_ghost":
        rows = sae.W_dec
    ghost = ghost_gradient_error(
        step.sae_in, output.sae_out, output.hidden_pre, rows, step.dead_neuron_mask, error
    )
    torch.testing.assert_close(output.losses["ghost_grad_loss"], ghost.sum(dim=-1).mean())
    torch.testing.assert_close(output.loss, sum(output.losses.values()))
    output.loss.backward()
    assert torch.all(sae.W_dec.grad[dead].abs().sum(dim=-1) > 0)


def test_topk_ghost_replaces_the_auxiliary_loss_unless_asked_for_both():
    step = step_input(dead=[2, 7])
    assert set(make_sae("topk_ghost").training_forward_pass(step).losses) == {
        "mse_loss",
        "ghost_grad_loss",
    }
    both = make_sae("topk_ghost", aux_loss_coefficient=1.0).training_forward_pass(step).losses
    assert both["auxiliary_reconstruction_loss"] > 0
    assert both["ghost_grad_loss"] > 0


@pytest.mark.parametrize("architecture", CONFIGS)
def test_evaluation_has_no_ghost_term(architecture):
    output = make_sae(architecture).eval().training_forward_pass(step_input(dead=[2]))
    assert "ghost_grad_loss" not in output.losses


@pytest.mark.parametrize("architecture", CONFIGS)
def test_saved_as_the_plain_architecture_and_checkpoints_open_too(architecture, tmp_path):
    sae = make_sae(architecture)
    plain = {"standard_ghost": StandardSAE, "topk_ghost": TopKSAE}[architecture]
    rows = step_input().sae_in
    expected = copy.deepcopy(sae)(rows)
    for save in (sae.save_inference_model, sae.save_model):
        save(tmp_path)
        loaded = SAE.load_from_disk(tmp_path)
        assert type(loaded) is plain
        torch.testing.assert_close(loaded(rows), expected)
    assert type(TrainingSAE.load_from_disk(tmp_path)) is type(sae)
