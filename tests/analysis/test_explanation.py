"""Explaining an image, choosing latents to show, and objects that show themselves."""

import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.analysis.five_images import A, B, C, D, make_atlas
from tests.analysis.tiny_pipeline import NoisePictures, make_model, make_sae
from vit_sae_plugin.analysis import (
    Heatmap,
    LatentInImage,
    analyze,
    explain,
    heatmap,
    reference_heatmaps,
    reference_pictures,
    select_showcase_latents,
)
from vit_sae_plugin.analysis.pictures.heatmaps import encode_images
from vit_sae_plugin.analysis.pictures.seen_region import Region
from vit_sae_plugin.attached_sae import AttachedSAE, attribute
from vit_sae_plugin.datasets.image_lookup import images_by_index


@pytest.fixture(scope="module")
def analysed():
    model, images = make_model(), NoisePictures(20)
    sae = make_sae(model)
    return model, sae, analyze(model, sae, images, progress=False), images


def test_the_strongest_latents_of_an_image_and_of_a_patch(analysed):
    model, sae, atlas, images = analysed
    picture = images.picture(3)
    latents = next(encode_images(AttachedSAE(model, sae), [picture]))
    explanation = explain(model, sae, atlas, picture, n_latents=4)
    mean = latents.mean(dim=0)
    assert [one.latent for one in explanation.latents] == mean.topk(4).indices.tolist()
    np.testing.assert_allclose(explanation.table["value"], mean.topk(4).values, rtol=1e-5)
    by_max = explain(model, sae, atlas, picture, n_latents=4, aggregation="max")
    assert [one.latent for one in by_max.latents] == latents.amax(dim=0).topk(4).indices.tolist()

    there = explanation.at_patch(2, 1, n_latents=3)
    token = latents[1 + 2 * 4 + 1]
    assert [one.latent for one in there] == token.topk(3).indices.tolist()
    assert there[0].value == pytest.approx(token.max().item())
    assert there[0].heatmap.patches[2, 1] == pytest.approx(token.max().item())

    one = explanation.latents[0]
    expected = heatmap(model, sae, picture, one.latent)
    np.testing.assert_allclose(one.heatmap.patches, expected.patches, rtol=1e-5, atol=1e-6)
    assert one.statistics["frequency"] == atlas.latents["frequency"].loc[one.latent]
    pd.testing.assert_frame_equal(one.reference_images, atlas.reference_images(one.latent))


def test_questions_an_explanation_can_not_answer(analysed):
    model, sae, atlas, images = analysed
    explanation = explain(model, sae, atlas, images.picture(0))
    with pytest.raises(ValueError, match=r"no patch \(4, 0\); the grid has 4 rows and 4 columns"):
        explanation.at_patch(4, 0)
    with pytest.raises(ValueError, match="'sum'; want one of 'mean', 'count', 'max'"):
        explain(model, sae, atlas, images.picture(0), aggregation="sum")
    with pytest.raises(ValueError, match="describes 40 latents, but this SAE has 8"):
        explain(model, make_sae(model, d_sae=8), atlas, images.picture(0))


def test_pictures_and_indices_from_anywhere(analysed, tmp_path):
    model, sae, atlas, _ = analysed
    clear = Image.new("RGBA", (40, 36), (0, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    white = explain(model, sae, atlas, Image.new("RGB", (40, 36), "white"))
    for picture in (clear, tmp_path / "clear.png", np.asarray(clear)):
        pd.testing.assert_frame_equal(explain(model, sae, atlas, picture).table, white.table)
    strongest = white.table.index[0]  # as pandas holds it
    np.testing.assert_array_equal(
        white.heatmap(strongest).patches, white.latents[0].heatmap.patches
    )
    with pytest.raises(ValueError, match="there is no latent 40; want 0 to 39"):
        white.heatmap(40)


def test_showcase_prefers_low_entropy_then_frequency():
    atlas = make_atlas()
    atlas.latents["frequency"] = [0.1, 0.15, 0.1, 0.1]
    atlas.latents["label_entropy"] = [0.7, 0.3, 0.3 + 1e-12, np.nan]
    assert select_showcase_latents(atlas, 3) == [B, C, A]
    assert select_showcase_latents(atlas, 1) == [B]
    atlas.latents["frequency"] = [0.1, 0.21, 0.004, 0.1]
    assert select_showcase_latents(atlas) == [A]
    assert D not in select_showcase_latents(atlas, max_frequency=1, min_frequency=0)


def test_reference_pictures_are_the_reference_images(analysed):
    model, sae, atlas, images = analysed
    maps = reference_heatmaps(model, sae, atlas, images, [2, 3, 7], n_images=4)
    assert [len(maps[i]) for i in (2, 3, 7)] == [4, 4, 0]
    for latent in (2, 3):
        table = atlas.reference_images(latent)
        for one, index in zip(maps[latent], table["image"], strict=False):
            picture = images.picture(index)
            assert one.image.tobytes() == picture.tobytes()
            expected = heatmap(model, sae, picture, latent).patches
            np.testing.assert_allclose(one.patches, expected, rtol=1e-4, atol=1e-6)
    pictures = reference_pictures(model, sae, atlas, images, [2], n_images=3, size=48)
    assert [picture.size for picture in pictures[2]] == [(48, 48)] * 3  # the model sees a square


class Stream(NoisePictures):
    """The same pictures as a stream."""

    is_streaming = True

    def record(self, index):
        raise AssertionError("a stream can't be asked for a record")

    def records(self, start=0):
        for index in range(start, self.n_images):
            yield NoisePictures.record(self, index)


def test_streams_are_walked_once():
    found = dict(images_by_index(Stream(6), [4, 1, 4]))
    assert list(found) == [1, 4]
    assert found[4].tobytes() == NoisePictures(6).picture(4).tobytes()
    assert list(images_by_index(Stream(6), [])) == []
    with pytest.raises(ValueError, match="noise ended before image 9"):
        list(images_by_index(Stream(6), [9]))


def test_objects_show_themselves(analysed):
    model, sae, atlas, images = analysed
    explanation = explain(model, sae, atlas, images.picture(3), n_latents=3)
    with_pictures = atlas.latent(2, images)
    shown = {
        "atlas": atlas._repr_html_(),
        "latent": with_pictures._repr_html_(),
        "latent without pictures": atlas.latent(2)._repr_html_(),
        "heatmap": heatmap(model, sae, images.picture(0), 2)._repr_html_(),
        "latent in an image": explanation.latents[0]._repr_html_(),
        "explanation": explanation._repr_html_(),
        "latents at a patch": explanation.at_patch(1, 2, n_latents=4)._repr_html_(),
        "several heat maps": heatmap(model, sae, images.picture(0), [2, 3])._repr_html_(),
        "a slice of latents": explanation.latents[:2]._repr_html_(),
        "latent of a named source": atlas.latent(
            2, [images.picture(i) for i in range(20)]
        )._repr_html_(),
        "info": atlas.info._repr_html_(),
    }
    n_pictures = {name: len(re.findall("<img src=.data:image/png", h)) for name, h in shown.items()}
    assert n_pictures == {
        "atlas": 0,
        "latent": 10,
        "latent without pictures": 0,
        "heatmap": 1,
        "latent in an image": 1,
        "explanation": 4,
        "latents at a patch": 4,
        "several heat maps": 2,
        "a slice of latents": 2,
        "latent of a named source": 10,
        "info": 0,
    }
    assert "20 images" in shown["atlas"]
    assert f"{int(atlas.latents['is_dead'].sum())} dead" in shown["atlas"]
    assert atlas.info.sae_sha256[:8] in shown["info"]
    similar = atlas.similar(2)
    assert "<i>Similar</i>" in shown["latent"]
    for other, cosine in similar["cosine"].items():
        assert f"<th>{other}</th>\n      <td>{cosine:.4g}</td>" in shown["latent"]
    for texts in ([explanation], explanation.latents, heatmap(model, sae, images.picture(0), [2])):
        assert len(repr(texts)) < 400
    assert repr(atlas).startswith("LatentAtlas(40 latents, ")


def test_notebooks_escape_names():
    atlas = make_atlas()
    atlas.info.class_names = ["<b>cat", "dog"]
    atlas.info.data_name = "<script>"
    atlas.latents["top_class_name"] = atlas.class_names_of(atlas.latents["top_class"])
    for text in (atlas._repr_html_(), atlas.latent(A)._repr_html_()):
        assert "<script>" not in text
        assert "<b>cat" not in text
    assert "&lt;b&gt;cat" in atlas.latent(A)._repr_html_()
    assert "<script>" not in atlas.info._repr_html_()
    grid = Heatmap(Image.new("RGB", (8, 8)), A, np.ones((1, 2)), Region(0, 0, 8, 8))
    row = atlas.latents.loc[A].copy()
    row["top_class_name"] = "<b>cat"
    card = LatentInImage(A, 1.0, grid, row, atlas.reference_images(A))._repr_html_()
    assert "&lt;b&gt;cat" in card
    assert "<b>cat" not in card


def test_the_latents_that_made_a_logit(analysed):
    """Here a number that is linear in the class token of the layer read: its parts are known."""
    model, sae, atlas, images = analysed
    picture = images.picture(3)
    by_hand = attribute(
        AttachedSAE(model, sae),
        model.preprocess(picture)[None],
        lambda embeds: embeds[:, 0],
        "gradient",
    )
    explanation = explain(
        model,
        sae,
        atlas,
        picture,
        n_latents=3,
        logit=lambda embeds: embeds[:, 0],
        method="gradient",
    )
    wanted = by_hand.by_latent["attribution"].iloc[:3]
    assert [one.latent for one in explanation.latents] == wanted.index.tolist()
    np.testing.assert_allclose(explanation.table["value"], wanted, rtol=1e-5)
    assert explanation.attribution.score == pytest.approx(by_hand.score)
    with pytest.raises(ValueError, match="logit is 3; want a class from 0 to 2 of the atlas"):
        explain(model, sae, atlas, picture, logit=3)
    with pytest.raises(ValueError, match="has no tokenizer; want"):
        explain(model, sae, atlas, picture, logit=0)
    assert explain(model, sae, atlas, picture).attribution is None
