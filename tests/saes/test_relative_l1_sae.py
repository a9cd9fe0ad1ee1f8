import pytest
import torch
from sae_lens import SAE, StandardSAE
from sae_lens.saes.sae import TrainingSAE, TrainStepInput

from vit_sae_plugin.saes.relative_l1_sae import RelativeL1TrainingSAE, RelativeL1TrainingSAEConfig


def new_sae(**settings):
    torch.manual_seed(0)
    return RelativeL1TrainingSAE(RelativeL1TrainingSAEConfig(d_in=2, d_sae=3, **settings))


def step(sae, x):
    return sae.training_forward_pass(
        step_input=TrainStepInput(
            sae_in=x,
            coefficients={"l1": sae.cfg.l1_coefficient},
            dead_neuron_mask=None,
            n_training_steps=0,
            is_logging_step=False,
        )
    )


def test_the_loss_by_hand():
    sae = new_sae(l1_coefficient=0.5)
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0, 0.0, -1.0], [0.0, 2.0, 0.0]]))
        sae.W_dec.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
    # Latents (3, 8, 0), reconstruction (3, 8); ‖h‖₁ / ‖x‖ = 11 / 5.
    output = step(sae, torch.tensor([[3.0, 4.0]]))
    assert output.losses["mse_loss"].item() == pytest.approx(16 / 2)
    assert output.losses["l1_loss"].item() == pytest.approx(0.5 * 11 / 5)
    assert output.loss.item() == pytest.approx(8 + 1.1)


def test_a_row_of_zeros_has_a_finite_loss():
    assert torch.isfinite(step(new_sae(), torch.zeros(1, 2)).loss)


def test_rescaling_leaves_the_function_and_the_gradient_has_no_parallel_part():
    sae = new_sae()
    torch.nn.init.normal_(sae.W_dec)
    torch.nn.init.normal_(sae.b_enc)
    x = torch.randn(20, 2)
    before = sae(x)
    output = step(sae, x)
    output.loss.backward()
    assert torch.allclose(sae(x), before, atol=1e-6)
    assert torch.allclose(sae.W_dec.norm(dim=-1), torch.ones(3))
    assert (sae.W_dec.grad * sae.W_dec).sum(dim=-1).abs().max() < 1e-6
    assert sae.W_dec.grad.abs().max() > 1e-3


def test_it_is_saved_as_a_plain_standard_sae(tmp_path):
    sae = TrainingSAE.from_dict(
        {"architecture": "standard_relative_l1", "d_in": 2, "d_sae": 3, "l1_coefficient": 0.1}
    )
    sae.save_inference_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path)
    assert type(loaded) is StandardSAE
    x = torch.randn(5, 2)
    torch.testing.assert_close(loaded(x), sae(x))


def test_other_norms_are_refused():
    with pytest.raises(ValueError, match=r"lp_norm is 0\.5"):
        new_sae(lp_norm=0.5)
