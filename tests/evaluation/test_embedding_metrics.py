"""MSAE's metrics: parity with the oracle, and values worked by hand."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from vit_sae_plugin.evaluation.cknna import cknna
from vit_sae_plugin.evaluation.embedding_metrics import (
    EmbeddingTotals,
    decoder_orthogonality,
    fvu_per_sample,
    nmae_per_sample,
    nmse_per_sample,
)

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def oracle():
    return load_file(Path(__file__).parents[1] / "data" / "msae_metrics.safetensors")


def test_per_sample_metrics_equal_the_oracle(oracle):
    x, recon = oracle["x"], oracle["recon"]
    assert_close(fvu_per_sample(x, recon), oracle["fvu_per_sample"], **TOLERANCE)
    assert_close(nmae_per_sample(x, recon), oracle["nmae_per_sample"], **TOLERANCE)
    assert_close(nmse_per_sample(x, recon), oracle["nmse_per_sample"], **TOLERANCE)


def test_totals_equal_the_oracle_in_any_batches(oracle):
    x, recon, latents = oracle["x"], oracle["recon"], oracle["latents"]
    totals = EmbeddingTotals(16, 96)
    for rows in torch.arange(200).split(33):
        totals.update(x[rows], recon[rows], latents[rows])
    result = totals.compute()
    expected = {
        "fvu_per_sample": oracle["fvu_mean"].item(),
        "cosine_similarity": oracle["cosine_mean"].item(),
        "euclidean": oracle["euclidean_mean"].item(),
        "zero_fraction": oracle["l0_zero_fraction"].mean().item(),
        "nmae": oracle["nmae_per_sample"].mean().item(),
        "nmse": oracle["nmse_per_sample"].mean().item(),
        "fvu": ((x - recon).square().sum() / (x - x.mean(0)).square().sum()).item(),
        "l0": (latents != 0).sum(-1).float().mean().item(),
        "n_dead": (latents == 0).all(0).sum().item(),
    }
    assert {name: result[name] for name in expected} == pytest.approx(expected, rel=1e-4)


def test_decoder_orthogonality_equals_the_oracle(oracle):
    assert decoder_orthogonality(oracle["W_dec"]) == pytest.approx(
        oracle["decoder_orthogonality"].item(), rel=1e-4
    )


def test_decoder_orthogonality_by_hand():
    assert decoder_orthogonality(torch.eye(3)) == 0
    # one pair of equal rows: 2 of the 9 entries of the Gram matrix are 1
    assert decoder_orthogonality(torch.eye(3)[[0, 0, 1]]) == pytest.approx(2 / 9)


@pytest.mark.parametrize("block_rows", [7, 1024])
def test_cknna_equals_the_oracle(oracle, block_rows):
    x, latents, recon = oracle["x"], oracle["latents"], oracle["recon"]
    settings = {"n_neighbors": 10, "block_rows": block_rows}
    assert cknna(x, latents, **settings) == pytest.approx(
        oracle["cknna_x_latents_k10"].item(), rel=1e-3
    )
    assert cknna(x, recon, **settings) == pytest.approx(
        oracle["cknna_x_recon_k10"].item(), rel=1e-3
    )
    assert cknna(x, latents, unbiased=False, **settings) == pytest.approx(
        oracle["cknna_x_latents_k10_biased"].item(), rel=1e-3
    )


def test_cknna_of_a_space_with_itself_rotated_is_one():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=generator)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    assert cknna(x, 3 * x @ rotation) == pytest.approx(1, abs=1e-5)
    assert cknna(x, 3 * x @ rotation, unbiased=False) == pytest.approx(1, abs=1e-5)


def test_cknna_of_independent_spaces_is_near_zero():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 400, 20, generator=generator).unbind()
    assert abs(cknna(x, y)) < 0.1


def test_cknna_says_when_rows_are_too_few():
    with pytest.raises(ValueError, match="10 rows are too few for 10 neighbours"):
        cknna(torch.randn(10, 2), torch.randn(10, 2))
    with pytest.raises(ValueError, match="x has 5 rows and y 6"):
        cknna(torch.randn(5, 2), torch.randn(6, 2), n_neighbors=1)
    with pytest.raises(ValueError, match="NaN or infinity"):
        cknna(torch.full((12, 2), torch.inf), torch.randn(12, 2))


def test_long_rows_are_everyones_neighbours_unless_rows_are_made_unit():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 6, generator=generator)
    lengths = torch.rand(60, 1, generator=generator) * 9 + 1
    # the same directions at other lengths: unit rows see no difference, rows as they are do
    assert cknna(x, lengths * x, unit_rows=True) == pytest.approx(1, abs=1e-5)
    assert cknna(x, lengths * x) < 0.8
    unit = torch.nn.functional.normalize(x)
    assert cknna(unit, lengths * x, unit_rows=True) == pytest.approx(cknna(unit, unit))
    with_silent_row = lengths * x
    with_silent_row[3] = 0  # no latent is active: no length to divide by
    assert 0.5 < cknna(x, with_silent_row, unit_rows=True) < 1
