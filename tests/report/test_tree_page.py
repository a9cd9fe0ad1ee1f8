"""The page of the tree in a browser: opened by click and by keys; left out if there is none."""

import numpy as np
import pandas as pd
import pytest

from tests.analysis.tiny_pipeline import NoisePictures, make_model, make_sae
from tests.report.pages import TEXT, TEXTS, visit
from tests.report.reports import Report
from vit_sae_plugin.analysis import analyze
from vit_sae_plugin.concepts.latent_tree import LatentTree
from vit_sae_plugin.report import write_report

SEEN = (
    "return [...document.querySelectorAll('[role=treeitem]')].filter(e => e.offsetParent)"
    ".map(e => Number(e.dataset.latent))"
)
KEY = (
    "document.activeElement.dispatchEvent(new KeyboardEvent('keydown',"
    " {key: arguments[0], bubbles: true}));"
    "return Number(document.activeElement.closest('[role=treeitem]')?.dataset.latent)"
)


@pytest.fixture(scope="module")
def forest(tmp_path_factory):
    model, images = make_model(), NoisePictures(12)
    sae = make_sae(model)
    folder = tmp_path_factory.mktemp("tree")
    atlas = analyze(model, sae, images, progress=False, folder=folder / "atlas")
    parent = {1: 0, 2: 1, 3: 1, 5: 4}
    table = pd.DataFrame(
        {
            "parent": pd.array([parent.get(latent) for latent in range(40)], dtype="Int64"),
            "p_parent": np.where([latent in parent for latent in range(40)], 0.9, np.nan),
            "p_child": np.where([latent in parent for latent in range(40)], 0.25, np.nan),
            "lift": np.nan,
            "n_active": np.arange(40)[::-1],
        },
        index=pd.RangeIndex(40, name="latent"),
    )
    settings = {"k": None, "min_p_parent": 0.7, "max_p_child": 0.5, "n_tokens": 160}
    tree = LatentTree(table, atlas.info.sae_sha256, settings)
    tree.save(atlas.folder)
    write_report(model, sae, atlas, images, folder / "report", progress=False)
    return Report(model, sae, atlas, images, folder / "report")


def test_it_opens_by_click_and_by_keys(forest, page):
    visit(page, forest.folder, "tree.html", "[role=treeitem]")
    assert page.run(SEEN) == [0, 4]
    assert "4 latents under 2 others" in page.run(TEXT, "#found")
    assert page.run(TEXTS, ".num")[:2] == ["", "3 below"]
    page.click('[data-latent="0"] button.toggle')
    assert page.run(SEEN) == [0, 1, 4]
    assert page.run(TEXT, '[data-latent="1"] .num') == "90.0 % · 25.0 %"
    page.click("#open-all")
    assert page.run(SEEN) == [0, 1, 2, 3, 4, 5]
    page.click("#close-all")
    assert page.run(SEEN) == [0, 4]
    moves = ["ArrowRight", "ArrowRight", "ArrowRight", "ArrowDown", "ArrowDown", "End", "ArrowUp"]
    went = [page.run(KEY, key) for key in moves]
    assert went == [0, 1, 1, 2, 3, 4, 3]
    assert [page.run(KEY, key) for key in ("ArrowLeft", "ArrowLeft", "Home")] == [1, 1, 0]
    assert page.run(SEEN) == [0, 1, 4]
    level = "return document.querySelector('[data-latent=\"2\"]').getAttribute('aria-level')"
    assert page.run(level) == "3"
    page.run(KEY, "Enter")
    page.wait("return location.href.includes('latent.html#0')")


def test_no_tree_no_link(made, forest, page):
    links = "return [...document.querySelectorAll('.bar a')].map(a => a.textContent)"
    visit(page, made.folder, "index.html", "#rows .row")
    assert "Tree" not in page.run(links)
    visit(page, forest.folder, "index.html", "#rows .row")
    assert "Tree" in page.run(links)


def test_the_tree_of_another_sae_is_refused(forest, tmp_path):
    tree = LatentTree.load(forest.atlas.folder, forest.atlas.info.sae_sha256)
    other = LatentTree(tree.table, "0" * 64, tree.settings)
    arguments = (forest.model, forest.sae, forest.atlas, forest.images, tmp_path / "report")
    with pytest.raises(ValueError, match="the tree is of the SAE 00000000, but the atlas was"):
        write_report(*arguments, tree=other, progress=False)
    other.save(forest.atlas.folder)
    with pytest.warns(UserWarning, match="the report has no tree: the tree in"):
        write_report(*arguments, progress=False)
    tree.save(forest.atlas.folder)
