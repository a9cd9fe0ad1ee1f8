"""Every statistic of the five images, worked by hand."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from tests.analysis.five_images import IDS, LATENTS, A, B, C, D, build, make_atlas, make_builder

NAN = math.nan
SPREAD_OF_0_0_1 = math.sqrt(2 / 9)


@pytest.fixture(scope="module")
def atlas():
    return make_atlas()


def entropy(*shares):
    return -sum(p * math.log(p) for p in shares)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("n_active_images", [4, 2, 4, 0]),
        ("frequency", [4 / 5, 2 / 5, 4 / 5, 0]),
        ("n_active_tokens", [5, 2, 9, 0]),
        ("token_frequency", [5 / 15, 2 / 15, 9 / 15, 0]),
        # A: token-means 1/4, 1/2, 1/4, 0, 1/8, over the four images where they are positive
        ("mean_activation", [1.125 / 4, 0.125, 2.5 / 4, NAN]),
        ("max_activation", [1.5, 0.375, 2, NAN]),
        # A's reference images 1, 0, 2 have token-means 1/2, 1/4, 1/4 and labels 0, 0, 1
        (
            "label_entropy",
            [entropy(0.75, 0.25), NAN, entropy(2 / 2.25, 0.25 / 2.25), NAN],
        ),
        ("label_std", [SPREAD_OF_0_0_1, NAN, SPREAD_OF_0_0_1, NAN]),
        ("n_reference_images", [3, 2, 3, 0]),
        # by count A's images 0, 1, 2 have 2, 1, 1 active tokens; C's third image is 3, with 2
        ("label_entropy_by_count", [entropy(3 / 4, 1 / 4), NAN, entropy(5 / 7, 2 / 7), NAN]),
        # by maximum C's third image is 4, which has no label
        ("label_entropy_by_max", [entropy(2 / 2.75, 0.75 / 2.75), NAN, NAN, NAN]),
        ("dataset_count", [5, 2, 8, 0]),
        ("top_class_share", [3 / 4, 1 / 2, 5 / 7, NAN]),
        ("is_dead", [False, False, False, True]),
        ("is_dense", [False, False, True, False]),
    ],
)
def test_latent_table(atlas, column, expected):
    np.testing.assert_allclose(atlas.latents[column].to_numpy(), expected, rtol=1e-6)


def test_top_class_is_missing_for_a_dead_latent(atlas):
    assert atlas.latents["top_class"].tolist() == [0, 0, 0, pd.NA]
    assert atlas.latents["top_class_name"].tolist() == ["cat", "cat", "cat", pd.NA]


@pytest.mark.parametrize(
    ("aggregation", "latent", "images", "values", "columns"),
    [
        # images 0 and 2 tie: the smaller index first. In image 2 only the class token is active
        ("mean", A, [1, 0, 2], [0.5, 0.25, 0.25], [1, 0, pd.NA]),
        ("mean", B, [1, 2], [0.125, 0.125], [pd.NA, 0]),
        ("mean", C, [0, 1, 3], [1, 1, 0.25], [0, 0, 1]),
        ("count", A, [0, 1, 2], [2, 1, 1], [0, 1, pd.NA]),
        ("count", C, [0, 1, 3], [3, 2, 2], [0, 0, 1]),
        ("max", A, [1, 2, 0], [1.5, 0.75, 0.5], [1, pd.NA, 0]),
        ("max", C, [1, 0, 4], [2, 1, 0.75], [0, 0, pd.NA]),
        ("mean", D, [], [], []),
    ],
)
def test_reference_images(atlas, aggregation, latent, images, values, columns):
    table = atlas.reference_images(latent, aggregation)
    assert table["image"].tolist() == images
    assert table["value"].tolist() == values
    assert table["column"].tolist() == columns
    assert table["row"].tolist() == [0 if not pd.isna(c) else pd.NA for c in columns]


def test_reference_images_carry_id_and_label(atlas):
    table = atlas.reference_images(C, "max")
    assert table["id"].tolist() == ["b.png", "a.png", "e.png"]
    assert table["label"].tolist() == [0, 0, pd.NA]
    assert table["class_name"].tolist() == ["cat", "cat", pd.NA]


def test_class_counts(atlas):
    assert atlas.class_counts.tolist() == [[3, 1, 5, 0], [1, 1, 2, 0]]
    assert atlas.class_n_images.tolist() == [2, 2]
    top = atlas.top_classes(A)
    assert top.index.tolist() == [0, 1]
    assert top["count"].tolist() == [3, 1]
    assert top["count_per_image"].tolist() == [1.5, 0.5]
    assert top["share"].tolist() == [0.75, 0.25]
    assert len(atlas.top_classes(D)) == 0
    assert atlas.top_latents("dog").index.tolist() == [C, A, B]
    assert atlas.top_latents(1, by="share").index.tolist() == [B, C, A]
    assert atlas.top_latents(0, n=1)["count"].tolist() == [5]


def test_a_small_class_leads_by_rate():
    builder = make_builder()
    builder.update(LATENTS, torch.arange(5), torch.tensor([0, 0, 0, 1, -1]), IDS)
    atlas = build(builder)
    # C: five tokens on the three cats, two on the only dog
    assert atlas.class_counts[:, C].tolist() == [5, 2]
    assert (atlas.latents["top_class"][C], atlas.latents["top_class_by_rate"][C]) == (0, 1)
    assert atlas.latents["top_class_name_by_rate"].tolist() == ["cat", "cat", "dog", pd.NA]
    assert atlas.top_classes(C).index.tolist() == [0, 1]
    assert atlas.top_classes(C, by="rate").index.tolist() == [1, 0]
    assert atlas.top_classes(C, by="rate", n=1)["count_per_image"].tolist() == [2]
    with pytest.raises(ValueError, match="by is 'size'; want 'count' or 'rate'"):
        atlas.top_classes(C, by="size")


def test_histogram(atlas):
    # bin = floor(8 (log10 v + 5)): 1/4 -> 35, 3/8 -> 36, 1/2 -> 37, 3/4 -> 39, 3/2 -> 41
    filled = {int(i): int(atlas.histogram[A, i]) for i in atlas.histogram[A].nonzero()[0]}
    assert filled == {35: 1, 36: 1, 37: 1, 39: 1, 41: 1}
    low, high = atlas.histogram_edges[37], atlas.histogram_edges[38]
    assert low <= 0.5 < high
    assert atlas.histogram.sum(axis=1).tolist() == [5, 2, 9, 0]


def test_coactive_latents(atlas):
    # A is active on images 0 1 2 4, B on 1 2, C on 0 1 3 4
    assert atlas.coactive(A).index.tolist() == [C, B]
    np.testing.assert_allclose(atlas.coactive(A)["jaccard"], [3 / 5, 2 / 4])
    np.testing.assert_allclose(atlas.coactive(B)["jaccard"], [2 / 4, 1 / 5])
    assert len(atlas.coactive(D)) == 0


def test_similar_latents(atlas):
    # rows (1, 0), (3, 4), (0, 2), (-1, 0)
    assert atlas.similar(B).index.tolist() == [C, A]
    np.testing.assert_allclose(atlas.similar(B)["cosine"], [0.8, 0.6], rtol=1e-6)
    assert atlas.similar(A, n=1).index.tolist() == [B]


def test_questions_about_what_is_not_there(atlas):
    with pytest.raises(ValueError, match="there is no latent 4; want 0 to 3"):
        atlas.reference_images(4)
    with pytest.raises(ValueError, match="no reference images under 'sum'; want one of 'mean'"):
        atlas.reference_images(A, "sum")
    with pytest.raises(ValueError, match="there is no class 2; want 0 to 1"):
        atlas.top_latents(2)
    with pytest.raises(ValueError, match="no class has this name"):
        atlas.top_latents("bird")
    with pytest.raises(ValueError, match="by is 'mean'; want 'count' or 'share'"):
        atlas.top_latents(0, by="mean")


def test_without_labels_there_are_no_classes():
    builder = make_builder()
    builder.update(LATENTS, torch.arange(5), torch.full((5,), -1), IDS)
    atlas = build(builder)
    assert atlas.latents["top_class"].isna().all()
    with pytest.raises(ValueError, match="no classes; want one of labelled images"):
        atlas.top_latents(0)


def test_classes_of_one_name_stay_apart(atlas):
    twins = make_atlas()
    twins.info.class_names = ["cat", "cat"]
    assert twins.top_classes(A)["class_name"].tolist() == ["cat", "cat"]
    with pytest.raises(ValueError, match=r"the classes \[0, 1\] have this name; pass an index"):
        twins.top_latents("cat")
