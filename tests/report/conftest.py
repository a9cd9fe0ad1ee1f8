"""Reports and a browser, made once for all tests of this folder."""

import pytest

from tests.analysis.tiny_pipeline import NoisePictures, make_model, make_sae, make_wide_model
from tests.report.reports import HOSTILE, HostilePictures, Report, UnlabelledPictures
from vit_sae_plugin.analysis import analyze
from vit_sae_plugin.report import write_report


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Hostile names, one latent with a name, two images explained."""
    model, images = make_model(), HostilePictures(26)
    sae = make_sae(model)
    atlas = analyze(model, sae, images, progress=False)
    folder = tmp_path_factory.mktemp("report")
    page = write_report(
        model,
        sae,
        atlas,
        images,
        folder,
        names={3: "third one"},
        explain=[4, images.picture(5)],
        title=f"Report {HOSTILE}",
        progress=False,
    )
    assert page == folder / "index.html"
    return Report(model, sae, atlas, images, folder)


@pytest.fixture(scope="session")
def wide(tmp_path_factory):
    """A grid of 2 rows and 4 columns, no labels, the first and the last image broken."""
    model, images = make_wide_model(), UnlabelledPictures(16)
    sae = make_sae(model)
    atlas = analyze(model, sae, images, progress=False)
    folder = tmp_path_factory.mktemp("wide")
    write_report(model, sae, atlas, images, folder, n_explained=4, progress=False)
    return Report(model, sae, atlas, images, folder)


@pytest.fixture(scope="session")
def without_patches(tmp_path_factory):
    """An SAE on the class token alone."""
    model, images = make_model(), NoisePictures(12)
    sae = make_sae(model, token_kind="cls")
    atlas = analyze(model, sae, images, progress=False)
    folder = tmp_path_factory.mktemp("cls")
    write_report(model, sae, atlas, images, folder, progress=False)
    return Report(model, sae, atlas, images, folder)


@pytest.fixture(scope="session")
def window(tmp_path_factory):
    """A browser's window, one for all tests; without a browser they are skipped."""
    browser = pytest.importorskip("tests.report.browser", exc_type=ImportError)
    if not browser.AVAILABLE:
        pytest.skip("needs chromium and chromedriver")
    with browser.Browser(tmp_path_factory.mktemp("profile")) as window:
        yield window


@pytest.fixture
def page(window):
    """The browser's window, whose size a test may change."""
    size = window.size
    yield window
    if window.size != size:
        window.resize(*size)
