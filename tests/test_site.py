"""The documentation as a site: it builds without a warning, is whole, and asks for no network."""

import ast
import importlib
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import vit_sae_plugin
from tests.report.browser import AVAILABLE, Browser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ROOMS = sorted(path.stem for path in (ROOT / "docs" / "api").glob("*.md") if path.stem != "index")

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("material", "mkdocstrings", "latex2mathml")),
    reason="wants the packages of the extra [docs]",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def in_api(site):
    """What the API pages have a heading for: dotted names."""
    pages = (path.read_text(encoding="utf-8") for path in (site / "api").glob("*.html"))
    return {name for page in pages for name in re.findall(r'id="(vit_sae_plugin[\w.]+)"', page)}


def is_shown(module: str, name: str, in_api: set[str]) -> bool:
    """Whether there is a heading for it where it is imported from, or where it is written."""
    home = getattr(getattr(importlib.import_module(module), name), "__module__", None)
    return f"{module}.{name}" in in_api or f"{home}.{name}" in in_api


@pytest.mark.parametrize("room", ROOMS)
def test_the_api_shows_every_public_name_of_a_room(room, in_api):
    module = f"vit_sae_plugin.{room}"
    public = importlib.import_module(module).__all__
    assert [name for name in public if not is_shown(module, name, in_api)] == []


def test_every_room_has_its_api_page():
    rooms = {path.parent.name for path in (ROOT / "vit_sae_plugin").glob("*/__init__.py")}
    assert rooms - {"cli", "shapes_clip"} == set(ROOMS)  # commands, and a folder of weights


def test_the_first_api_page_has_every_name_of_the_package():
    page = (ROOT / "docs" / "api" / "index.md").read_text(encoding="utf-8")
    named = re.findall(r"\[`(\w+)`\]\[vit_sae_plugin\.", page)
    assert sorted(named) == vit_sae_plugin.__all__


def test_the_api_shows_what_the_pages_import(in_api):
    statement = re.compile(r"^from vit_sae_plugin\.\S+ import (?:\([^)]*\)|.*)$", re.M)
    imports = {
        (node.module, name.name)
        for page in PAGES
        for found in statement.findall(page.read_text(encoding="utf-8"))
        for node in ast.parse(found).body
        for name in node.names
    }
    assert len(imports) > 20
    assert sorted(pair for pair in imports if not is_shown(*pair, in_api)) == []


def test_no_page_asks_anything_of_the_network(site):
    asks = r"""<(?:script|img|iframe)[^>]+src=["']?(?:https?:)?//|<link(?![^>]+canonical)[^>]+//"""
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    found = [path.name for path in pages if re.search(asks, path.read_text(encoding="utf-8"))]
    assert found == []


@pytest.mark.skipif(not AVAILABLE, reason="wants Chromium and its driver")
def test_the_search_works_in_a_page_opened_as_a_file(site, tmp_path):
    with Browser(tmp_path) as browser:
        browser.open((site / "index.html").as_uri())
        browser.click(".md-search__input")
        browser.press(*"masking")
        browser.wait(
            "return document.querySelector('.md-search-result__link[href*=\"masking.html\"]')"
        )
        assert browser.messages() == []  # a request that fails is one
