"""The index of latents in a browser: sorting, filtering, searching, the scatter plot."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from benchmarks.report_page import write_synthetic_report
from tests.report.pages import SHOWN, TEXT, in_order, open_index, pixels, visit
from tests.report.reports import HOSTILE
from vit_sae_plugin.report.site_data import number, write_data


def test_every_column_sorts(made, page):
    assert len(made.data("atlas")["latents"]["id"]) < 45  # so all rows are in view
    table = open_index(page, made)
    assert page.run("return document.title") == f"Report {HOSTILE}"
    assert page.run(SHOWN) == in_order(table, "entropy", True)
    ascending_first = {"id": True, "what": True, "frequency": False, "mean": False, "max": False}
    for key, ascending in [*ascending_first.items(), ("entropy", True)]:
        page.click(f'[data-sort="{key}"]')
        assert page.run(SHOWN) == in_order(table, key, ascending), key
        page.click(f'[data-sort="{key}"]')
        assert page.run(SHOWN) == in_order(table, key, not ascending), key
    cells = page.run(
        "return [...document.querySelector('#rows .row').children].map(c => c.innerText)"
    )
    last = table.loc[page.run(SHOWN)[0]]
    assert cells[0] == str(last["id"])
    assert cells[2].split("\n")[0].lower() == last["what"]
    assert [float(text.rstrip(" %")) for text in cells[3:]] == pytest.approx(
        [last["frequency"] * 100, last["mean"], last["max"], last["entropy"]], rel=0.01
    )


def test_every_filter(made, page):
    table = open_index(page, made)
    for name, scale in {"frequency": 100, "mean": 1, "entropy": 1}.items():
        values = sorted(table[name].dropna().unique())
        low, high = values[len(values) // 3], values[2 * len(values) // 3]
        for bound, keep in {"low": table[name] >= low, "high": table[name] <= high}.items():
            page.type(f"#{name}-{bound}", str(scale * {"low": low, "high": high}[bound]))
            assert set(page.run(SHOWN)) == set(table.index[keep]), (name, bound)
            assert page.run(TEXT, "#found") == f"{keep.sum()} of {len(table)} latents"
            page.click("#clear")
        page.type(f"#{name}-low", "9")
        page.type(f"#{name}-high", "1")
        assert page.run(TEXT, "#found .hint").endswith("the lower limit is above the upper one")
        page.click("#clear")
        assert len(page.run(SHOWN)) == len(table)
    sparse = set(table.index[table["dense"] == 0])
    assert 0 < len(sparse) < len(table)
    page.click("#hide-dense")
    assert set(page.run(SHOWN)) == sparse
    page.click("#clear")
    page.type("#class", "2")
    blue = {latent for latent, classes in table["classes"].items() if 2 in classes[:3]}
    assert set(page.run(SHOWN)) == blue
    # the state is kept when one comes back to the page
    page.run("location.reload()")
    page.wait("return document.querySelector('#class')?.value === '2'")
    assert set(page.run(SHOWN)) == blue
    assert page.messages() == []


def test_search(made, page):
    table = open_index(page, made)
    page.type("#search", "THIRD")
    assert page.run(SHOWN) == [3]
    page.type("#search", "one BLUE third")
    assert page.run(SHOWN) == ([3] if 2 in table.loc[3, "classes"] else [])
    page.type("#search", "2")
    expected = [2, *(i for i in in_order(table, "entropy", True) if str(i)[0] == "2" and i != 2)]
    assert page.run(SHOWN) == expected
    page.type("#search", "no such thing")
    assert "No latent matches." in page.run(TEXT, "#rows")
    page.click("#rows .empty button")
    assert len(page.run(SHOWN)) == len(table)


def places(table: pd.DataFrame) -> pd.DataFrame:
    """Where the scatter plot draws each latent, in its own pixels."""
    found = {}
    for name, key, (start, stop) in [("x", "frequency", (58, 424)), ("y", "mean", (372, 62))]:
        value = np.log10(table[key].astype(float))
        margin = 0.04 * (value.max() - value.min())
        low, high = value.min() - margin, value.max() + margin
        found[name] = start + (value - low) / (high - low) * (stop - start)
    return pd.DataFrame(found)


def test_the_scatter_plot(made, page):
    table = open_index(page, made)
    dots = places(table)
    away = np.hypot(*(dots.to_numpy()[:, None] - dots.to_numpy()[None]).transpose(2, 0, 1))
    np.fill_diagonal(away, np.inf)
    known = table["entropy"].notna().to_numpy()
    alone = int(table.index[known][away.min(axis=1)[known].argmax()])
    x, y = dots.loc[alone]
    drawn = pixels(page, "#scatter")
    ratio = drawn.shape[1] / 500
    highest = table["entropy"].max()
    colour = page.run(
        "return report.entropyColour(arguments[0], arguments[1])",
        *(float(v) for v in (table.loc[alone, "entropy"], max(highest, 0.1))),
    )
    np.testing.assert_allclose(drawn[int(y * ratio), int(x * ratio), :3], colour, atol=12)
    above = drawn[int(12 * ratio) : int(55 * ratio), int(60 * ratio) : int(420 * ratio), 3]
    assert (above > 0).mean() > 0.02  # marginal histograms
    beside = drawn[int(70 * ratio) : int(370 * ratio), int(432 * ratio) : int(475 * ratio), 3]
    assert (beside > 0).mean() > 0.02

    corner, opposite = (200, 100), (400, 340)
    page.drag("#scatter", *((px / 500, py / 420) for px, py in (corner, opposite)))
    inside = dots[dots["x"].between(200, 400) & dots["y"].between(100, 340)].index
    near = dots[dots["x"].between(198, 402) & dots["y"].between(98, 342)].index
    kept = set(page.run(SHOWN))
    assert 0 < len(inside) < len(table)
    assert len(set(inside) - kept) <= 1  # limits are rounded
    assert kept <= set(near)
    faded = pixels(page, "#scatter")
    out = table.index[np.where(dots.index.isin(near), -1, away.min(axis=1)).argmax()]
    where = tuple(int(v * ratio) for v in (dots.loc[out, "y"], dots.loc[out, "x"]))
    assert faded[where].tolist() != drawn[where].tolist()
    page.click("#clear")
    page.click("#scatter", at=(x / 500, y / 420))
    page.wait("return location.href.endsWith(arguments[0])", f"latent.html#{alone}")
    assert page.messages() == []


def test_the_benchmark_s_page_has_what_a_report_has(made, tmp_path):
    write_synthetic_report(tmp_path / "drawn", 40)
    drawn, real = replace(made, folder=tmp_path / "drawn").data("atlas"), made.data("atlas")
    assert drawn.keys() == real.keys()
    assert drawn["latents"].keys() == real["latents"].keys()


def test_of_thousands_of_latents_only_those_in_view_are_drawn(made, page, tmp_path):
    n = 20_000
    rng = np.random.default_rng(0)
    data = made.data("atlas")
    one = {key: values[0] for key, values in data["latents"].items()}
    data["latents"] = {key: [value] * n for key, value in one.items()}
    data["latents"]["id"] = list(range(n))
    for column in ("frequency", "mean", "entropy"):
        data["latents"][column] = [number(v) for v in rng.random(n)]
    assert len(json.dumps(data)) < 150 * n
    (tmp_path / "data/previews").mkdir(parents=True)
    for k in range(-(-n // data["previews_in_a_file"])):
        some = made.data("previews/00000")[:1] * data["previews_in_a_file"]
        write_data(tmp_path / f"data/previews/{k:05d}.js", f"previews/{k:05d}", some)
    (tmp_path / "images").symlink_to(made.folder / "images")
    write_data(tmp_path / "data/atlas.js", "atlas", data)
    for path in made.folder.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    visit(page, tmp_path, "index.html", "#rows .row")
    assert page.run("return document.querySelectorAll('#rows .row').length") < 60
    loaded = "return document.querySelectorAll('script[src*=previews]').length"
    assert 0 < page.run(loaded) < 60
    page.type("#search", "1999")
    assert page.run(TEXT, "#rows .row .id") == "1999"
    page.type("#search", "")
    page.run("window.scrollTo(0, 500000)")
    page.wait(
        "return [...document.querySelectorAll('#rows .row')].some("
        "r => parseFloat(r.style.top) > 400000)"
    )
    assert page.run("return document.querySelectorAll('#rows .row').length") < 60


def test_short_numbers(made, page):
    visit(page, made.folder, "index.html", "#rows .row")
    written = page.run(
        "const f = report.format; return [f.number(null), f.number(0), f.number(1.2345),"
        "f.number(0.00012), f.number(123456), f.share(0.5), f.share(0.00012), f.entropy(-0),"
        "f.count(1234567), f.power(-12)]"
    )
    assert written == [
        *("–", "0", "1.23", "1.2e−4", "1.2e5", "50.0 %", "0.012 %", "0.00", "1,234,567", "10⁻¹²")
    ]
