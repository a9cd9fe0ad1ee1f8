"""What a reader can do on the pages besides looking: keys, addresses, names, files, comparisons."""

import json
import re
from dataclasses import replace
from io import StringIO

import numpy as np
import pandas as pd
import pytest

from tests.report.pages import LISTED, SHOWN, TEXT, TEXTS, in_order, open_index, visit
from tests.report.reports import HOSTILE, shares_of
from vit_sae_plugin.analysis import LatentAtlas, LatentName
from vit_sae_plugin.report import site_data, write_report
from vit_sae_plugin.report.site_data import leading_labels

FOCUSED = "return document.activeElement?.dataset[arguments[0]] ?? null"
HEADING = "return document.querySelector('h1')?.textContent === arguments[0]"
READ = (
    "return report.open().then(atlas => atlas.naming.read(arguments[0]))"
    ".then(() => null, error => error.message)"
)
HASH = "return decodeURIComponent(location.hash)"


@pytest.fixture(autouse=True)
def forgetful(page, made):
    """A browser that remembers nothing of an earlier test."""
    page.open(f"file://{made.folder}/explain.html")
    page.run("localStorage.clear()")


def test_next_and_previous_follow_filter_and_sorting(made, page):
    middle = float(made.atlas.latents["label_entropy"].median())
    table = open_index(page, made, f"#entropy-high={middle}&sort=max,ascending")
    order = in_order(table[table["entropy"] <= middle], "max", True)
    assert 3 < len(order) < len(table)
    page.click(f'#rows .row[data-latent="{order[1]}"] .id')
    page.wait(HEADING, f"Latent {order[1]}")
    assert page.run(TEXT, "#place") == f"2 of {len(order)} filtered"
    page.press("ARROW_RIGHT")
    page.wait(HEADING, f"Latent {order[2]}")
    page.click('a[rel="next"]')
    page.wait(HEADING, f"Latent {order[3]}")
    for latent in order[2::-1]:
        page.press("ARROW_LEFT")
        page.wait(HEADING, f"Latent {latent}")
    assert page.run("return document.querySelector('a[rel=prev]')") is None
    page.click("#back")
    page.wait("return document.querySelector('#entropy-high')?.value !== ''")
    assert page.run(SHOWN) == order
    outside = next(i for i in table.index if i not in order)
    visit(page, made.folder, f"latent.html#{outside}&entropy-high={middle}", "#similar")
    assert page.run(TEXT, "#place") == f"not among the {len(order)} filtered"


def test_rows_and_cards_by_keyboard(made, page):
    open_index(page, made)
    order = page.run(SHOWN)
    page.click("#search")
    page.press("ARROW_DOWN")
    assert page.run(FOCUSED, "latent") == str(order[0])
    page.press("ARROW_DOWN", "ARROW_DOWN", "ARROW_UP")
    assert page.run(FOCUSED, "latent") == str(order[1])
    page.press("END")
    assert page.run(FOCUSED, "latent") == str(order[-1])
    page.press("HOME", "ENTER")
    page.wait(HEADING, f"Latent {order[0]}")
    visit(page, made.folder, "explain.html", "[data-image]")
    page.run("document.querySelector('[data-image]').focus()")
    page.press("ARROW_RIGHT", "ENTER")
    page.wait("return location.hash === '#1' && document.querySelector('a[rel=prev]') !== null")
    page.press("ARROW_LEFT")
    page.wait("return location.hash.startsWith('#0')")


def test_patches_by_keyboard_and_in_the_address(made, page):
    entry = made.data("atlas")["explained"][0]
    data = made.data(f"explain/{entry['file']}")
    visit(page, made.folder, "explain.html#0", ".listed")
    page.run("document.querySelector('.stage .picture').focus()")
    page.press("ARROW_UP")  # the first key chooses the middle
    assert page.run(TEXT, "h2") == "In the patch of row 3, column 3"
    page.press("ARROW_UP", "ARROW_RIGHT", "ARROW_RIGHT")
    assert page.run(TEXT, "h2") == "In the patch of row 2, column 4"
    expected = [latent for latent, _ in data["patches"][7]]
    assert page.run(LISTED) == expected
    for latent in expected[:2]:
        page.click(f'[data-pin="{latent}"]')
    page.click('[data-kind="smooth"]')
    pins = ",".join(map(str, expected[:2]))
    address = page.run(HASH)
    assert address == f"#0&patch=2,4&pins={pins}&mask=smooth"
    page.run("localStorage.clear()")
    visit(page, made.folder, f"explain.html{address}", ".listed")
    assert page.run(TEXT, "h2") == "In the patch of row 2, column 4"
    assert page.run(TEXTS, ".legend > span") == [f"latent {latent}" for latent in expected[:2]]
    assert page.run("return document.body.dataset.mask") == "smooth"
    page.run("document.querySelector('.stage .picture').focus()")
    page.press("ESCAPE")
    assert page.run(HASH) == f"#0&pins={pins}&mask=smooth"
    visit(page, made.folder, "explain.html#0&patch=9,9&pins=x,999&mask=odd", ".listed")
    assert page.run(TEXT, "h2") == "In the whole image"
    assert page.run(TEXTS, ".swatch") == []
    assert page.run("return document.body.dataset.mask") == "blocks"


def test_the_filtered_table_as_csv(made, page):
    table = open_index(page, made, "#class=1&sort=mean,descending")
    some = in_order(table[[1 in classes for classes in table["classes"]]], "mean", False)
    page.click("#csv")
    saved = page.downloaded("latents.csv")
    text = saved.read_bytes().decode("utf-8")
    saved.unlink()
    frame = pd.read_csv(StringIO(text))
    assert frame["latent"].tolist() == some
    known = made.atlas.latents.loc[some]
    for column in ("frequency", "token_frequency", "mean_activation", "label_entropy"):
        np.testing.assert_allclose(frame[column], known[column], rtol=1e-4)
    assert frame["is_dense"].tolist() == known["is_dense"].tolist()
    for column in ("top_class_name", "top_class_name_by_rate"):
        assert frame[column].fillna("none").tolist() == known[column].fillna("none").tolist()
    shares = [dict(pairs)[1] for pairs in leading_labels(made.atlas, some)]
    np.testing.assert_allclose(frame[f"share of {HOSTILE}"], shares, rtol=1e-4)


def test_a_class_filter_sorts_by_its_share(made, page):
    table = open_index(page, made)
    heads = "return [...document.querySelectorAll('#head [data-sort]')].map(b => b.dataset.sort)"
    assert "share" not in page.run(heads)
    page.type("#class", "2")
    share = {i: dict(pairs).get(2) for i, pairs in enumerate(leading_labels(made.atlas, range(40)))}
    table["share"] = [number_of(share[i]) for i in table.index]
    blue = table[table["share"].notna()]
    assert page.run(SHOWN) == in_order(blue, "share", False)
    page.click('[data-sort="share"]')
    assert page.run(SHOWN) == in_order(blue, "share", True)
    page.click('[data-sort="id"]')
    assert page.run(SHOWN) == sorted(blue.index)
    page.type("#class", "1")  # another class, by its own share
    assert page.run("return document.querySelector('[aria-sort] button').dataset.sort") == "share"
    page.type("#class", "")
    assert page.run(SHOWN) == in_order(table, "entropy", True)


def number_of(share):
    return None if share is None else float(f"{share:.5g}")


def test_a_reference_image_is_enlarged_and_explained(made, page):
    rows = made.atlas.reference_images(3, "mean")
    first, second = (int(i) for i in rows["image"][:2])
    visit(page, made.folder, "latent.html#3", ".references button")
    page.click(f'.references [data-image="{first}"]')
    assert page.run(TEXT, ".lightbox h2") == rows["id"].iloc[0]
    mask = shares_of(made.details(3)["masks"][str(first)][0], (4, 4))
    width = page.run("return document.querySelector('.lightbox canvas').width")
    assert (width, mask.max()) == (4, 1)
    assert page.run(HASH) == f"#3&image={first}"
    page.press("ARROW_RIGHT")
    assert page.run(TEXT, ".lightbox h2") == rows["id"].iloc[1]
    page.press("ESCAPE")
    page.wait("return document.querySelector('.lightbox') === null")
    assert page.run(FOCUSED, "image") == str(second)
    assert page.run(TEXT, "h1") == "Latent 3"
    visit(page, made.folder, f"latent.html#3&image={second}", ".lightbox")
    page.click("#explanation")
    page.wait("return location.pathname.endsWith('/explain.html')")
    page.wait("return document.querySelector('.listed') !== null")
    assert page.run(TEXT, ".lead").startswith(f"image {second}")
    assert page.run(TEXTS, ".legend > span") == ["latent 3"]
    assert page.messages() == []


def test_two_latents_side_by_side(made, page):
    order = made.data("atlas")["latents"]["id"]
    visit(page, made.folder, "latent.html#3&sort=id,ascending", "#similar .both")
    partner = int(made.atlas.similar(3).index[0])
    page.click("#similar .both")
    page.wait(HEADING, f"Latents 3 and {partner}")
    sides = "return [...document.querySelectorAll('.side')].map(s => Number(s.dataset.latent))"
    assert page.run(sides) == [3, partner]
    cosine = made.atlas.similar(3)["cosine"].iloc[0]
    assert f"alike in direction: {cosine:.2f}" in page.run(TEXT, ".lead")
    images = [set(made.atlas.reference_images(i, "mean")["image"]) for i in (3, partner)]
    shared = page.run(
        "return [...document.querySelectorAll('.side:first-child .shared')]"
        ".map(e => Number(e.dataset.image))"
    )
    assert set(shared) == images[0] & images[1]
    assert page.run(TEXT, ".lead").startswith(f"{len(shared)} reference image")
    place = order.index(partner)
    after = next(i for i in order[place + 1 :] if i != 3)
    page.press("ARROW_RIGHT")
    page.wait(HEADING, f"Latents 3 and {after}")
    page.click("#swap")
    page.wait(HEADING, f"Latents {after} and 3")
    dead = made.data("atlas")["dead"][0]
    visit(page, made.folder, f"compare.html#3,{dead}", ".empty")
    assert f"Latent {dead} is dead" in page.run(TEXT, "main")
    assert page.messages() == []


def test_masks_beside_the_touched_patch_on_a_narrow_screen(made, page):
    data = made.data(f"explain/{made.data('atlas')['explained'][0]['file']}")
    seen = "return document.querySelector('.minis').checkVisibility()"
    visit(page, made.folder, "explain.html#0", ".listed")
    assert page.run(seen) is False
    page.resize(500, 900)
    visit(page, made.folder, "explain.html#0", ".listed")
    page.click(".stage .picture", at=(0.6, 0.35))  # row 2, column 3
    expected = [latent for latent, _ in data["patches"][6]]
    minis = "return [...document.querySelectorAll('.mini')].map(e => Number(e.dataset.mini))"
    assert page.run(minis) == expected
    picture, strip = page.run(
        "return ['.stage .picture', '.minis'].map(s => {"
        "const b = document.querySelector(s).getBoundingClientRect();"
        "return [b.left, b.top, b.right, b.bottom]})"
    )
    assert strip[0] >= picture[2]
    assert strip[1] < picture[3] <= 900
    page.click(f'[data-mini="{expected[0]}"]')
    assert page.run(TEXTS, ".legend > span") == [f"latent {expected[0]}"]
    page.run("window.scrollTo(0, 600)")  # the picture stays in view
    top = "return document.querySelector('.stage .picture').getBoundingClientRect().top"
    assert 0 <= page.run(top) < 100


def test_names_are_typed_kept_saved_and_read_back(made, page, tmp_path):
    visit(page, made.folder, "latent.html#5", "#name")
    page.type("#name", HOSTILE)
    page.type("#note", "seen in\nblue")
    assert page.run(TEXT, ".lead b") == HOSTILE
    page.run("localStorage.setItem('vit-sae-editor', 'Ada')")
    visit(page, made.folder, "latent.html#3", "#name")
    assert page.run("return document.querySelector('#name').value") == "third one"
    page.type("#name", "")  # taken away
    open_index(page, made)
    page.click("#named")
    assert page.run(SHOWN) == [5]
    page.click("#clear")
    page.type("#search", "SEEN in")
    assert page.run(SHOWN) == [5]
    page.click("#names")
    assert page.run(TEXT, "#names") == "Names (2)"
    page.click("#save-names")
    saved = page.downloaded("names.json")
    path = saved.rename(tmp_path / "names.json")
    assert page.run("return window.broken ?? null") is None

    atlas = replace(made.atlas, names={3: LatentName("third one")}, folder=None)
    atlas.read_names(path)
    assert atlas.names.keys() == {5}
    one = atlas.names[5]
    assert (one.name, one.note, one.source, one.editor) == (HOSTILE, "seen in\nblue", "typed", None)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", one.edited)
    atlas.save(tmp_path / "atlas")
    again = LatentAtlas.load(tmp_path / "atlas")
    assert again.names == atlas.names

    # what the atlas holds is in the next report, and a file can be opened in the browser as well
    folder = tmp_path / "report"
    write_report(
        made.model,
        made.sae,
        again,
        made.images,
        folder,
        latents=[3, 5],
        explain=[],
        progress=False,
    )
    page.run("localStorage.clear()")
    visit(page, folder, "latent.html#5", "#name")
    assert page.run("return document.querySelector('#note').value") == "seen in\nblue"
    described = json.loads(path.read_text())
    described["names"] = {"3": {"name": "from a file", "note": ""}}
    assert page.run(READ, json.dumps(described)) is None
    visit(page, folder, "latent.html#3", "#name")
    assert page.run(TEXT, ".lead b") == "from a file"
    described["sae_sha256"] = "another"
    refused = page.run(READ, json.dumps(described))
    assert refused == "This file names the latents of another SAE."


def test_top_classes_by_rate_and_by_count(made, page, tmp_path, monkeypatch):
    """Of unbalanced data the two differ: a class of a hundred images leads by count."""
    counts = np.zeros_like(made.atlas.class_counts)
    counts[:, 3] = [8, 40, 100]
    n_images = np.array([1, 10, 100])
    atlas = replace(made.atlas, class_counts=counts, class_n_images=n_images)
    assert atlas.top_classes(3).index.tolist() == [2, 1, 0]
    assert atlas.top_classes(3, by="rate").index.tolist() == [0, 1, 2]
    assert atlas.top_classes(3, n=1, by="rate")["count_per_image"].tolist() == [8]
    with pytest.raises(ValueError, match="by is 'size'; want 'count' or 'rate'"):
        atlas.top_classes(3, by="size")
    arguments = (made.model, made.sae, atlas, made.images, tmp_path)
    write_report(*arguments, latents=[3], explain=[], progress=False)
    visit(page, tmp_path, "latent.html#3", "#classes")
    names = (
        "return [...document.querySelectorAll('#classes .entry:not(.minor)')]"
        ".map(e => e.firstChild.textContent)"
    )
    assert page.run(names) == ["red", HOSTILE, "blue"]
    page.click('[data-classes="count"]')
    assert page.run(names) == ["blue", HOSTILE, "red"]
    # of many classes the page has those that lead either way
    monkeypatch.setattr(site_data, "_CLASSES_TO_SHOW", 1)
    write_report(*arguments, latents=[3], explain=[], progress=False)
    assert [c for c, *_ in replace(made, folder=tmp_path).details(3)["classes"]] == [2, 0]
