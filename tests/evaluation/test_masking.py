"""The masking study: every condition equals its plain computation, and orders are as defined."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from sae_lens import SkipTranscoder, SkipTranscoderConfig, StandardSAE, StandardSAEConfig

from tests.evaluation.tiny_setup import Pictures, tiny_hooked_vit, tiny_sae
from tests.tiny_models import FAMILIES
from vit_sae_plugin.activations import EmbeddingStatistics
from vit_sae_plugin.attached_sae import AttachedSAE, keep_only, remove
from vit_sae_plugin.evaluation import masking_study as study_module
from vit_sae_plugin.evaluation.classifier_heads import linear_probe_head, zero_shot_head
from vit_sae_plugin.evaluation.latent_ranking import LatentRanking
from vit_sae_plugin.evaluation.masking import MaskingStudy
from vit_sae_plugin.evaluation.masking_study import masking_report, masking_study
from vit_sae_plugin.hooked_vit import HookedViT

HOOK = "blocks.0.hook_resid_post"
TEMPLATES = ["a photo of a {}", "{}"]


@pytest.fixture(scope="module")
def model():
    return tiny_hooked_vit()


def _ranking(d_sae: int, n_classes: int = 3) -> LatentRanking:
    levels = np.random.default_rng(0).random((n_classes, d_sae))
    return LatentRanking(levels, np.full(n_classes, 4))


def _saes(model):
    plain = tiny_sae(model, HOOK)
    patches = tiny_sae(model, HOOK, "patches", seed=1)
    statistics = EmbeddingStatistics(torch.full((patches.cfg.d_in,), 0.1), 0.7, "image", 5)
    patches.cfg.metadata.input_statistics = statistics.to_metadata()
    patches.cfg.metadata.input_scaling = 2.0
    torch.manual_seed(0)
    normalised = StandardSAE(
        StandardSAEConfig(d_in=patches.cfg.d_in, d_sae=48, normalize_activations="layer_norm")
    )
    normalised.cfg.metadata.hook_name = HOOK
    d_model = plain.cfg.d_in
    skipping = SkipTranscoder(
        SkipTranscoderConfig(d_in=d_model, d_out=d_model, d_sae=48, apply_b_dec_to_input=False)
    )
    for parameter in skipping.parameters():
        parameter.data.normal_(std=0.3)
    skipping.cfg.metadata.hook_name = "blocks.1.ln2.hook_normalized"
    skipping.cfg.metadata.hook_name_out = "blocks.1.hook_mlp_out"
    return {"plain": plain, "patches": patches, "layer_norm": normalised, "transcoder": skipping}


@pytest.mark.parametrize("which", ["plain", "patches", "layer_norm", "transcoder"])
@torch.no_grad()
def test_each_condition_equals_one_whole_pass_with_that_edit(model, which):
    """The slow way: for each image and condition a full forward pass with the latents edited."""
    sae, images = _saes(model)[which], Pictures(4)
    attached, ranking = AttachedSAE(model, sae), _ranking(48)
    assert (attached.rows.decoder_matrix() is None) == (which == "layer_norm")
    seen: list[torch.Tensor] = []
    head = zero_shot_head(model, images.class_names, TEMPLATES)

    def recording_head(embeds):
        seen.append(embeds)
        return head(embeds)

    study = MaskingStudy(attached, ranking, recording_head, ks=[1, 7, 500], n_draws=2)
    pixels, labels = images.batch(model), torch.tensor([0, 1, 2, 0])
    correct = study.correct(pixels, labels)
    found = torch.cat(seen).view(len(study.conditions), len(pixels), -1)
    assert len(study.conditions) == 4 + (3 + 2) * 3 * 2 * 2
    for condition, outputs in zip(study.conditions, found, strict=True):
        for at, label in enumerate(labels.tolist()):
            one = pixels[at : at + 1]
            if condition.mask == "original":
                wanted = model(one)
            else:
                if condition.mask in ("all on", "all off"):
                    chosen = range(48) if condition.mask == "all off" else ()
                    edit = remove(chosen)
                else:
                    order = ranking.order(
                        condition.ranking, condition.k, seed=0, draw=condition.draw
                    )[label]
                    edit = (keep_only if condition.mask == "on" else remove)(order)
                wanted = attached.splice(one, edit, use_error_term=condition.error_term)
            torch.testing.assert_close(outputs[at : at + 1], wanted, rtol=1e-3, atol=1e-4)
    logits = head(found.flatten(0, 1)).view(*found.shape[:2], -1)
    assert np.array_equal(correct, (logits.argmax(-1) == labels).T.numpy())


@pytest.mark.parametrize("family", sorted(FAMILIES))
@torch.no_grad()
def test_conditions_of_every_family_equal_splices(family):
    """Of families, too, whose last block runs for the class token alone."""
    model = HookedViT.from_module(FAMILIES[family]())
    attached, ranking = AttachedSAE(model, tiny_sae(model, HOOK)), _ranking(48)
    size = model.cfg.image_size
    height, width = (size, size) if isinstance(size, int) else size
    pixels = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    seen: list[torch.Tensor] = []

    def head(outputs):
        seen.append(outputs)
        return outputs

    study = MaskingStudy(attached, ranking, head, ks=[5], rankings=["class"])
    study.correct(pixels, torch.tensor([0, 2]))
    found = torch.cat(seen).view(len(study.conditions), 2, -1)
    for condition, outputs in zip(study.conditions, found, strict=True):
        if condition.mask not in ("on", "off"):
            continue
        for at, label in enumerate((0, 2)):
            order = ranking.order("class", 5)[label]
            edit = (keep_only if condition.mask == "on" else remove)(order)
            wanted = attached.splice(
                pixels[at : at + 1], edit, use_error_term=condition.error_term
            ).flatten()
            torch.testing.assert_close(outputs[at], wanted, rtol=1e-3, atol=1e-4)


def test_orders_by_hand():
    levels = np.array([[4.0, 3, 0.1, 0, 2], [4, 0, 0, 6, 2]])
    ranking = LatentRanking(levels, np.array([1, 1]))
    assert ranking.order("class", 3).tolist() == [[0, 1, 4], [3, 0, 4]]
    assert ranking.order("dataset", 3).tolist() == [[0, 3, 4], [0, 3, 4]]
    # latent 2 falls on class 0 alone, but is weak there
    assert ranking.order("selective", 5).tolist() == [[1, 0, 4, 2, 3], [3, 0, 4, 1, 2]]
    # twice as many images of class 0 must not make its latents look more selective
    twice = LatentRanking(levels * [[2], [1]], np.array([2, 1]))
    assert np.array_equal(twice.order("selective", 5), ranking.order("selective", 5))
    with pytest.raises(ValueError, match="ranking is 'best'; want one of class, selective"):
        ranking.order("best", 1)


def test_random_orders_take_active_latents_first_and_follow_the_seed():
    levels = np.zeros((2, 10))
    levels[0, [3, 8]], levels[1, 5] = 1, 1
    ranking = LatentRanking(levels, np.array([1, 1]))
    order = ranking.order("random", 10, seed=1, draw=0)
    assert {*order[0, :3].tolist()} == {*order[1, :3].tolist()} == {3, 5, 8}
    assert sorted(order[0].tolist()) == list(range(10))
    assert np.array_equal(order, ranking.order("random", 10, seed=1, draw=0))
    assert not np.array_equal(order, ranking.order("random", 10, seed=1, draw=1))
    assert not np.array_equal(order, ranking.order("random", 10, seed=2, draw=0))


def test_a_study_ranks_on_one_split_and_scores_on_another(model):
    sae = tiny_sae(model, HOOK)
    result = masking_study(
        model,
        sae,
        Pictures(9),
        ranking=Pictures(6, seed=5),
        ks=[1, 5],
        templates=TEMPLATES,
        batch_size_images=4,
    )
    assert result.correct.shape == (9, len(result.conditions))
    overall = result.overall()
    original = overall.loc[("", "original", False, 0)]
    embeds = torch.nn.functional.normalize(model(Pictures(9).batch(model)), dim=-1)
    classifier = model.zero_shot_classifier(["cat", "dog", "owl"], TEMPLATES)
    accuracy = ((embeds @ classifier).argmax(-1) == torch.arange(9) % 3).float().mean().item()
    assert original["accuracy"] == pytest.approx(accuracy)
    assert original["low"] <= original["accuracy"] <= original["high"]
    by_class = result.by_class()
    assert by_class.groupby("label")["n_images"].first().tolist() == [3, 3, 3]
    means = by_class.groupby(["ranking", "mask", "error_term", "k"], sort=False)["accuracy"].mean()
    np.testing.assert_allclose(means.reindex(overall.index), overall["accuracy"])
    assert "masking_by_class" in str(masking_report(result))


def test_an_interrupted_study_goes_on(model, tmp_path, monkeypatch):
    sae, images = tiny_sae(model, HOOK), Pictures(7)
    settings = {
        "ranking": _ranking(48),
        "ks": [1, 5],
        "templates": TEMPLATES,
        "batch_size_images": 2,
        "folder": tmp_path,
    }
    whole = masking_study(model, sae, images, **settings | {"folder": None})
    monkeypatch.setattr(study_module, "_SECONDS_BETWEEN_SNAPSHOTS", -1.0)
    scored = []

    class InterruptedError(Exception):
        pass

    plain = MaskingStudy.correct

    def stop_at_third(self, pixels, labels):
        scored.append(len(pixels))
        if len(scored) == 3:
            raise InterruptedError
        return plain(self, pixels, labels)

    monkeypatch.setattr(MaskingStudy, "correct", stop_at_third)
    with pytest.raises(InterruptedError):
        masking_study(model, sae, images, **settings)
    with pytest.raises(ValueError, match="unfinished masking study with other settings"):
        masking_study(model, sae, images, **settings | {"seed": 1})
    resumed = masking_study(model, sae, images, **settings)
    assert scored == [2, 2, 2, 2, 1]  # the third batch again, the first two not
    assert resumed.image_id == whole.image_id
    assert np.array_equal(resumed.correct, whole.correct)
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_is_refused_before_anything_runs(model, monkeypatch):
    sae, images = tiny_sae(model, HOOK), Pictures(6)
    good = {"ranking": _ranking(48), "templates": TEMPLATES}
    cases = [
        ({"ranking": _ranking(9)}, "ranking is of 9 latents, but the SAE has 48"),
        ({"ranking": _ranking(48, 4)}, "ranking is of 4 classes, but pictures has 3"),
        ({"ranking": Pictures(6)}, "ranked and scored on the same images, pictures"),
        ({"ranking": Pictures(2)}, "1 classes have no image to rank latents by, among them 'owl'"),
        ({"class_names": ["cat"]}, "class_names has 1 names; want 3"),
        ({"ks": [0]}, "ks is (0,); want numbers of latents from 1 on"),
        ({"rankings": ["best"]}, "rankings holds ['best']"),
        ({"n_draws": 0}, "n_draws is 0"),
    ]
    for wrong, message in cases:
        if wrong.get("ranking") and isinstance(wrong["ranking"], Pictures):
            wrong = wrong | {"allow_same_images": wrong["ranking"].n_images == 2}
        with pytest.raises(ValueError, match=re.escape(message)):
            masking_study(model, sae, images, **good | wrong)
    # with images to count on, all but a class without any is refused before one is looked at
    monkeypatch.setattr(LatentRanking, "from_images", None)
    for wrong, message in cases:
        if "ranking" not in wrong or message.startswith("ranked"):
            fresh = {"ranking": Pictures(6, seed=5), "templates": TEMPLATES}
            with pytest.raises(ValueError, match=re.escape(message)):
                masking_study(model, sae, images, **fresh | wrong)
    two = Pictures(6, ("cat", "dog"), seed=5)
    with pytest.raises(ValueError, match="ranking is of 2 classes, but pictures has 3"):
        masking_study(model, sae, images, ranking=two, templates=TEMPLATES)
    narrow = StandardSAE(StandardSAEConfig(d_in=8, d_sae=48))
    narrow.cfg.metadata.hook_name = HOOK
    with pytest.raises(ValueError, match="is 32 wide, but the SAE's d_in is 8"):
        masking_study(model, narrow, images, **good)
    elsewhere = tiny_sae(model, HOOK)
    elsewhere.cfg.metadata.hook_name = "blocks.9.hook_resid_post"
    with pytest.raises(ValueError, match=r"no hook 'blocks\.9\.hook_resid_post'"):
        masking_study(model, elsewhere, images, **good)
    blind = tiny_hooked_vit(tokenizer=None)
    with pytest.raises(ValueError, match=r"tiny has no tokenizer.*pass head="):
        masking_study(blind, tiny_sae(blind, HOOK), images, **good)
    unlabelled = Pictures(6, labelled=False)
    with pytest.raises(ValueError, match="has no labels"):
        masking_study(model, sae, unlabelled, **good)


def test_a_linear_probe_may_be_the_head(model):
    from vit_sae_plugin.evaluation import fit_linear_probe

    images = Pictures(6)
    with torch.no_grad():
        embeds = model(images.batch(model))
    probe = fit_linear_probe(embeds, torch.arange(6) % 3)
    result = masking_study(
        model, tiny_sae(model, HOOK), images, ranking=_ranking(48), ks=[48], head=probe
    )
    assert result.overall().loc[("", "original", False, 0), "accuracy"] == pytest.approx(
        probe.accuracy(embeds, torch.arange(6) % 3)
    )
    table = result.overall()["accuracy"]
    assert table[("class", "on", False, 48)] == table[("", "all on", False, 48)]
    assert table[("class", "off", True, 48)] == table[("", "all off", True, 0)]
    fitted = linear_probe_head(model, images, images, batch_size_images=4, progress=False)
    torch.testing.assert_close(fitted(embeds), probe(embeds), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="have 2 classes and pictures 3; want the same"):
        linear_probe_head(model, Pictures(6, ("cat", "dog")), images)


def test_prompts_may_be_those_of_the_data_set(model):
    images = Pictures(6)
    with pytest.raises(ValueError, match=r"only benchmark data sets have, and not pictures; want"):
        zero_shot_head(model, images.class_names, "own", images=images)
    images.templates = TEMPLATES
    with torch.no_grad():
        embeds = model(images.batch(model))
        own = zero_shot_head(model, images.class_names, "own", images=images)(embeds)
        given = zero_shot_head(model, images.class_names, TEMPLATES)(embeds)
        published = zero_shot_head(model, images.class_names, TEMPLATES, renormalize_average=False)
    assert torch.equal(own, given)
    assert not torch.allclose(own, published(embeds))


def test_an_atlas_of_another_model_is_refused(model, tmp_path):
    from tests.tiny_models import tiny_open_clip
    from vit_sae_plugin.analysis import analyze

    sae, images = tiny_sae(model, HOOK), Pictures(6)
    atlas = analyze(model, sae, Pictures(9, seed=3), progress=False)
    settings = {"preprocess": model.preprocess, "tokenizer": model.tokenizer}
    other = HookedViT.from_module(tiny_open_clip(seed=1), model_name="tiny", **settings)
    good = masking_study(model, sae, images, ranking=atlas, templates=TEMPLATES, ks=[1])
    assert len(good.label) == 6
    with pytest.raises(ValueError, match="the atlas was made from the model"):
        masking_study(other, sae, images, ranking=atlas, templates=TEMPLATES, ks=[1])
