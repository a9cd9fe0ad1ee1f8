"""Comparing models: definitions by hand, a model beside itself, and what is refused."""

from __future__ import annotations

import copy
import re

import numpy as np
import pandas as pd
import pytest
import torch

from tests.evaluation.tiny_setup import Pictures, identity_sae, tiny_hooked_vit, tiny_sae
from tests.tiny_models import tiny_open_clip, tiny_timm
from vit_sae_plugin.analysis.remapping.class_levels import count_class_levels
from vit_sae_plugin.analysis.remapping.compare import compare_models
from vit_sae_plugin.analysis.remapping.latent_changes import (
    classify_changes,
    jaccard,
    overlap_of_top,
    rank_correlation,
)
from vit_sae_plugin.attached_sae.attached_pair import AttachedPair
from vit_sae_plugin.hooked_vit import HookedViT

HOOK = "blocks.1.hook_resid_post"
TEMPLATES = ["a photo of a {}"]


@pytest.fixture(scope="module")
def plain():
    return tiny_hooked_vit()


@pytest.fixture(scope="module")
def adapted(plain):
    module = copy.deepcopy(plain.bare_model)
    torch.manual_seed(1)
    with torch.no_grad():
        for block in module.visual.transformer.resblocks:
            block.mlp.c_proj.bias += torch.randn(32)
    return HookedViT.from_module(
        module, preprocess=plain.preprocess, tokenizer=plain.tokenizer, model_name="adapted"
    )


def test_stays_rises_and_falls_by_hand():
    plain = np.array([0.5, 0.49, 0.19, 0.2, 0.5, 1.0, 0.5, 0.0])
    adapted = np.array([0.5, 0.90, 0.50, 0.9, 0.2, 0.19, 0.3, 0.0])
    found = classify_changes(plain, adapted, low=0.2, high=0.5).tolist()
    assert found == ["stays high", "", "rises", "", "", "falls", "", ""]
    with pytest.raises(ValueError, match=r"low is 0.6 and high 0.5; want 0 < low <= high <= 1"):
        classify_changes(plain, adapted, low=0.6)


def test_overlap_by_hand():
    assert jaccard(np.array([1, 2, 3]), np.array([2, 3, 4, 5])) == 2 / 5
    assert np.isnan(jaccard(np.array([]), np.array([])))
    assert rank_correlation(np.array([1.0, 2, 3]), np.array([10.0, 30, 20])) == pytest.approx(0.5)
    assert np.isnan(rank_correlation(np.array([1.0, 2]), np.array([2.0, 1])))
    assert np.isnan(rank_correlation(np.array([1.0, 2, 3]), np.ones(3)))
    plain = np.array([[5.0, 4, 3, 2, 0, 0]])
    adapted = np.array([[4.0, 5, 0, 2, 3, 0]])
    table = overlap_of_top(plain, adapted, ks=[1, 2, 3, 100])
    # tops: {0} and {1}; {0, 1} twice; {0, 1, 2} and {0, 1, 4}; silent latents are in no top
    assert table["jaccard"].tolist() == [0, 1, 2 / 4, 3 / 5]
    # over the plain model's top 3, levels 5 4 3 beside 4 5 0
    assert table.loc[(0, 3), "rank_correlation"] == pytest.approx(0.5)


@torch.no_grad()
def test_class_levels_by_hand(plain, adapted):
    images, sae = Pictures(7), identity_sae(plain, HOOK)
    pair = AttachedPair(plain, adapted, sae)
    levels = count_class_levels(pair, images, 3, threshold=0.4, batch_size_images=3)
    labels = np.arange(7) % 3
    for number, model in enumerate((plain, adapted)):
        acts = model.run_with_cache(images.batch(model), names_filter=HOOK)[1][HOOK]
        counts = (torch.cat([acts, -acts], -1) > 0.4).sum(1).numpy()
        for label in range(3):
            own = counts[labels == label]
            assert np.array_equal(levels.tokens[number, 0, label], own[::2].sum(0))
            assert np.array_equal(levels.tokens[number, 1, label], own[1::2].sum(0))
            np.testing.assert_allclose(levels.tokens_per_image()[number, label], own.mean(0))
            np.testing.assert_allclose(levels.frequency()[number, label], (own > 0).mean(0))
    assert levels.n_images.tolist() == [[2, 1, 1], [1, 1, 1]]
    explained = levels.quality["explained_variance"]
    assert explained.to_numpy() == pytest.approx(1)  # this SAE gives back what it reads
    assert levels.quality.loc[("adapted", "patches"), "n_tokens"] == 7 * 16


def test_a_model_beside_itself_stays(plain, tmp_path):
    sae = tiny_sae(plain, HOOK)
    comparison = compare_models(
        plain, tiny_hooked_vit(), sae, Pictures(12), ks=[3, 10], templates=TEMPLATES
    )
    assert set(np.unique(comparison.changes)) <= {"", "stays high"}
    overlap = comparison.overlap_by_class()
    assert (overlap["jaccard"] == 1).all()
    assert comparison.notes == []
    summary = comparison.summary("pictures", "all").loc[("pictures", "all")]
    assert summary["high"] > 0
    assert summary[["high_to_low", "low_to_high", "delta"]].tolist() == [0, 0, 0]
    assert summary["n_images"] == 6  # the other half found the latents
    assert comparison.stream_change()["share"].isna().all()

    comparison.save(tmp_path)
    names = ["quality", "effects", "summary", "stream_change", "overlap", "latents"]
    assert {f"{name}.csv" for name in names} <= {path.name for path in tmp_path.iterdir()}
    latents = pd.read_csv(tmp_path / "latents_by_class.csv", index_col=["label", "latent"])
    pd.testing.assert_frame_equal(latents, comparison.latents().replace("", np.nan))
    effects = pd.read_csv(tmp_path / "effects.csv")
    assert effects.columns[:4].tolist() == ["model", "change", "latents", "error_term"]


@pytest.mark.filterwarnings("ignore:the SAE describes")
def test_an_adapted_model_beside_the_plain_one(plain, adapted):
    sae = tiny_sae(plain, HOOK)
    settings = {"templates": TEMPLATES, "ks": [2], "threshold": 3.0}
    comparison = compare_models(
        plain, adapted, sae, Pictures(9), ranking=Pictures(12, seed=5), **settings
    )
    frequency = comparison.levels.frequency()
    rises = (frequency[0] < 0.2) & (frequency[1] >= 0.5)
    table = comparison.latents()
    assert (table["change"] == "rises").sum() == rises.sum() > 0
    counts = comparison.changes_by_class()
    assert counts["rises"].tolist() == rises.sum(1).tolist()
    assert counts.index.names == ["label", "class"]
    over = comparison.over_classes()
    assert over["rises"].tolist() == rises.sum(0).tolist()
    np.testing.assert_allclose(over["frequency_adapted"], frequency[1].mean(0))
    shares = comparison.stream_change()["share"]
    assert shares["error"] > 0
    assert shares["span"] > shares["random_span"] > 0
    effects = comparison.effects.table()
    embeds = torch.nn.functional.normalize(adapted(Pictures(9).batch(adapted)), dim=-1)
    answers = (embeds @ adapted.zero_shot_classifier(["cat", "dog", "owl"], TEMPLATES)).argmax(-1)
    accuracy = (answers == torch.arange(9) % 3).double().mean().item()
    assert effects.loc[("adapted", "none", "", True), "accuracy"] == pytest.approx(accuracy)
    again = compare_models(
        plain,
        adapted,
        sae,
        Pictures(9),
        ranking=Pictures(12, seed=5),
        batch_size_images=4,
        **settings,
    )
    assert np.array_equal(np.sort(again.effects.index), np.arange(9))
    pd.testing.assert_frame_equal(again.latents(), comparison.latents())


def test_a_poorer_description_is_said_first(plain):
    sae = identity_sae(plain, HOOK)
    other = copy.deepcopy(plain.bare_model)
    with torch.no_grad():  # what the SAE's latents can't hold: it now reads but a part
        sae.W_enc[:, :20] = 0
        for block in other.visual.transformer.resblocks[:2]:
            block.mlp.c_proj.bias[:20] += torch.randn(20)
            block.mlp.c_proj.weight[:20] *= 5
    adapted = HookedViT.from_module(
        other, preprocess=plain.preprocess, tokenizer=plain.tokenizer, model_name="changed"
    )
    with pytest.warns(UserWarning, match="describes the adapted model less well"):
        comparison = compare_models(plain, adapted, sae, Pictures(6), templates=TEMPLATES)
    report = comparison.report()
    assert next(iter(report.tables)) == "quality"
    assert "note: the SAE describes the adapted model less well" in str(report)


def test_what_does_not_fit_is_refused_before_anything_runs(plain, adapted, monkeypatch):
    def runs(*_, **__):
        raise AssertionError("a model ran")

    layout = tiny_sae(plain, HOOK)
    images = Pictures(12)
    narrow = HookedViT.from_module(tiny_open_clip(width=16), preprocess=plain.preprocess)
    finer = HookedViT.from_module(tiny_open_clip(patch_size=4), preprocess=plain.preprocess)
    deeper = HookedViT.from_module(tiny_open_clip(layers=2), preprocess=plain.preprocess)
    timm = HookedViT.from_module(tiny_timm(), preprocess=plain.preprocess)
    misnamed = tiny_sae(plain, HOOK)
    misnamed.cfg.metadata.hook_name = "blocks.9.hook_resid_post"
    misfit = tiny_sae(narrow, HOOK)
    few = Pictures(2)
    mislabelled = Pictures(12)
    mislabelled.labels = lambda: np.arange(12) % 3
    mislabelled.class_names = ["cat", "dog"]
    stream = Pictures(6)
    stream.is_streaming = True
    cases = [
        ((plain, timm), {}, "the family is open_clip of tiny, but timm of"),
        ((plain, narrow), {}, "the width of the residual stream is 32 of tiny, but 16 of"),
        ((plain, finer), {}, "the grid of patches is (4, 4) of tiny, but (8, 8) of"),
        ((plain, deeper), {}, "the number of blocks is 3 of tiny, but 2 of"),
        ((plain, adapted), {"sae": misnamed}, "blocks.9.hook_resid_post"),
        ((plain, adapted), {"sae": misfit}, "wide, but the SAE's d_in is 16"),
        ((plain, adapted), {"class_names": ["cat"]}, "class_names has 1 names; want 3"),
        ((plain, adapted), {"images": few}, "classes have no image in pictures"),
        (
            (plain, adapted),
            {"ranking": few},
            "1 classes have no image in pictures, among them 'owl'",
        ),
        ((plain, adapted), {"ranking": images}, "found and scored on the same images"),
        ((plain, adapted), {"ranking": Pictures(8, ("a", "b"))}, "pictures has 2 classes, but"),
        ((plain, adapted), {"images": Pictures(4, labelled=False)}, "has no labels"),
        (
            (plain, adapted),
            {"images": stream},
            "is a stream, which can't be divided; pass ranking=",
        ),
        ((plain, adapted), {"images": mislabelled}, "has labels up to 2; want them below 2"),
        ((plain, adapted), {"low": 0.7}, "low is 0.7 and high 0.5"),
    ]
    monkeypatch.setattr("vit_sae_plugin.analysis.remapping.compare.count_class_levels", runs)
    for (one, other), wrong, message in cases:
        settings = {"sae": layout, "images": images, "templates": TEMPLATES} | wrong
        with pytest.raises(ValueError, match=re.escape(message)):
            compare_models(one, other, settings.pop("sae"), settings.pop("images"), **settings)
