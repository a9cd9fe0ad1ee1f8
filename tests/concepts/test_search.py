"""Search by concepts and by an image: scores, reasons, the index on disk, and the command."""

import re
from pathlib import Path

import pytest
import torch

from tests.analysis.tiny_pipeline import make_sae, make_wide_model
from tests.cli.command import vit_sae
from tests.concepts.word_saes import SCENES, WORDS, attached_word_sae, word_sae
from vit_sae_plugin.analysis.atlas.latent_names import LatentName, write_names
from vit_sae_plugin.attached_sae import AttachedSAE
from vit_sae_plugin.concepts.concept_query import WeightedConcept, parse_query
from vit_sae_plugin.concepts.search import search_by_concepts, search_by_image
from vit_sae_plugin.concepts.search_index import SearchIndex, build_index
from vit_sae_plugin.datasets import open_images
from vit_sae_plugin.fingerprints import known_sae_fingerprint
from vit_sae_plugin.report.search_page import write_search_page

NAMES = dict(enumerate(WORDS))


@pytest.fixture(scope="module")
def attached():
    return attached_word_sae()


@pytest.fixture(scope="module")
def scenes():
    return open_images(SCENES)


@pytest.fixture(scope="module")
def index(attached, scenes):
    return build_index(attached, scenes)


def levels_of(attached, scenes) -> torch.Tensor:
    pixels = torch.stack([attached.model.preprocess(scenes.record(i).load()) for i in range(128)])
    with torch.no_grad():
        return attached.latents(pixels).amax(1)


def test_a_query_is_read():
    assert parse_query("Red: 1, 5:-0.5,star", NAMES, 7) == (
        WeightedConcept("red", 1.0, (0,), True),
        WeightedConcept("latent 5", -0.5, (5,), False),
        WeightedConcept("star", 1.0, (3,), True),
    )
    assert parse_query("ring", {2: "ring", 4: "ring"}, 7)[0].latents == (2, 4)


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("rde:1", "no latent is named 'rde' (near names: red"),
        ("zebra", "no latent is named 'zebra' (none is near; 6 names in all)"),
        ("red:much", "the weight of 'red' is 'much'"),
        ("red:0", "the weight of 'red' is '0'"),
        ("red,red:2", "names 'red' twice"),
        ("7", "there is no latent 7; want 0 to 6"),
        (" , ", "holds no concept"),
    ],
)
def test_a_bad_query_is_refused(query, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)):
        parse_query(query, NAMES, 7)


def test_scores_are_weighted_strengths(attached, scenes, index):
    result = search_by_concepts(attached, index, "red:1, ring:2, star:-0.5", NAMES, n=5)
    levels = levels_of(attached, scenes)
    strength = levels / levels.amax(0).clamp(min=1e-9)
    expected = strength[:, 0] + 2 * strength[:, 2] - 0.5 * strength[:, 3]
    best = expected.sort(descending=True)
    found = result.by_concepts
    assert found["score"].to_list() == pytest.approx(best.values[:5].tolist(), abs=2e-3)
    assert found["image_index"].iloc[0] == best.indices[0]
    assert result.contributions.sum(axis=1).to_list() == pytest.approx(found["score"].to_list())
    assert result.contributions.columns.to_list() == ["red", "ring", "star"]
    text = attached.model.zero_shot_classifier(
        ["red", "ring", "star"], ["a {}"], renormalize_average=True
    )
    plain = search_by_concepts(
        attached, index, "red:1, ring:2, star:-0.5", NAMES, n=5, templates=["a {}"]
    )
    cosines = index.embeds @ torch.nn.functional.normalize(
        text @ torch.tensor([1.0, 2, -0.5]), dim=0
    )
    assert plain.by_cosine["cosine"].to_list() == pytest.approx(
        cosines.sort(descending=True).values[:5].tolist()
    )


def test_an_image_finds_itself_and_then_what_it_is_changed_to(attached, scenes, index):
    red_rings = [i for i in range(128) if scenes.class_names[scenes.record(i).label] == "red ring"]
    levels = levels_of(attached, scenes)
    start = max(red_rings, key=lambda i: float(levels[i, [0, 2, 4]].sum()))
    picture = scenes.record(start).load()
    same = search_by_image(attached, index, picture, NAMES, n=4)
    assert same.is_by_image
    assert same.by_concepts["image_index"].iloc[0] == start
    assert same.by_concepts["score"].iloc[0] == pytest.approx(1, abs=2e-3)
    assert same.contributions.sum(axis=1).to_list() == pytest.approx(
        same.by_concepts["score"].to_list(), abs=1e-6
    )
    changed = search_by_image(attached, index, picture, NAMES, "red:-1, red ring:-1, blue:3", n=4)
    blue = [scenes.class_names[label].startswith("blue") for label in changed.by_concepts["label"]]
    assert sum(blue) >= 3
    strength = levels / levels.amax(0).clamp(min=1e-9)
    found = changed.by_concepts["image_index"].to_list()
    assert changed.contributions["blue"].to_list() == pytest.approx(
        (3 * strength[found, 1]).tolist(), abs=5e-3
    )
    assert changed.contributions["red"].to_list() == pytest.approx(
        (-strength[found, 0]).tolist(), abs=2e-3
    )
    assert changed.contributions.sum(axis=1).to_list() == pytest.approx(
        changed.by_concepts["score"].to_list(), abs=1e-6
    )
    assert changed.by_cosine["image_index"].to_list() == same.by_cosine["image_index"].to_list()
    all_changed = ",".join(f"{word}:-1" for word in WORDS)  # so that nothing is left to be alike
    least = search_by_image(attached, index, picture, NAMES, all_changed, n=2)
    assert least.by_concepts["score"].to_list() == pytest.approx(
        (-strength.sum(1)).topk(2).values.tolist(), abs=2e-3
    )
    nothing = {"start": torch.zeros(8, dtype=torch.long), "image": index.image[:0]}
    silent = SearchIndex(**{**vars(index), **nothing, "value": index.value[:0]})
    with pytest.raises(ValueError, match="an image activates no latent"):
        search_by_image(attached, silent, picture, NAMES)


def test_an_index_comes_back_from_disk(attached, index, tmp_path):
    index.save(tmp_path / "index")
    again = SearchIndex.load(tmp_path / "index")
    assert again.info == index.info
    assert torch.equal(again.image.long(), index.image.long())
    torch.testing.assert_close(again.embeds, index.embeds, atol=1e-3, rtol=0)
    for name in ("embeddings.safetensors", "latents.safetensors", "images.parquet", "index.json"):
        path = tmp_path / "index" / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-9])
        with pytest.raises(ValueError, match=r"index.* is damaged|index\.json is damaged"):
            SearchIndex.load(tmp_path / "index")
        path.write_bytes(whole)
    with pytest.raises(ValueError, match="holds no search index"):
        SearchIndex.load(tmp_path)


def test_only_the_strongest_latents_of_an_image_are_kept(attached, scenes, index):
    few = build_index(attached, scenes, n_latents_per_image=1)
    assert torch.bincount(few.image.long()).max() == 1
    assert len(few.value) <= len(index.value)
    with pytest.raises(ValueError, match="n_latents_per_image is 0"):
        build_index(attached, scenes, n_latents_per_image=0)


def test_an_index_of_another_sae_or_model_is_refused(attached, index):
    other = AttachedSAE(attached.model, word_sae(attached.model, share=0.3))
    with pytest.raises(ValueError, match=r"made from the SAE .* make the index anew"):
        search_by_concepts(other, index, "red", NAMES)
    info = {**index.info, "model_sha256": "0" * 64}
    with pytest.raises(ValueError, match="made from the model 00000000"):
        search_by_concepts(attached, SearchIndex(**{**vars(index), "info": info}), "red", NAMES)


def test_latents_alone_are_searched_for_without_a_plain_search(
    attached, scenes, index, tmp_path, capsys
):
    result = search_by_concepts(attached, index, "2:2, 3:-0.5", NAMES, n=5)
    levels = levels_of(attached, scenes)
    strength = levels / levels.amax(0).clamp(min=1e-9)
    expected = (2 * strength[:, 2] - 0.5 * strength[:, 3]).topk(5)
    assert result.by_concepts["score"].to_list() == pytest.approx(
        expected.values.tolist(), abs=2e-3
    )
    assert result.contributions.columns.to_list() == ["latent 2", "latent 3"]
    assert not result.has_plain_search
    assert len(result.by_cosine) == len(result.cosine_contributions) == result.n_in_common == 0
    assert not {"cosine", "plain_rank"} & set(result.by_concepts)
    page = write_search_page(tmp_path / "search.html", result, scenes).read_text()
    assert page.count("<figure") == 5
    assert 'id="cosine"' not in page
    assert "Framed" not in page
    assert "no word that a text tower could read" in page
    attached.sae.save_model(tmp_path / "sae")
    images = ("--images", SCENES, "--output-path", tmp_path / "found.html", "--n", 3)
    assert vit_sae("search", tmp_path / "sae", *images, "--concepts", "2") == 0
    assert "no plain search beside" in capsys.readouterr().out


def test_a_model_without_a_text_tower_is_searched_by_names(scenes):
    model = make_wide_model()
    attached = AttachedSAE(model, make_sae(model))
    index = build_index(attached, open_images("shapes:test?n_images=9"))
    active = int(torch.argmax(index.start.diff()))
    result = search_by_concepts(attached, index, "wheel", {active: "wheel"}, n=2)
    assert result.by_concepts["score"].iloc[0] == pytest.approx(1)
    assert not result.has_plain_search
    picture = scenes.record(0).load()
    by_image = search_by_image(attached, index, picture, {active: "wheel"}, "wheel:1", n=2)
    assert by_image.has_plain_search


def test_the_page_shows_both_sides_and_escapes_names(attached, scenes, index, tmp_path):
    names = {**NAMES, 0: "<b>red</b>"}
    result = search_by_concepts(attached, index, "<b>red</b>:1, star:-0.5", names, n=4)
    page = write_search_page(tmp_path / "search.html", result, scenes).read_text()
    assert page.count("<figure") == 8
    assert "<b>red</b>" not in page
    assert "&lt;b&gt;red&lt;/b&gt; +1" in page
    only = set(result.by_concepts["image_index"]) ^ set(result.by_cosine["image_index"])
    assert page.count('class="image only"') == len(only)


def test_the_command_searches_and_opens_its_index_again(attached, tmp_path, capsys):
    sae = tmp_path / "sae"
    attached.sae.save_model(sae)
    written = {latent: LatentName(name) for latent, name in NAMES.items()}
    write_names(sae / "names.json", written, known_sae_fingerprint(attached.sae))
    page = tmp_path / "found.html"
    images = ("--images", SCENES, "--output-path", page, "--n", 3)
    assert vit_sae("search", sae, *images, "--concepts", "red:1,ring") == 0
    out = capsys.readouterr().out
    assert "red +1, ring +1" in out
    assert "The index is in" in out
    assert page.is_file()
    assert vit_sae("search", sae, *images, "--image", 3, "--concepts", "blue:1") == 0
    out = capsys.readouterr().out
    assert "like image 3, blue +1" in out
    assert "The index is in" not in out
    for arguments, complaint in (
        (("--concepts", "rad:1"), "near names: red"),
        ((), "want --concepts NAME:WEIGHT"),
        (("--image", 128), "has 128 images; want 0 to 127"),
        (("--image", "none.png"), "there is no such file"),
    ):
        assert vit_sae("search", sae, *images, *arguments) == 2
        assert complaint in capsys.readouterr().err
    (folder,) = (path for path in Path(sae).iterdir() if path.is_dir())
    other = ("--images", "shapes:test?n_images=9", "--index", folder, "--concepts", "red")
    assert vit_sae("search", sae, *other) == 2
    assert "but --images is" in capsys.readouterr().err
