"""The page in headless Chromium: what a visitor does with it."""

import os
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs gradio: pip install 'vit-sae-plugin[app]'")
from vit_sae_plugin.explorer import Visit

browser = pytest.importorskip("tests.report.browser", exc_type=ImportError)
if not browser.AVAILABLE:
    pytest.skip("needs chromium and chromedriver", allow_module_level=True)

CAPTION = "return document.querySelector('.caption').innerText"
ANSWER = "return document.querySelector('.answers')?.innerText"
READY = "return document.querySelectorAll('.latent').length > 3"


def test_a_visitor_drops_a_picture_clicks_removes_a_latent_and_passes_the_link_on(
    shapes_explorer,
    address,
    tmp_path,
):
    picture = tmp_path / "dropped.png"
    shapes_explorer.images.record(9).load().save(picture)
    with browser.Browser(tmp_path / "profile", (1300, 900)) as window:
        window.open(address)
        window.wait(READY)
        first = window.run(ANSWER)

        window._driver.find_element("css selector", "input[type=file]").send_keys(str(picture))
        window.wait(f"{CAPTION}.startsWith('your picture')")
        window.wait(f"{ANSWER} !== arguments[0]", first)
        before = window.run(ANSWER)

        window.click(".photo", (0.55, 0.3))
        window.wait("return document.querySelector('.patch') !== null")
        place = window.run("return document.querySelector('.patch').style.cssText")
        assert "left: 50%" in place
        assert "top: 25%" in place
        assert window.run("return location.search") == "?patch=2-4"

        window.click("[data-act=whole]")
        window.wait("return document.querySelector('.patch') === null")
        latent = window.run("return document.querySelector('.latent').dataset.latent")
        window.click(".latent .tick")
        window.wait("return document.querySelector('.tick[aria-pressed=true]') !== null")
        window.click(".latent [data-act=remove]")
        window.wait("return document.querySelector('.latent.removed') !== null")
        after = window.run(ANSWER)
        assert "→" in after
        assert after != before
        assert window.run("return location.search") == f"?show={latent}&change={latent}x0"

        window.click("[data-act=undo]")
        window.wait(f"{ANSWER} === arguments[0]", before)

        window.click("[data-index='4']")
        window.wait(f"{CAPTION}.startsWith('image 4')")
        window.run(
            "const e = document.querySelector('.latent [data-act=factor]'); e.value = 3;"
            "e.dispatchEvent(new Event('input', {bubbles: true}));"
            "e.dispatchEvent(new Event('change', {bubbles: true}))"
        )
        window.wait("return location.search.includes('x3')")
        window.wait("return document.querySelector('.latent.changed') !== null")
        (visited,) = Visit(shapes_explorer, {"image": "4"}).sides.values()
        silent = next(one for one in range(64) if one not in visited.strengths)
        window.run(
            "const e = document.querySelector('[data-act=find]'); e.value = arguments[0];"
            "e.dispatchEvent(new Event('change', {bubbles: true}))",
            str(silent),
        )
        window.wait("return document.querySelector('.latent [data-act=put]') !== null")
        multiplied = window.run(ANSWER)
        window.click(".latent [data-act=put]")
        window.wait(f"return location.search.includes('add={silent}x1')")
        window.wait(f"{ANSWER} !== arguments[0]", multiplied)
        changed, link = window.run(ANSWER), window.run("return location.href")
        window.open("about:blank")
        window.open(link)
        window.wait(READY)
        window.wait(f"{ANSWER} === arguments[0]", changed)
        assert window.run("return location.href") == link

        elsewhere = window.run(
            "return performance.getEntriesByType('resource').map((one) => one.name)"
            ".filter((name) => !name.startsWith(location.origin))"
        )
        assert elsewhere == []
        assert window.messages() == []
    kept = [path for path in Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*") if path.is_file()]
    assert kept == []
