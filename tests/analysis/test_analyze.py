"""The pass over a data set: the same whatever the batches, workers and order; resumable."""

import copy
import dataclasses
import functools
import os
import signal

import numpy as np
import pandas as pd
import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig

from tests.analysis.test_streaming import assert_same_atlas
from tests.analysis.tiny_pipeline import HOOK, NoisePictures, make_model, make_sae, preprocess_to
from vit_sae_plugin import PatchAggregatedSAE
from vit_sae_plugin.activations import (
    ActivationSource,
    EmbeddingRows,
    EmbeddingStatistics,
    embed_images,
    fold_statistics,
    image_walk,
)
from vit_sae_plugin.aggregation import MeanOverTokens, register_aggregation
from vit_sae_plugin.analysis import (
    AnalysisInterruptedError,
    LatentAtlas,
    analyze,
    analyze_embeddings,
    explain,
    heatmap,
)
from vit_sae_plugin.analysis.counting.atlas_builder import AtlasBuilder
from vit_sae_plugin.analysis.counting.coactivation import CoActivation
from vit_sae_plugin.analysis.pictures.heatmaps import encode_images
from vit_sae_plugin.analysis.typical_activation import RELATIVE_THRESHOLD
from vit_sae_plugin.attached_sae import AttachedSAE, row_coder

N = 26


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def sae(model):
    return make_sae(model)


@pytest.fixture(scope="module")
def atlas(model, sae):
    return analyze(model, sae, NoisePictures(N), batch_size_images=8, progress=False)


def latents_of(model, sae, indices):
    pictures = [NoisePictures(N).picture(index) for index in indices]
    return torch.stack(list(encode_images(AttachedSAE(model, sae), pictures)))


def assert_close_atlas(one, other):
    """Equal up to the last bits in which matrix products of other batch sizes differ."""
    pd.testing.assert_frame_equal(one.latents, other.latents, rtol=1e-5)
    for name, table in one.references.items():
        np.testing.assert_array_equal(table.image, other.references[name].image)
        np.testing.assert_array_equal(table.peak_patch, other.references[name].peak_patch)
    np.testing.assert_array_equal(one.class_counts, other.class_counts)


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size_images": 1},
        {"batch_size_images": 26},
        {"n_workers": 2},
        {"order": np.random.default_rng(0).permutation(N).tolist()},
    ],
)
def test_batches_workers_and_order_do_not_show(model, sae, atlas, changes):
    settings = {"batch_size_images": 8, **changes}
    images = NoisePictures(N, order=settings.pop("order", None))
    again = analyze(model, sae, images, progress=False, **settings)
    assert_close_atlas(again, atlas)


def test_it_agrees_with_a_plain_computation(model, sae, atlas):
    latents = latents_of(model, sae, range(N))
    assert latents.shape == (N, 17, 40)
    table = atlas.latents
    active = (latents > 0).any(dim=1)
    np.testing.assert_allclose(table["frequency"], active.float().mean(dim=0), rtol=1e-6)
    np.testing.assert_allclose(
        table["token_frequency"], (latents > 0).float().mean(dim=(0, 1)), rtol=1e-6
    )
    assert table["frequency"].nunique() > 10
    assert table["is_dead"].loc[7]
    means = latents.mean(dim=1)
    for latent in (0, 5, 20, 39):
        images_active = means[:, latent] > 0
        if images_active.any():
            expected = means[images_active, latent].mean().item()
            assert table["mean_activation"].loc[latent] == pytest.approx(expected, rel=1e-4)
        best = means[:, latent].topk(10)
        found = atlas.reference_images(latent)
        assert found["image"].tolist() == best.indices[: len(found)].tolist()
        counts = (latents[:, :, latent] > atlas.info.threshold).sum(dim=1)
        assert table["dataset_count"].loc[latent] == counts.sum()
        labels = torch.tensor([-1 if i % 4 == 3 else i % 4 for i in range(N)])
        for label in range(3):
            assert atlas.class_counts[label, latent] == counts[labels == label].sum()


def test_many_small_pieces_give_the_same(model, sae, atlas, monkeypatch):
    monkeypatch.setitem(row_coder.MAX_LATENT_VALUES, "cpu", 17 * 40 * 3)
    again = analyze(model, sae, NoisePictures(N), batch_size_images=8, progress=False)
    assert_close_atlas(again, atlas)


class PowerCutError(RuntimeError):
    pass


class FailingPictures(NoisePictures):
    def record(self, index):
        if index == 21:
            raise PowerCutError
        return super().record(index)


def test_it_goes_on_after_an_interruption(model, sae, atlas, tmp_path):
    settings = {
        "batch_size_images": 8,
        "progress": False,
        "folder": tmp_path,
        "snapshot_seconds": 0,
    }
    with pytest.raises(PowerCutError):
        analyze(model, sae, FailingPictures(N), **settings)
    assert (tmp_path / "unfinished/snapshot.json").exists()
    with pytest.raises(ValueError, match="batch_size: 8 there, 4 now"):
        analyze(model, sae, NoisePictures(N), **{**settings, "batch_size_images": 4})

    seen = []

    class CountedPictures(NoisePictures):
        def record(self, index):
            seen.append(index)
            return super().record(index)

    again = analyze(model, sae, CountedPictures(N), **settings)
    assert set(range(16, N)) <= set(seen)
    assert not set(range(16)) & set(seen)
    assert_same_atlas(again, atlas)
    assert not list(tmp_path.glob("unfinished*"))

    # a finished atlas is opened, not made again; another one is not mistaken for it
    seen.clear()
    assert_same_atlas(analyze(model, sae, CountedPictures(N), **settings), atlas)
    assert not seen
    with pytest.raises(ValueError, match=r"belongs to another analysis \(data_sha256"):
        analyze(model, sae, NoisePictures(N - 1), **settings)
    other = make_sae(model)
    other.b_enc.data[0] += 1
    with pytest.raises(ValueError, match="sae_sha256"):
        analyze(model, other, NoisePictures(N), **settings)
    fewer = analyze(model, sae, NoisePictures(N - 1), overwrite=True, **settings)
    assert LatentAtlas.load(tmp_path).info.n_images == fewer.info.n_images == N - 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_is_saved_whatever_the_time(model, sae, atlas, tmp_path, number):
    class Interrupted(NoisePictures):
        def record(self, index):
            if index == 19:
                os.kill(os.getpid(), number)
            seen.append(index)
            return super().record(index)

    seen = []
    settings = {"batch_size_images": 8, "progress": False, "folder": tmp_path}
    with pytest.raises(AnalysisInterruptedError, match="stopped after 16 images; the same command"):
        analyze(model, sae, Interrupted(N), **settings)
    assert not (tmp_path / "atlas.json").exists()
    seen.clear()
    assert_same_atlas(analyze(model, sae, NoisePictures(N), **settings), atlas)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".", "un"))] == []


def test_a_last_step_that_fails_is_repeated_without_the_images(
    model, sae, atlas, tmp_path, monkeypatch
):
    settings = {"batch_size_images": 8, "progress": False, "folder": tmp_path}

    def cut_off(*args, **kwargs):
        raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr(CoActivation, "partners", cut_off)
        with pytest.raises(PowerCutError):
            analyze(model, sae, NoisePictures(N), **settings)
    (tmp_path / ".aside-left-by-a-kill").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(AtlasBuilder, "update", cut_off)
        assert_same_atlas(analyze(model, sae, NoisePictures(N), **settings), atlas)
    assert not list(tmp_path.glob(".aside*"))


def test_user_chosen_aggregations(model, sae):
    chosen = {
        "patches_only": {"name": "mean", "tokens": "patches", "n_prefix_tokens": 1},
        "second": {"name": "kth_largest", "k": 2},
        "class_token": {"name": "cls", "n_prefix_tokens": 1},
    }
    atlas = analyze(
        model, sae, NoisePictures(N), aggregations=chosen, n_reference_images=4, progress=False
    )
    assert atlas.default_aggregation == "patches_only"
    latents = latents_of(model, sae, range(N))
    latent = int((latents[:, 0] > 0).sum(dim=0).argmax())
    for name, values in {
        "patches_only": latents[:, 1:].mean(dim=1),
        "second": latents.sort(dim=1).values[:, -2],
        "class_token": latents[:, 0],
    }.items():
        best = values[:, latent].topk(4)
        assert best.values.min() > 0
        found = atlas.reference_images(latent, name)
        assert found["image"].tolist() == best.indices.tolist()
        np.testing.assert_allclose(found["value"], best.values, rtol=1e-4)
    short = analyze(model, sae, NoisePictures(N), aggregations=["cls"], progress=False)
    np.testing.assert_array_equal(
        short.references["cls"].image[:, :4], atlas.references["class_token"].image
    )
    with pytest.raises(ValueError, match="need different names"):
        analyze(model, sae, NoisePictures(N), aggregations=["mean", "mean"], progress=False)
    with pytest.raises(ValueError, match="did you mean 'count'"):
        analyze(model, sae, NoisePictures(N), aggregations=["counts"], progress=False)


def test_a_rule_of_its_own_goes_through_analyze_explain_and_disk(model, sae, tmp_path):
    class Strange(MeanOverTokens):
        pass

    with pytest.raises(ValueError, match="Strange is not registered"):
        analyze(model, sae, NoisePictures(N), aggregations=[Strange()], progress=False)
    with pytest.raises(ValueError, match="Strange is not registered"):
        analyze(model, sae, NoisePictures(N), aggregations={"s": Strange()}, progress=False)
    register_aggregation("strange")(Strange)
    atlas = analyze(
        model, sae, NoisePictures(N), aggregations={"s": Strange()}, folder=tmp_path, progress=False
    )
    assert atlas.info.aggregations == {"s": {"name": "strange", "tokens": "all"}}
    found = explain(model, sae, LatentAtlas.load(tmp_path), NoisePictures(N).picture(0))
    assert found.aggregation == "s"


def test_the_rule_saved_with_an_sae_comes_first(model, sae, atlas):
    assert list(atlas.info.aggregations) == ["mean", "count", "max"]  # a plain SAE has none
    third = {"name": "kth_largest", "k": 3, "tokens": "patches"}
    lifted = PatchAggregatedSAE.from_sae(sae, third)
    own = analyze(model, lifted, NoisePictures(N), progress=False)
    assert list(own.info.aggregations) == ["kth_largest", "mean", "count", "max"]
    assert own.info.aggregations["kth_largest"] == {**third, "n_prefix_tokens": 1}
    latent = int(own.latents["frequency"].idxmax())
    image = own.reference_images(latent)["image"].iloc[0]
    tokens = next(encode_images(AttachedSAE(model, sae), [NoisePictures(N).picture(image)]))
    assert own.reference_images(latent)["value"].iloc[0] == pytest.approx(
        tokens[1:, latent].sort().values[-3].item(), rel=1e-4
    )
    counted = PatchAggregatedSAE.from_sae(sae, {"name": "count", "threshold": 0.7})
    again = analyze(model, counted, NoisePictures(N), progress=False)
    assert list(again.info.aggregations) == ["count", "mean", "max"]
    assert again.info.aggregations["count"]["threshold"] == 0.7
    asked = analyze(model, counted, NoisePictures(N), threshold=0.3, progress=False)
    assert asked.info.aggregations["count"]["threshold"] == 0.3
    told = analyze(model, counted, NoisePictures(N), aggregations=["mean"], progress=False)
    assert list(told.info.aggregations) == ["mean"]


def scaled(sae, factor):
    """The same SAE with all activations, and nothing else, larger or smaller."""
    other = copy.deepcopy(sae)
    other.W_enc.data *= factor
    other.b_enc.data *= factor
    return other


def test_counts_do_not_depend_on_the_scale_of_activations(model, sae, atlas):
    assert pytest.approx(0.2) == RELATIVE_THRESHOLD * (28.3 / 148.6)
    sampled = [0, 8, 17, 25]  # four images spread over 26
    latents = latents_of(model, sae, sampled)
    typical = float(latents[latents > 0].mean())
    assert atlas.info.typical_activation == pytest.approx(typical, rel=1e-5)
    assert atlas.info.threshold == pytest.approx(typical * 0.2 / (28.3 / 148.6), rel=1e-5)
    small = analyze(model, scaled(sae, 2**-8), NoisePictures(N), progress=False)
    assert small.info.threshold == atlas.info.threshold * 2**-8
    np.testing.assert_array_equal(small.class_counts, atlas.class_counts)
    np.testing.assert_array_equal(small.references["count"].image, atlas.references["count"].image)
    assert (atlas.class_counts.sum(axis=0) > 0).mean() > 0.5


def test_a_threshold_that_blanks_most_latents_is_said(model, sae):
    """As PatchSAE's 0.2 did on a model of small activations, with an SAE that was saved with it."""
    patchsae = PatchAggregatedSAE.from_sae(scaled(sae, 2**-8), {"name": "count", "threshold": 0.2})
    with pytest.warns(UserWarning, match=r"live latents have no .* passes 0.2.* by max"):
        blank = analyze(model, patchsae, NoisePictures(N), threshold=0.2, progress=False)
    assert list(blank.references) == list(blank.info.aggregations) == ["max", "count", "mean"]
    live = blank.latents[~blank.latents["is_dead"]]
    assert live["n_reference_images"].min() > 0
    chosen = analyze(model, patchsae, NoisePictures(N), threshold=0.0001, progress=False)
    assert chosen.info.aggregations["count"]["threshold"] == chosen.info.threshold == 0.0001
    assert chosen.info.typical_activation is None
    usual = analyze(model, patchsae, NoisePictures(N), progress=False)
    assert usual.info.aggregations["count"]["threshold"] == usual.info.threshold < 0.01


def test_the_threshold_reaches_counts_and_shares(model, sae):
    images = NoisePictures(N)
    atlas = analyze(
        model, sae, images, aggregations=["share", "count"], threshold=0.5, progress=False
    )
    latents = latents_of(model, sae, range(N))
    share = (latents > 0.5).float().mean(dim=1)
    latent = int(share.mean(dim=0).argmax())
    for name, values in {"share": share, "count": share * 17}.items():
        found = atlas.reference_images(latent, name)
        np.testing.assert_allclose(found["value"], values[:, latent].sort().values.flip(0)[:10])
    assert atlas.latents["dataset_count"].loc[latent] == round(float(share[:, latent].sum() * 17))


def test_latents_above_the_given_frequency_are_dense(model, sae, atlas):
    frequencies = atlas.latents["token_frequency"]
    between = float(frequencies.quantile(0.8))
    again = analyze(model, sae, NoisePictures(N), dense_frequency=between, progress=False)
    np.testing.assert_array_equal(again.latents["is_dense"], frequencies > between)
    assert 0 < again.latents["is_dense"].sum() < atlas.latents["is_dense"].sum()


class UnreadableEnd(NoisePictures):
    def record(self, index):
        record = super().record(index)
        return record if index < 20 else dataclasses.replace(record, content=b"no picture")


@pytest.mark.parametrize("images", [NoisePictures(N), UnreadableEnd(N)])
def test_the_progress_bar_ends_at_the_number_of_images(model, sae, images, monkeypatch):
    shown = []

    class Recorded(image_walk.tqdm):
        def display(self, msg=None, pos=None):
            shown.append((self.n, str(self)))

    settings = {"mininterval": 0, "miniters": 0}
    monkeypatch.setattr(image_walk, "tqdm", functools.partial(Recorded, **settings))
    analyze(model, sae, images, batch_size_images=8)
    assert [n for n, _ in shown][-1] == N
    assert max(n for n, _ in shown) == N
    assert {8, 16} <= {n for n, _ in shown}
    assert f"{N}/{N}" in shown[-1][1]
    assert " images/s" in shown[-1][1]


def test_settings_that_can_not_be(model, sae):
    for settings, message in (
        ({"n_reference_images": 0}, "n_reference_images is 0; want 1 or more"),
        ({"threshold": -0.1}, "threshold is -0.1; want 0 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            analyze(model, sae, NoisePictures(N), progress=False, **settings)


def test_pooled_embeddings_have_reference_images_but_no_patches(model):
    torch.manual_seed(0)
    pooled = StandardSAE(StandardSAEConfig(d_in=24, d_sae=30))
    source = ActivationSource.from_model(model, "hook_image_embed")
    atlas = analyze(model, pooled, NoisePictures(N), source=source, progress=False)
    assert atlas.info.n_tokens == 1
    assert (atlas.references["mean"].peak_patch == -1).all()
    assert len(atlas.reference_images(int(atlas.latents["frequency"].idxmax()))) == 10
    assert (atlas.latents["frequency"] == atlas.latents["token_frequency"]).all()


def test_embeddings_are_analysed_as_their_images_are(model, tmp_path):
    """Rows in another order than the images', known by their ids; without a model."""
    torch.manual_seed(0)
    sae = StandardSAE(StandardSAEConfig(d_in=24, d_sae=30))
    images = NoisePictures(N)
    source = ActivationSource.from_model(model, "hook_image_embed")
    of_images = analyze(model, sae, images, source=source, aggregations=["mean"], progress=False)
    rows = embed_images(model, images, progress=False)
    order = np.random.default_rng(0).permutation(N)
    shuffled = EmbeddingRows(rows.rows[order], [rows.ids[i] for i in order])
    atlas = analyze_embeddings(sae, shuffled, images, progress=False, folder=tmp_path)
    pd.testing.assert_frame_equal(
        atlas.latents.drop(columns="dataset_count"),
        of_images.latents.drop(columns="dataset_count"),
        rtol=1e-4,
    )
    for part in ("image", "value"):
        found, expected = (getattr(a.references["mean"], part) for a in (atlas, of_images))
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert atlas.info.model_sha256 is None
    assert atlas.info.data_sha256 == images.fingerprint()
    again = LatentAtlas.load(tmp_path)
    assert again.info.embeddings_sha256 == shuffled.fingerprint()
    # without images, rows are known by their ids
    alone = analyze_embeddings(sae, shuffled, progress=False)
    latent = int(atlas.latents["frequency"].idxmax())
    ids = atlas.reference_images(latent)["id"].tolist()
    assert alone.reference_images(latent)["id"].tolist() == ids
    with pytest.raises(ValueError, match=r"1 of 26 rows of .* have no image in noise, such as 'x'"):
        analyze_embeddings(sae, EmbeddingRows(rows.rows, [*rows.ids[:-1], "x"]), images)
    with pytest.raises(ValueError, match="rows are 23 wide; want 24"):
        analyze_embeddings(sae, EmbeddingRows(rows.rows[:, 1:]), images)


def test_standardised_embeddings_are_standardised_here_too(model):
    """An SAE trained on standardised rows, and the same one with the statistics folded in."""
    torch.manual_seed(0)
    sae = StandardSAE(StandardSAEConfig(d_in=24, d_sae=30))
    source = ActivationSource.from_model(model, "hook_image_embed")
    statistics = EmbeddingStatistics(torch.randn(24), 3.0)
    folded = copy.deepcopy(sae)
    fold_statistics(folded, statistics)
    sae.cfg.metadata.input_statistics = statistics.to_metadata()
    one, other = (
        analyze(model, either, NoisePictures(N), source=source, progress=False)
        for either in (sae, folded)
    )
    np.testing.assert_allclose(
        one.latents["max_activation"], other.latents["max_activation"], rtol=1e-4
    )
    assert one.latents["max_activation"].max() > 1
    sae.cfg.metadata.input_statistics["modality"] = "text"
    with pytest.raises(ValueError, match="standardised text embeddings"):
        analyze(model, sae, NoisePictures(N), source=source, progress=False)


@pytest.mark.parametrize("mode", ["none", "hook_z"])
def test_an_sae_of_all_heads_is_analysed_and_shown(model, mode):
    """At split heads the hook is ``[batch, token, head, d_head]``, what the SAE reads is flat."""
    torch.manual_seed(0)
    sae = StandardSAE(
        StandardSAEConfig(d_in=32, d_sae=30, reshape_activations="hook_z" if mode else "none")
    )
    source = ActivationSource.from_model(model, "blocks.1.attn.hook_z")
    for key, value in source.to_metadata().items():
        sae.cfg.metadata[key] = value
    atlas = analyze(model, sae, NoisePictures(N), progress=False)
    assert (atlas.info.n_tokens, atlas.info.grid) == (17, (4, 4))
    latent = int(atlas.latents["frequency"].idxmax())
    first = atlas.reference_images(latent, "max").iloc[0]
    shown = heatmap(model, sae, NoisePictures(N).picture(first["image"]), latent)
    assert shown.peak == (first["row"], first["column"])
    _, cache = model.run_with_cache(
        preprocess_to(32)(NoisePictures(N).picture(first["image"]))[None],
        names_filter="blocks.1.attn.hook_z",
    )
    z = cache["blocks.1.attn.hook_z"].flatten(2)[0, 1:]
    expected = torch.relu((z - sae.b_dec) @ sae.W_enc + sae.b_enc)[:, latent].view(4, 4)
    np.testing.assert_allclose(shown.patches, expected.detach(), atol=1e-5)


def test_an_sae_of_another_width_is_refused(model, sae):
    narrow = make_sae(model)
    narrow.cfg.metadata.hook_name = "hook_image_embed"
    with pytest.raises(ValueError, match=r"is 24 wide, but the SAE's d_in is 32"):
        analyze(model, narrow, NoisePictures(N), progress=False)
    assert sae.cfg.metadata.hook_name == HOOK
