"""Further measures of an atlas in its report: chosen, sorted, filtered, saved and shown."""

import numpy as np
import pandas as pd
import pytest

from tests.analysis.tiny_pipeline import NoisePictures, make_model, make_sae
from tests.report.pages import SHOWN, TALL, TEXTS, visit
from tests.report.reports import Report
from vit_sae_plugin.analysis import analyze
from vit_sae_plugin.report import write_report


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    model, images = make_model(), NoisePictures(12)
    sae = make_sae(model)
    atlas = analyze(model, sae, images, progress=False)
    stability = np.linspace(0, 1, 40)
    stability[3] = np.nan
    atlas.add_columns(pd.DataFrame({"stability": stability, "n_maps": np.arange(40.0)[::-1]}))
    folder = tmp_path_factory.mktemp("measured")
    write_report(model, sae, atlas, images, folder, progress=False)
    return Report(model, sae, atlas, images, folder)


def test_a_measure_is_a_column_that_sorts_and_filters(measured, page):
    page.resize(*TALL)
    visit(page, measured.folder, "index.html", "#rows .row")
    shown = page.run(SHOWN)
    page.run(
        "const s = document.getElementById('measure'); s.value = 'stability';"
        "s.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    by_stability = page.run(SHOWN)
    known = [latent for latent in by_stability if latent != 3]
    assert known == sorted(known, reverse=True)
    if 3 in shown:
        assert by_stability[-1] == 3
    assert "stability" in page.run(TEXTS, "#head button")
    assert "Max act." not in page.run(TEXTS, "#head button")
    page.type("#measure-low", "0.5")
    assert set(page.run(SHOWN)) == {latent for latent in shown if latent / 39 >= 0.5}
    assert "measure=stability" in page.run("return location.hash")
    page.click("#clear")
    assert page.run(SHOWN) == shown
    latent = shown[0]
    visit(page, measured.folder, f"latent.html#{latent}", "dl.facts")
    names = page.run(TEXTS, "dl.facts dt")
    assert names[-2:] == ["stability", "n maps"]


def test_without_measures_there_is_nothing_to_choose(made, page):
    visit(page, made.folder, "index.html", "#rows .row")
    assert page.run("return document.getElementById('measure').hidden") is True
