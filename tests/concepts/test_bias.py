"""Bias: by hand, against plain linear models, and on scenes with a planted correlation."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig
from scipy import stats

from vit_sae_plugin import HookedViT
from vit_sae_plugin.attached_sae import AttachedSAE
from vit_sae_plugin.attached_sae.interventions import remove, scale
from vit_sae_plugin.concepts.bias import GroupMoments, Groups, bias_study, group_differences
from vit_sae_plugin.concepts.bias.group_accuracy import GroupAccuracy
from vit_sae_plugin.concepts.bias.suppression import Suppression, embeddings_under, like_latents
from vit_sae_plugin.datasets import ShapeScenes


def groups_of(label, value, n_classes=2, n_values=2) -> Groups:
    names = [f"class {at}" for at in range(n_classes)], [f"value {at}" for at in range(n_values)]
    return Groups("place", *names, np.asarray(label), np.asarray(value))


def moments_of(features: np.ndarray, groups: Groups) -> GroupMoments:
    moments = GroupMoments(groups.n_groups, features.shape[1])
    for part in np.array_split(np.arange(len(features)), 3):  # as batches come
        moments.add(torch.from_numpy(features[part]), groups.group[part])
    return moments


def test_shares_and_test_are_those_of_two_linear_models():
    rng = np.random.default_rng(0)
    label, value = rng.integers(3, size=400), rng.integers(4, size=400)
    value[label == 0] = value[label == 0] // 2  # class and attribute go together
    groups = groups_of(label, value, 3, 4)
    features = rng.normal(size=(400, 5))
    features[:, 1] += 0.7 * value
    features[:, 2] += label
    table = group_differences(moments_of(features, groups), groups).sort_index()

    one_class, one_value = np.eye(3)[label], np.eye(4)[value]

    def left(*blocks):
        design = np.hstack(blocks)
        fitted, _, rank, _ = np.linalg.lstsq(design, features, rcond=None)
        return ((features - design @ fitted) ** 2).sum(0), rank

    (full, rank), (by_class, _), (by_value, _) = (
        left(one_class, one_value),
        left(one_class),
        left(one_value),
    )
    noise = full / (400 - rank)
    expected = np.maximum(by_class - full - 3 * noise, 0) / by_class
    np.testing.assert_allclose(table["attribute_share"], expected, atol=1e-10)
    expected = np.maximum(by_value - full - 2 * noise, 0) / by_value
    np.testing.assert_allclose(table["class_share"], expected, atol=1e-10)
    p_value = stats.f.sf((by_class - full) / 3 / noise, 3, 400 - rank)
    seen = table["attribute_share"] > 0
    np.testing.assert_allclose(table["p_value"][seen], p_value[seen], rtol=1e-6)
    assert table["suspect"].tolist() == [False, True, False, False, False]
    assert table.loc[1, "value"] == "value 3"


def test_effect_of_two_values_is_the_difference_within_classes_in_standard_deviations():
    label = np.repeat([0, 1], [6, 6])
    value = np.array([0, 0, 0, 1, 1, 1] * 2)
    # the classes are far apart; within each, value 1 is 2 higher, with a variance of 1
    feature = np.array([9.0, 10, 11, 11, 12, 13, 0, 1, 2, 2, 3, 4])
    groups = groups_of(label, value)
    (row,) = group_differences(moments_of(feature[:, None], groups), groups).itertuples()
    deviation = np.sqrt(8 / (12 - 3))  # squares within groups; class, value and mean are fitted
    assert row.value == "value 1"
    assert row.effect == pytest.approx(2 / deviation)
    error = np.sqrt(1 / 3 + row.effect**2 / 18)
    assert row.high - row.effect == pytest.approx(1.959964 * error, rel=1e-5)


def test_a_feature_of_the_class_is_ranked_behind_and_nothing_depends_on_scale():
    rng = np.random.default_rng(1)
    label = rng.integers(2, size=600)
    value = np.where(rng.random(600) < 0.9, label, 1 - label)  # 90 % go together
    of_class, of_attribute = label + rng.normal(size=600) / 4, value + rng.normal(size=600) / 4
    features = np.stack([of_class, of_attribute, rng.normal(size=600)], axis=1)
    groups = groups_of(label, value)
    table = group_differences(moments_of(features, groups), groups)
    assert table.index[0] == 1
    assert table["suspect"].tolist() == [True, False, False]
    tiny = group_differences(moments_of(features * 1e-6, groups), groups)
    pd.testing.assert_frame_equal(table.drop(columns="mean"), tiny.drop(columns="mean"), rtol=1e-5)


def test_a_silent_feature_and_a_constant_one_differ_nowhere():
    groups = groups_of([0, 0, 1, 1, 0, 1], [0, 1, 0, 1, 1, 0])
    features = np.stack([np.zeros(6), np.full(6, 3.0)], axis=1)
    table = group_differences(moments_of(features, groups), groups)
    assert not table["suspect"].any()
    assert np.isfinite(table[["effect", "low", "high", "attribute_share"]].to_numpy()).all()


def test_accuracy_by_group_and_what_is_mended():
    group = np.array([0] * 4 + [1] * 2)
    before, after, best = [1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 1, 0], [1, 1, 1, 1, 1, 1]
    accuracy = GroupAccuracy(
        np.array([before, after, best], dtype=bool).T, group, 2, weights=np.array([3.0, 1.0])
    )
    table = accuracy.table(reference=2)
    assert table["worst"].tolist() == [0, 0.5, 1]
    assert table["worst_group"].tolist() == [1, 1, 0]
    assert table["mean"].tolist() == pytest.approx([4 / 6, 4 / 6, 1])
    assert table["weighted_mean"].tolist() == pytest.approx([0.75, 0.6875, 1])
    assert table["cost"].tolist() == pytest.approx([0, 0, -1 / 3])
    assert table["mended"].tolist() == pytest.approx([0, 0.5, 1])
    assert (table["worst_low"] <= table["worst"]).all()
    by_gap = accuracy.table()
    assert by_gap["mended"].tolist() == pytest.approx([0, 1 - (4 / 6 - 0.5) / (4 / 6), 1])


def test_a_like_latent_is_about_as_active_and_another_one():
    mean = np.array([0.0, 1.0, 1.1, 100.0, 0.9, 105.0, 0.001])
    drawn = like_latents(mean, [1, 3], np.random.default_rng(0), n_nearest=1)
    assert drawn == (2, 5)


@pytest.fixture(scope="module")
def model() -> HookedViT:
    return HookedViT.from_pretrained("shapes-clip")


@pytest.fixture(scope="module")
def color_sae(model: HookedViT) -> StandardSAE:
    """A hand-made SAE of image embeddings whose first latents are the directions of the colours,
    the others the rest of a basis, each once for either sign: its reconstruction is exact."""
    scenes = ShapeScenes(160, n_objects=1, seed=9, split="test", bias=0.5)
    colors = pd.Categorical(scenes.labels_frame()["color"]).codes
    attached = AttachedSAE(model, identity_sae(torch.eye(model.cfg.d_embed)))
    (embeds,), positions = embeddings_under(attached, scenes, [Suppression("none")])
    means = torch.stack([embeds[colors[positions] == at].mean(0) for at in range(8)])
    directions = torch.linalg.svd(means - means.mean(0)).Vh
    return identity_sae(directions)


def identity_sae(basis: torch.Tensor) -> StandardSAE:
    d = len(basis)
    sae = StandardSAE(StandardSAEConfig(d_in=d, d_sae=2 * d))
    sae.load_state_dict(
        {
            "W_enc": torch.cat([basis, -basis]).T.contiguous(),
            "W_dec": torch.cat([basis, -basis]).contiguous(),
            "b_enc": torch.zeros(2 * d),
            "b_dec": torch.zeros(d),
        }
    )
    sae.cfg.metadata.hook_name = "hook_image_embed"
    return sae


def biased_scenes(n: int, seed: int, split: str, bias: float = 1.0) -> ShapeScenes:
    return ShapeScenes(n, n_objects=1, seed=seed, split=split, bias=bias)


def test_the_planted_colours_are_found_and_suppressed(model, color_sae):
    report = bias_study(
        model,
        color_sae,
        biased_scenes(320, 3, "test"),
        attribute="color",
        fit_images=biased_scenes(320, 4, "train", bias=0.9),
        reference_images=biased_scenes(200, 4, "train", bias=0.125),
        elsewhere_images=ShapeScenes(64, n_objects=1, seed=5, split="test"),
        names={0: "first"},
        ns=(2, 12),
        n_draws=1,
        n_curves=1,
        refit=True,
        batch_size_images=80,
    )
    d = model.cfg.d_embed
    first = report.concepts.index[:5] % d
    assert set(first) <= set(range(7))  # eight colours' means span seven directions
    mending = report.mending
    as_it_is, best = mending.loc[("none", 0, 0, False)], mending.loc["unbiased probe"].iloc[0]
    mended = mending.loc[("concepts", 12, 0, True)]
    assert mended["mean"] > as_it_is["mean"] + 0.05
    assert mended["mean"] > mending.loc[("neurons", 12, 0, True)]["mean"]
    assert mended["mean"] > mending.loc[("random latents", 12, 0, True)]["mean"]
    assert best["mean"] > as_it_is["mean"]
    assert as_it_is["cost"] == 0
    # what names coloured shapes needs the colours
    assert mending.loc[("concepts", 12, 0, False)]["elsewhere"] < as_it_is["elsewhere"] - 0.2
    # multiplied by 1, a concept moves nothing
    moved = report.prediction.xs("(any)", level="class")["share"]
    assert (moved.xs(1.0, level="factor") == 0).all()
    assert moved.max() > 0
    assert report.groups["n_images"].sum() == 320
    assert report.settings["classifier"] == "linear probe"


def test_suppressing_by_the_decoder_is_what_the_splice_does(model, color_sae):
    attached = AttachedSAE(model, color_sae)
    scenes = biased_scenes(6, 1, "test")
    ways = [Suppression("concepts", (1, 5)), Suppression("concepts", (1, 5), factor=3.0)]
    (silenced, louder), _ = embeddings_under(attached, scenes, ways, batch_size_images=4)
    pixels = torch.cat([batch.pixels for batch in attached.walk(scenes)])
    for found, edit in ((silenced, remove([1, 5])), (louder, scale([1, 5], 3.0))):
        with torch.no_grad():
            expected = attached.splice(pixels, edit, use_error_term=True)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attribute": "colour"}, "want color"),
        ({"fit_images": None}, "images of their own"),
        ({"fit_images": biased_scenes(400, 3, "test")}, "same images"),
        ({"fit_images": ShapeScenes(40, n_objects=1, seed=4)}, "same in the same order"),
        ({"fit_images": biased_scenes(40, 4, "train", 1.0)}, "can't be told apart"),
        ({"images": biased_scenes(20, 3, "test")}, "of 64 groups have no image"),
        (
            {"fit_images": None, "find_images": biased_scenes(40, 4, "train"), "refit": True},
            "refit",
        ),
        ({"ns": (0,)}, "from 1 on"),
        ({"refit": True, "head": torch.nn.Identity()}, "fit_images and no head"),
        ({"class_names": ["circle"]}, "class_names has 1 names; want 8"),
    ],
)
def test_bad_input_is_refused(model, change, message):
    settings = {
        "images": biased_scenes(400, 3, "test"),
        "attribute": "color",
        "fit_images": biased_scenes(80, 4, "train", 0.5),
    }
    settings |= change
    images = settings.pop("images")
    sae = identity_sae(torch.eye(model.cfg.d_embed))
    with pytest.raises(ValueError, match=message):
        bias_study(model, sae, images, **settings)
