"""Trees of latents: edges by hand, files, and the truth of shape scenes."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from tests.analysis.tiny_pipeline import NoisePictures, make_model, make_sae
from tests.evaluation.tiny_setup import identity_sae, tiny_hooked_vit
from vit_sae_plugin.concepts.latent_tree import TREE_FILE, LatentTree, latent_tree, parents_of
from vit_sae_plugin.concepts.tree_truth import _edges, _exchanged, score_tree
from vit_sae_plugin.datasets import ShapeScenes

RULES = {"min_p_parent": 0.8, "max_p_child": 0.5, "min_lift": 2.0, "min_active": 2}
COLORED = "color and shape"


def counts(active):
    active = np.array(active, dtype=float)
    return active @ active.T, active.shape[1]


def test_parents_by_hand():
    everywhere = [1] * 20
    red = [1] * 10 + [0] * 10
    red_ring = [1] * 4 + [0] * 16
    small_red_ring = [1, 1] + [0] * 18
    twin = [1] * 4 + [0] * 16  # of the red ring: neither is above the other
    half_in = [1, 1] + [0] * 16 + [1, 1]
    rare = [1] + [0] * 19
    table = parents_of(
        *counts([everywhere, red, red_ring, small_red_ring, twin, half_in, rare]), **RULES
    )
    # the most special parent; of equal ones the lower number. "Everywhere" is above none: no lift
    assert table["parent"].tolist()[1:5] == [pd.NA, 1, 2, 1]
    assert table["parent"].isna().tolist() == [True, True, False, False, False, True, True]
    assert table.loc[3, ["p_parent", "p_child", "lift"]].tolist() == [1, 0.5, 5]
    assert table.loc[2, ["p_parent", "p_child", "lift"]].tolist() == [1, 0.4, 2]


def test_the_order_of_latents_changes_only_their_numbers():
    generator = np.random.default_rng(0)
    base = generator.random((5, 400)) < 0.3
    active = np.concatenate([base, base[:3] & (generator.random((3, 400)) < 0.4)])
    both, n = counts(active)
    order = generator.permutation(8)
    first = parents_of(both, n, **RULES)
    second = parents_of(both[np.ix_(order, order)], n, **RULES)
    assert first["parent"].notna().sum() == 3
    renamed = second["parent"].map(lambda at: order[at], na_action="ignore")
    for place, latent in enumerate(order):
        assert str(renamed[place]) == str(first["parent"][latent])


@pytest.fixture(scope="module")
def tree():
    model = make_model()
    loose = {"min_p_parent": 0.6, "max_p_child": 0.9, "min_lift": 1.05, "min_active": 5}
    return latent_tree(model, make_sae(model), NoisePictures(10), **loose)


def test_of_images(tree):
    """The same as of all latents at once, counted by hand."""
    model, images = make_model(), NoisePictures(10)
    sae = make_sae(model)
    pixels = torch.stack([model.preprocess(images.picture(i)) for i in range(10)])
    _, cache = model.run_with_cache(pixels, names_filter="blocks.1.hook_resid_post")
    active = sae.encode(cache["blocks.1.hook_resid_post"][:, 1:]).flatten(0, 1) > 0
    assert tree.table["n_active"].tolist() == active.sum(0).tolist()
    assert tree.settings["n_tokens"] == 160
    assert len(tree.roots) > 0
    for latent, row in tree.table[tree.table["parent"].notna()].iterrows():
        both = (active[:, latent] & active[:, int(row["parent"])]).sum().item()
        assert row["p_parent"] == pytest.approx(both / row["n_active"])
    few = latent_tree(model, sae, images, latents=[1, 2, 9])
    assert few.table.index.tolist() == [1, 2, 9]
    assert few.table["n_active"].tolist() == tree.table["n_active"][[1, 2, 9]].tolist()
    top = latent_tree(model, sae, images, k=1)
    assert top.table["n_active"].sum() <= 160


def test_sizes_and_roots(tree):
    n_with_parent = int(tree.table["parent"].notna().sum())
    assert sum(tree.n_descendants(root) for root in tree.roots) == n_with_parent
    assert sum(map(len, tree.children.values())) == n_with_parent


def test_a_tree_is_kept_and_damage_is_noticed(tree, tmp_path):
    path = tree.save(tmp_path)
    again = LatentTree.load(tmp_path, tree.sae_sha256)
    pd.testing.assert_frame_equal(again.table, tree.table)
    assert again.settings == tree.settings
    with pytest.raises(ValueError, match=r"is of the SAE .*; want a tree of this one"):
        LatentTree.load(tmp_path, "0" * 64)
    described = json.loads(path.read_text())
    child = next(latent for latent, row in described["latents"].items() if row[0] is not None)
    circle = json.loads(path.read_text())
    circle["latents"][child][0] = int(child)
    lost = json.loads(path.read_text())
    lost["latents"][child][0] = 9999
    for bad, message in (
        (circle, "a parent is rarer than its child"),
        (lost, "a parent isn't among them"),
        ({**described, "version": 9}, "holds no tree of latents"),
        ([], "holds no tree of latents"),
        ({**described, "latents": {"x": 1}}, "holds no tree of latents"),
    ):
        path.write_text(json.dumps(bad))
        with pytest.raises(ValueError, match=message):
            LatentTree.load(tmp_path, tree.sae_sha256)
    path.unlink()
    with pytest.raises(ValueError, match=f"there is no .*{TREE_FILE}; make it by latent_tree"):
        LatentTree.load(tmp_path, tree.sae_sha256)


def test_bad_settings_are_one_clear_error():
    model = make_model()
    sae, images = make_sae(model), NoisePictures(4)
    for settings, message in (
        ({"latents": [40]}, r"latents are \[40\]; want some from 0 to 39"),
        ({"latents": []}, r"latents are \[\]; want some"),
        ({"min_p_parent": 0}, "min_p_parent is 0; want a share above 0"),
        ({"max_p_child": 1.5}, r"max_p_child is 1\.5"),
    ):
        with pytest.raises(ValueError, match=message):
            latent_tree(model, sae, images, **settings)
    with pytest.raises(ValueError, match="noise has no true hierarchy; want shape scenes"):
        score_tree(model, sae, latent_tree(model, sae, images), images)


def test_which_edges_are_right():
    stands_for = {0: ("color", "red"), 1: ("shape", "ring")}
    stands_for |= {2: (COLORED, "red ring"), 3: (COLORED, "blue ring")}
    parent = pd.array([None, None, 0, 0, 1], dtype="Int64")
    table = pd.DataFrame({"parent": parent}, index=range(5))
    edges = _edges(LatentTree(table, "", {}), stands_for)
    assert edges["is_right"].to_dict() == {2: True, 3: False}
    assert edges["counts"].all()
    low, high, chance = _exchanged(edges, seed=0)
    assert (low, high, chance) == (0.5, 0.5, 0.5)  # both parents are red, whoever has which


def test_edges_on_scenes_are_judged_by_their_concepts():
    model = tiny_hooked_vit()
    sae = identity_sae(model, token_kind="patches")
    scenes = ShapeScenes(24, seed=3)
    tree = latent_tree(model, sae, scenes, min_active=5, min_lift=1.0, min_p_parent=0.5)
    report = score_tree(model, sae, tree, scenes, min_f1=0.02)
    assert report.tree.loc["tree", "n_latents_of_a_concept"] > 0
    counted = report.edges[report.edges["counts"]]
    assert report.tree.loc["tree", "n_edges"] == len(counted)
    for _, edge in counted.iterrows():
        assert edge["is_right"] == (edge["parent_concept"] in edge["concept"].split())
