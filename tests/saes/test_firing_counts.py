from __future__ import annotations

import dataclasses

import torch
from sae_lens.saes.sae import TrainStepInput

from vit_sae_plugin.saes import MatryoshkaTopKTrainingSAE, MatryoshkaTopKTrainingSAEConfig
from vit_sae_plugin.saes.firing_counts import LateStepOutput, firing_counts


def test_late_latents_are_made_once_and_only_when_asked_for():
    made = []

    def make() -> torch.Tensor:
        made.append(torch.eye(2))
        return made[-1]

    output = LateStepOutput(make, sae_in=torch.zeros(2, 2), n_fired=torch.ones(2))
    assert firing_counts(output).tolist() == [1.0, 1.0]
    assert made == []
    assert output.feature_acts is output.feature_acts
    assert len(made) == 1
    assert output.metrics == {}


def test_matryoshka_s_count_is_of_the_latents_it_returns():
    torch.manual_seed(0)
    sae = MatryoshkaTopKTrainingSAE(MatryoshkaTopKTrainingSAEConfig(8, 20, k_list=[2, 6]))
    output = sae.training_forward_pass(TrainStepInput(torch.randn(30, 8), {}, None, 0, False))
    assert output.n_fired.sum() == 30 * 6
    assert torch.equal(firing_counts(output), (output.feature_acts != 0).sum(dim=0).float())


def test_a_hook_on_the_latents_runs_within_the_step():
    sae = MatryoshkaTopKTrainingSAE(MatryoshkaTopKTrainingSAEConfig(8, 20, k_list=[2, 6]))
    seen = []
    sae.hook_sae_acts_post.add_hook(lambda acts, hook: seen.append(acts.shape))
    sae.training_forward_pass(TrainStepInput(torch.randn(30, 8), {}, None, 0, False))
    assert seen == [(30, 20)]


def test_one_field_of_a_late_output_can_be_replaced():
    fields = dict.fromkeys(("sae_in", "sae_out", "hidden_pre", "loss", "losses"))
    output = LateStepOutput(lambda: torch.eye(2), **fields)
    changed = dataclasses.replace(output, loss=torch.ones(()))
    assert changed.loss == 1
    assert torch.equal(changed.feature_acts, torch.eye(2))
