"""A batch in parts trains an SAE as the whole batch does."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from sae_lens import LoggingConfig, TrainingSAE
from sae_lens.config import SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import TrainStepInput
from sae_lens.util import temporary_seed

from tests.training.small_run import (
    D_IN,
    SAE_SETTINGS,
    sae_config,
    small_config,
    small_images,
    small_model,
)
from vit_sae_plugin.saes import patch_sae
from vit_sae_plugin.training import ViTSAETrainer, ViTSAETrainingRunner
from vit_sae_plugin.training.batch_parts import MEANS_OVER_ROWS, step_in_parts

N_ROWS, N_STEPS = 32, 6
FIRST_BATCH = "patchsae whose first batch says more"
CASES = {
    **{name: (name, {}) for name in ("standard", "gated", "topk", "jumprelu", "patchsae")},
    **{name: (name, {}) for name in ("standard_ghost", "topk_ghost")},
    FIRST_BATCH: ("patchsae", {"relative_l1_coefficient": 0.3}),
    "standard_relative_l1": ("standard_relative_l1", {"l1_coefficient": 0.1}),
    "matryoshka_topk": ("matryoshka_topk", {"k_list": [4, 16], "use_ghost_grads": True}),
    "matryoshka_topk, nmse": ("matryoshka_topk", {"k_start": 8, "reconstruction_loss": "nmse"}),
    "transcoder": ("transcoder", {"d_out": D_IN // 2, "d_in": D_IN // 2}),
}


def train(architecture, settings, n_parts):
    config_class = get_sae_training_class(architecture)[1]
    settings = {"d_in": D_IN, "d_sae": 48, **SAE_SETTINGS.get(architecture, {}), **settings}
    # in double precision, for Adam makes whole steps of gradients that are all rounding
    with temporary_seed(0):
        sae = TrainingSAE.from_dict(config_class(**settings, dtype="float64").to_dict())
    cfg = SAETrainerConfig(
        10**6,
        N_ROWS,
        lr=1e-2,
        lr_end=1e-3,
        dead_feature_window=2,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = ViTSAETrainer(cfg, sae, iter(()), n_parts=n_parts)
    # so that some latents die
    trainer.n_forward_passes_since_fired[:6] = 10
    with torch.no_grad():
        if hasattr(sae, "b_enc"):
            sae.b_enc[:6] -= 4
    generator = torch.Generator().manual_seed(1)
    outputs = []
    for _ in range(N_STEPS):
        rows = torch.randn(N_ROWS, D_IN, generator=generator, dtype=torch.float64)
        outputs.append(trainer.step(rows))
        trainer.n_training_steps += 1
    return trainer, outputs


@pytest.mark.parametrize(
    ("case", "way"),
    [*[(case, "C") for case in CASES], ("patchsae", "torch"), (FIRST_BATCH, "torch")],
)
def test_weights_losses_and_counts_are_those_of_the_whole_batch(case, way, monkeypatch):
    if way == "torch":
        monkeypatch.setattr(patch_sae, "step_kernels", lambda dtype: None)
    (whole, outputs), (parts, of_parts) = (train(*CASES[case], n_parts) for n_parts in (1, 3))
    for (name, mine), other in zip(
        parts.sae.state_dict().items(), whole.sae.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6, msg=name)
    for name in ("act_freq_scores", "n_forward_passes_since_fired"):
        assert torch.equal(getattr(parts, name), getattr(whole, name)), name
    torch.testing.assert_close(parts.grad_norm, whole.grad_norm)
    for mine, other in zip(of_parts, outputs, strict=True):
        torch.testing.assert_close(mine.loss, other.loss)
        torch.testing.assert_close(mine.losses, other.losses)
        torch.testing.assert_close(mine.sae_out, other.sae_out)
        assert mine.metrics.keys() == other.metrics.keys()
        assert len(mine.feature_acts) == 10
        logs = [t.build_train_step_log_dict(o, 1) for t, o in ((parts, mine), (whole, other))]
        assert logs[0] == pytest.approx(logs[1], rel=1e-6)


def test_parts_are_added_to_a_gradient_that_is_there():
    sae = TrainingSAE.from_dict(sae_config("patchsae", dtype="float64").to_dict())
    parameters = list(sae.parameters())
    with temporary_seed(0):
        for parameter in parameters:
            parameter.data.normal_()
        before = [torch.randn_like(parameter) for parameter in parameters]
        rows = torch.randn(N_ROWS, D_IN, dtype=torch.float64)
    step = TrainStepInput(rows, {"l1": 0.1}, None, 3, False)
    sae.training_forward_pass(step).loss.backward()
    gradients = [parameter.grad for parameter in parameters]
    for parameter, start in zip(parameters, before, strict=True):
        parameter.grad = start.clone()
    step_in_parts(sae, step, 3, nullcontext())
    for parameter, start, gradient in zip(parameters, before, gradients, strict=True):
        torch.testing.assert_close(parameter.grad, start + gradient)


def test_every_architecture_that_may_be_split_is_tested():
    tested = {architecture for architecture, _ in CASES.values()}
    kinds = {"skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"}
    assert tested | kinds == MEANS_OVER_ROWS


def test_a_run_in_parts(monkeypatch):
    settings = {"training_tokens": 4 * 128, "train_batch_parts": 3, "verbose": False}
    runner = ViTSAETrainingRunner(small_config(None, **settings), small_images(), small_model())
    sizes, step = [], runner.sae.training_forward_pass
    runner.sae.training_forward_pass = lambda step_input: (
        sizes.append(len(step_input.sae_in)) or step(step_input=step_input)
    )
    runner.run()
    assert sizes == 4 * [43, 43, 42]


@pytest.mark.parametrize("n_parts", [0, 129])
def test_a_number_of_parts_that_cant_be_is_refused(n_parts):
    with pytest.raises(ValueError, match=f"train_batch_parts is {n_parts}; want 1 to 128"):
        small_config(None, train_batch_parts=n_parts)


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_selection_over_the_whole_batch_is_not_split(architecture):
    with pytest.raises(ValueError, match=f"a step of {architecture} in parts"):
        small_config(None, architecture, train_batch_parts=2)
    assert sae_config(architecture).architecture() not in MEANS_OVER_ROWS
