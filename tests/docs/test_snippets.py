"""Every snippet of every page runs, in order, and prints what the page shows."""

from __future__ import annotations

import re
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from tests.docs.kit import MAKERS, Kit
from tests.docs.pages import PAGES, snippets
from tests.docs.running import PageRun
from tests.docs.stand_ins import EXEMPT, READER_HAS, SMALLER, exemption, smaller
from tests.pretrained import small_files
from tests.pretrained.hub_stand_in import HubStandIn
from vit_sae_plugin import HookedViT, analysis, training
from vit_sae_plugin.cli import demo
from vit_sae_plugin.training import load_preset


@pytest.fixture(scope="session")
def kit(tmp_path_factory):
    return Kit(tmp_path_factory.mktemp("kit"))


@pytest.fixture
def served(monkeypatch):
    """Explorers are made as ever, but not served for ever."""
    pytest.importorskip("gradio", reason="needs gradio: pip install 'vit-sae-plugin[app]'")
    from vit_sae_plugin.explorer import server

    ended = SimpleNamespace(run=lambda sockets: None)
    monkeypatch.setattr(server, "make_server", lambda explorer, host: ended)


@pytest.fixture
def small_demo(monkeypatch):
    """``vit-sae demo`` in a few steps on a few scenes."""
    preset = training.load_preset(demo.PRESET)
    few = preset | {"train_batch_size_tokens": 512}
    monkeypatch.setattr(
        training, "load_preset", lambda name: few if name == demo.PRESET else load_preset(name)
    )
    monkeypatch.setattr(analysis, "analyze", partial(analysis.analyze, dense_frequency=1.0))
    for name, value in {
        "HELD_OUT": "shapes:test?n_images=40&n_objects=1",
        "N_EVALUATED": 20,
        "N_EXPLAINED": 2,
        "N_LATENTS_OF_EACH": 2,
    }.items():
        monkeypatch.setattr(demo, name, value)


@pytest.fixture
def hub(tmp_path_factory, monkeypatch):
    """The repositories that pages name, with small files in their layouts."""
    hub = HubStandIn(tmp_path_factory.mktemp("hub"), monkeypatch)
    small_files.write_clipscope(hub.repository("lewington/CLIP-ViT-L-scope"))
    small_files.write_prisma("pickled")(hub.repository("ORG/REPO"))
    small_files.write_overcomplete()(hub.repository("ORG/REPO"))
    return hub


@pytest.fixture
def page_run(kit, served, small_demo, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clip = HookedViT.from_pretrained("shapes-clip")
    has = (clip.bare_model, clip.preprocess, torch.zeros(2, 3, 64, 64))
    return PageRun(kit, dict(zip(READER_HAS, has, strict=True)))


def _all_snippets():
    return [snippet for page in PAGES for snippet in snippets(page)]


@pytest.mark.parametrize("rule", EXEMPT, ids=lambda rule: rule.pattern)
def test_every_exemption_is_needed(rule):
    assert [one.place for one in _all_snippets() if exemption(one) is rule]


@pytest.mark.parametrize("rule", SMALLER, ids=lambda rule: rule.pattern)
def test_every_stand_in_is_needed(rule):
    run = [one for one in _all_snippets() if one.kind in ("python", "command")]
    assert [one.place for one in run if re.search(rule.pattern, one.text)]


def test_everything_in_the_kit_is_named_on_a_page(tmp_path):
    kit = Kit(tmp_path)
    named = {name for one in _all_snippets() for name in kit.named_in(smaller(one))}
    assert set(MAKERS) <= named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_from_top_to_bottom(page, page_run):
    for snippet in snippets(page):
        page_run.do(snippet)
