"""The report: its files, and what a browser makes of them."""

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.analysis.tiny_pipeline import NoisePictures, make_model, make_sae
from tests.report import browser
from vit_sae_plugin.analysis import analyze, explain
from vit_sae_plugin.report import write_report
from vit_sae_plugin.report.patch_masks import as_shares, mask_string, preview_string
from vit_sae_plugin.report.site_data import number, write_data

HOSTILE = '<img src=x onerror="window.broken=1">&amp;\'</script><script>window.broken=1</script>'


class HostilePictures(NoisePictures):
    """Class and file names that would break a page which doesn't escape them."""

    def __init__(self, n_images: int):
        super().__init__(n_images)
        self.class_names = ["red", HOSTILE, "blue"]

    def record(self, index):
        record = super().record(index)
        return type(record)(index, f"{HOSTILE}{index}.png", index % 3, record.content)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A report on a tiny model, and what it was made from."""
    model, images = make_model(), HostilePictures(26)
    sae = make_sae(model)
    atlas = analyze(model, sae, images, progress=False)
    folder = tmp_path_factory.mktemp("report")
    page = write_report(
        atlas,
        images,
        model,
        sae,
        folder,
        names={3: "third one"},
        explain=[4, images.picture(5)],
        title=f"Report {HOSTILE}",
        progress=False,
    )
    assert page == folder / "index.html"
    return model, sae, atlas, images, folder


def read_data(path: Path):
    """What a data file hands to the page."""
    match = re.fullmatch(r'report\.receive\("[\w/]+",(.*)\);\n', path.read_text(encoding="ascii"))
    assert match is not None
    return json.loads(match.group(1))


def shares_of(mask: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(mask), np.uint8).reshape(4, 4) / 255


@pytest.fixture(scope="module")
def page(made, tmp_path_factory):
    """A browser window; None where there is no browser."""
    if not browser.AVAILABLE:
        yield None
        return
    with browser.Browser(tmp_path_factory.mktemp("profile")) as window:
        yield window


def test_files_need_no_server_and_no_network(made):
    folder = made[-1]
    pages = {path.name for path in folder.iterdir() if path.is_file()}
    assert {"index.html", "latent.html", "explain.html", "site.css", "site.js"} <= pages
    for name in pages:
        text = (folder / name).read_text(encoding="utf-8")
        remote = re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text)
        assert set(remote) <= {"http://www.w3.org"}, name  # the name of the SVG elements
        assert not re.search(r"fetch\(|XMLHttpRequest|innerHTML|type=.module", text), name
        for linked in re.findall(r'(?:src|href)="([\w./]+)"', text):
            assert (folder / linked).is_file(), (name, linked)


def test_index_data_is_that_of_the_atlas(made):
    _, _, atlas, _, folder = made
    data = read_data(folder / "data/atlas.js")
    alive = atlas.latents[~atlas.latents["is_dead"]]
    assert data["latents"]["id"] == alive.index.tolist()
    assert data["latents"]["frequency"] == [number(f) for f in alive["frequency"]]
    assert data["latents"]["entropy"].count(None) == int(alive["label_entropy"].isna().sum())
    assert data["latents"]["name"][data["latents"]["id"].index(3)] == "third one"
    assert data["facts"]["n_dead"] == int(atlas.latents["is_dead"].sum()) > 0
    for classes, latent in zip(data["latents"]["classes"], alive.index, strict=True):
        assert classes == atlas.top_classes(latent, 3).index.tolist()


def test_latent_data_is_that_of_the_atlas(made):
    model, sae, atlas, images, folder = made
    from vit_sae_plugin.analysis import heatmap

    data = read_data(folder / "data/latents/00000.js")
    latent = int(next(iter(data["latents"])))
    details = data["latents"][str(latent)]
    for name in ("mean", "count", "max"):
        rows = atlas.reference_images(latent, name)
        assert [i for i, _ in details["references"][name]] == rows["image"].tolist()
        assert [data["images"][str(i)][0] for i in rows["image"]] == rows["id"].tolist()
    index = details["references"]["mean"][0][0]
    assert (folder / f"images/{index:07d}.png").is_file()
    mask, largest = details["masks"][str(index)]
    patches = heatmap(model, sae, images.picture(index), latent).patches
    assert largest == pytest.approx(patches.max(), rel=1e-3)
    np.testing.assert_allclose(shares_of(mask), patches / patches.max(), atol=0.003)
    classes = atlas.top_classes(latent)
    assert [row[:2] for row in details["classes"]] == [
        [c, n] for c, n in zip(classes.index, classes["count"], strict=True)
    ]
    assert [row[0] for row in details["coactive"]] == atlas.coactive(latent).index.tolist()
    assert sum(details["histogram"]) == atlas.latents["n_active_tokens"].loc[latent]


def test_explain_data_is_that_of_explain(made):
    model, sae, atlas, images, folder = made
    data = read_data(folder / "data/explain/0000.js")
    explanation = explain(model, sae, atlas, images.picture(4), n_latents=20)
    assert [i for i, _ in data["image"]] == [one.latent for one in explanation.latents]
    for patch in (0, 6, 15):
        there = explanation.at_patch(patch // 4, patch % 4, n_latents=12)
        assert [i for i, _ in data["patches"][patch]] == [one.latent for one in there]
    assert len(read_data(folder / "data/atlas.js")["explained"]) == 2


def test_masks_as_strings():
    patches = np.array([[0.0, 1.0], [2.0, np.nan]])
    assert as_shares(patches).tolist() == [[0, 128], [255, 0]]
    assert preview_string(as_shares(patches)) == "07f0"
    assert mask_string(as_shares(np.zeros((2, 2)))) == ""
    wide = np.zeros((4, 20))
    wide[1, 19] = 1
    assert preview_string(as_shares(wide)) == "0" * 15 + "f" + "0" * 16


def test_data_files_can_not_become_anything_else(tmp_path):
    hostile = {"text": HOSTILE + "\u2028 ü", "missing": None}
    write_data(tmp_path / "data.js", "key", hostile)
    text = (tmp_path / "data.js").read_text(encoding="ascii")
    assert "<" not in text
    assert read_data(tmp_path / "data.js") == hostile


def test_wrong_latents_are_refused(made):
    model, sae, atlas, images, folder = made
    with pytest.raises(ValueError, match="there is no latent 40; want 0 to 39"):
        write_report(atlas, images, model, sae, folder, latents=[40], progress=False)


def shown_rows(page) -> list[int]:
    """Latents in the table, from top to bottom."""
    return page.run(
        "return [...document.querySelectorAll('#rows .row')]"
        ".sort((a, b) => parseFloat(a.style.top) - parseFloat(b.style.top))"
        ".map(row => Number(row.dataset.latent))"
    )


def open_index(page, folder: Path) -> None:
    page.open("about:blank")
    page.open(f"file://{folder}/index.html")
    page.wait("return document.querySelector('#rows').children.length > 0")


def test_search_sort_and_filter(made, page):
    _, _, atlas, _, folder = made
    alive = atlas.latents[~atlas.latents["is_dead"]]
    if page is None:
        assert len(read_data(folder / "data/atlas.js")["latents"]["id"]) == len(alive)
        return
    open_index(page, folder)
    assert page.run("return document.title") == f"Report {HOSTILE}"
    lowest = alive["label_entropy"].round(5).sort_values(kind="stable").index[0]
    assert alive["label_entropy"].loc[shown_rows(page)[0]] == pytest.approx(
        alive["label_entropy"].loc[lowest], abs=1e-4
    )
    page.click('[data-sort="frequency"]')
    frequencies = alive["frequency"].loc[shown_rows(page)].tolist()
    assert frequencies == sorted(frequencies, reverse=True)
    page.click('[data-sort="frequency"]')
    frequencies = alive["frequency"].loc[shown_rows(page)].tolist()
    assert frequencies == sorted(frequencies)
    page.type("#search", "THIRD")
    assert shown_rows(page) == [3]
    page.type("#search", "no such thing")
    assert "No latent matches." in page.run("return document.querySelector('#rows').textContent")
    page.click("#rows .empty button")
    assert len(shown_rows(page)) > 1
    page.type("#frequency-high", "40")
    found = page.run("return document.querySelector('#found').textContent")
    n_rare = int((alive["frequency"] <= 0.4).sum())
    assert found == f"{n_rare} of {len(alive)} latents"
    assert 0 < n_rare < len(alive)
    page.click("#clear")
    page.type("#class", "2")
    with_blue = [i for i in alive.index if 2 in atlas.top_classes(i, 3).index]
    assert set(shown_rows(page)) <= set(with_blue)
    assert page.run("return document.querySelector('#found b').textContent") == str(len(with_blue))
    # the state is kept when one comes back to the page
    page.run("location.reload()")
    page.wait("return document.querySelector('#class')?.value === '2'")
    assert page.messages() == []


def test_nothing_in_names_is_run(made, page):
    folder = made[-1]
    if page is None:
        assert "<img" not in (folder / "data/atlas.js").read_text()
        return
    open_index(page, folder)
    page.type("#search", "onerror")
    titles = page.run("return [...document.querySelectorAll('.what div')].map(e => e.textContent)")
    assert any(HOSTILE in title for title in titles)
    for where in ("latent.html#3", "explain.html", "explain.html#0"):
        page.open("about:blank")
        page.open(f"file://{folder}/{where}")
        page.wait("return document.querySelector('main h1')")
        assert HOSTILE in page.run("return document.body.textContent")
    assert page.run("return window.broken ?? null") is None
    assert page.run("return document.querySelectorAll('script:not([src])').length") == 0
    assert page.messages() == []


def test_a_latent_opens_with_its_pictures(made, page):
    _, _, atlas, _, folder = made
    if page is None:
        assert (folder / "latent.html").is_file()
        return
    open_index(page, folder)
    page.type("#search", "third")
    page.click('#rows .row[data-latent="3"] .id')
    page.wait("return document.querySelector('h1')?.textContent === 'Latent 3'")
    page.wait("return document.querySelectorAll('.references .picture').length === 10")
    page.wait(
        "return [...document.querySelectorAll('.references img')].every(i => i.naturalWidth > 0)"
    )
    ids = page.run(
        "return [...document.querySelectorAll('.references figure')].map("
        "f => f.lastElementChild.textContent)"
    )
    assert ids == atlas.reference_images(3)["id"].tolist()
    page.click('[data-aggregation="max"]')
    ids = page.run(
        "return [...document.querySelectorAll('.references figure')].map("
        "f => f.lastElementChild.textContent)"
    )
    assert ids == atlas.reference_images(3, "max")["id"].tolist()
    page.click('[data-kind="off"]')
    hidden = "return getComputedStyle(document.querySelector('.references canvas')).display"
    assert page.run(hidden) == "none"
    page.click('[data-kind="blocks"]')
    relative = page.run("return document.querySelector('a.relative').getAttribute('href')")
    page.click("a.relative")
    page.wait(
        "return document.querySelector('h1')?.textContent === arguments[0]",
        f"Latent {relative[1:]}",
    )
    page.open(f"file://{folder}/latent.html#7")  # dead
    page.wait("return document.body.textContent.includes('shows no such latent')")
    assert page.messages() == []


def test_clicking_a_patch_shows_its_latents(made, page):
    model, sae, atlas, images, folder = made
    explanation = explain(model, sae, atlas, images.picture(4))
    expected = [one.latent for one in explanation.at_patch(1, 2, n_latents=12)]
    assert expected
    if page is None:
        data = read_data(folder / "data/explain/0000.js")
        assert [i for i, _ in data["patches"][1 * 4 + 2]] == expected
        return
    page.open("about:blank")
    page.open(f"file://{folder}/explain.html")
    page.click('[data-image="0"]')
    page.wait("return document.querySelector('.stage img')?.naturalWidth > 0")
    listed = "return [...document.querySelectorAll('.listed')].map(e => Number(e.dataset.latent))"
    assert page.run(listed)[0] == explanation.latents[0].latent
    page.click(".stage .picture", at=(0.6, 0.35))  # row 1, column 2 of 4 x 4
    assert page.run("return document.querySelector('h2').textContent") == (
        "In the patch of row 2, column 3"
    )
    assert page.run(listed) == expected
    # pointing at a latent dims the rest of the picture; ticking it keeps a colour
    page.point_at(".listed .num")
    page.wait("return document.querySelector('.stage canvas').width === 4")
    page.click(".pin")
    assert page.run("return document.querySelector('.legend').textContent") == (
        f"latent {expected[0]}"
    )
    page.click("#whole")
    assert len(page.run(listed)) == min(20, len(page.run(listed)))
    page.click("a.id")
    page.wait("return location.pathname.endsWith('/latent.html')")
    assert page.messages() == []


def test_pages_fit_a_narrow_window(made, page):
    folder = made[-1]
    if page is None:
        assert "max-width: 640px" in (folder / "site.css").read_text()
        return
    page.resize(500, 900)
    try:
        for where, ready in {
            "index.html": "#rows .row",
            "latent.html#3": ".references img",
            "explain.html": "[data-image]",
            "explain.html#0": ".listed",
        }.items():
            page.open("about:blank")
            page.open(f"file://{folder}/{where}")
            page.wait("return document.querySelector(arguments[0]) !== null", ready)
            width, room = page.run("return [document.documentElement.scrollWidth, innerWidth]")
            assert width <= room, where
    finally:
        page.resize(1440, 1000)


def test_thousands_of_latents_stay_quick(made, page, tmp_path):
    folder = made[-1]
    n = 20_000
    rng = np.random.default_rng(0)
    data = read_data(folder / "data/atlas.js")
    one = {key: values[0] for key, values in data["latents"].items()}
    data["latents"] = {key: [value] * n for key, value in one.items()}
    data["latents"]["id"] = list(range(n))
    for column in ("frequency", "mean", "entropy"):
        data["latents"][column] = [number(v) for v in rng.random(n)]
    write_data(tmp_path / "atlas.js", "atlas", data)
    assert (tmp_path / "atlas.js").stat().st_size < 1000 * n
    if page is None:
        return
    (tmp_path / "data").mkdir()
    (tmp_path / "atlas.js").rename(tmp_path / "data/atlas.js")
    for path in folder.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    open_index(page, tmp_path)
    assert page.run("return document.querySelectorAll('#rows .row').length") < 60
    milliseconds = page.run(
        "const start = performance.now(); const e = document.querySelector('#search');"
        "e.value = '1999'; e.dispatchEvent(new Event('input', {bubbles: true}));"
        "return performance.now() - start"
    )
    assert milliseconds < 3000  # 20 to 60 on an idle laptop
    assert "1999" in page.run("return document.querySelector('#rows .row .id').textContent")
    page.type("#search", "")
    page.run("window.scrollTo(0, 500000)")
    page.wait(
        "return [...document.querySelectorAll('#rows .row')].some("
        "r => parseFloat(r.style.top) > 400000)"
    )
    assert page.run("return document.querySelectorAll('#rows .row').length") < 60
