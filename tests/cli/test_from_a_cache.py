"""``analyze`` and ``eval`` on ``cache:PATH``: what they give, and what they refuse in one line."""

import pandas as pd
import pytest
import torch

from tests.cli.command import vit_sae
from vit_sae_plugin import LatentAtlas, PatchSAE, PatchSAEConfig
from vit_sae_plugin.activations import ActivationSource
from vit_sae_plugin.activations.cache import write_cache
from vit_sae_plugin.hooked_vit import HookedViT

HOOK = "blocks.2.hook_resid_post"


@pytest.fixture(scope="module")
def made(photos, tmp_path_factory):
    """A PatchSAE of random weights on the packaged model, and a cache of the photos."""
    folder = tmp_path_factory.mktemp("cached")
    model = HookedViT.from_pretrained("shapes-clip")
    torch.manual_seed(0)
    sae = PatchSAE(PatchSAEConfig(d_in=model.cfg.d_model, d_sae=48))
    sae.b_enc.data = -torch.rand(48) * 2
    ActivationSource.from_model(model, HOOK).stamp(sae, model)
    sae.save_model(folder / "sae")
    write_cache(
        folder / "cache", model, str(photos), hook_names=[HOOK], batch_size_images=4, progress=False
    )
    return folder / "sae", f"cache:{folder / 'cache'}"


def test_the_atlas_of_a_cache_is_opened_again_for_a_report(made, photos, tmp_path, capsys):
    sae, cache = made
    assert vit_sae("analyze", sae, "--images", cache) == 0
    assert "The atlas is in" in capsys.readouterr().out
    (folder,) = sae.glob("atlas-*")
    atlas = LatentAtlas.load(folder)
    assert (len(atlas.images), len(atlas.skipped_images)) == (12, 1)
    # the images' own command finds that atlas, and makes no other
    assert vit_sae("analyze", sae, "--images", photos) == 0
    assert "opening the finished atlas" in capsys.readouterr().err
    assert list(sae.glob("atlas-*")) == [folder]


@pytest.mark.parametrize("suite", ["splice", "reconstruction", "msae"])
def test_tables_of_a_cache_are_the_images(made, photos, tmp_path, suite):
    sae, cache = made
    for name, images in (("images", photos), ("cache", cache)):
        folder = tmp_path / name
        command = ("eval", sae, "--images", images, "--suite", suite, "--templates", "shapes")
        if suite != "splice":
            command = command[:-2]
        assert vit_sae(*command, "--output-path", folder) == 0
    table = "embeddings.csv" if suite == "msae" else "reconstruction.csv"
    found, wanted = (pd.read_csv(tmp_path / name / table) for name in ("cache", "images"))
    exact = [name for name in wanted if "cknna" not in name]  # of a sample in order of visit
    pd.testing.assert_frame_equal(found[exact], wanted[exact], rtol=1e-5)
    assert (tmp_path / "cache" / "splicing.csv").exists() == (suite == "splice")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("analyze", "--report", "report"), "--report doesn't go with --images cache:"),
        (("analyze", "--tree"), "--tree doesn't go with --images cache:"),
        (("eval", "--suite", "concepts"), "--suite concepts needs pictures"),
        (("eval", "--suite", "msae", "--captions", "c.txt"), "--captions doesn't go with"),
        (("search", "--concepts", "0"), "holds activations, no pictures"),
    ],
)
def test_what_needs_pictures_is_refused(made, capsys, words, message):
    sae, cache = made
    command, *options = words
    assert vit_sae(command, sae, "--images", cache, *options) == 2
    assert message in capsys.readouterr().err
