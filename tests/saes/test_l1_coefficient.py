"""λ on rows of another scale, width and mean: the loss is the same but for a constant."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from sae_lens import TrainingSAE
from sae_lens.saes.sae import TrainStepInput
from torch import Tensor

from vit_sae_plugin.saes import (
    PatchTrainingSAE,
    PatchTrainingSAEConfig,
    equivalent_l1_coefficient,
)

D_IN, D_SAE = 6, 20
NORMALIZATIONS = pytest.mark.parametrize("mse_normalization", ["input_norm", "none"])


def rows(shift: float = 1.0) -> Tensor:
    return torch.randn(50, D_IN, generator=torch.Generator().manual_seed(0)) + shift


def make_sae(d_in: int = D_IN, **settings) -> PatchTrainingSAE:
    torch.manual_seed(0)
    return PatchTrainingSAE(PatchTrainingSAEConfig(d_in=d_in, d_sae=D_SAE, **settings))


def losses(sae: PatchTrainingSAE, z: Tensor, l1: float | None = None) -> dict[str, Tensor]:
    coefficient = sae.get_coefficients()["l1"].value if l1 is None else l1
    step = TrainStepInput(z, {"l1": coefficient}, None, n_training_steps=0, is_logging_step=False)
    return sae.training_forward_pass(step).losses


def wider_and_scaled(z: Tensor, scale: float) -> Tensor:
    return torch.cat([scale * z, torch.zeros(len(z), 2 * D_IN)], dim=1)


@NORMALIZATIONS
def test_the_equivalent_coefficient_multiplies_the_whole_loss_by_one_constant(mse_normalization):
    sae = make_sae(mse_normalization=mse_normalization)
    z, scale = rows(), 7.0
    first = losses(sae, z, l1=0.02)
    other = make_sae(3 * D_IN, mse_normalization=mse_normalization, b_dec_init_method="zeros")
    with torch.no_grad():  # the same SAE, seen on wider and larger rows
        other.W_dec.copy_(torch.cat([sae.W_dec, torch.zeros(D_SAE, 2 * D_IN)], dim=1))
        other.W_enc.copy_(torch.cat([sae.W_enc, torch.zeros(2 * D_IN, D_SAE)]))
        other.b_enc.copy_(scale * sae.b_enc)
        other.b_dec.copy_(torch.cat([scale * sae.b_dec, torch.zeros(2 * D_IN)]))
    coefficient = equivalent_l1_coefficient(
        0.02,
        d_in=3 * D_IN,
        reference_d_in=D_IN,
        mse_normalization=mse_normalization,
        row_norm=scale * z.norm(dim=-1).mean().item(),
        reference_row_norm=z.norm(dim=-1).mean().item(),
    )
    second = losses(other, wider_and_scaled(z, scale), l1=coefficient)
    constant = scale / 3 if mse_normalization == "input_norm" else scale**2 / 3
    for name in ("mse_loss", "l1_loss"):
        torch.testing.assert_close(second[name], constant * first[name], rtol=1e-5, atol=0)


def test_the_equivalent_coefficient_by_hand():
    assert equivalent_l1_coefficient(8e-5, d_in=384) == pytest.approx(1.6e-4)
    assert equivalent_l1_coefficient(8e-5, d_in=768) == 8e-5
    assert equivalent_l1_coefficient(
        0.1, d_in=768, mse_normalization="none", row_norm=4, reference_row_norm=16
    ) == pytest.approx(0.025)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"d_in": 0}, "d_in is 0; want 1 or more"),
        ({"mse_normalization": "l2"}, "'l2'; want 'input_norm' or 'none'"),
        ({"mse_normalization": "none", "row_norm": 4.0}, "reference_row_norm is None; want"),
        ({"mse_normalization": "none", "row_norm": 0.0}, "row_norm is 0.0; want"),
    ],
)
def test_what_is_missing_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        equivalent_l1_coefficient(8e-5, **{"d_in": 8, **wrong})
    with pytest.raises(ValueError, match="relative_l1_coefficient is -1; want 0 or more"):
        make_sae(relative_l1_coefficient=-1)


def test_the_relative_coefficient_by_hand():
    # b_dec is 0; rows without latents err by 3² / 3 in one of two features, at a distance of 3.
    sae = make_sae(2, b_dec_init_method="mean", relative_l1_coefficient=0.5)
    z = torch.tensor([[3.0, 0.0], [-3.0, 0.0]])
    l1_loss = losses(sae, z)["l1_loss"]
    assert sae.l1_scale.item() == (9 / 3 / 2) / 3
    torch.testing.assert_close(l1_loss, 0.25 * sae.encode(z).sum(dim=-1).mean())


@NORMALIZATIONS
def test_the_relative_coefficient_asks_the_same_of_rows_of_any_scale_width_and_mean(
    mse_normalization,
):
    def share(z: Tensor) -> float:
        """The penalty for writing each row with one latent ÷ the error of writing none."""
        sae = make_sae(
            z.shape[1],
            mse_normalization=mse_normalization,
            relative_l1_coefficient=0.3,
            b_dec_init_method="mean",
        )
        losses(sae, z)
        error = (z - z.mean(dim=0)).square()
        if mse_normalization == "input_norm":
            error = error / z.norm(dim=-1, keepdim=True)
        distance = (z - z.mean(dim=0)).norm(dim=-1).mean()
        return (0.3 * sae.l1_scale * distance / error.mean()).item()

    for z in (rows(), wider_and_scaled(rows(), 40.0), rows(shift=-300.0)):
        assert share(z) == pytest.approx(0.3, rel=0.005)  # the scale has bfloat16's digits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_worked_out_once_and_saved(dtype: str, tmp_path: Path):
    sae = make_sae(relative_l1_coefficient=0.3, dtype=dtype)
    assert sae.l1_scale.isnan()
    z = rows().to(sae.dtype)
    losses(sae, z)
    scale = sae.l1_scale.item()
    sae.save_model(tmp_path / "checkpoint")
    for again in (
        sae,
        copy.deepcopy(sae),
        TrainingSAE.load_from_disk(tmp_path / "checkpoint", dtype=dtype),
    ):
        losses(again, 9 * z + 1)
        assert again.l1_scale.item() == scale
    sae.save_inference_model(tmp_path / "finished")
    fresh = TrainingSAE.load_from_disk(tmp_path / "finished")
    assert fresh.cfg.relative_l1_coefficient == 0.3
    assert fresh.l1_scale.isnan()  # another run's rows are not known yet


def test_checkpoints_with_it_open_where_it_is_not_asked_for(tmp_path: Path):
    sae = make_sae(relative_l1_coefficient=0.3)
    losses(sae, rows())
    weights = sae.state_dict()
    plain = make_sae()
    plain.process_state_dict_for_loading(weights)
    plain.load_state_dict(weights)
    assert "l1_scale" not in plain.state_dict()


def test_rows_that_are_all_equal_have_a_finite_loss():
    sae = make_sae(relative_l1_coefficient=0.3, b_dec_init_method="mean")
    assert losses(sae, torch.ones(4, D_IN))["l1_loss"].isfinite()
