from __future__ import annotations

import copy
import math

import pytest
import torch
from sae_lens import (
    SAE,
    SAETrainer,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TrainingSAE,
)
from sae_lens.saes.sae import TrainStepInput

from benchmarks.dead_latents import trainer_config
from vit_sae_plugin.saes import PatchSAE, PatchTrainingSAE, PatchTrainingSAEConfig
from vit_sae_plugin.saes.geometric_median import geometric_median

D_IN, D_SAE = 6, 20


def make_sae(seed: int = 0, **settings) -> PatchTrainingSAE:
    torch.manual_seed(seed)
    return PatchTrainingSAE(PatchTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, **settings))


def rows(n: int = 40, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, D_IN, generator=torch.Generator().manual_seed(seed)) + 2


def step_input(sae_in: torch.Tensor, n_training_steps: int = 0, dead=()) -> TrainStepInput:
    mask = torch.zeros(D_SAE, dtype=torch.bool)
    mask[list(dead)] = True
    return TrainStepInput(
        sae_in=sae_in,
        coefficients={"l1": 0.1},
        dead_neuron_mask=mask,
        n_training_steps=n_training_steps,
        is_logging_step=False,
    )


def run_step(sae: PatchTrainingSAE, n_training_steps: int = 0, dead=(), lr: float = 0.1) -> None:
    optimizer = torch.optim.SGD(sae.parameters(), lr=lr)
    sae.training_forward_pass(step_input(rows(), n_training_steps, dead)).loss.backward()
    optimizer.step()


def test_defaults_are_the_published_ones():
    cfg = PatchTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE)
    assert (cfg.l1_coefficient, cfg.l1_warm_up_steps, cfg.use_ghost_grads) == (8e-5, 0, True)
    assert (cfg.b_dec_init_method, cfg.mse_normalization) == ("geometric_median", "input_norm")
    assert cfg.cls_mse_coefficient == 1.0
    assert PatchTrainingSAE(cfg).get_coefficients()["l1"] == (8e-5, 0)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("b_dec_init_method", "median"),
        ("mse_normalization", "l2"),
        ("l1_coefficient", -1.0),
        ("l1_warm_up_steps", -1),
        ("cls_mse_coefficient", -0.5),
        ("decoder_init_norm", 0.1),
    ],
)
def test_wrong_settings_are_refused_by_name_and_value(setting, value):
    with pytest.raises(ValueError, match=f"{setting}.*{value}"):
        PatchTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, **{setting: value})


def test_initial_weights():
    torch.manual_seed(0)
    sae = PatchTrainingSAE(PatchTrainingSAEConfig(d_in=32, d_sae=512))
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(512))
    bound = math.sqrt(6 / 512)
    assert 0.99 * bound < sae.W_enc.abs().max() <= bound
    assert not torch.allclose(sae.W_enc, sae.W_dec.T, atol=0.01)
    assert torch.all(sae.b_enc == 0)
    assert torch.all(sae.b_dec == 0)


def hand_made(**settings) -> tuple[PatchTrainingSAE, torch.Tensor]:
    """Two features, two latents; tokens (3, 4) and (0, -2). Latent 0 reads and writes feature 0."""
    sae = PatchTrainingSAE(
        PatchTrainingSAEConfig(d_in=2, d_sae=2, b_dec_init_method="zeros", **settings)
    )
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.5]]))
        sae.W_dec.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    return sae, torch.tensor([[3.0, 4.0], [0.0, -2.0]])


def hand_made_losses(sae: PatchTrainingSAE, sae_in: torch.Tensor) -> dict[str, float]:
    output = sae.training_forward_pass(
        TrainStepInput(sae_in, {"l1": 0.1}, torch.zeros(2, dtype=torch.bool), 0, False)
    )
    assert output.loss.item() == pytest.approx(sum(v.item() for v in output.losses.values()))
    return {name: value.item() for name, value in output.losses.items()}


def test_loss_by_hand():
    # h = (3, 2), (0, 0); with unit rows the reconstruction is (3, 2), (0, 0).
    # Squared errors (0, 4), (0, 4); norms of the inputs 5 and 2.
    sae, sae_in = hand_made()
    losses = hand_made_losses(sae, sae_in)
    assert losses == pytest.approx(
        {"mse_loss": (4 / 5 + 4 / 2) / 4, "l1_loss": 0.1 * 5 / 2, "ghost_grad_loss": 0.0}
    )
    sae, sae_in = hand_made(mse_normalization="none", use_ghost_grads=False)
    assert hand_made_losses(sae, sae_in) == pytest.approx({"mse_loss": 2.0, "l1_loss": 0.25})


def test_class_token_weight_by_hand():
    sae, sae_in = hand_made(cls_mse_coefficient=3.0)
    assert hand_made_losses(sae, sae_in[None])["mse_loss"] == pytest.approx((3 * 4 / 5 + 2) / 4)
    with pytest.raises(ValueError, match=r"input is \[2, 2\]; want \[batch, token, d_in\]"):
        hand_made_losses(sae, sae_in)


def test_documented_conversion_from_the_coefficients_of_sae_lens():
    ours = make_sae(mse_normalization="none", b_dec_init_method="zeros")
    theirs = StandardTrainingSAE(StandardTrainingSAEConfig(D_IN, D_SAE))
    weights = {name: ours.state_dict()[name] for name in theirs.state_dict()}
    theirs.load_state_dict(weights)
    step = step_input(rows())
    loss = ours.training_forward_pass(step).loss
    step.coefficients = {"l1": step.coefficients["l1"] * D_IN}
    torch.testing.assert_close(loss * D_IN, theirs.training_forward_pass(step).loss)


def test_penalty_warms_up_under_the_stock_trainer():
    sae = make_sae(l1_coefficient=0.4, l1_warm_up_steps=4)
    trainer = SAETrainer(trainer_config(lr=1e-3, n_steps=9, dead_feature_window=9), sae, iter(()))
    penalties = []
    for _ in range(6):
        penalties.append(trainer.get_coefficients()["l1"])
        trainer.step(rows())
    assert penalties == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.4])


@pytest.mark.parametrize(("dtype", "rtol"), [("bfloat16", 0.02), ("float64", 1e-5)])
def test_other_precisions_give_the_same_loss(dtype, rtol):
    reference = make_sae(b_dec_init_method="zeros")
    sae = make_sae(b_dec_init_method="zeros", dtype=dtype)
    sae.load_state_dict(reference.state_dict())
    step = step_input(rows(), dead=[1])
    loss = sae.training_forward_pass(step).loss
    loss.backward()
    assert sae.W_dec.grad.dtype == sae.dtype
    expected = reference.training_forward_pass(step).loss
    torch.testing.assert_close(loss.float(), expected, rtol=rtol, atol=0)


def test_a_token_of_zeros_has_a_finite_loss():
    sae = make_sae()
    output = sae.training_forward_pass(step_input(torch.cat([torch.zeros(1, D_IN), rows()])))
    output.loss.backward()
    assert output.loss.isfinite()
    assert sae.W_enc.grad.isfinite().all()


def saved_and_loaded(sae, tmp_path):
    sae.save_model(tmp_path)
    return TrainingSAE.load_from_disk(tmp_path)


def deep_copied(sae, tmp_path):
    return copy.deepcopy(sae)


@pytest.mark.parametrize("transported", [deep_copied, saved_and_loaded])
@pytest.mark.parametrize("autocast", [False, True])
def test_decoder_stays_on_the_unit_sphere(transported, autocast, tmp_path):
    sae = make_sae()
    run_step(sae, lr=1.0)
    assert not torch.allclose(sae.W_dec.norm(dim=-1), torch.ones(D_SAE), atol=1e-4)
    sae = transported(sae, tmp_path)
    sae.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        output = sae.training_forward_pass(step_input(rows(), 1, dead=[3, 4]))
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE))
    output.loss.backward()
    along_row = (sae.W_dec.grad * sae.W_dec).sum(dim=-1)
    assert sae.W_dec.grad.norm() > 1e-3
    torch.testing.assert_close(along_row, torch.zeros(D_SAE), rtol=0, atol=1e-6)


def test_evaluation_changes_nothing():
    sae = make_sae().eval()
    with torch.no_grad():
        sae.W_dec.mul_(3)
    before = copy.deepcopy(sae.state_dict())
    output = sae.training_forward_pass(step_input(rows(), dead=[0]))
    assert "ghost_grad_loss" not in output.losses
    for name, value in sae.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_folding_an_input_scale_keeps_outputs_and_unit_rows():
    sae = make_sae(normalize_activations="expected_average_only_in")
    run_step(sae)
    expected = sae(rows() * 5) / 5
    sae.fold_activation_norm_scaling_factor(5.0)
    torch.testing.assert_close(sae(rows()), expected)
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE))


def test_folding_a_whitening_keeps_outputs_and_unit_rows():
    sae = make_sae(normalize_activations="covariance_whitening")
    run_step(sae)
    mean, matrix = rows(1, seed=5)[0], torch.randn(D_IN, D_IN) + 3 * torch.eye(D_IN)
    inverse = torch.linalg.inv(matrix)
    expected = sae((rows() - mean) @ matrix) @ inverse + mean
    sae.fold_activation_whitening(mean, matrix, inverse)
    torch.testing.assert_close(sae(rows()), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE))


@pytest.mark.parametrize("shape", [(40, D_IN), (4, 10, D_IN)])
def test_b_dec_starts_at_a_central_point_of_the_first_batch(shape):
    batch = rows().reshape(shape)
    for method, expected in {
        "geometric_median": geometric_median(rows()),
        "mean": rows().mean(dim=0),
        "zeros": torch.zeros(D_IN),
    }.items():
        sae = make_sae(b_dec_init_method=method)
        sae.training_forward_pass(step_input(batch))
        torch.testing.assert_close(sae.b_dec.data, expected)


def test_b_dec_is_central_among_normalised_activations():
    sae = make_sae(b_dec_init_method="mean", normalize_activations="layer_norm")
    sae.training_forward_pass(step_input(rows()))
    centred = rows() - rows().mean(dim=-1, keepdim=True)
    expected = (centred / (rows().std(dim=-1, keepdim=True) + 1e-5)).mean(dim=0)
    torch.testing.assert_close(sae.b_dec.data, expected)


def checkpoint_loaded_by_sae_lens(sae, tmp_path):
    sae.save_model(tmp_path)
    return TrainingSAE.load_from_disk(tmp_path)


def checkpoint_weights_loaded_into_a_new_one(sae, tmp_path):
    sae.save_model(tmp_path)
    new = make_sae(seed=9)
    new.load_weights_from_checkpoint(tmp_path)
    return new


def state_dict_loaded_into_a_new_one(sae, tmp_path):
    new = make_sae(seed=9)
    new.load_state_dict(sae.state_dict())
    return new


def inference_folder_loaded(sae, tmp_path):
    sae.save_inference_model(tmp_path)
    return TrainingSAE.load_from_disk(tmp_path)


@pytest.mark.parametrize(
    "resumed",
    [
        deep_copied,
        checkpoint_loaded_by_sae_lens,
        checkpoint_weights_loaded_into_a_new_one,
        state_dict_loaded_into_a_new_one,
        inference_folder_loaded,
    ],
)
def test_b_dec_is_never_set_again(resumed, tmp_path):
    sae = make_sae()
    run_step(sae)
    sae = resumed(sae, tmp_path)
    b_dec = sae.b_dec.detach().clone()
    for n_training_steps in (0, 1):
        sae.training_forward_pass(step_input(rows(seed=7) + 10, n_training_steps))
        assert torch.equal(sae.b_dec, b_dec)


def test_an_sae_saved_before_its_first_step_still_gets_its_b_dec(tmp_path):
    sae = saved_and_loaded(make_sae(), tmp_path)
    sae.training_forward_pass(step_input(rows()))
    torch.testing.assert_close(sae.b_dec.data, geometric_median(rows()))


@pytest.mark.parametrize("save", ["save_model", "save_inference_model"])
def test_checkpoints_and_inference_folders_load_as_patch_sae(save, tmp_path):
    sae = make_sae()
    run_step(sae)
    getattr(sae, save)(tmp_path)
    loaded = SAE.load_from_disk(tmp_path)
    assert type(loaded) is PatchSAE
    assert set(loaded.state_dict()) == {"W_enc", "b_enc", "W_dec", "b_dec"}
    torch.testing.assert_close(loaded(rows()), sae(rows()))
    torch.testing.assert_close(loaded.encode(rows()), sae.encode(rows()))


def test_training_on_from_an_inference_folder_keeps_the_settings(tmp_path):
    sae = make_sae(l1_coefficient=0.5, mse_normalization="none", use_ghost_grads=False)
    sae.save_inference_model(tmp_path)
    cfg = TrainingSAE.load_from_disk(tmp_path).cfg
    assert (cfg.l1_coefficient, cfg.mse_normalization) == (0.5, "none")
    assert cfg.use_ghost_grads is False


def test_compiled_as_one_graph_it_trains_the_same():
    eager, compiled = make_sae(), make_sae()
    compiled.training_forward_pass = torch.compile(
        compiled.training_forward_pass, fullgraph=True, backend="aot_eager"
    )
    for n_training_steps, dead in enumerate([(), (3, 4), (5,)]):
        for sae in (eager, compiled):
            run_step(sae, n_training_steps, dead)
    for name, value in eager.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value)
