"""Names end to end, of latents that are known words; what is kept of earlier names."""

import dataclasses
import json

import pandas as pd
import pytest
import torch

from tests.concepts.word_saes import SCENES, WORDS, attached_word_sae
from vit_sae_plugin.analysis import LatentAtlas, LatentName, analyze
from vit_sae_plugin.concepts.calibration import NamingThreshold
from vit_sae_plugin.concepts.naming import EDITOR, keep_names, name_latents
from vit_sae_plugin.concepts.vocabulary_sources import read_vocabulary
from vit_sae_plugin.concepts.word_embeddings import embed_words


@pytest.fixture(scope="module")
def attached():
    return attached_word_sae()


@pytest.fixture(scope="module")
def words(attached):
    return embed_words(attached.model, read_vocabulary("shapes"))


@pytest.fixture(scope="module")
def folder(attached, tmp_path_factory):
    """An atlas beside its SAE."""
    sae_folder = tmp_path_factory.mktemp("run") / "sae"
    attached.sae.save_model(sae_folder)
    analyze(attached.model, attached.sae, SCENES, folder=sae_folder / "atlas", progress=False)
    return sae_folder / "atlas"


@pytest.mark.parametrize("route", ["image-conditioned", "measured-shift", "direct"])
def test_each_route_names_latents_that_are_words(attached, words, folder, route):
    naming = name_latents(
        attached,
        SCENES,
        words,
        route=route,
        atlas=LatentAtlas.load(folder),
        threshold=1.0 if route == "image-conditioned" else 0.1,
    )
    named = [naming.names.get(latent) for latent in range(len(WORDS))]
    right = [
        name is not None and words.vocabulary.is_same_or_broader(name, word)
        for name, word in zip(named, WORDS, strict=True)
    ]
    assert sum(right) >= len(WORDS) - (route == "measured-shift"), named
    assert len(WORDS) not in naming.names or route == "direct"  # the dead one


def test_random_directions_set_the_threshold(attached, words):
    naming = name_latents(attached, SCENES, words, false_naming_rate=0.2)
    assert 0 < naming.threshold.clearness < naming.candidates.clearness[:, 0].max()
    assert naming.threshold.rule == "names 0.2 of random directions at most"
    assert set(naming.names) <= set(range(len(WORDS)))
    with pytest.raises(ValueError, match="there are 7 random directions; want at least 99"):
        name_latents(attached, SCENES, words, false_naming_rate=0.01)


def test_hand_edits_survive_and_unclear_names_go(attached, words, folder):
    atlas = LatentAtlas.load(folder)
    naming = name_latents(attached, SCENES, words, threshold=0.0)
    typed = LatentName("my red", source="typed", editor="Ada")
    note = LatentName("", note="no ring at all", source="typed")
    atlas.set_names({0: typed, 2: note, 6: LatentName("old", editor=EDITOR)})
    assert keep_names(atlas, naming) == {"named": 4, "kept": 2, "removed": 1}
    again = LatentAtlas.load(folder).names
    assert again[0] == typed
    assert again[2] == note
    assert 6 not in again
    blue = again[1]
    assert (blue.name, blue.editor) == ("blue", EDITOR)
    assert blue.source == "image-conditioned, vocabulary 'shapes'"
    assert blue.score == pytest.approx(float(naming.candidates.score[1, 0]), abs=1e-4)
    unclear = dataclasses.replace(naming, threshold=NamingThreshold(torch.inf, "none", 0))
    assert keep_names(atlas, unclear) == {"named": 0, "kept": 2, "removed": 4}
    (folder / "names.json").unlink()


def test_what_does_not_belong_together_is_refused(attached, words, folder):
    atlas = LatentAtlas.load(folder)
    naming = name_latents(attached, SCENES, words, threshold=0.0)
    with pytest.raises(ValueError, match="names are of another SAE's latents"):
        keep_names(atlas, dataclasses.replace(naming, sae_sha256="other"))
    with pytest.raises(ValueError, match="needs an atlas"):
        name_latents(attached, SCENES, words, route="measured-shift", threshold=0.0)
    with pytest.raises(ValueError, match="want one of image-conditioned"):
        name_latents(attached, SCENES, words, route="guess")  # type: ignore[arg-type]


def test_the_command_names_an_atlas_and_an_sae(folder, capsys):
    from tests.cli.command import vit_sae

    words = ("--images", SCENES, "--vocabulary", "shapes", "--threshold", 1)
    assert vit_sae("name", folder, *words) == 0
    out = capsys.readouterr().out
    assert "6 of 7 latents have a name from 'shapes'" in out
    names = {
        i: one["name"]
        for i, one in json.loads((folder / "names.json").read_text())["names"].items()
    }
    assert names["1"] == "blue"
    table = pd.read_csv(folder / "name_candidates.csv", index_col=["latent", "rank"])
    assert table.loc[(1, 1), "word"] == "blue"
    assert table["is_name"].sum() == 6
    sae = folder.parent
    assert vit_sae("name", sae, *words) == 0
    assert json.loads((sae / "names.json").read_text())["names"].keys() == names.keys()
    capsys.readouterr()
    assert vit_sae("name", sae, *words, "--route", "measured-shift") == 2
    assert "needs an atlas" in capsys.readouterr().err
    assert vit_sae("name", sae, *words, "--kind", "point") == 2
    assert "--kind goes with --route direct" in capsys.readouterr().err
    assert vit_sae("name", folder, *words, "--model", "shapes-clip", "--pretrained", "none") == 2
    assert "use the model that it was made from" in capsys.readouterr().err
