"""Pictures of attributions and of the masking study show what their tables say."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tests.analysis.tiny_pipeline import NoisePictures, make_model, make_sae
from vit_sae_plugin.analysis import analyze, explain
from vit_sae_plugin.report.attribution_plot import plot_attribution
from vit_sae_plugin.report.masking_plot import plot_masking


def test_an_attribution_shows_the_sum_and_the_strongest_latents():
    model, images = make_model(), NoisePictures(6)
    sae = make_sae(model)
    atlas = analyze(model, sae, images, progress=False)
    picture = images.picture(2)
    explanation = explain(model, sae, atlas, picture, logit=lambda embeds: embeds[:, 0])
    figure = plot_attribution(explanation, n_latents=3, label="first coordinate")
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == 5
    strongest = explanation.attribution.by_latent.index[:3]
    for axes, grid in zip(
        panels[1:],
        [explanation.attribution.on_grid(), *map(explanation.attribution.on_grid, strongest)],
        strict=True,
    ):
        np.testing.assert_allclose(axes.images[-1].get_array(), np.nan_to_num(grid))
    assert panels[2].get_title().startswith(f"{strongest[0]}: ")
    with pytest.raises(ValueError, match="of no logit; want explain"):
        plot_attribution(explain(model, sae, atlas, picture))


def test_masking_curves_stand_where_the_table_says():
    rows = {
        ("", "original", False, 0): 0.9,
        ("", "all on", False, 20): 0.8,
        ("", "all off", False, 0): 0.1,
    }
    for ranking, start in (("class", 0.5), ("random", 0.1)):
        for step, k in enumerate((1, 5, 20)):
            rows[(ranking, "on", False, k)] = start + 0.1 * step
            rows[(ranking, "off", False, k)] = 0.8 - start * step / 2
    accuracy = pd.Series(rows)
    accuracy.index.names = ["ranking", "mask", "error_term", "k"]
    table = pd.DataFrame(
        {"accuracy": accuracy, "low": accuracy - 0.05, "high": accuracy + 0.05, "n_images": 9}
    )
    figure = plot_masking(table)
    on, off = figure.axes
    lines = {line.get_label(): line for line in on.lines}
    np.testing.assert_allclose(lines["the class's top latents"].get_ydata(), [0.5, 0.6, 0.7])
    np.testing.assert_allclose(lines["random latents"].get_xdata(), [1, 5, 20])
    assert {text.get_text() for text in off.texts} == {"original", "all on", "all off"}
    with pytest.raises(ValueError, match="no conditions with error_term=True"):
        plot_masking(table, error_term=True)
