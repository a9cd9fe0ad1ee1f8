"""Which latents another SAE has too: by decoder, by activations, and what can't be matched."""

from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import torch

from tests.analysis.tiny_pipeline import NoisePictures, make_model, make_sae, make_wide_model
from tests.cli.command import vit_sae
from vit_sae_plugin.analysis import LatentAtlas, analyze
from vit_sae_plugin.concepts import LatentTree, match_saes
from vit_sae_plugin.concepts.activation_correlation import CorrelationTotals


@pytest.fixture(scope="module")
def model():
    return make_model()


def permuted(sae, order, flip=()):
    """The same SAE with its latents in another order, some of them replaced at random."""
    other = deepcopy(sae)
    other.W_enc.data, other.b_enc.data = sae.W_enc.data[:, order], sae.b_enc.data[order]
    other.W_dec.data = sae.W_dec.data[order].clone()
    generator = torch.Generator().manual_seed(9)
    for latent in flip:
        other.W_dec.data[latent] = torch.randn(32, generator=generator)
        other.W_enc.data[:, latent] = torch.randn(32, generator=generator) / 3
    return other


def test_permuted_latents_are_found_and_replaced_ones_are_not(model):
    sae = make_sae(model)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    other = permuted(sae, order, flip=[4, 11])
    found = match_saes(sae, other)
    replaced = order[[4, 11]].tolist()
    kept = [latent for latent in range(40) if latent not in replaced]
    assert order[found.latents["partner"].astype(int)].numpy()[kept].tolist() == kept
    np.testing.assert_allclose(found.latents["stability"][kept], 1, atol=1e-5)
    assert (found.latents["stability"][replaced] < 0.7).all()
    row = found.summary.loc[0.7]
    assert row["share_matched"] == pytest.approx(38 / 40)
    assert row["low"] < row["share_matched"] < row["high"] <= 1
    assert row["chance"] == 0
    assert found.settings["mean_stability_chance"] < 0.6


def test_by_activations_over_the_same_images(model):
    sae, images = make_sae(model), NoisePictures(24)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    other = permuted(sae, order)
    found = match_saes(sae, other, "activations", model=model, images=images)
    dead = 7
    live = [latent for latent in range(40) if latent != dead]
    np.testing.assert_allclose(found.latents["stability"][live], 1, atol=1e-6)
    partner = found.latents["partner"].astype(int)
    assert order[partner].numpy()[live].tolist() == live
    assert found.latents["stability"][dead] == 0
    assert found.settings["by"] == "correlation by patch"
    assert found.summary.loc[0.9, "chance"] < 0.3
    again = match_saes(sae, other, "activations", model=model, images=images, batch_size_images=5)
    np.testing.assert_allclose(again.latents["stability"], found.latents["stability"], atol=1e-5)


def test_other_grids_are_compared_image_by_image(model):
    wide = make_wide_model()
    sae, other = make_sae(model), make_sae(wide, d_sae=30)
    found = match_saes(
        sae, other, "activations", model=model, other_model=wide, images=NoisePictures(12)
    )
    assert found.settings["by"] == "correlation by image"
    assert found.latents["partner"].isna().sum() == 10
    assert found.summary["share_matched"].max() <= 0.75


def test_correlations_are_numpys():
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(50, 3, generator=generator), torch.randn(50, 4, generator=generator)
    one[:, 1] = 2.5
    one[:, 2] += 1e4
    totals = CorrelationTotals(3, 4)
    for part in torch.arange(50).split(7):
        totals.update(one[part], other[part])
    found = totals.compute().numpy()
    expected = np.corrcoef(one[:, [0, 2]].double().T, other.double().T)[:2, 2:]
    np.testing.assert_allclose(found[[0, 2]], expected, atol=1e-7)
    assert (found[1] == 0).all()


def test_what_cannot_be_matched_is_one_clear_error(model):
    sae, images = make_sae(model), NoisePictures(4)

    def refused(match, *args, **settings):
        with pytest.raises(ValueError, match=match) as error:
            match_saes(sae, *args, **settings)
        assert "\n" not in str(error.value)

    narrow = deepcopy(sae)
    narrow.W_dec.data = narrow.W_dec.data[:, :20]
    refused("32 and 20 wide, so they have no cosine; match them by activations", narrow)
    here, elsewhere = deepcopy(sae), deepcopy(sae)
    here.cfg.metadata.model_name, elsewhere.cfg.metadata.model_name = "this", "another"
    with pytest.raises(ValueError, match="are of this and another, whose activations share no"):
        match_saes(here, elsewhere)
    refused("by is 'name'; want 'decoder' or 'activations'", sae, "name")
    refused("model is None; matching by activations wants model", sae, "activations")
    refused("images is None", sae, "activations", model=model)
    refused("at most 20 are matched", sae, "activations", model=model, images=images, most_exact=20)
    two = NoisePictures(2)
    refused("there are 2 images to match on", sae, "activations", model=model, images=two)
    refused(r"thresholds are \[2\]", sae, thresholds=[2])


def test_an_atlas_keeps_the_columns(model, tmp_path):
    sae = make_sae(model)
    atlas = analyze(model, sae, NoisePictures(6), progress=False, folder=tmp_path / "atlas")
    atlas.add_columns(match_saes(sae, sae).latents)
    atlas.add_columns(pd.DataFrame({"other": np.arange(40.0)}))
    atlas.add_columns(pd.DataFrame({"other": [np.nan] * 39 + [0.5]}))
    opened = LatentAtlas.load(tmp_path / "atlas")
    assert list(opened.columns) == ["partner", "stability", "other"]
    assert opened.columns["partner"].tolist() == list(range(40))
    assert opened.columns["other"].notna().sum() == 1
    opened.save(tmp_path / "copy")
    pd.testing.assert_frame_equal(LatentAtlas.load(tmp_path / "copy").columns, opened.columns)

    for bad, message in (
        (pd.DataFrame({"a": [1.0]}), "the columns have 1 rows; want a row for each of the 40"),
        (pd.DataFrame({"a": ["x"] * 40}), "the column 'a' holds"),
        (pd.DataFrame({"a b": [1.0] * 40}), "a column is called 'a b'"),
        (pd.DataFrame({"a": [np.inf] * 40}), "the columns hold infinity"),
    ):
        with pytest.raises(ValueError, match=message):
            atlas.add_columns(bad)
    file = tmp_path / "copy" / "columns.json"
    text = file.read_text()
    for wrong in (text[:-20], text.replace(atlas.info.sae_sha256, "0" * 64), "[]", "{}"):
        file.write_text(wrong)
        with pytest.warns(UserWarning, match="opened without further columns"):
            assert LatentAtlas.load(tmp_path / "copy").columns.empty


def test_the_command(model, tmp_path, capsys):
    sae, other = tmp_path / "sae", tmp_path / "other"
    for seed, folder in enumerate((sae, other)):
        train = ("train", "--preset", "patchsae-shapes", "--images", "shapes?n_images=40")
        small = ("--training-tokens", 800, "--d-sae", 48, "--device", "cpu", "--seed", seed)
        small += ("--set", "train_batch_size_tokens=400", "--set", "lr_warm_up_steps=1")
        small += ("--set", "lr_decay_steps=1", "--output-path", tmp_path / f"run{seed}")
        assert vit_sae(*train, *small) == 0
        (tmp_path / f"run{seed}" / "sae").rename(folder)
    images = ("--images", "shapes:test?n_images=30")
    tree = ("--tree", "--tree-k", 4)
    assert vit_sae("analyze", sae, *images, "--output-path", tmp_path / "atlas", *tree) == 0
    kept = LatentTree.load(tmp_path / "atlas", LatentAtlas.load(tmp_path / "atlas").info.sae_sha256)
    assert kept.settings["k"] == 4
    suite = ("eval", sae, "--suite", "stability", "--other", other)
    assert vit_sae(*suite, "--atlas", tmp_path / "atlas") == 0
    assert "share_matched" in capsys.readouterr().out
    assert len(pd.read_csv(sae / "stability" / "partners.csv")) == 48
    assert list(LatentAtlas.load(tmp_path / "atlas").columns) == ["partner", "stability"]
    assert vit_sae(*suite, "--match-by", "activations", *images) == 0
    assert "correlation by patch" in capsys.readouterr().out

    for arguments, message in (
        (("eval", sae, "--suite", "stability"), "wants --other SAE_FOLDER"),
        ((*suite, "--match-by", "activations"), "--match-by activations wants --images"),
        ((*suite, *images), "--match-by decoder none"),
        (("eval", sae, *images, "--other", other), "--other goes with --suite stability"),
        (("analyze", sae, *images, "--tree-k", 4), "--tree-k goes with --tree"),
        (("eval", sae, *images, "--atlas", "x"), "--atlas goes with --suite masking or"),
        (("eval", other, *suite[2:4], "--other", sae, "--atlas", tmp_path / "atlas"), "made from"),
    ):
        assert vit_sae(*arguments) == 2
        assert message in capsys.readouterr().err
