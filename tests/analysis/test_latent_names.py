"""Names of latents, kept beside an atlas and read back from files."""

import json
from dataclasses import replace

import pytest

from tests.analysis.tiny_pipeline import NoisePictures, make_model, make_sae
from vit_sae_plugin import LatentAtlas
from vit_sae_plugin.analysis import LatentName, analyze
from vit_sae_plugin.analysis.atlas.latent_names import read_names, write_names

RINGS = LatentName("red rings", "not ovals", 0.75, "typed", "Ada", "2026-01-31T12:00:00Z")


@pytest.fixture(scope="module")
def atlas():
    model = make_model()
    return analyze(model, make_sae(model), NoisePictures(6), progress=False)


def test_names_go_with_the_atlas(atlas, tmp_path):
    named = replace(atlas, names={3: RINGS, 20: LatentName("", "only a note")})
    named.save(tmp_path)
    opened = LatentAtlas.load(tmp_path)
    assert opened.names == named.names
    # a file replaces, adds and takes away, and what it changed is kept
    file = tmp_path / "typed.json"
    changes = {3: LatentName("rings"), 20: LatentName(""), 4: LatentName("stripes")}
    write_names(file, changes, atlas.info.sae_sha256)
    opened.read_names(file)
    expected = {3: LatentName("rings"), 4: LatentName("stripes")}
    assert opened.names == LatentAtlas.load(tmp_path).names == expected


def test_names_of_another_sae_are_left_out(atlas, tmp_path):
    replace(atlas, names={3: RINGS}).save(tmp_path)
    write_names(tmp_path / "names.json", {3: RINGS}, "0" * 64)
    with pytest.warns(UserWarning, match="without names of latents: .* of the SAE 00000000; want"):
        assert LatentAtlas.load(tmp_path).names == {}
    with pytest.raises(ValueError, match="of the SAE 00000000; want names of this one"):
        atlas.read_names(tmp_path / "names.json")


def test_damaged_files_are_one_line(tmp_path):
    path = tmp_path / "names.json"

    def read(content):
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return read_names(path, sae_sha256="a", d_sae=8)

    whole = {"format": "vit-sae latent names", "version": 1, "sae_sha256": "a", "names": {}}
    assert read(whole) == {}
    one = {"name": "x"}
    assert read(whole | {"names": {"7": one}}) == {7: LatentName("x")}
    for content, message in [
        ("{", "holds no names of latents: "),
        ("[" * 100_000, "holds no names of latents: "),
        ([], "holds no names of latents; want a file saved from a report"),
        (whole | {"format": "other"}, "holds no names of latents; want"),
        (whole | {"version": 2}, "have version 2; this release reads version 1"),
        (whole | {"names": []}, r"its names are \[\]; want an object"),
        (whole | {"names": {"8": one}}, "names a latent '8'; want 0 to 7"),
        (whole | {"names": {"-1": one}}, "names a latent '-1'; want 0 to 7"),
        (whole | {"names": {"²": one}}, "names a latent '²'; want 0 to 7"),
        (whole | {"names": {"1": {}}}, "damaged at latent 1: want edited, editor, name"),
        (whole | {"names": {"1": one | {"more": 1}}}, "damaged at latent 1: want edited"),
        (whole | {"names": {"1": {"name": 3}}}, "name is 3; want a text"),
        (whole | {"names": {"1": one | {"score": True}}}, "score is True; want a finite number"),
        (whole | {"names": {"1": one | {"editor": 4}}}, "editor is 4; want a text or None"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            read(content)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="there is no file"):
        read_names(tmp_path / "none.json", sae_sha256="a", d_sae=8)
