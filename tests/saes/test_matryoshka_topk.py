from __future__ import annotations

import copy

import pytest
import torch
from sae_lens import SAE, StandardSAE, TopKSAE, TrainingSAE
from sae_lens.saes.sae import TrainStepInput

from vit_sae_plugin.saes import (
    MatryoshkaTopKSAE,
    MatryoshkaTopKSAEConfig,
    MatryoshkaTopKTrainingSAE,
    MatryoshkaTopKTrainingSAEConfig,
    export_as_standard,
    export_as_topk,
)
from vit_sae_plugin.saes.auxiliary_loss import auxiliary_error
from vit_sae_plugin.saes.nested_levels import doubling_k_list, loss_weights

SIZES = {"d_in": 8, "d_sae": 24}
K_LIST = [2, 5, 24]
PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")


def training_sae(shuffled: bool = True, **settings) -> MatryoshkaTopKTrainingSAE:
    """Random weights, decoder norms and biases: nothing is one or zero by accident."""
    torch.manual_seed(0)
    cfg = MatryoshkaTopKTrainingSAEConfig(**SIZES, **({"k_list": K_LIST} | settings))
    sae = MatryoshkaTopKTrainingSAE(cfg)
    if shuffled:
        with torch.no_grad():
            for parameter in sae.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return sae


def inference_sae(**settings) -> MatryoshkaTopKSAE:
    sae = MatryoshkaTopKSAE(MatryoshkaTopKSAEConfig(**SIZES, **settings))
    sae.load_state_dict(training_sae().state_dict())
    return sae.eval()


def rows(*shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (50,)), 8, generator=torch.Generator().manual_seed(1))


def step(sae: TrainingSAE, x: torch.Tensor, dead: torch.Tensor | None = None):
    return sae.training_forward_pass(TrainStepInput(x, {}, dead, 1, False))


class TestSettings:
    def test_levels_double_up_to_all_latents(self):
        assert doubling_k_list(64, 6144) == [64, 128, 256, 512, 1024, 2048, 4096, 6144]
        assert doubling_k_list(8, 32) == [8, 16, 32]
        assert doubling_k_list(5, 5) == [5]
        cfg = MatryoshkaTopKTrainingSAEConfig(d_in=4, d_sae=100)
        assert cfg.levels() == [64, 100]

    def test_weights_of_levels(self):
        assert loss_weights("uniform", [1, 2, 3]) == [1, 1, 1]
        assert loss_weights("reverse", [1, 2, 3]) == [3, 2, 1]
        assert loss_weights([0, 2.5, 1], [1, 2, 3]) == [0, 2.5, 1]

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"k_list": [4, 4, 8]}, r"4 comes before 4; want rising numbers"),
            ({"k_list": [8, 4]}, r"8 comes before 4; want rising numbers"),
            ({"k_list": [4, 25]}, r"want at most 24, the SAE's latents"),
            ({"k_list": [0, 4]}, r"want whole numbers, each 1 or more"),
            ({"k_list": [1.5, 4]}, r"whole numbers"),
            ({"k_list": []}, r"k_list is empty"),
            ({"k_list": None}, r"k_start is 64; want 1 to d_sae, 24"),
            ({"level_weights": [1, 2]}, r"has 2 numbers; want 3, one for each level"),
            ({"level_weights": [1, -2, 1]}, r"want finite numbers from 0 on"),
            ({"level_weights": [0, 0, 0]}, r"not all 0"),
            ({"level_weights": [1, float("nan"), 1]}, r"finite"),
            ({"level_weights": "revers"}, r"level_weights is 'revers'; want"),
            ({"reconstruction_loss": "mae"}, r"reconstruction_loss is 'mae'"),
            ({"soft_cap": -1.0}, r"soft_cap is -1.0; want"),
            ({"soft_cap": 0.0}, r"soft_cap is 0.0; want"),
            ({"aux_loss_coefficient": -1.0}, r"aux_loss_coefficient is -1.0; want 0 or more"),
            ({"k": 25}, r"k is 25; want 1 to 24"),
            ({"normalize_activations": "layer_norm"}, r"decodes at several k"),
        ],
    )
    def test_bad_ones_are_refused(self, settings, message):
        with pytest.raises(ValueError, match=message):
            MatryoshkaTopKTrainingSAEConfig(**SIZES, **({"k_list": K_LIST} | settings))

    def test_a_saved_sae_can_be_trained_on_with_its_settings(self, tmp_path):
        sae = training_sae(level_weights="reverse", soft_cap=5.0, k=3)
        sae.save_inference_model(tmp_path)
        again = TrainingSAE.load_from_disk(tmp_path)
        assert isinstance(again, MatryoshkaTopKTrainingSAE)
        for name in ("k_list", "level_weights", "soft_cap", "k"):
            assert getattr(again.cfg, name) == getattr(sae.cfg, name), name


class TestInference:
    def test_k_of_a_call_of_the_config_or_none(self):
        sae = inference_sae(k=3)
        positive = sae.encode(rows(), k=24)
        hidden_pre = (rows() - sae.b_dec) @ sae.W_enc + sae.b_enc
        torch.testing.assert_close(positive, hidden_pre.relu())
        for k, latents in ((3, sae.encode(rows())), (5, sae.encode(rows(), k=5))):
            smallest_kept = positive.topk(k).values[:, -1:]
            torch.testing.assert_close(latents, positive * (positive >= smallest_kept))
        sae.cfg.k = None
        assert torch.equal(sae.encode(rows()), positive)
        with pytest.raises(ValueError, match=r"k is 0; want 1 to 24"):
            sae.encode(rows(), k=0)

    def test_training_and_inference_classes_agree(self, tmp_path):
        for settings in ({"k": 4}, {"soft_cap": 0.7}, {"tied_weights": True}):
            sae = training_sae(**settings)
            step(sae, rows())
            sae.eval().save_inference_model(tmp_path)
            loaded = SAE.load_from_disk(tmp_path)
            assert type(loaded) is MatryoshkaTopKSAE
            torch.testing.assert_close(loaded(rows()), sae(rows()))
            torch.testing.assert_close(loaded.encode(rows(), k=2), sae.encode(rows(), k=2))

    def test_soft_cap(self):
        plain, capped = inference_sae(), inference_sae(soft_cap=0.5)
        expected = 0.5 * (plain.encode(rows()) / 0.5).tanh()
        torch.testing.assert_close(capped.encode(rows()), expected)
        assert capped.encode(1000 * rows()).max() <= 0.5
        # Capped latents are equal where they are large; the choice is by what they were before.
        kept = plain.encode(1000 * rows(), k=2) > 0
        assert torch.equal(capped.encode(1000 * rows(), k=2) > 0, kept)

    def test_images_of_tokens_give_what_their_rows_give(self):
        sae = inference_sae(k=4)
        torch.testing.assert_close(sae(rows(5, 10)), sae(rows(5, 10).flatten(0, 1)).view(5, 10, 8))
        assert sae.encode_image(rows(5, 10)).shape == (5, 24)

    def test_unequal_decoder_norms_are_not_folded(self):
        sae = inference_sae(k=4)
        with pytest.raises(ValueError, match="want equal norms"):
            sae.fold_W_dec_norm()
        with torch.no_grad():
            sae.W_dec.copy_(3 * torch.nn.functional.normalize(sae.W_dec, dim=-1))
        before = sae(rows())
        sae.fold_W_dec_norm()
        torch.testing.assert_close(sae(rows()), before)
        torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(24))


class TestExport:
    def test_of_a_training_sae(self):
        sae = training_sae(tied_weights=True, k=3)
        step(sae, rows())
        assert type(export_as_topk(sae)) is TopKSAE
        torch.testing.assert_close(export_as_topk(sae)(rows()), sae(rows()))
        sae.cfg.k = None
        assert type(export_as_standard(sae)) is StandardSAE

    def test_what_can_not_be_exported_says_why(self):
        with pytest.raises(ValueError, match=r"soft_cap=2\.0"):
            export_as_standard(inference_sae(soft_cap=2.0))
        with pytest.raises(ValueError, match=r"soft_cap=2\.0"):
            export_as_topk(inference_sae(soft_cap=2.0), k=3)
        with pytest.raises(ValueError, match="want how many"):
            export_as_topk(inference_sae())
        with pytest.raises(ValueError, match="k=3 largest"):
            export_as_standard(inference_sae(k=3))


class TestInitialisation:
    def test_decoder_rows_of_norm_a_tenth_and_the_encoder_their_transpose(self):
        sae = training_sae(shuffled=False)
        torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.full((24,), 0.1))
        assert torch.equal(sae.W_enc, sae.W_dec.T)
        assert not sae.b_enc.any()
        assert not sae.b_dec.any()

    def test_the_first_step_makes_norms_one_and_keeps_the_function(self):
        sae = training_sae(shuffled=False)
        before = [sae.decode(sae.encode(rows(), k=k)) for k in K_LIST]
        step(sae, rows())
        torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(24))
        for k, expected in zip(K_LIST, before, strict=True):
            torch.testing.assert_close(sae.decode(sae.encode(rows(), k=k)), expected)


class TestStep:
    def test_norms_move_to_the_encoder_in_training_only(self):
        sae = training_sae()
        before, expected = copy.deepcopy(sae.state_dict()), sae.encode(rows())
        step(sae.eval(), rows())
        assert all(torch.equal(sae.state_dict()[name], before[name]) for name in before)
        norms = sae.W_dec.detach().norm(dim=-1)
        step(sae.train(), rows())
        torch.testing.assert_close(sae.encode(rows()), expected * norms)

    def test_gradients_equal_those_of_the_loss_written_plainly(self):
        sae = training_sae(level_weights=[1.0, 0.5, 2.0])
        step(sae, rows()).loss.backward()
        plain = {name: sae.get_parameter(name).detach().requires_grad_() for name in PARAMETERS}
        hidden_pre = (rows() - plain["b_dec"]) @ plain["W_enc"] + plain["b_enc"]
        loss = 0.0
        for k, weight in zip(K_LIST, (1.0, 0.5, 2.0), strict=True):
            values, latents = hidden_pre.topk(k)
            acts = torch.zeros_like(hidden_pre).scatter(-1, latents, values.relu())
            reconstruction = acts @ plain["W_dec"] + plain["b_dec"]
            loss = loss + weight / 3.5 * (reconstruction - rows()).square().mean()
        gradients = dict(zip(PARAMETERS, torch.autograd.grad(loss, plain.values()), strict=True))
        decoder, W_dec = gradients["W_dec"], plain["W_dec"].detach()
        gradients["W_dec"] = decoder - (decoder * W_dec).sum(-1, keepdim=True) * W_dec
        for name in PARAMETERS:
            torch.testing.assert_close(sae.get_parameter(name).grad, gradients[name])

    @pytest.mark.parametrize("apply_b_dec_to_input", [False, True])
    def test_the_gradient_of_the_input_and_of_b_dec(self, apply_b_dec_to_input):
        sae = training_sae(apply_b_dec_to_input=apply_b_dec_to_input)
        x = rows().requires_grad_()
        ours = torch.autograd.grad(
            sae.encode_with_hidden_pre(x)[1].square().sum(),
            (x, sae.b_dec, sae.W_enc),
            allow_unused=True,
        )
        centred = x - sae.b_dec * apply_b_dec_to_input
        hidden_pre = centred @ sae.W_enc + sae.b_enc
        expected = torch.autograd.grad(hidden_pre.square().sum(), (x, sae.b_dec, sae.W_enc))
        for gradient, wanted in zip(ours, expected, strict=True):
            gradient = torch.zeros_like(wanted) if gradient is None else gradient
            torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("loss", ["mse", "nmse"])
    def test_images_of_tokens_are_their_rows(self, loss):
        images, flat = (
            training_sae(reconstruction_loss=loss),
            training_sae(reconstruction_loss=loss),
        )
        ours, expected = step(images, rows(5, 10)), step(flat, rows(5, 10).flatten(0, 1))
        assert ours.sae_out.shape == (5, 10, 8)
        assert ours.feature_acts.shape == (5, 10, 24)
        torch.testing.assert_close(ours.loss, expected.loss)
        ours.loss.backward(), expected.loss.backward()
        torch.testing.assert_close(images.W_dec.grad, flat.W_dec.grad)

    def test_latents_that_no_level_keeps_do_not_fire(self):
        sae = training_sae(k_list=[2, 5])
        output = step(sae, rows())
        assert (output.feature_acts > 0).sum(dim=-1).max() == 5
        torch.testing.assert_close(output.feature_acts, sae.encode(rows(), k=5))

    def test_rows_of_zeros_and_of_nothing_active(self):
        sae = training_sae(reconstruction_loss="nmse")
        with torch.no_grad():
            sae.b_enc.fill_(-100.0)
        loss = step(sae, torch.zeros(4, 8)).loss
        loss.backward()
        assert loss.isfinite()
        assert all(parameter.grad.isfinite().all() for parameter in sae.parameters())

    def test_the_expected_norm_can_be_folded(self):
        sae = training_sae(normalize_activations="expected_average_only_in", tied_weights=True)
        step(sae, rows())
        expected = sae(2.0 * rows()) / 2.0
        sae.fold_activation_norm_scaling_factor(2.0)
        torch.testing.assert_close(sae(rows()), expected)
        step(sae, rows())  # a later step keeps the function
        torch.testing.assert_close(sae(rows()), expected)


class TestTiedWeights:
    def test_encoder_and_decoder_stay_transposes_under_adam(self):
        sae = training_sae(shuffled=False, tied_weights=True)
        optimizer = torch.optim.Adam(sae.parameters(), lr=0.01)
        losses = []
        for _ in range(30):
            output = step(sae, rows())
            losses.append(output.loss.item())
            output.loss.backward()
            torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            assert torch.equal(sae.W_enc, sae.W_dec.T)
        assert losses[-1] < 0.5 * losses[0]

    def test_the_gradient_is_that_of_both_uses(self):
        sae = training_sae(tied_weights=True, k_list=[24])
        step(sae, rows()).loss.backward()
        W = sae.W_dec.detach().requires_grad_()
        acts = ((rows() - sae.b_dec.detach()) @ W.T + sae.b_enc.detach()).relu()
        loss = (acts @ W + sae.b_dec.detach() - rows()).square().mean()
        (gradient,) = torch.autograd.grad(loss, W)
        gradient = gradient - (gradient * W).sum(-1, keepdim=True) * W
        torch.testing.assert_close(sae.W_dec.grad, gradient.detach())
        torch.testing.assert_close(sae.W_enc.grad, gradient.detach().T)


class TestDeadLatents:
    def test_auxiliary_error_by_hand(self):
        hidden_pre = torch.tensor([[3.0, 1.0, 2.0]])
        decoder_rows = torch.tensor([[9.0, 9.0], [1.0, 0.0], [0.0, 1.0]])
        dead = torch.tensor([False, True, True])
        residual = torch.tensor([[0.5, 0.5]])
        # Half of d_in is one latent: the largest dead one, number 2.
        error = auxiliary_error(residual, hidden_pre, decoder_rows, dead)
        torch.testing.assert_close(error, torch.tensor([[0.25, 2.25]]))
        assert not auxiliary_error(residual, hidden_pre, decoder_rows, dead & False).any()

    @pytest.mark.parametrize("loss", ["mse", "nmse"])
    @pytest.mark.parametrize(
        ("settings", "name"),
        [
            ({"aux_loss_coefficient": 0.1}, "auxiliary_reconstruction_loss"),
            ({"use_ghost_grads": True}, "ghost_grad_loss"),
        ],
    )
    def test_they_get_a_gradient(self, settings, name, loss):
        dead = torch.zeros(24, dtype=torch.bool)
        dead[:4] = True  # no more than take part in AuxK, d_in / 2
        for x in (rows(), rows(5, 10)):
            sae = training_sae(reconstruction_loss=loss, **settings)
            with torch.no_grad():
                sae.b_enc[:4] = -10.0
            output = step(sae, x, dead)
            assert output.losses.keys() == {f"{loss}_loss", name}
            torch.testing.assert_close(output.loss, sum(output.losses.values()))
            output.loss.backward()
            assert (sae.W_dec.grad[:4].norm(dim=-1) > 0).all()
            sae.zero_grad()
            step(sae, x, dead & False).loss.backward()
            assert not sae.W_dec.grad[:4].any()
            assert step(sae.eval(), x, dead).losses.keys() == {f"{loss}_loss"}


def test_it_survives_copying_and_autocast():
    sae = training_sae()
    twin = copy.deepcopy(sae)
    exact = step(sae, rows())
    exact.loss.backward()
    step(twin, rows()).loss.backward()
    torch.testing.assert_close(twin.W_dec.grad, sae.W_dec.grad)
    twin.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        output = step(twin, rows())
    output.loss.backward()
    torch.testing.assert_close(output.loss, exact.loss, rtol=0.03, atol=0)
    assert (twin.W_dec.grad - sae.W_dec.grad).norm() < 0.05 * sae.W_dec.grad.norm()


def test_a_compiled_step_gives_the_same():
    sae = training_sae()
    expected = step(copy.deepcopy(sae), rows()).loss
    compiled = torch.compile(sae.training_forward_pass, backend="eager")
    loss = compiled(TrainStepInput(rows(), {}, None, 1, False)).loss
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert sae.W_enc.grad.any()
