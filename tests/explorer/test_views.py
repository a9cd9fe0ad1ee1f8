"""The parts of the page as HTML."""

from html.parser import HTMLParser

import pytest

from tests.analysis.tiny_pipeline import make_model, make_sae
from tests.report.reports import HOSTILE, HostilePictures
from vit_sae_plugin.explorer import Visit, open_explorer
from vit_sae_plugin.explorer.page import page_file
from vit_sae_plugin.explorer.views import (
    answer_view,
    head_view,
    latents_view,
    notice_view,
    picture_view,
    shelf_view,
)

KNOWN = set("header h1 h3 p b i div span button label input img figure figcaption".split()) | set(
    "table tbody tr th td output".split()
)


class Tags(HTMLParser):
    """Names of the elements, whose attributes must be harmless, and the text."""

    def __init__(self, html: str):
        super().__init__()
        self.names: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href"):
                assert value.startswith("data:image/"), value

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def hostile():
    model, images = make_model(), HostilePictures(8)
    images.name = HOSTILE
    names = dict.fromkeys(range(40), HOSTILE)
    return open_explorer(model, make_sae(model), images, names=names, progress=False)


def views(visit: Visit) -> str:
    parts = (notice_view, picture_view, shelf_view, answer_view, latents_view)
    return head_view(visit.explorer) + "".join(view(visit) for view in parts)


def test_names_and_ids_from_data_are_text_wherever_they_are_shown(hostile):
    visit = Visit(hostile, {"image": "1", "show": "0,1", "change": "0x0", "latent": "1"})
    visit.notices.append(HOSTILE)
    tags = Tags(views(visit))
    assert set(tags.names) <= KNOWN
    assert tags.text.count(HOSTILE) >= 2 + len(visit.listed())  # in the list, notice and head


def test_every_way_to_act_is_known_to_the_script(hostile):
    import re

    chosen = {"image": "1", "change": "0x0", "add": "2x1", "latent": "1", "patch": "0-0"}
    html = views(Visit(hostile, chosen))
    used = set(re.findall(r'data-act="(\w+)"', html))
    script = page_file("page.js")
    clicks = set(re.findall(r"^  (\w+): \(", script, re.M))
    fields = set(re.findall(r"act === '(\w+)'", script))
    assert used == clicks | fields


def test_a_visit_without_a_picture_says_what_to_do(hostile):
    visit = Visit(hostile, {"show": "1"})
    assert "Drop a photograph" in picture_view(visit)
    assert latents_view(visit) == ""
    assert Tags(answer_view(visit)).text.startswith("Move a slider")


def test_a_change_shows_before_and_after(shapes_explorer):
    visit = Visit(shapes_explorer, {"image": "3", "classes": "red star, blue ring"})
    latent = visit.listed()[0].latent
    assert "→" not in answer_view(visit)
    visit.set_factor(latent, 0)
    assert "→" in answer_view(visit)
    assert "Undo 1 change<" in answer_view(visit)
    assert "Put back" in latents_view(visit)
