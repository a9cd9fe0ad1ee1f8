"""The figures show the atlas's numbers."""

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from tests.analysis.five_images import A, B, C, D, make_atlas
from tests.analysis.tiny_pipeline import NoisePictures, make_model, make_sae
from vit_sae_plugin.analysis import analyze
from vit_sae_plugin.report import (
    plot_activation_curves,
    plot_class_latents,
    plot_latents,
    plot_reference_images,
)


def test_the_scatter_leaves_out_the_dead_and_greys_the_unknown():
    figure = plot_latents(make_atlas())
    assert figure.axes[0].get_xscale() == figure.axes[0].get_yscale() == "log"
    above, beside = figure.axes[1:3]  # counts of the three latents that are alive
    assert sum(bar.get_height() for bar in above.patches) == 3
    assert sum(bar.get_width() for bar in beside.patches) == 3
    grey, coloured = figure.axes[0].collections
    np.testing.assert_allclose(grey.get_offsets(), [[2 / 5, 0.125]])  # B has no entropy
    np.testing.assert_allclose(coloured.get_offsets(), [[4 / 5, 1.125 / 4], [4 / 5, 2.5 / 4]])
    assert coloured.get_array().argmax() == 0  # A's labels vary more than C's
    figure.canvas.draw()
    with pytest.raises(ValueError, match="none of these latents is ever active"):
        plot_latents(make_atlas(), latents=[D])


def test_figures_show_themselves_in_a_notebook():
    png = plot_latents(make_atlas())._repr_png_()
    assert Image.open(BytesIO(png)).size == (960, 840)  # 6.4 x 5.6 inches at 150 dots an inch


def test_activation_curves_count_tokens():
    figure = plot_activation_curves(make_atlas(), [A, C])
    line = figure.axes[0].lines[0]
    assert line.get_ydata()[0] == pytest.approx(5 / 15)  # A is active at 5 of 15 tokens
    assert line.get_ydata()[-1] == pytest.approx(1 / 15)
    assert line.get_xdata()[-1] <= 1.5
    with pytest.raises(ValueError, match="latents is empty"):
        plot_activation_curves(make_atlas(), [])


def test_the_class_heat_map_shows_counts_per_image():
    figure = plot_class_latents(make_atlas(), latents=[A, B, C])
    shown = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(shown, [[3 / 2, 1 / 2, 5 / 2], [1 / 2, 1 / 2, 2 / 2]])
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["cat", "dog"]
    chosen = plot_class_latents(make_atlas(), n_latents=1)
    # of A three quarters fall on cats. Of B half fall on dogs, but on two images that is one token
    assert [t.get_text() for t in chosen.axes[0].get_xticklabels()] == [str(A), str(C)]
    with pytest.raises(ValueError, match=r"no latent is active above 0\.2 "):
        plot_class_latents(make_atlas(), latents=[])
    with pytest.raises(ValueError, match="no image with a class label"):
        plot_class_latents(make_atlas(), classes=[])


@pytest.fixture(scope="module")
def analysed():
    model, images = make_model(), NoisePictures(20)
    sae = make_sae(model)
    return model, sae, analyze(model, sae, images, progress=False), images


@pytest.mark.parametrize("style", ["highlight", "tint", "outline", "zoom"])
def test_reference_grids(analysed, style):
    model, sae, atlas, images = analysed
    figure = plot_reference_images(
        model, sae, atlas, images, [2, 7], n_images=3, style=style, names={2: "two"}
    )
    shown = [len(axes.images) for axes in figure.axes]
    assert shown == [1, 1, 1, 0, 0, 0]  # latent 7 is dead
    assert figure.axes[0].texts[0].get_text().startswith("two\n")
    assert figure.axes[3].texts[0].get_text() == "latent 7\n0.0% of images"
    figure.canvas.draw()


def test_reference_grids_name_the_entropy_where_it_is_known(analysed):
    model, sae, atlas, images = analysed
    known = replace(atlas, latents=atlas.latents.assign(label_entropy=0.5))
    for one, text in [(known, "of images\nentropy 0.50"), (atlas, "of images")]:
        figure = plot_reference_images(model, sae, one, images, [2], n_images=1)
        assert figure.axes[0].texts[0].get_text().endswith(text)


def test_wrong_grids_are_explained(analysed):
    model, sae, atlas, images = analysed
    with pytest.raises(ValueError, match="style is 'x'; want"):
        plot_reference_images(model, sae, atlas, images, [2], style="x")
    with pytest.raises(ValueError, match="latents is empty"):
        plot_reference_images(model, sae, atlas, images, [])
