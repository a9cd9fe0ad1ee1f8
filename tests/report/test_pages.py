"""The pages of latents and of explained images in a browser, and how pages are linked."""

import re

import numpy as np
import pytest

from tests.report.pages import LISTED, SHOWN, TEXT, TEXTS, in_order, open_index, pixels, visit
from tests.report.reports import HOSTILE, Report, shares_of
from vit_sae_plugin.analysis import analyze, explain
from vit_sae_plugin.report import write_report
from vit_sae_plugin.report.site_data import leading_labels, number


def test_nothing_in_names_is_run(made, page):
    open_index(page, made)
    page.type("#search", "onerror")
    assert any(HOSTILE in title for title in page.run(TEXTS, ".what div"))
    for where in ("latent.html#3", "explain.html", "explain.html#0"):
        visit(page, made.folder, where, "main h1")
        assert HOSTILE in page.run("return document.body.textContent")
    assert page.run("return window.broken ?? null") is None
    assert page.run("return document.querySelectorAll('script:not([src])').length") == 0
    assert page.messages() == []


def test_the_page_of_a_latent(made, page):
    atlas, row = made.atlas, made.atlas.latents.loc[3]
    details = made.details(3)
    visit(page, made.folder, "latent.html#3", "#similar")
    assert page.run(TEXT, "h1") == "Latent 3"
    assert page.run(TEXTS, "h2") == [
        *("Reference images", "Top classes", "Activations", "Active together"),
        *("Alike in direction", "Explained images"),
    ]
    shown = dict(zip(page.run(TEXTS, "dt"), page.run(TEXTS, "dd"), strict=True))
    formatted = {
        name: page.run(f"return report.format.{kind}(arguments[0])", number(value))
        for name, kind, value in [
            ("frequency", "share", row["frequency"]),
            ("of tokens", "share", row["token_frequency"]),
            ("images", "count", row["n_active_images"]),
            ("mean activation", "number", row["mean_activation"]),
            ("max activation", "number", row["max_activation"]),
            ("label entropy", "entropy", row["label_entropy"]),
            ("label std", "number", row["label_std"]),
        ]
    }
    assert shown == formatted
    assert len(set(shown.values())) == 7
    # the heading counts labels among the reference images
    rows = atlas.reference_images(3)
    counts = rows["label"].value_counts()
    lead = page.run(TEXT, ".lead")
    assert lead.startswith("third one")
    for label, count in counts.items():
        assert f"{atlas.class_name(label)} {count} of 10" in lead
    # top classes: for each image and in all
    classes = atlas.top_classes(3).sort_values("count_per_image", ascending=False, kind="stable")
    entries = page.run(
        "return [...document.querySelectorAll('#classes .entry:not(.minor)')].map(e => ["
        "e.firstChild.textContent, ...[...e.querySelectorAll('.num')].map(n => n.textContent)])"
    )
    assert [e[0] for e in entries] == classes["class_name"].tolist()
    assert [float(e[1]) for e in entries] == pytest.approx(classes["count_per_image"], rel=0.01)
    assert [int(e[2].replace(",", "")) for e in entries] == classes["count"].tolist()
    bars = "return [...document.querySelectorAll('#classes .fill')]"
    widths = page.run(f"{bars}.map(bar => parseFloat(bar.style.width))")
    rates = classes["count_per_image"].to_numpy()
    np.testing.assert_allclose(widths, 100 * rates / rates.max(), rtol=0.01)
    # the histogram: one bar for each bin, as high as its count
    bars = page.run(
        "return [...document.querySelectorAll('#activations rect')].map("
        "r => [r.querySelector('title').textContent, Number(r.getAttribute('height'))])"
    )
    heights = [int(re.sub(r".*: |,", "", text)) for text, _ in bars]
    assert sum(heights) == row["n_active_tokens"]
    np.testing.assert_allclose(
        [h for _, h in bars], 152 * np.array(heights) / max(heights), rtol=1e-5
    )
    for section, partners in {"coactive": atlas.coactive(3), "similar": atlas.similar(3)}.items():
        ids = page.run(TEXTS, f"#{section} .id")
        assert ids == [str(i) for i in partners.index[:6]]
        scores = [float(text) for text in page.run(TEXTS, f"#{section} .num")]
        assert scores == pytest.approx(partners.iloc[:6, 0].tolist(), abs=0.006)
    assert len(details["similar"]) > 5
    entry = made.data("atlas")["explained"][0]
    cards = page.run(TEXTS, "#explained .figure b")
    assert (entry["id"] in cards) == (3 in entry["latents"])
    assert page.messages() == []


def test_reference_images_and_their_masks(made, page):
    details = made.details(3)
    visit(page, made.folder, "latent.html#3", ".references img")
    images = "return [...document.querySelectorAll('.references img')]"
    page.wait(images + ".length === 10")
    page.wait(images + ".every(i => i.naturalWidth > 0)")
    assert page.run("return [...document.images].every(i => i.loading === 'lazy')")
    for name in ("mean", "max", "count"):
        page.click(f'[data-aggregation="{name}"]')
        rows = made.atlas.reference_images(3, name)
        ids = page.run(
            "return [...document.querySelectorAll('.references .figure')].map("
            "f => f.lastElementChild.textContent)"
        )
        assert ids == rows["id"].tolist()
        mask = shares_of(details["masks"][str(rows["image"].iloc[0])][0], (4, 4))
        drawn = pixels(page, ".references canvas")
        assert mask.max() == 1
        np.testing.assert_allclose(drawn[..., 3], 255 * 0.7 * (1 - np.sqrt(mask)), atol=1)
    style = "return getComputedStyle(document.querySelector('.references canvas'))."
    assert page.run(style + "imageRendering") == "pixelated"
    page.click('[data-kind="smooth"]')
    assert page.run(style + "imageRendering") == "auto"
    page.click('[data-kind="off"]')
    assert page.run(style + "display") == "none"
    page.click('[data-kind="blocks"]')


def test_links_between_pages(made, page):
    open_index(page, made)
    page.type("#search", "third")
    page.click('#rows .row[data-latent="3"] .id')
    page.wait("return document.querySelector('h1')?.textContent === 'Latent 3'")
    relative = page.run("return document.querySelector('#similar a').getAttribute('href')")
    page.click("#similar a")
    page.wait(
        "return document.querySelector('h1')?.textContent === arguments[0]",
        f"Latent {relative.split('#')[1].split('&')[0]}",
    )
    page.click("#back")  # the filter is still there
    page.wait("return document.querySelector('#search')?.value === 'third'")
    assert page.run(SHOWN) == [3]
    visit(page, made.folder, "latent.html#3", "#classes a")
    link = page.run("return document.querySelector('#classes a').getAttribute('href')")
    page.click("#classes a")
    page.wait("return document.querySelector('#class')?.value === arguments[0]", link[-1])
    label = int(link[-1])
    classes = dict(zip(*(made.data("atlas")["latents"][k] for k in ("id", "classes")), strict=True))
    assert set(page.run(SHOWN)) == {i for i, some in classes.items() if label in some}
    dead, alive = made.data("atlas")["dead"][0], made.data("atlas")["latents"]["id"]
    for where, text in [(dead, f"Latent {dead} is dead"), (99, "There is no such latent")]:
        assert where not in alive
        visit(page, made.folder, f"latent.html#{where}", ".empty")
        assert text in page.run(TEXT, "main")
    assert page.messages() == []


@pytest.mark.parametrize(("which", "row", "column"), [("made", 1, 2), ("wide", 0, 3)])
def test_clicking_a_patch_shows_its_latents(which, row, column, page, request):
    report: Report = request.getfixturevalue(which)
    entry = report.data("atlas")["explained"][0]
    picture = report.images.picture(entry["index"])
    explanation = explain(report.model, report.sae, report.atlas, picture)
    expected = [one.latent for one in explanation.at_patch(row, column, n_latents=12)]
    n_rows, n_columns = report.model.cfg.grid
    data = report.data(f"explain/{entry['file']}")
    assert [i for i, _ in data["patches"][row * n_columns + column]] == expected
    other = explanation.at_patch(n_rows - 1, 0, n_latents=12)
    assert len(expected) > 2
    assert expected != [one.latent for one in other]
    visit(page, report.folder, "explain.html", '[data-image="0"]')
    page.click('[data-image="0"]')
    page.wait("return document.querySelector('.stage img')?.naturalWidth > 0")
    assert page.run(LISTED)[0] == explanation.latents[0].latent
    page.click(".stage .picture", at=((column + 0.6) / n_columns, (row + 0.35) / n_rows))
    assert page.run(TEXT, "h2") == f"In the patch of row {row + 1}, column {column + 1}"
    assert page.run(LISTED) == expected
    # pointing at a latent dims the rest of the picture
    page.point_at(".listed .num")
    page.wait("return document.querySelector('.stage canvas').width === arguments[0]", n_columns)
    masks = [explanation.heatmap(latent).patches for latent in expected[:2]]
    first, second = (np.nan_to_num(mask) / np.nanmax(mask) for mask in masks)
    shade = pixels(page, ".stage canvas")[..., 3]
    np.testing.assert_allclose(shade, 255 * 0.7 * (1 - np.sqrt(first)), atol=2)
    # ticking two mixes their colours by how active they are
    for latent in expected[:2]:
        page.click(f'[data-pin="{latent}"]')
    page.point_at("h1")
    assert page.run(TEXTS, ".legend > span") == [f"latent {latent}" for latent in expected[:2]]
    colours = np.array(report.data("atlas")["colours"], float)
    assert len({tuple(colour) for colour in colours}) == 7
    strong, total = np.maximum(first, second), np.maximum(first + second, 1e-9)
    mixed = (first[..., None] * colours[0] + second[..., None] * colours[1]) / total[..., None]
    alpha = 0.75 * strong + 0.5 * (1 - 0.75 * strong)
    drawn = pixels(page, ".stage canvas").astype(float)
    np.testing.assert_allclose(drawn[..., 3], 255 * alpha, atol=2)
    np.testing.assert_allclose(drawn[..., :3], mixed * (0.75 * strong / alpha)[..., None], atol=4)
    # there are seven colours
    page.click("#whole")
    strongest = [i for i, _ in data["image"]]
    assert page.run(LISTED) == strongest
    others = [i for i in strongest if i not in expected[:2]]
    for latent in others[:5]:
        page.click(f'[data-pin="{latent}"]')
    swatches = page.run(
        "return [...document.querySelectorAll('.swatch')].map(e => e.style.background)"
    )
    assert len(set(swatches)) == 7
    spare = page.run(
        "const pin = document.querySelector(arguments[0]); return [pin.disabled, pin.title]",
        f'[data-pin="{others[5]}"]',
    )
    assert spare == [True, "all 7 colours are in use"]
    page.click(f'[data-pin="{others[0]}"]')
    assert page.run("return [...document.querySelectorAll('.pin')].every(p => !p.disabled)")
    page.click('[data-kind="off"]')
    hidden = "return getComputedStyle(document.querySelector('.stage canvas')).display"
    assert page.run(hidden) == "none"
    assert page.run(TEXT, ".legend") == "Masks are off."
    page.click('[data-kind="blocks"]')
    assert page.run(hidden) == "block"
    page.click("a.id")
    page.wait("return location.pathname.endsWith('/latent.html')")
    assert page.messages() == []


def test_pages_without_labels(wide, page):
    assert wide.atlas.latents["label_entropy"].isna().all()
    table = open_index(page, wide)
    assert page.run(SHOWN) == in_order(table, "frequency", False)
    for control in ("#class", "#entropy-low", '[data-needs="labels"]'):
        visible = "return document.querySelector(arguments[0])?.checkVisibility() ?? false"
        assert page.run(visible, control) is False, control
    assert page.run("return document.querySelector('#frequency-low').checkVisibility()")
    heads = page.run(TEXTS, "#head > span")
    assert heads == ["Latent", "Reference images", "", "Frequency", "Mean act.", "Max act."]
    assert set(page.run(TEXTS, "#rows .what")) == {""}
    latent = page.run(SHOWN)[-1]
    assert not table.loc[latent, "dense"]
    visit(page, wide.folder, f"latent.html#{latent}", "#similar")
    assert page.run(TEXT, ".lead") == ""
    assert "label entropy" not in page.run(TEXTS, "dt")
    assert page.run(TEXTS, "h2")[:3] == ["Reference images", "Activations", "Active together"]
    visit(page, wide.folder, "explain.html", "[data-image]")
    assert page.run(TEXTS, ".figure b")[:4] == ["1.png", "5.png", "10.png", "14.png"]
    visit(page, wide.folder, "explain.html#0", ".listed")
    assert page.run(TEXT, ".lead") == "image 1"
    assert "entropy" not in page.run(TEXT, "main")
    assert page.messages() == []


def test_a_latent_never_above_the_threshold(made, page, tmp_path):
    """It has no reference images by count, so those by mean stand for it."""
    arguments = (made.model, made.sae, made.images)
    rules = ("count", "mean")
    atlas = analyze(*arguments, aggregations=rules, threshold=50.0, progress=False)
    model, sae, images = arguments
    write_report(model, sae, atlas, images, tmp_path, latents=[3], explain=[], progress=False)
    report = Report(model, sae, atlas, images, tmp_path)
    data = report.data("atlas")["latents"]
    by_mean = atlas.reference_images(3, "mean")["image"].tolist()
    assert [i for i, _ in report.data("previews/00000")[0]] == by_mean[:5]
    assert data["classes"] == [[c for c, _ in leading_labels(made.atlas, [3])[0]]]
    visit(page, tmp_path, "latent.html#3", "#similar")
    pressed = "return document.querySelector('[data-aggregation][aria-pressed=true]').textContent"
    assert page.run(pressed) == "mean"
    assert len(page.run(TEXTS, ".references .figure")) == 10
    assert " of 10 reference images" in page.run(TEXT, ".lead")
    page.click('[data-aggregation="count"]')
    assert page.run(TEXT, ".references") == "No image has a positive count."


def test_pages_of_an_sae_without_patches(without_patches, page):
    data = without_patches.data("atlas")
    assert data["explained"] == []
    assert data["has_patches"] is False
    visit(page, without_patches.folder, f"latent.html#{data['latents']['id'][0]}", "#similar")
    assert "bright in the patches" not in page.run(TEXT, "main")
    assert page.run("return document.querySelector('.masks')") is None
    visit(page, without_patches.folder, "explain.html", ".empty")
    assert "reads no patches" in page.run(TEXT, "main")


def test_pages_fit_a_narrow_window(made, wide, page):
    page.resize(500, 900)
    for report, where, ready in [
        (made, "index.html", "#found b"),
        (wide, "index.html", "#found b"),
        (made, "latent.html#3", ".references img"),
        (made, "explain.html", "[data-image]"),
        (made, "explain.html#0", ".listed"),
    ]:
        visit(page, report.folder, where, ready)
        width, room = page.run("return [document.documentElement.scrollWidth, innerWidth]")
        assert width <= room, where
