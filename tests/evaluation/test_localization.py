"""Localization: masks to patches, features, and concepts whose answer is known."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torchvision.transforms import v2

from tests.evaluation.tiny_setup import Pictures, identity_sae, tiny_hooked_vit, tiny_sae
from vit_sae_plugin.datasets import ShapeScenes
from vit_sae_plugin.evaluation.concept_masks import (
    ConceptPatches,
    PatchCoverage,
    scene_concept_masks,
)
from vit_sae_plugin.evaluation.features import (
    LinearFeatures,
    SparseFeatures,
    principal_directions,
    random_directions,
    random_latents,
)
from vit_sae_plugin.evaluation.localization import (
    BASELINES,
    CRITERIA,
    _Method,
    best_candidates,
    localize,
    score_feature,
)
from vit_sae_plugin.evaluation.localization_tables import SCORES, with_intervals

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def model():
    return tiny_hooked_vit()


def known_concepts(model, pictures, neuron=5, above=0.6):
    """A mask where one neuron of the hook is high, so that its latent must be found."""
    _, cache = model.run_with_cache(pictures.batch(model), names_filter=HOOK)
    high = cache[HOOK][:, 1:, neuron].detach() > above
    masks = high.view(-1, 4, 4).numpy().repeat(2, axis=1).repeat(2, axis=2)  # 8 × 8 pixels
    return lambda index: {("neuron", "high"): masks[index], ("neuron", "low"): ~masks[index]}


def test_the_right_latent_is_found_in_the_right_patches(model):
    pictures, sae = Pictures(n_images=16), identity_sae(model)
    report = localize(
        model,
        sae,
        pictures,
        concept_masks=known_concepts(model, pictures),
        batch_size_images=5,
        min_positive_patches=1,
    )
    assert report.localization.index.names == ["selected_by", "method", "kind", "concept"]
    table = report.localization.loc["average_precision"]
    # 64 latents are no more than 32 neurons with their signs
    methods = [name for name in BASELINES if name != "few_latents"]
    assert list(table.index.unique("method")) == ["latents", *methods]
    assert "neurons are 64" in report.notes[0]
    found = table.loc[("latents", "neuron", "high")]
    assert found["feature"] == 5
    assert found[["auroc", "average_precision"]].to_list() == [1, 1]
    assert found["iou"] > 0.8  # its threshold is the other half's
    assert found["pointing_game"] == 1
    neuron = table.loc[("neurons", "neuron", "low")]
    assert (neuron["feature"], neuron["sign"]) == (5, -1)
    assert neuron["auroc"] == 1
    assert table.loc[("random", "neuron", "high"), "auroc"] < 1
    assert report.summary.loc[("auroc", "all", "latents"), "n_concepts"] == 2
    assert set(report.settings["n_candidates"].values()) == {64}


def test_both_criteria_come_of_one_pass_and_equal_each_alone(model, monkeypatch):
    pictures, sae = Pictures(n_images=16), tiny_sae(model, d_sae=100)
    settings = {
        "concept_masks": known_concepts(model, pictures),
        "min_positive_patches": 1,
        "batch_size_images": 4,
    }
    alone = {name: localize(model, sae, pictures, select_by=name, **settings) for name in CRITERIA}
    opened, record = [], pictures.record
    monkeypatch.setattr(pictures, "record", lambda at: opened.append(at) or record(at))
    both = localize(model, sae, pictures, **settings)
    assert sorted(opened) == list(range(16))
    for table in ("summary", "differences", "localization"):
        parts = [alone[name].tables[table] for name in CRITERIA]
        pd.testing.assert_frame_equal(both.tables[table], pd.concat(parts))
    chosen = both.localization["feature"]
    assert (chosen["average_precision"] != chosen["auroc"]).any()


def test_few_candidates_are_the_mean_over_draws_of_the_best_of_each(model):
    pictures, sae = Pictures(n_images=16), tiny_sae(model, d_sae=100)
    masks = known_concepts(model, pictures)
    settings = {"concept_masks": masks, "min_positive_patches": 1, "select_by": "auroc"}
    report = localize(model, sae, pictures, **settings)
    table = report.localization.loc["auroc"]
    n = report.settings["n_candidates"]
    assert n["few_latents"] == n["few_random"] == n["neurons"] == 64
    assert n["random"] == n["latents"] == 100
    assert (table.loc["few_latents", "feature"] == -1).all()
    # of as many as there are, the best is the best
    all_of_them = localize(
        model, sae, pictures, baselines=["few_latents"], **settings
    ).localization.loc["auroc"]
    pd.testing.assert_frame_equal(all_of_them.loc["few_latents"], table.loc["few_latents"])
    method = _Method(*[SparseFeatures(3) for _ in range(2)])
    scores = torch.tensor([[1.0, 0, 3], [2, 0, 0], [9, 9, 1]])
    for features in (method.first, method.second):
        features.append(scores)
    shown = [(torch.tensor([2]), torch.tensor([2]))]
    method.draws = [torch.tensor([0, 2]), torch.tensor([1]), torch.tensor([0, 1, 2])]
    # latents 0 and 1 have the concept's row on top (AUROC 1), latent 2 has it in the middle
    found = method.score(shown, ["auroc"], n_patches=3)["auroc"][0]
    assert (found["auroc"], found["feature"]) == (1, -1)
    method.draws = [torch.tensor([2]), torch.tensor([2, 0])]
    assert method.score(shown, ["auroc"], n_patches=3)["auroc"][0]["auroc"] == 0.75


def test_differences_are_paired_and_kinds_can_weigh_the_same():
    kinds = [("color", "red")] * 3 + [("shape", "star")]
    concepts = [(kind, f"{name} {at}") for at, (kind, name) in enumerate(kinds)]
    index = pd.MultiIndex.from_tuples(
        [("auroc", method, *concept) for method in ("latents", "neurons") for concept in concepts],
        names=["selected_by", "method", "kind", "concept"],
    )
    of_latents, of_neurons = [0.9, 0.5, 0.7, 0.3], [0.8, 0.4, 0.6, 0.5]
    table = pd.DataFrame(dict.fromkeys(SCORES, of_latents + of_neurons), index=index)
    summary, differences = with_intervals(table)
    assert list(summary.index.unique("kind")) == ["color", "shape", "all", "mean of kinds"]
    means = summary["auroc"]["auroc"]
    assert means["all", "latents"] == pytest.approx(0.6)
    assert means["mean of kinds", "latents"] == pytest.approx((0.7 + 0.3) / 2)
    assert summary.loc[("auroc", "color", "latents"), "auroc_low"] < 0.7
    assert differences.index.names == ["selected_by", "kind", "latents_less"]
    color = differences.loc[("auroc", "color", "neurons")]
    # each of the three differs by 0.1, however far apart they lie
    assert [color["iou"], color["iou_low"], color["iou_high"]] == pytest.approx([0.1] * 3)
    all_kinds = differences.loc[("auroc", "all", "neurons")]
    assert all_kinds["auroc"] == pytest.approx((0.3 - 0.2) / 4)
    assert all_kinds["auroc_low"] < 0 < all_kinds["auroc_high"]
    assert differences.loc[("auroc", "mean of kinds", "neurons"), "auroc"] == pytest.approx(-0.05)


@pytest.mark.parametrize("d_sae", [8, 100])
def test_an_sae_that_fires_on_no_concept_scores_by_chance_and_says_so(model, d_sae):
    pictures, sae = Pictures(n_images=16), tiny_sae(model, d_sae=d_sae)
    sae.b_enc.data.fill_(-1e6)
    masks = known_concepts(model, pictures)
    report = localize(model, sae, pictures, concept_masks=masks, min_positive_patches=1)
    table = report.localization.loc["average_precision"]
    assert (table.loc["latents", "auroc"] == 0.5).all()
    shares = table.loc["latents", "share_of_patches"]
    assert table.loc["latents", "average_precision"].to_list() == pytest.approx(shares.to_list())
    assert report.settings["n_live_latents"] == 0
    (note,) = [note for note in report.notes if "no latent fires" in note]
    assert "high, low" in note
    assert (table.loc["neurons", "auroc"] > 0.9).all()


def test_activations_that_are_not_finite_are_refused(model):
    pictures, broken = Pictures(n_images=16), tiny_hooked_vit()
    with torch.no_grad():
        broken.bare_model.visual.conv1.weight[0, 0, 0, 0] = math.inf
    masks = known_concepts(model, pictures)
    with pytest.raises(ValueError, match="the activations that the SAE reads hold NaN"):
        localize(broken, tiny_sae(model), pictures, concept_masks=masks)


def test_batches_and_the_order_of_rows_do_not_change_the_result(model):
    pictures, sae = Pictures(n_images=16), identity_sae(model)
    settings = {
        "concept_masks": known_concepts(model, pictures),
        "min_positive_patches": 1,
        "select_by": "auroc",
    }
    whole = localize(model, sae, pictures, batch_size_images=16, **settings).localization
    parts = localize(model, sae, pictures, batch_size_images=3, **settings).localization
    assert whole["feature"].to_list() == parts["feature"].to_list()
    assert whole["auroc"].to_list() == pytest.approx(parts["auroc"].to_list(), abs=1e-3)


def test_score_feature_by_hand():
    # first half: thresholds 3 → IoU 1/2, 1 → 2/3, 0 → 2/4
    fitted, tested = torch.tensor([3.0, 0, 1, 1]), torch.tensor([1.0, 2, 0, 0])
    scores = score_feature(fitted, tested, torch.tensor([0, 2]), torch.tensor([0, 2]), n_patches=2)
    assert scores["threshold"] == 1
    assert scores["iou"] == pytest.approx(1 / 3)  # said 0 and 1, true 0 and 2
    # pairs (0, 1) wrong, (0, 3) right, (2, 1) wrong, (2, 3) tie
    assert scores["auroc"] == pytest.approx(1.5 / 4)
    # precision 1/2 at 1; 2/4 at 0
    assert scores["average_precision"] == pytest.approx((1 / 2 + 2 / 4) / 2)
    # image 0 points at its wrong patch; image 1 is silent, one of its two patches is right
    assert scores["pointing_game"] == pytest.approx((0 + 1 / 2) / 2)
    assert scores["share_of_patches"] == 0.5


def test_best_features_are_chosen_by_the_criterion_asked_for():
    # positives 0 and 1 of 8. Feature 0 finds one of them, purely; feature 1 ranks both fairly high
    scores = torch.tensor([[9.0, 0, 0, 0, 0, 0, 0, 0], [4.0, 3, 5, 0, 0, 0, 0, 0]])
    features = SparseFeatures(2)
    features.append(scores.T[:4])
    features.append(scores.T[4:])
    positives = [torch.tensor([0, 1])]
    scores = features.scores(positives, CRITERIA)
    assert best_candidates(scores["auroc"]).tolist() == [1]
    assert best_candidates(scores["average_precision"]).tolist() == [0]
    assert best_candidates(torch.ones(9, 2)).tolist() == [0, 0]


def test_sparse_features_give_back_their_columns():
    latents = torch.randn(30, 7, generator=torch.Generator().manual_seed(0)).relu()
    features = SparseFeatures(7)
    for part in latents.split(11):
        features.append(part)
    chosen = torch.tensor([6, 0, 3])
    assert torch.equal(features.columns(chosen), latents.T[chosen])
    features.append(latents)
    assert torch.equal(features.columns(chosen), torch.cat([latents, latents]).T[chosen])


def test_linear_features_know_both_signs():
    acts = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    features = LinearFeatures(acts, torch.eye(3), both_signs=True)
    assert torch.equal(
        features.columns(torch.tensor([1, 4])), torch.stack([acts[:, 1], -acts[:, 1]])
    )
    assert [features.describe(feature) for feature in (1, 4)] == [(1, 1), (1, -1)]


def test_principal_directions_come_strongest_first():
    acts = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    acts = acts * torch.tensor([1.0, 9.0, 3.0])
    directions = principal_directions(acts - acts.mean(0))
    assert directions.abs().argmax(-1).tolist() == [1, 2, 0]
    assert random_directions(5, 3, seed=1).norm(dim=-1).tolist() == pytest.approx([1] * 5)


def test_random_latents_fire_as_often_as_asked():
    # one number a row, so that a score is one product, the same however it is worked out
    numbers = torch.randn(200, generator=torch.Generator().manual_seed(0))
    acts = numbers[:, None] * torch.eye(5)[torch.arange(200) % 5]
    first, second = random_latents(acts, acts[:50], torch.tensor([1, 0, 40, 200]), seed=3)
    assert first.n_active().tolist() == [1, 0, 40, 199]  # the last row is the threshold itself
    scores = random_directions(4, 5, seed=3) @ acts.T
    threshold = scores[2].sort(descending=True).values[40]
    column = torch.tensor([2])
    torch.testing.assert_close(first.columns(column)[0], (scores[2] - threshold).relu())
    torch.testing.assert_close(second.columns(column)[0], (scores[2, :50] - threshold).relu())


def test_pre_activations_are_the_latents_before_their_activation(model):
    pictures, sae = Pictures(n_images=16), identity_sae(model)
    settings = {"concept_masks": known_concepts(model, pictures), "min_positive_patches": 1}
    table = localize(model, sae, pictures, **settings).localization.loc["average_precision"]
    low = table.xs(("neuron", "low"), level=("kind", "concept"))
    # the latent of the neuron's other sign; only before ReLU it ranks what is above zero too
    assert low.loc["pre_activations", "feature"] == low.loc["latents", "feature"] == 5 + 32
    assert low.loc["pre_activations", "auroc"] == 1 > low.loc["latents", "auroc"]
    sae.cfg.normalize_activations = "layer_norm"
    report = localize(model, sae, pictures, **settings)
    assert any("no pre_activations" in note for note in report.notes)
    assert "pre_activations" not in report.settings["n_candidates"]


def test_masks_follow_the_models_own_preprocessing():
    preprocess = v2.Compose(
        [
            v2.Resize(16),
            v2.CenterCrop(16),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]),
        ]
    )
    mask = np.zeros((16, 32), dtype=bool)
    mask[:8, 8:16] = True  # after the crop: the upper left quarter
    mask[:, :8] = True  # cropped away
    mask[12:, 20:24] = True  # half of the lower right patch's left half's height
    coverage = PatchCoverage(preprocess, (2, 2))(mask)
    torch.testing.assert_close(coverage, torch.tensor([[1.0, 0.0], [0.0, 0.25]]))


def test_pixels_past_the_last_whole_patch_are_not_seen():
    coverage = PatchCoverage(
        lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1), (2, 2)
    )
    mask = np.zeros((5, 5), dtype=bool)
    mask[4] = mask[0, :2] = True
    torch.testing.assert_close(coverage(mask), torch.tensor([[0.5, 0.0], [0.0, 0.0]]))
    with pytest.raises(ValueError, match=r"want \[height, width\]"):
        coverage(np.zeros((5, 5, 3)))


def test_concept_patches_are_counted_over_images():
    patches = ConceptPatches(4)
    red, blue = ("color", "red"), ("color", "blue")
    patches.append({red: torch.tensor([[True, False], [False, True]])})
    patches.append(
        {red: torch.tensor([[False, True], [False, False]]), blue: torch.zeros(2, 2).bool()}
    )
    positives = patches.positives()
    assert list(positives) == [red]
    assert positives[red].tolist() == [0, 3, 5]


def test_scene_concepts_join_objects_that_share_one():
    class Thing:
        def __init__(self, color, shape, texture, at):
            self.color, self.shape, self.texture = color, shape, texture
            self.mask = np.zeros((2, 2), dtype=bool)
            self.mask.flat[at] = True

    class Scene:
        objects = (Thing("red", "star", "plain", 0), Thing("red", "ring", "dotted", 3))

    masks = scene_concept_masks(Scene())
    assert masks["color", "red"].flatten().tolist() == [True, False, False, True]
    assert masks["color and shape", "red ring"].flatten().tolist() == [False, False, False, True]
    assert len(masks) == 1 + 2 + 2 + 2


def test_shape_scenes_bring_their_own_masks(model):
    scenes = ShapeScenes(30, n_objects=3, seed=1)
    settings = {"min_coverage": 0.25, "min_positive_patches": 3, "baselines": []}
    table = localize(model, tiny_sae(model), scenes, **settings).localization
    assert {"color", "shape", "texture"} <= {*table.index.get_level_values("kind")}
    assert table["auroc"].between(0, 1).all()
    assert table["n_positive_patches"].min() >= 3


@pytest.mark.parametrize(
    ("token_kind", "kwargs", "message"),
    [
        ("all", {}, "has no masks of its own"),
        ("cls", {"concept_masks": lambda index: {}}, "none of which is a patch"),
        ("all", {"concept_masks": lambda index: {}}, "no concept has 10 patches"),
        ("all", {"concept_masks": lambda index: {}, "select_by": "luck"}, "select_by is .*luck"),
        ("all", {"concept_masks": lambda index: {}, "select_by": []}, "select_by is empty"),
        (
            "all",
            {"concept_masks": lambda index: {}, "baselines": ["magic"]},
            "baselines is .*magic",
        ),
        ("all", {"concept_masks": lambda index: {}, "n_images": 1}, "got 1 images; want 2 or more"),
    ],
)
def test_wrong_input_is_refused(model, token_kind, kwargs, message):
    with pytest.raises(ValueError, match=message):
        localize(model, tiny_sae(model, HOOK, token_kind), Pictures(), **kwargs)


def test_rare_concepts_are_left_out_and_named(model):
    pictures = Pictures(n_images=16)
    masks = known_concepts(model, pictures)
    single = np.ones((8, 8), dtype=bool)

    def with_a_rare_one(index):
        return masks(index) | ({("kind", "rare"): single} if index == 3 else {})

    report = localize(
        model, identity_sae(model), pictures, concept_masks=with_a_rare_one, baselines=[]
    )
    assert "rare" in report.notes[0]
    assert not math.isnan(report.summary.loc[("auroc", "all", "latents"), "auroc"])
