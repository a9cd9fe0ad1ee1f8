"""`vit-sae explore`: what it opens, and what it refuses."""

import sys

import pytest

from tests.cli.command import vit_sae
from tests.explorer.conftest import shapes_sae
from vit_sae_plugin import HookedViT, analyze
from vit_sae_plugin.analysis.atlas.latent_names import LatentName
from vit_sae_plugin.cli.explore import SHAPES
from vit_sae_plugin.datasets import open_images


@pytest.fixture(scope="module")
def sae_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run" / "sae"
    shapes_sae(HookedViT.from_pretrained("shapes-clip")).save_model(folder)
    return folder


@pytest.fixture
def served(monkeypatch):
    """What would be served, instead of serving it for ever."""
    pytest.importorskip("gradio", reason="needs gradio: pip install 'vit-sae-plugin[app]'")
    from vit_sae_plugin.explorer import server

    shown = []

    class Ended:
        def run(self, sockets):
            assert sockets[0].getsockname()[0] == "127.0.0.1"

    def make_server(explorer, host):
        shown.append((explorer, host))
        return Ended()

    monkeypatch.setattr(server, "make_server", make_server)
    return shown


def test_it_serves_this_machine_with_a_short_analysis(sae_folder, served, capsys):
    images = "shapes:test?n_images=20"
    arguments = ("--images", images, "--n-reference-images", 8, "--port", 0)
    assert vit_sae("explore", sae_folder, *arguments) == 0
    ((explorer, host),) = served
    assert host == "127.0.0.1"
    assert explorer.n_images == 20
    assert explorer.atlas.info.n_images == 8
    said = capsys.readouterr().out
    assert "Open this page in a browser:  http://127.0.0.1:" in said
    assert "password" not in said


def test_on_shapes_clip_it_needs_no_images_and_finds_the_demos_atlas(sae_folder, served):
    from sae_lens import SAE

    sae = SAE.load_from_disk(sae_folder)
    few = open_images(SHAPES)
    place = sae_folder.parents[1] / "atlas"
    model = HookedViT.from_pretrained("shapes-clip")
    atlas = analyze(model, sae, few, folder=place, progress=False)
    atlas.set_names({5: LatentName("fifth")})
    assert vit_sae("explore", sae_folder, "--port", 0) == 0
    ((explorer, _),) = served
    assert explorer.images.fingerprint() == few.fingerprint()
    assert explorer.atlas.folder == place
    assert explorer.name_of(5) == "fifth"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--images", "nowhere/"], "there is no folder 'nowhere/'"),
        (["--images", "shapes?n_images=4", "--port", "99999"], "a port from 1024 to 65535"),
        (["--images", "shapes?n_images=4", "--host", "203.0.113.1"], "an address of this machine"),
        (["--images", "shapes?n_images=4", "--n-reference-images", "0"], "want 1 or more"),
        (["--images", "shapes?n_images=4", "--atlas", "nowhere"], "nowhere"),
        (["--images", "shapes?n_images=4", "--compare", "nowhere"], "nowhere"),
        (["--model", "ViT-B-32", "--pretrained", "none"], "want --images SOURCE"),
    ],
)
def test_bad_input_is_one_line(sae_folder, served, capsys, arguments, said):
    assert vit_sae("explore", sae_folder, *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("vit-sae explore: error: ")
    assert said in error
    assert not served


def test_without_gradio_it_names_the_extra(sae_folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert vit_sae("explore", sae_folder) == 2
    assert "pip install 'vit-sae-plugin[app]'" in capsys.readouterr().err
