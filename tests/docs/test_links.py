"""Links of README, docs and notebooks lead to pages, headings and pictures that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.docs.pages import ROOT

_CODE = re.compile(r"^ *```.*?^ *```|`[^`\n]+`", re.S | re.M)
_LINK = re.compile(r"\]\(\s*<?([^\s)>]+)>?[^)]*\)")
_HTML = re.compile(r"<(?:img|a)\b[^>]*?\b(?:src|href)=[\"']([^\"']+)[\"']")
_OWN = re.compile(r"vit-sae-plugin/vit-sae-plugin/(?:blob|tree)/main/([^#?]+)")
_BARE = re.compile(r"<(https?://[^>]*)>")


def _texts() -> list[Path]:
    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    pages += sorted((ROOT / "docs").rglob("*.md"))
    notebooks = ROOT / "examples" / "notebooks"
    return pages + sorted([*notebooks.glob("*.py"), *notebooks.glob("*.ipynb")])


def markdown(path: Path) -> str:
    """A page's text, or that of a notebook's Markdown cells, without code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells)
    elif path.suffix == ".py":
        cells = re.findall(r"^# %% \[markdown\]\n((?:#.*\n)*)", text, re.M)
        text = "\n".join(re.sub(r"^# ?", "", cell, flags=re.M) for cell in cells)
    return _CODE.sub("", text)


def links(path: Path) -> list[str]:
    text = markdown(path)
    return [*_LINK.findall(text), *_HTML.findall(text), *_BARE.findall(text)]


def anchors(page: Path) -> set[str]:
    """The addresses of a page's headings, as MkDocs and GitHub make them."""
    headings = re.findall(r"^#+ +(.+?)\s*$", markdown_with_code(page), re.M)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)|`", r"\1", heading) for heading in headings]
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", one).strip().lower()) for one in plain}


def markdown_with_code(page: Path) -> str:
    """Without blocks of code, in which # is no heading, but with code in headings."""
    return re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)


def fault(page: Path, link: str) -> str | None:
    """What is wrong with a link; addresses on the network are only read, not opened."""
    where = urlsplit(link)
    if where.scheme:
        good = where.scheme in ("http", "https") and re.fullmatch(r"[\w.-]+\.\w+", where.netloc)
        ours = _OWN.search(link)
        if ours and not (ROOT / ours[1]).exists():
            return "no such file in the repository"
        return None if good else "no address"
    target = (page.parent / where.path).resolve() if where.path else page
    if not target.exists():
        return "no such file"
    inside = ROOT / "docs"
    if page.is_relative_to(inside) and not target.is_relative_to(inside):
        return "leaves docs/, so the site doesn't have it"
    if where.fragment and where.fragment not in anchors(target):
        return f"{target.name} has no such heading"
    return None


@pytest.mark.parametrize("page", _texts(), ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    faults = {link: fault(page, link) for link in links(page)}
    assert {link: why for link, why in faults.items() if why} == {}


def test_what_is_no_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    (tmp_path / "other.md").write_text("# Some `code` here\n```sh\n# no heading\n```\n")
    good = ["other.md", "other.md#some-code-here", "https://example.org/a"]
    ours = "https://github.com/vit-sae-plugin/vit-sae-plugin/blob/main"
    good.append(f"{ours}/README.md")
    bad = ["missing.md", "other.md#no-heading", "https://example", "htp://example.org", "#none"]
    bad.append(f"{ours}/gone.md")
    page.write_text(
        "\n".join(f"[a]({link}) `[b](never)` [![c](other.md)](other.md)" for link in good + bad)
    )
    assert links(page).count("other.md") == 1 + 2 * len(good + bad)
    assert [link for link in links(page) if fault(page, link)] == bad


def test_every_picture_is_shown_somewhere():
    shown = {
        (page.parent / urlsplit(link).path).resolve()
        for page in _texts()
        for link in links(page)
        if not urlsplit(link).scheme and urlsplit(link).path
    }
    pictures = [path for path in (ROOT / "docs" / "images").rglob("*") if path.is_file()]
    assert pictures
    assert [path.name for path in pictures if path not in shown] == []
